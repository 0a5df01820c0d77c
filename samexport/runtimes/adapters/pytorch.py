"""PyTorch as a runtime: the reference of every comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors

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
