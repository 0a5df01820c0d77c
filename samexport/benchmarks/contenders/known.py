"""Who takes part: every runtime of ``runtimes.base``, and the variants that only a benchmark wants. All as data."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from samexport.benchmarks.results.rows import Job
from samexport.errors import ConfigError
from samexport.installation import install_hint
from samexport.runtimes.base import Runtime
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.registry import RUNTIMES, availability, open_runtime

_HERE = "samexport.benchmarks.contenders"


@dataclass(frozen=True)
class Contender:
    """One way to run a graph.

    Attributes:
        name: what ``--runtime`` takes.
        file_format: of the files it reads; empty for PyTorch, which builds the graph itself.
        opener: dotted path ``module:function`` of ``(Job, Bundle) -> Runtime``.
        arithmetic: fp32, bf16 or fp16, where it is not the file's own.
        device: cpu or cuda.
        default: takes part when no runtime is named.
        timed: False where time means nothing.
        package: the runtime of ``runtimes.base`` that must be installed, where the name is not that.
        prepare: dotted path of ``(Job, Bundle) -> Job``, work that is not part of the load time.
    """

    name: str
    file_format: str
    opener: str = f"{_HERE}.known:open_file"
    arithmetic: str = ""
    device: str = "cpu"
    default: bool = True
    timed: bool = True
    package: str = ""
    prepare: str = ""

    def computes(self, precision: str) -> str:
        """The arithmetic for a file of ``precision``: what the roofline depends on."""
        return self.arithmetic or precision

    def recipes(self, precision: str) -> tuple[str, str]:
        """What decides how close is close enough: the file's precision and the arithmetic."""
        return precision, self.computes(precision)


def _ort(name: str, **options: str) -> Contender:
    device = "cpu" if not options.get("device") else options["device"]
    opener, prepare = f"{_HERE}.ort_variants:open_variant", options.get("prepare", "")
    return Contender(name, "onnx", opener, device=device, default=device != "cpu", prepare=prepare)


def _torch(name: str, arithmetic: str = "fp32", device: str = "cpu", *, default: bool = True) -> Contender:
    opener = f"{_HERE}.torch_variants:open_variant"
    return Contender(name, "", opener, arithmetic=arithmetic, device=device, default=default)


_UNTIMED = ("mil",)  # an interpreter that stands in for an iPhone
_ARITHMETIC = {"openvino": "fp32"}  # whatever the file holds
_KNOWN = (
    *(
        Contender(
            info.name, info.file_format, arithmetic=_ARITHMETIC.get(info.name, ""), timed=info.name not in _UNTIMED
        )
        for info in RUNTIMES.values()
    ),
    Contender("openvino-bf16", "onnx", arithmetic="bf16", package="openvino", default=False),
    _ort("onnxruntime-basic"),
    _ort("onnxruntime-extended"),
    _ort("onnxruntime-saved", prepare=f"{_HERE}.ort_variants:save_optimised"),
    _ort("onnxruntime-cuda", device="cuda"),
    _ort("onnxruntime-tensorrt", device="cuda"),
    _torch("pytorch"),
    # a compilation takes a minute a row, and bfloat16 is slow on most processors
    _torch("pytorch-compile", default=False),
    _torch("pytorch-bf16", arithmetic="bf16", default=False),
    _torch("pytorch-cuda", device="cuda"),
    _torch("pytorch-cuda-compile", device="cuda", default=False),
    _torch("pytorch-cuda-graph", device="cuda"),
    _torch("pytorch-cuda-fp16", device="cuda", arithmetic="fp16"),
    _torch("pytorch-cuda-bf16", device="cuda", arithmetic="bf16"),
)
KNOWN: dict[str, Contender] = {c.name: c for c in _KNOWN}


def find(name: str) -> Contender:
    """The contender called ``name``; ConfigError lists them all."""
    if name not in KNOWN:
        raise ConfigError(f"no runtime is called {name!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name]


def why_not(contender: Contender) -> str:
    """Why it cannot run here, with the remedy; empty if it can. Imports no runtime but ONNX Runtime."""
    if contender.device == "cuda" and not Path("/proc/driver/nvidia/version").exists():
        return "there is no NVIDIA driver here"
    if contender.name in _NEEDS_PROVIDER and _NEEDS_PROVIDER[contender.name] not in _ort_providers():
        return "this ONNX Runtime has no such provider; pip install onnxruntime-gpu instead of onnxruntime"
    if not contender.file_format and importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {install_hint('export')}"
    needed = [a for a in availability() if a.name == (contender.package or contender.name)]
    return f"not available: {needed[0].remedy}" if needed and not needed[0].available else ""


def variants() -> list[tuple[str, str]]:
    """What only a benchmark runs, each with why it cannot run here (empty if it can); and adb, for phones."""
    found = [(c.name, why_not(c)) for c in KNOWN.values() if c.name not in RUNTIMES]
    adb = "" if shutil.which("adb") else "there is no adb (Android platform-tools) on the PATH"
    return [*found, ("Android phones", adb)]


_NEEDS_PROVIDER = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


def _ort_providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def open_file(job: Job, bundle: Bundle) -> Runtime:
    """Open the job's file with the runtime of that name, exactly as a user of the bundle would."""
    file_format = find(job.runtime).file_format
    path, graph = bundle.folder / job.file, bundle.graph(job.graph)
    return open_runtime(path, graph, file_format, runtime=job.runtime, threads=job.threads)
