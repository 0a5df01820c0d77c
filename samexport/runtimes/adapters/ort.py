"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from samexport.errors import BundleError, ParityFailed
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors

_ERRORS_ONLY = 3


class OrtRuntime(Runtime):
    """An ONNX file on the CPU provider.

    Raises:
        BundleError: the file cannot be read, or its inputs and outputs are not those of the spec.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        super().__init__(graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime has no common base class for its exceptions
            reason = str(error).splitlines()[0][:200]
            raise BundleError(f"{path.name} cannot be opened by ONNX Runtime: {reason}") from error
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
            reason = str(error).splitlines()[0][:200]
            raise ParityFailed(f"{self.graph.name} does not run with {shapes}: {reason}") from error
        return dict(zip(self.graph.output_names, values, strict=True))

    def placement(self) -> str:
        """The execution provider."""
        return str(self._session.get_providers()[0])

    def close(self) -> None:
        """Free the session and its memory."""
        del self._session
