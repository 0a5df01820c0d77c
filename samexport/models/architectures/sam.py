"""A whole SAM: image encoder, prompt encoder, mask decoder, with the official state-dict names."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name

from torch import nn

from samexport.models.architectures.layers import no_values
from samexport.models.architectures.mask_decoder import MaskDecoder
from samexport.models.architectures.prompt_encoder import PromptEncoder
from samexport.models.architectures.sam_vit import pruned
from samexport.models.families.sam import SamSize
from samexport.models.spec import ModelSpec


class Sam(nn.Module):
    """The three parts under their official names; graphs are built from them, it has no forward itself."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        size: SamSize = spec.size
        self.image_encoder: nn.Module = resolve_name(size.image_encoder)()
        self.prompt_encoder = PromptEncoder(size.embed_dim, spec.frame.prompts, spec.frame.grid)
        self.mask_decoder = MaskDecoder(size.embed_dim, size.decoder_mlp_dim, size.decoder_eps)


def pruned_sam(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> Sam:
    """The same with the encoder that a checkpoint's shapes describe; CheckpointError where they describe none."""
    begin = "image_encoder."
    own = {name.removeprefix(begin): shape for name, shape in shapes.items() if name.startswith(begin)}
    with no_values():
        sam = Sam(spec)
        sam.image_encoder = pruned(own)
        return sam


def empty_sam(spec: ModelSpec) -> Sam:
    """A SAM whose tensors have shapes and no values; ``load_state_dict(..., assign=True)`` gives it values."""
    with no_values():
        return Sam(spec)
