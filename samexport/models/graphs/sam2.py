"""SAM 2's graphs by name: how the module of each is made from the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from samexport.models.architectures.sam2 import Sam2
from samexport.models.families.sam2 import (
    IMAGE_ENCODER,
    MASK_DECODER,
    MASK_DECODER_TRACKED,
    MASK_DECODER_WITH_MASK,
    MEMORY_ATTENTION,
    MEMORY_ENCODER,
)
from samexport.models.families.sam2_sparse import (
    ENCODER_ROUTED,
    ENCODER_STEM,
    ENCODER_TAIL,
    MASK_DECODER_SALIENT,
    MEMORY_ATTENTION_PRUNED,
)
from samexport.models.graphs import sam2_decoder, sam2_encoder, sam2_memory, sam2_plain, sam2_sparse, sam2_sparse_plain
from samexport.models.spec import ModelSpec

Form = Callable[[Sam2], nn.Module]

FORMS: Mapping[str, Form] = {
    IMAGE_ENCODER: sam2_encoder.Sam2ImageEncoder,
    MASK_DECODER: sam2_decoder.Sam2Decoder,
    MASK_DECODER_WITH_MASK: sam2_decoder.Sam2DecoderWithMask,
    MASK_DECODER_TRACKED: sam2_decoder.Sam2TrackedDecoder,
    MEMORY_ATTENTION: sam2_memory.Sam2MemoryAttention,
    MEMORY_ENCODER: sam2_memory.Sam2MemoryEncoder,
    ENCODER_STEM: sam2_sparse.Stem,
    ENCODER_ROUTED: sam2_sparse.Routed,
    ENCODER_TAIL: sam2_sparse.Tail,
    MEMORY_ATTENTION_PRUNED: sam2_sparse.PrunedMemoryAttention,
    MASK_DECODER_SALIENT: sam2_sparse.SalientDecoder,
}
PLAIN_FORMS: Mapping[str, Form] = {
    IMAGE_ENCODER: sam2_plain.PlainImageEncoder,
    MASK_DECODER: sam2_plain.PlainMaskDecoder,
    MASK_DECODER_WITH_MASK: sam2_plain.PlainMaskDecoderWithMask,
    MASK_DECODER_TRACKED: sam2_plain.PlainTrackedDecoder,
    MEMORY_ATTENTION: sam2_plain.PlainMemoryAttention,
    MEMORY_ENCODER: sam2_plain.PlainMemoryEncoder,
    ENCODER_STEM: sam2_sparse_plain.PlainStem,
    ENCODER_ROUTED: sam2_sparse_plain.PlainRouted,
    ENCODER_TAIL: sam2_sparse_plain.PlainTail,
    MEMORY_ATTENTION_PRUNED: sam2_sparse_plain.PlainPrunedAttention,
    MASK_DECODER_SALIENT: sam2_sparse_plain.PlainSalientDecoder,
}


def _of_network(form: Form) -> Callable[[Sam2, ModelSpec, bool], nn.Module]:
    """The network has all that its forms need."""
    return lambda network, *_: form(network)


EXPORT = {name: _of_network(form) for name, form in FORMS.items()}
PLAIN = {name: _of_network(form) for name, form in PLAIN_FORMS.items()}
