"""One class for each runtime, all with the same interface."""
