"""What is installed here, and the one command that mends what is not."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import samexport
from samexport.benchmarks.contenders.known import variants
from samexport.cli.terminal import size_text, written_files
from samexport.errors import ConfigError
from samexport.exporter.to_tflite import onnx2tf_process as onnx2tf
from samexport.installation import install_hint, installation
from samexport.models.weights.downloads import cache_folder
from samexport.runtimes.adapters.litert_gpu import find_driver, why_unavailable
from samexport.runtimes.registry import availability, version

_BASE = ("numpy", "pillow", "onnx", "pycocotools")
_EXTRAS = {
    "export": ("torch", "onnxscript", "onnxslim", "safetensors", "requests"),
    "bench": ("psutil", "matplotlib"),
    "eval": ("scipy",),
    "train": ("scikit-image", "matplotlib"),
    "ray": ("ray", "pyarrow"),
    "video": ("av",),
}
_TELEMETRY = "ORT_DISABLE_TELEMETRY"


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``version`` may be another fact, ``remedy`` is empty where nothing needs mending."""

    name: str
    ok: bool
    version: str
    remedy: str

    @property
    def state(self) -> str:
        """In a word."""
        return "ok" if self.ok else "MISSING"


def examine() -> list[Finding]:
    """Look at Python, the packages of the exporter, every runtime and the cache; imports no framework."""
    return [*_around(), *_packages(), *_runtimes()]


def _around() -> Iterator[Finding]:
    yield Finding("samexport", True, f"{samexport.__version__}, {installation()}", "")
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}", "")
    try:
        cache = cache_folder()
        held = f"{size_text(sum(written_files(cache).values()))}" if cache.is_dir() else "not there yet"
        yield Finding("cache", True, f"{cache}, {held}", "")
    except (ConfigError, OSError, RuntimeError) as error:
        yield Finding("cache", False, "", f"{error}; set SAMEXPORT_CACHE to another folder")
    off = os.environ.get(_TELEMETRY, "0") not in ("", "0")
    remedy = "" if off else f"set the environment variable {_TELEMETRY}=1"
    yield Finding("telemetry of onnxruntime is off", off, "", remedy)


def _packages() -> Iterator[Finding]:
    for package in _BASE:
        found = version(package)
        yield Finding(package, bool(found), found, "" if found else install_hint(package=package))
    for extra, packages in _EXTRAS.items():
        for package in packages:
            found = version(package)
            yield Finding(f"{extra}: {package}", bool(found), found, "" if found else install_hint(extra))


def _runtimes() -> Iterator[Finding]:
    for runtime in availability():
        name = f"runtime: {runtime.name} ({runtime.file_format})"
        yield Finding(name, runtime.available, runtime.version, runtime.remedy)
    yield _second_converter()
    missing = why_unavailable()
    yield Finding("verify --gpu (tflite)", not missing, "" if missing else str(find_driver()), missing)
    for name, reason in variants():
        yield Finding(f"bench: {name}", not reason, "", reason)


def _second_converter() -> Finding:
    """Whether there is a Python that onnx2tf runs on; its environment is made on first use."""
    name = "export: onnx2tf (tflite)"
    try:
        return Finding(name, True, f"{onnx2tf.VERSION} on {onnx2tf.find_python()}", "")
    except ConfigError as error:
        return Finding(name, False, "", str(error))
