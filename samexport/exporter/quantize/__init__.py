"""Quantizes the files of a bundle, and judges them by their masks. Needs no torch."""
