"""Runs a file or a PyTorch module, and compares two of them. Importable without torch."""
