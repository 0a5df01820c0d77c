"""SAM's graphs by name: how the module of each is made from the network."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

from torch import nn

from samexport.models.architectures.sam import Sam
from samexport.models.graphs.decoder import Decoder, DecoderStep, DecoderWithMask, Prologue
from samexport.models.graphs.plain import PlainDecoder, PlainDecoderWithMask, PlainEncoder
from samexport.models.spec import ModelSpec

EXPORT: dict[str, Callable[[Sam, ModelSpec, bool], nn.Module]] = {
    "encoder": lambda sam, spec, _: resolve_name(spec.size.encoder_graph)(sam.image_encoder, spec.frame),
    "decoder": lambda sam, _, small: Decoder(sam, small=small),
    "decoder_with_mask": lambda sam, _, small: DecoderWithMask(sam, small=small),
    "decoder_prologue": lambda sam, _, small: Prologue(sam, small=small),
    "decoder_step": lambda sam, _, small: DecoderStep(sam, small=small),
}
PLAIN: dict[str, Callable[[Sam, ModelSpec, bool], nn.Module]] = {
    "encoder": lambda sam, spec, _: PlainEncoder(sam.image_encoder, spec.frame),
    "decoder": lambda sam, *_: PlainDecoder(sam),
    "decoder_with_mask": lambda sam, *_: PlainDecoderWithMask(sam),
}
