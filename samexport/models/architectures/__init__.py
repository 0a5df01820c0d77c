"""Faithful networks: official state-dict keys and numerics, one architecture a file."""
