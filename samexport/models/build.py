"""From a model of the catalogue to torch: ``load_model`` reads weights, ``build_graph`` makes a graph module."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from samexport.errors import ConfigError
from samexport.models.architectures.sam import Sam, resolve
from samexport.models.graphs.decoder import Decoder, DecoderStep, DecoderWithMask, Prologue
from samexport.models.graphs.plain import PlainDecoder, PlainDecoderWithMask, PlainEncoder
from samexport.models.spec import GraphSpec, ModelSpec

Builder = Callable[[Sam, ModelSpec], nn.Module]

_EXPORT: dict[str, Builder] = {
    "encoder": lambda sam, spec: resolve(spec.encoder_graph)(sam.image_encoder, spec.frame),
    "decoder": lambda sam, _: Decoder(sam),
    "decoder_with_mask": lambda sam, _: DecoderWithMask(sam),
    "decoder_prologue": lambda sam, _: Prologue(sam),
    "decoder_step": lambda sam, _: DecoderStep(sam),
}
_PLAIN: dict[str, Builder] = {
    "encoder": lambda sam, spec: PlainEncoder(sam.image_encoder, spec.frame),
    "decoder": lambda sam, _: PlainDecoder(sam),
    "decoder_with_mask": lambda sam, _: PlainDecoderWithMask(sam),
}


def build_graph(sam: Sam, spec: ModelSpec, name: str, *, plain: bool = False) -> tuple[GraphSpec, nn.Module]:
    """The graph ``name`` and its module: the export form, or with ``plain`` the untouched architecture.

    Raises:
        ConfigError: the model has no such graph, or it has no plain form (the two halves of the decoder).
    """
    builders = _PLAIN if plain else _EXPORT
    if name not in builders:
        raise ConfigError(f"{spec.name} has no {'plain ' if plain else ''}graph {name!r}; known: {', '.join(builders)}")
    return spec.graph(name), builders[name](sam, spec).eval().requires_grad_(False)
