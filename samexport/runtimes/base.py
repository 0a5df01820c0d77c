"""The one protocol that all runtimes follow, how to open a file with one, and which can run here.

PyTorch is just another runtime; it is the reference that the others are compared with.
"""

from __future__ import annotations

import importlib.metadata
import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError, FileError, MissingDependency, ParityFailed, RuntimeFailed
from samexport.files import open_regular, reason
from samexport.installation import install_hint
from samexport.models.spec import GraphSpec, axis_sizes

if TYPE_CHECKING:
    from samexport.runtimes.adapters.entry_points import Bucket

Tensors = dict[str, NDArray[Any]]

MOST_THREADS = max(256, os.cpu_count() or 1)
"""More than that only cost memory and time, and very many end the process."""


class Runtime(ABC):
    """An opened graph: ``run`` checks inputs and outputs against the spec, subclasses compute.

    Use as a context manager, or call :meth:`close`. ``entry_points`` are those of fixed size, which smaller numbers
    of prompts are filled up to; empty where every number runs as it is.
    """

    name: str
    entry_points: tuple[Bucket, ...] = ()
    notice: str = ""
    """What a user should know before waiting for it; empty for nothing."""

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self._closed = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Compute every output of the graph.

        Args:
            inputs: exactly the tensors of ``graph.inputs``, float32, shapes as specified.

        Raises:
            ConfigError: an input is missing, unknown, or has the wrong dtype or shape.
            ParityFailed: the file returned other outputs or shapes than its spec promises.
            RuntimeFailed: it does not run, or is closed.
        """
        if self._closed:
            raise RuntimeFailed(f"{self.graph.name} is closed; open its file again")
        wanted = set(self.graph.input_names)
        if set(inputs) != wanted:
            raise ConfigError(f"{self.graph.name} takes {sorted(wanted)}, got {sorted(inputs)}")
        for tensor in self.graph.inputs:
            if inputs[tensor.name].dtype != np.dtype(tensor.dtype):
                raise ConfigError(f"{tensor.name} must be {tensor.dtype}, got {inputs[tensor.name].dtype}")
        try:
            axis_sizes(self.graph.inputs, {k: v.shape for k, v in inputs.items()})
        except ValueError as error:
            raise ConfigError(f"{self.graph.name}: {error}") from error
        outputs = self._run({name: np.ascontiguousarray(inputs[name]) for name in self.graph.input_names})
        self._check_outputs(inputs, outputs)
        return outputs

    def _check_outputs(self, inputs: Mapping[str, NDArray[Any]], outputs: Tensors) -> None:
        if set(outputs) != set(self.graph.output_names):
            raise ParityFailed(f"{self.graph.name} returned {sorted(outputs)}, not {self.graph.output_names}")
        shapes = {k: v.shape for k, v in {**inputs, **outputs}.items()}
        try:
            axis_sizes((*self.graph.inputs, *self.graph.outputs), shapes)
        except ValueError as error:
            raise ParityFailed(f"{self.graph.name}: {error}") from error

    @abstractmethod
    def _run(self, inputs: Tensors) -> Tensors:
        """Compute; inputs are checked and contiguous."""

    @abstractmethod
    def placement(self) -> str:
        """Where the graph really runs: provider, delegate, device, threads."""

    def close(self) -> None:
        """Release what the runtime holds; it cannot run afterwards. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        """Let go of what the runtime holds; called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def describe(runtime: Runtime) -> str:
    """Name and placement in one text."""
    return f"{runtime.name}: {runtime.placement()}"


@dataclass(frozen=True)
class RuntimeInfo:
    """How to open one kind of file: the class (dotted path), the package it needs, the extra that installs it.

    Without an ``extra`` samexport itself needs the package. ``platform`` is the ``sys.platform`` that it is
    limited to, empty for none. ``arithmetic`` is another package that it computes with, empty for none.
    """

    name: str
    file_format: str
    opener: str
    package: str
    extra: str
    platform: str = ""
    arithmetic: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        if self.platform not in ("", sys.platform):
            return f"runs on {self.platform} only"
        if version(self.package) and self.arithmetic and not version(self.arithmetic):
            return install_hint(package=self.arithmetic)
        return "" if version(self.package) else self.remedy

    @property
    def remedy(self) -> str:
        """The command that installs its package."""
        return install_hint(self.extra) if self.extra else install_hint(package=self.package)


RUNTIMES: dict[str, RuntimeInfo] = {
    info.name: info
    for info in (
        RuntimeInfo("onnxruntime", "onnx", "samexport.runtimes.adapters.ort:OrtRuntime", "onnxruntime", ""),
        RuntimeInfo(
            "openvino",
            "onnx",
            "samexport.runtimes.adapters.openvino:OpenVinoRuntime",
            "openvino",
            "openvino",
        ),
        RuntimeInfo(
            "litert",
            "tflite",
            "samexport.runtimes.adapters.litert:LiteRtRuntime",
            "ai-edge-litert",
            "tflite",
        ),
        RuntimeInfo(
            "coreml",
            "coreml",
            "samexport.runtimes.adapters.coreml:CoreMLRuntime",
            "coremltools",
            "coreml",
            platform="darwin",
        ),
        RuntimeInfo(
            "mil",
            "coreml",
            "samexport.runtimes.adapters.mil:MilRuntime",
            "coremltools",
            "coreml",
            arithmetic="torch",
        ),
    )
}


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can run here; ``remedy`` is the command that mends it (or why none does), empty if it can."""

    name: str
    file_format: str
    available: bool
    version: str
    remedy: str


def availability() -> list[Availability]:
    """Look at every known runtime without importing it."""
    return [
        Availability(info.name, info.file_format, not info.missing, version(info.package), info.missing)
        for info in RUNTIMES.values()
    ]


def checkers(file_format: str) -> tuple[str, ...]:
    """The runtimes that a parity check uses here: all that run on this platform alone, and one that runs anywhere."""
    readers = [info for info in RUNTIMES.values() if info.file_format == file_format]
    own = [info.name for info in readers if info.platform == sys.platform]
    return (*own, *[info.name for info in readers if not info.platform][:1])


def version(package: str) -> str:
    """Of an installed package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_runtime(name: str | None, formats: Collection[str]) -> None:
    """ConfigError unless ``name`` is None or a runtime that reads files of one of ``formats``."""
    if name is None:
        return
    if name not in RUNTIMES:
        raise ConfigError(f"there is no runtime {name!r}; known: {', '.join(RUNTIMES)}")
    reads = RUNTIMES[name].file_format
    if reads not in formats:
        raise ConfigError(f"{name} reads {reads} files, not {', '.join(sorted(formats))}")


def check_threads(count: int | None) -> None:
    """ConfigError unless ``count`` is None or a number of threads that a runtime can be given."""
    if count is not None and not 1 <= count <= MOST_THREADS:
        raise ConfigError(f"--threads takes 1 to {MOST_THREADS}, not {count}")


def check_file(path: Path) -> None:
    """BundleError unless ``path`` is a regular file that can be read: native code may hang on others, or crash."""
    try:
        with open_regular(path):
            pass
    except FileError as error:
        raise BundleError(str(error)) from error


def open_runtime(
    path: Path, graph: GraphSpec, file_format: str, *, runtime: str | None = None, threads: int | None = None
) -> Runtime:
    """Open a file of ``file_format`` with the named runtime, or with the first that reads the format here.

    Raises:
        ConfigError: no such runtime, or it does not read this format, or ``threads`` is out of bounds.
        MissingDependency: its package is not installed.
        BundleError: the file cannot be opened.
    """
    check_threads(threads)
    readers = [i for i in RUNTIMES.values() if i.file_format == file_format]
    chosen = [i for i in readers if runtime == i.name or (runtime is None and i.platform in ("", sys.platform))]
    if not chosen:
        names = ", ".join(i.name for i in readers) or "none"
        raise ConfigError(f"runtime {runtime!r} does not read {file_format} files; these do: {names}")
    info = chosen[0]
    try:
        opened: Runtime = pkgutil.resolve_name(info.opener)(path, graph, threads=threads)
    except ModuleNotFoundError as error:
        remedy = install_hint(package=error.name) if error.name == info.arithmetic else info.remedy
        raise MissingDependency(f"{info.name} needs {error.name}: {remedy}") from error
    except ImportError as error:
        # a package whose native part does not load
        raise MissingDependency(f"{info.name} cannot be loaded: {reason(error)}; try again: {info.remedy}") from error
    return opened
