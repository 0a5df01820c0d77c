"""CoreML packages."""
