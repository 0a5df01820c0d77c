"""What is exported: model data and PyTorch modules. Knows no file format and no runtime."""
