"""What is installed here, and the one command that mends what is not."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

from samexport.errors import ConfigError
from samexport.exporter.to_tflite import onnx2tf_process as onnx2tf
from samexport.runtimes.adapters.litert_gpu import find_driver, why_unavailable
from samexport.runtimes.base import availability

_EXPORT = ("torch", "onnx", "onnxscript", "onnxslim", "safetensors", "requests", "pycocotools")


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` is empty where nothing needs mending."""

    name: str
    ok: bool
    version: str
    remedy: str


def examine() -> list[Finding]:
    """Look at Python, the packages of the exporter and every runtime; imports none of them."""
    findings = [Finding("python", True, platform.python_version(), "")]
    for package in _EXPORT:
        version = _version(package)
        remedy = "" if version else "pip install samexport"
        findings.append(Finding(f"export: {package}", bool(version), version, remedy))
    for runtime in availability():
        name = f"runtime: {runtime.name} ({runtime.file_format})"
        findings.append(Finding(name, runtime.available, runtime.version, runtime.remedy))
    findings.append(_second_converter())
    missing = why_unavailable()
    findings.append(Finding("verify --gpu (tflite)", not missing, "" if missing else str(find_driver()), missing))
    return findings


def _second_converter() -> Finding:
    """Whether there is a Python that onnx2tf runs on; its environment is made on first use."""
    name = "export: onnx2tf (tflite)"
    try:
        return Finding(name, True, f"{onnx2tf.VERSION} on {onnx2tf.find_python()}", "")
    except ConfigError as error:
        return Finding(name, False, "", str(error))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
