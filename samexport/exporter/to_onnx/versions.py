"""Which version of the ONNX format an opset needs at least, and which ONNX Runtime reads it."""

from __future__ import annotations

# opset: (lowest IR version that may hold it, first ONNX Runtime that knows both); found by running our files on
# ONNX Runtime 1.15 to 1.23, older ones were not tried
_VERSIONS = {
    18: (8, "1.15"),
    19: (9, "1.16"),
    20: (9, "1.17"),
    21: (10, "1.18"),
    22: (10, "1.21"),
    23: (11, "1.23"),
}
OPSETS = frozenset(_VERSIONS)


def ir_version(opset: int) -> int:
    """The lowest IR version that may hold the opset: a higher one only keeps older runtimes out."""
    return _VERSIONS[opset][0]


def oldest_onnxruntime(opset: int) -> str:
    """The first version of ONNX Runtime that reads our files of an opset, such as ``"1.17"``."""
    return _VERSIONS[opset][1]
