"""PyTorch as a runtime: the reference of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samexport.errors import BundleError
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors, check_threads
from samexport.runtimes.bundle import Bundle

if TYPE_CHECKING:
    from torch import nn


class PyTorchRuntime(Runtime):
    """A module whose ``forward`` takes the graph's inputs in order and returns its outputs in order."""

    name = "pytorch"

    def __init__(self, module: nn.Module, graph: GraphSpec) -> None:
        super().__init__(graph)
        self._module = module

    def _run(self, inputs: Tensors) -> Tensors:
        import torch

        with torch.inference_mode():
            result = self._module(*(torch.from_numpy(inputs[name]) for name in self.graph.input_names))
        values = result if isinstance(result, tuple) else (result,)
        return {name: value.numpy() for name, value in zip(self.graph.output_names, values, strict=True)}

    def placement(self) -> str:
        """Eager mode on the CPU."""
        return "eager, cpu"


@dataclass(frozen=True)
class TorchBundle(Bundle):
    """Modules behind the interface of a bundle, so that all that runs bundles runs PyTorch; ``folder`` has no files."""

    modules: Mapping[str, nn.Module]

    @property
    def graph_names(self) -> tuple[str, ...]:
        """Names of the graphs that have a module."""
        return tuple(self.modules)

    def open(self, graph: str, *, runtime: str | None = None, threads: int | None = None) -> Runtime:
        """The module of ``graph``; ``threads`` is torch's own count, for the whole process."""
        import torch

        if graph not in self.modules:
            raise BundleError(f"PyTorch has no {graph} here; it has {', '.join(self.graph_names)}")
        check_threads(threads)
        if threads is not None:
            torch.set_num_threads(threads)
        return PyTorchRuntime(self.modules[graph], self.graph(graph))
