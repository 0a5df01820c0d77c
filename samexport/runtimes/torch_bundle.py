"""PyTorch's modules in place of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samexport.errors import BundleError
from samexport.models.spec import ModelSpec
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.base import Runtime, check_threads
from samexport.runtimes.bundle import Bundle, Manifest, WeightsInfo

if TYPE_CHECKING:
    from torch import nn


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


def plain_bundle(
    spec: ModelSpec, network: nn.Module, weights: WeightsInfo, folder: Path = Path("PyTorch")
) -> TorchBundle:
    """The untouched architecture with its weights, in place of a bundle: the reference."""
    from samexport.models.build import plain_graphs

    built = plain_graphs(network, spec)
    graphs = tuple(graph for graph, _ in built.values())
    manifest = Manifest(
        spec.name, spec.summary, spec.licence, spec.frame, spec.mask_outputs, weights, graphs, (), {}, {}, (),
        family=spec.family,
    )  # fmt: skip
    return TorchBundle(folder, manifest, {name: module for name, (_, module) in built.items()})
