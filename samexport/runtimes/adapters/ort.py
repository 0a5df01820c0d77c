"""ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import onnxruntime

from samexport.errors import BundleError, RuntimeFailed
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors, check_file

# on Windows it goes through the system, whatever the environment variable (samexport/__init__.py) says
onnxruntime.disable_telemetry_events()

_ERRORS_ONLY = 3


class FileName(os.PathLike[bytes]):
    """A path as bytes: native code takes those as they are, and text only if it is valid Unicode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


def session_options(threads: int | None) -> onnxruntime.SessionOptions:
    """Options of a session that reports errors only; ``threads`` None is ONNX Runtime's own choice."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


class OrtRuntime(Runtime):
    """An ONNX file on the CPU provider.

    Raises:
        BundleError: the file cannot be read, or its inputs and outputs are not those of the spec.
    """

    name = "onnxruntime"
    optimised: ClassVar[bool] = True

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        super().__init__(graph)
        check_file(path)
        weights = path.with_name(f"{path.name}.data")
        if os.path.lexists(weights):
            check_file(weights)
        options = session_options(threads)
        if not self.optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                FileName(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime has no common base class for its exceptions
            raise BundleError(f"{path.name} cannot be opened by ONNX Runtime: {reason(error)}") from error
        found = (
            tuple(i.name for i in self._session.get_inputs()),
            tuple(o.name for o in self._session.get_outputs()),
        )
        if found != (graph.input_names, graph.output_names):
            raise BundleError(f"{path.name} has the tensors {found}, not those of the graph {graph.name}")

    def _run(self, inputs: Tensors) -> Tensors:
        try:
            values = self._session.run(list(self.graph.output_names), inputs)
        except Exception as error:
            shapes = {name: value.shape for name, value in inputs.items()}
            raise RuntimeFailed(f"{self.graph.name} does not run with {shapes}: {reason(error)}") from error
        return dict(zip(self.graph.output_names, values, strict=True))

    def placement(self) -> str:
        """The execution provider."""
        return str(self._session.get_providers()[0])

    def _release(self) -> None:
        del self._session


class OrtUnoptimised(OrtRuntime):
    """The same node by node: pairs of Q/DQ round, and what is between them computes in floats."""

    name = "onnxruntime-unoptimised"
    optimised = False
