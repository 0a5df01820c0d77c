"""What every converter traces a graph with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from samexport.models.spec import GraphSpec

if TYPE_CHECKING:
    from torch import Tensor


def example_inputs(graph: GraphSpec, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Inputs with ``sizes`` of the axes by their names; the values do not matter."""
    import torch

    return tuple(torch.zeros(t.resolved(sizes), dtype=getattr(torch, t.dtype)) for t in graph.inputs)
