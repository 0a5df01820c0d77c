"""Export Segment-Anything models for phones: ONNX, TFLite and CoreML bundles with proven parity."""

__version__ = "0.1.0"
