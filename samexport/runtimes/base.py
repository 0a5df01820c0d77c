"""The one protocol that all runtimes follow, how to open a file with one, and which can run here.

PyTorch is just another runtime; it is the reference that the others are compared with.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError, FileError, ParityFailed, RuntimeFailed
from samexport.files import in_words, open_regular
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
            inputs: exactly the tensors of ``graph.inputs``, types and shapes as specified.

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
        for tensor in self.graph.outputs:
            if outputs[tensor.name].dtype != np.dtype(tensor.dtype):
                raise ParityFailed(f"{self.graph.name} returned {tensor.name} as {outputs[tensor.name].dtype}")
        shapes = {k: v.shape for k, v in {**inputs, **outputs}.items()}
        try:
            axis_sizes((*self.graph.inputs, *self.graph.outputs), shapes)
        except ValueError as error:
            raise ParityFailed(f"{self.graph.name}: {error}") from error

    @abstractmethod
    def _run(self, inputs: Tensors) -> Tensors:
        """Compute; inputs are checked and contiguous."""

    @property
    def bounds(self) -> tuple[Bucket, ...]:
        """What the entry points hold, flexible ones too; empty where nothing is bounded."""
        return self.entry_points

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


def declared(graph: GraphSpec, outputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Outputs in the types of the contract, of a file whose format has integers of 32 bits alone."""
    return {t.name: np.asarray(outputs[t.name]).astype(t.dtype, copy=False) for t in graph.outputs}


def describe(runtime: Runtime) -> str:
    """Name and placement in one text."""
    return f"{runtime.name}: {runtime.placement()}"


def check_threads(count: int | None) -> None:
    """ConfigError unless ``count`` is None or a number of threads that a runtime can be given."""
    whole = isinstance(count, int) and not isinstance(count, bool)
    if count is not None and not (whole and 1 <= count <= MOST_THREADS):
        raise ConfigError(f"--threads takes 1 to {MOST_THREADS}, not {in_words(count)}")


def check_file(path: Path) -> None:
    """BundleError unless ``path`` is a regular file that can be read: native code may hang on others, or crash."""
    try:
        with open_regular(path):
            pass
    except FileError as error:
        raise BundleError(str(error)) from error
