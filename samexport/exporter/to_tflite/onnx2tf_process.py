"""The second TFLite converter: onnx2tf 2.x on our ONNX, in a Python environment of its own.

It shares no code with litert-torch, so where both agree neither is wrong by itself; the forms before it and the
passes after it are the same. It needs Python 3.12 or 3.13 and pins every dependency to one version, which no other
environment would take: the environment is made on first use, in the cache. It rewrites the ONNX file that it is
given (here a private one), turns inputs to channels last unless told not to, and writes one entry point a file;
:mod:`tflite_merge` mends the last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samexport.errors import ConfigError, ExportFailed, MissingDependency
from samexport.exporter.to_tflite.merge import keep_layout, merge
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.models.weights.downloads import cache_folder
from samexport.runtimes.adapters.entry_points import Bucket
from samexport.runtimes.formats.tflite import read_model

if TYPE_CHECKING:
    from torch import nn

VERSION = "2.6.9"
PYTHON_VARIABLE = "SAMEXPORT_ONNX2TF_PYTHON"
_VERSIONS = ("3.12", "3.13")
_REMEDY = f"install one (`uv python install {_VERSIONS[0]}`), or name it with --python or {PYTHON_VARIABLE}"
_PROBE_SECONDS, _INSTALL_SECONDS, _CONVERT_SECONDS = 30, 1800, 1800


def find_python(asked: Path | None = None) -> Path:
    """An interpreter that onnx2tf runs on: ``asked``, the environment variable's, one on PATH, or one that uv knows.

    Raises:
        ConfigError: the one that was asked for is of another version or does not run.
        MissingDependency: there is none.
    """
    named = asked or (Path(os.environ[PYTHON_VARIABLE]) if os.environ.get(PYTHON_VARIABLE) else None)
    if named is not None:
        found = _version(str(named))
        if found not in _VERSIONS:
            what = f"is Python {found}" if found else "does not run"
            raise ConfigError(f"{named} {what}; onnx2tf needs Python {' or '.join(_VERSIONS)}")
        return named
    for version in _VERSIONS:
        for path in (shutil.which(f"python{version}"), _said(["uv", "python", "find", version])):
            # pyenv puts commands on PATH that only say that they are not installed
            if path and _version(path) == version:
                return Path(path)
    raise MissingDependency(f"onnx2tf needs Python {' or '.join(_VERSIONS)} and none was found; {_REMEDY}")


def _version(python: str) -> str:
    """``"3.12"``, or empty if it does not run."""
    return _said([python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])


def _said(command: Sequence[str]) -> str:
    """What a command prints; empty if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment(python: Path) -> Path:
    """The interpreter of the environment with onnx2tf; made by ``python`` if the cache has none, which takes a minute.

    Raises:
        MissingDependency: it cannot be made; the message is the last line of what failed.
    """
    folder = cache_folder() / f"onnx2tf-{VERSION}-python{_version(str(python))}"
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if inside.exists():
        return inside
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise MissingDependency(f"{folder.parent} cannot be written ({error.strerror}); set SAMEXPORT_CACHE") from error
    try:
        made = private / folder.name
        _install([str(python), "-I", "-m", "venv", str(made)])
        package = [f"onnx2tf=={VERSION}", "--only-binary=:all:"]
        _install([str(made / inside.relative_to(folder)), "-I", "-m", "pip", "install", "--quiet", *package])
        with contextlib.suppress(OSError):
            # another process may have been faster; its environment is as good
            made.rename(folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return inside


def _install(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise MissingDependency(f"the environment of onnx2tf was not made in {_INSTALL_SECONDS} s") from error
    if done.returncode != 0:
        raise MissingDependency(f"the environment of onnx2tf cannot be made: {_last_line(done)}")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for text in (done.stdout, done.stderr) for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else f"exit code {done.returncode}"


def write(graph: GraphSpec, module: nn.Module, entries: Sequence[Bucket], python: Path | None) -> Any:
    """The graph as ``ModelT`` with the given entry points, tensors named and laid out as in the spec.

    Raises:
        ConfigError, MissingDependency: there is no environment to run in.
        ExportFailed: onnx2tf fails, takes too long, or writes other tensors than the spec has.
    """
    from samexport.exporter.to_onnx import convert as to_onnx

    inside = environment(find_python(python))
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="samexport-onnx2tf-") as folder:
        for entry in entries:
            fixed = fixed_graph(graph, entry)
            source = Path(folder, f"{entry.name}.onnx")
            to_onnx.convert(fixed, module, source, to_onnx.OnnxOptions())
            parts[entry.name] = read_model(_run(inside, fixed, source))
        model = merge(parts)
    for entry in entries:
        keep_layout(model, fixed_graph(graph, entry), entry.name)
    return model


def fixed_graph(graph: GraphSpec, entry: Bucket) -> GraphSpec:
    """The contract of one entry point: no named axes."""
    sizes = entry.sizes(graph)

    def fixed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, shape=t.resolved(sizes)) for t in tensors)

    return replace(graph, inputs=fixed(graph.inputs), outputs=fixed(graph.outputs), axes=())


def _run(inside: Path, graph: GraphSpec, source: Path) -> Path:
    """Convert ``source``, which is rewritten; ``-kat`` keeps the layout of inputs, ``-osd`` their names."""
    out = source.with_suffix("")
    options = ["-kat", *graph.input_names, "-osd", "-n"]
    command = [str(inside), "-I", "-m", "onnx2tf", "-i", source.name, "-o", out.name, *options]
    try:
        done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, timeout=_CONVERT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ExportFailed(f"onnx2tf did not convert {graph.name} in {_CONVERT_SECONDS} s") from error
    made = out / f"{source.stem}_float32.tflite"
    if done.returncode != 0 or not made.is_file():
        raise ExportFailed(f"onnx2tf cannot convert {graph.name}: {_last_line(done)}")
    return made
