"""Whole tasks on a bundle: a picture and prompts, everything in a picture."""
