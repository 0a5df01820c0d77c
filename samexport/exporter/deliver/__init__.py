"""What goes with the files: model card, Android demo."""
