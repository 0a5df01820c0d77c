"""Every runtime as data: how a kind of file is opened, which can run here, and which checks a format."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from samexport.errors import ConfigError, MissingDependency
from samexport.files import reason
from samexport.installation import install_hint
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, check_threads


@dataclass(frozen=True)
class RuntimeInfo:
    """How to open one kind of file: the class (dotted path), the package it needs, the extra that installs it.

    Without an ``extra`` samexport itself needs the package. ``platform`` is the ``sys.platform`` that it is
    limited to, empty for none. ``arithmetic`` is another package that it computes with, of the extra [export], empty
    for none.
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
            return install_hint("export")
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
            "litert",
        ),
        RuntimeInfo(
            "coreml",
            "coreml",
            "samexport.runtimes.adapters.coreml:CoreMLRuntime",
            "coremltools",
            "coremltools",
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


PATHS: dict[str, RuntimeInfo] = {
    name: replace(RUNTIMES[of], name=name, opener=opener)
    for name, of, opener in (
        ("onnxruntime-unoptimised", "onnxruntime", "samexport.runtimes.adapters.ort:OrtUnoptimised"),
        ("litert-reference", "litert", "samexport.runtimes.adapters.litert:LiteRtReference"),
        ("mil-fp32", "mil", "samexport.runtimes.adapters.mil:MilSingle"),
        ("mil-accumulate", "mil", "samexport.runtimes.adapters.mil:MilAccumulate"),
    )
}
"""Other ways to run what a runtime reads: other kernels, or none joined. Files in integers are checked on each."""

ROUGH: dict[str, RuntimeInfo] = {
    "openvino-bf16": replace(
        RUNTIMES["openvino"],
        name="openvino-bf16",
        opener="samexport.runtimes.adapters.openvino:OpenVinoBf16Runtime",
    ),
}
"""Runtimes that compute in fewer bits than a file holds: quicker, by name alone, and no check of the file."""


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


def paths(file_format: str) -> tuple[str, ...]:
    """Every way to run a format here besides :func:`checkers`: other runtimes that are installed, and :data:`PATHS`."""
    known = [info.name for info in (*RUNTIMES.values(), *PATHS.values()) if info.file_format == file_format]
    every = RUNTIMES | PATHS
    return tuple(name for name in known if name not in checkers(file_format) and not every[name].missing)


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
    if name in ROUGH:
        raise ConfigError(f"{name} computes in fewer bits than the files hold, so it checks none; take another runtime")
    if name not in RUNTIMES:
        raise ConfigError(f"there is no runtime {name!r}; known: {', '.join(RUNTIMES)}")
    reads = RUNTIMES[name].file_format
    if reads not in formats:
        raise ConfigError(f"{name} reads {reads} files, not {', '.join(sorted(formats))}")


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
    named = PATHS | ROUGH
    if runtime in named and named[runtime].file_format == file_format:
        readers = [named[runtime]]
    chosen = [i for i in readers if runtime == i.name or (runtime is None and i.platform in ("", sys.platform))]
    if not chosen:
        names = ", ".join(i.name for i in (*readers, *ROUGH.values()) if i.file_format == file_format) or "none"
        raise ConfigError(f"runtime {runtime!r} does not read {file_format} files; these do: {names}")
    info = chosen[0]
    try:
        opened: Runtime = pkgutil.resolve_name(info.opener)(path, graph, threads=threads)
    except ModuleNotFoundError as error:
        remedy = install_hint("export") if error.name == info.arithmetic else info.remedy
        raise MissingDependency(f"{info.name} needs {error.name}: {remedy}") from error
    except ImportError as error:
        # a package whose native part does not load
        raise MissingDependency(f"{info.name} cannot be loaded: {reason(error)}; try again: {info.remedy}") from error
    return opened
