"""Weights: files, detectors' files, seeded random numbers."""
