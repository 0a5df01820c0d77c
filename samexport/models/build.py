"""From a torch model to the module of a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pkgutil import resolve_name

from torch import nn

from samexport.errors import ConfigError
from samexport.models.architectures.object_detector import ObjectDetector
from samexport.models.catalog import find_family
from samexport.models.families.detector import sampler_graph
from samexport.models.graphs.detector import PlainPromptSampler, PromptSampler, count_anchors
from samexport.models.spec import GraphSpec, ModelSpec

Builder = Callable[[nn.Module, ModelSpec, bool], nn.Module]
"""Network, its spec and whether it is to be small, to a graph module."""


def build_graph(
    network: nn.Module, spec: ModelSpec, name: str, *, plain: bool = False, small: bool = False
) -> tuple[GraphSpec, nn.Module]:
    """The graph ``name`` and its module: the export form, or with ``plain`` the untouched architecture.

    With ``small`` the export form of SAM's decoder computes its position terms instead of holding them, 10 MB at 1024
    pixels. A runtime that evaluates constants when it opens a file, such as ONNX Runtime, takes as long a call then
    (called in turns: 0.97 to 1.02 of the time for 1 and 16 prompts, 0.97 to 1.02 of the processor's).

    Raises:
        ConfigError: the model has no such graph, or it has no plain form (the two halves of SAM's decoder).
    """
    family = find_family(spec.family)
    builders: Mapping[str, Builder] = resolve_name(family.plain if plain else family.forms)
    if name not in builders:
        raise ConfigError(f"{spec.name} has no {'plain ' if plain else ''}graph {name!r}; known: {', '.join(builders)}")
    return spec.graph(name), builders[name](network, spec, small).eval().requires_grad_(False)


def plain_graphs(
    network: nn.Module, spec: ModelSpec, wanted: Collection[str] = ()
) -> dict[str, tuple[GraphSpec, nn.Module]]:
    """Every graph of the untouched architecture, or those that are wanted, and its module: the reference."""
    names: Mapping[str, Builder] = resolve_name(find_family(spec.family).plain)
    has = {graph.name for graph in spec.graphs if not wanted or graph.name in wanted}
    return {name: build_graph(network, spec, name, plain=True) for name in names if name in has}


def build_sampler(
    detector: ObjectDetector, image_size: int, candidates: int | None, *, plain: bool = False
) -> tuple[GraphSpec, nn.Module]:
    """The graph ``prompt_sampler`` and its module.

    Args:
        detector: with its weights.
        image_size: side of the square input, a multiple of 32.
        candidates: how many of the best boxes it returns; None for all, unsorted (no top-K in the graph).
        plain: the untouched architecture instead of the export form.

    Raises:
        ConfigError: the size or the count cannot be.
    """
    graph = sampler_graph(image_size, candidates or count_anchors(image_size), ranked=candidates is not None)
    form = PlainPromptSampler if plain else PromptSampler
    return graph, form(detector, image_size, candidates).eval().requires_grad_(False)
