"""PyTorch's modules in place of files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from samexport.errors import BundleError
from samexport.models.catalog import find_family
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
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def graph_names(self) -> tuple[str, ...]:
        """Names of the graphs that have a module."""
        return tuple(self.modules)

    def only(self, graphs: Collection[str]) -> TorchBundle:
        """The same with some of its graphs."""
        return replace(self, modules={name: module for name, module in self.modules.items() if name in graphs})

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
        family=spec.family, scores=spec.scores,
    )  # fmt: skip
    modules = {name: module for name, (_, module) in built.items()}
    return TorchBundle(folder, manifest, modules, constants_of(spec, network))


def constants_of(spec: ModelSpec, network: nn.Module) -> Mapping[str, NDArray[Any]]:
    """What a session of the model needs besides its graphs."""
    path = find_family(spec.family).constants
    return resolve_name(path)(network) if path else {}
