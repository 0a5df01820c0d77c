"""Readers of TFLite files and CoreML packages."""
