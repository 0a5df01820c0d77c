"""Families of models: each is one object in one file, pure data."""
