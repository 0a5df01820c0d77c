"""A whole SAM: image encoder, prompt encoder, mask decoder, with the official state-dict names."""

from __future__ import annotations

from pkgutil import resolve_name

from torch import nn

from samexport.models.architectures.mask_decoder import MaskDecoder
from samexport.models.architectures.prompt_encoder import PromptEncoder
from samexport.models.spec import ModelSpec


class Sam(nn.Module):
    """The three parts under their official names; graphs are built from them, it has no forward itself."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.image_encoder: nn.Module = resolve_name(spec.image_encoder)()
        self.prompt_encoder = PromptEncoder(spec.embed_dim, spec.frame.size)
        self.mask_decoder = MaskDecoder(spec.embed_dim, spec.decoder_mlp_dim)
