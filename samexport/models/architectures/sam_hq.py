"""HQ-SAM and Light HQ-SAM: SAM with one more token, whose mask sees early features of the encoder.

Source: Segment Anything in High Quality (arXiv 2306.01567), ``segment_anything/modeling/mask_decoder_hq.py`` of
SysCV/sam-hq. Only the new tensors were trained; the rest is SAM's, or MobileSAM's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from samexport.models.architectures.layers import LayerNorm2d, no_values
from samexport.models.architectures.mask_decoder import HeadMlp, MaskDecoder
from samexport.models.architectures.sam import Sam
from samexport.models.architectures.sam_vit import SamViT
from samexport.models.architectures.tiny_vit import TinyViT
from samexport.models.families.sam import SamSize
from samexport.models.spec import ModelSpec


def _upscaling(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    """Two transposed convolutions that double the grid each."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, middle, 2, 2), LayerNorm2d(middle), nn.GELU(),
        nn.ConvTranspose2d(middle, outputs, 2, 2),
    )  # fmt: skip


class HqMaskDecoder(MaskDecoder):
    """SAM's mask decoder with a sixth token of its own. Every mask is SAM's plus the one of high quality."""

    def __init__(self, width: int, hidden: int, early: int) -> None:
        super().__init__(width, hidden)
        quarter, eighth = width // 4, width // 8
        self.hf_token = nn.Embedding(1, width)
        self.hf_mlp = HeadMlp(width, eighth)
        self.compress_vit_feat = _upscaling(early, width, eighth)
        self.embedding_encoder = _upscaling(width, quarter, eighth)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(eighth, quarter, 3, padding=1), LayerNorm2d(quarter), nn.GELU(),
            nn.Conv2d(quarter, eighth, 3, padding=1),
        )  # fmt: skip

    def own_tokens(self) -> Tensor:
        """SAM's five and that of the mask of high quality, [6, width]."""
        return torch.cat([super().own_tokens(), self.hf_token.weight])

    def features(self, embedding: Tensor, early: Tensor) -> Tensor:
        """What depends on the image alone, [1, width / 8, 4 grid, 4 grid]; ``early`` is [1, early, grid, grid]."""
        out: Tensor = self.embedding_encoder(embedding) + self.compress_vit_feat(early)
        return out

    def decode_with(
        self, source: Tensor, dense_pe: Tensor, sparse: Tensor, token_bias: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`MaskDecoder.forward`, with :meth:`features` of the image.

        Official code returns one mask, the one of high quality plus the first, or plus that of the next three whose
        predicted IoU is best; here are all four sums, and the same rule picks one of them.
        """
        queries, upscaled = self.attend(source, dense_pe, sparse, token_bias)
        masks, scores = self.masks(queries, upscaled)
        seen = self.embedding_maskfeature(upscaled) + features
        fine = self.hf_mlp(queries[:, 5:6]) @ seen.flatten(2)
        return masks + fine.view(-1, 1, *masks.shape[2:]), scores


class HqSam(Sam):
    """SAM's three parts, the last one with more in it."""

    mask_decoder: HqMaskDecoder

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        size: SamSize = spec.size
        self.mask_decoder = HqMaskDecoder(size.embed_dim, size.decoder_mlp_dim, size.early)

    @property
    def encoder(self) -> TinyViT | SamViT:
        """An encoder that gives its early features too."""
        return cast("TinyViT | SamViT", self.image_encoder)


def empty_hq_sam(spec: ModelSpec) -> HqSam:
    """An HQ-SAM whose tensors have shapes and no values."""
    with no_values():
        return HqSam(spec)
