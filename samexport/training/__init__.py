"""TRAINS weights: drawn scenes, and the loop that learns to segment them. Nothing but the command line imports it."""
