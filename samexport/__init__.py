"""Export Segment-Anything models for phones: ONNX, TFLite and CoreML bundles with proven parity."""

import os

# read when onnxruntime is imported, by whatever comes first
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
