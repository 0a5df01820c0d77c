"""EfficientSAM's graphs.

What differs from ``architectures/efficient_sam.py``, and why it is the same function:

- ``std`` is in the patch convolution, the softmax scale in the query weights, the scaled positions are one constant.
  A bias of keys adds the same number to all logits of a row and cancels in the softmax. Queries go in chunks.
- The positions of the image's cells and the decoder's own tokens are constants.
- Labels pick embeddings by max(0, 1 - |label - code|), which is 1 for equal integers and else 0.
- GroupNorm over a whole map is means over its columns, rows and channels one after the other: a sum over a million
  squares leaves half precision. The upscaling is on [N, H, W, C], its transposed convolutions are matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import efficient_sam
from samexport.models.architectures.efficient_sam import EfficientSam
from samexport.models.graphs.layers import Doubling, Neck, Normalise, PreNorm, attend, frozen, parts, patches
from samexport.models.graphs.plain import PlainEncoder
from samexport.models.spec import ModelSpec, Preprocess


class Attention(nn.Module):
    """Attention over all cells, [1, P, width]."""

    def __init__(self, attention: efficient_sam.EncoderAttention) -> None:
        super().__init__()
        self.head, width = attention.head, attention.proj.in_features
        self.heads = width // self.head
        weight, bias = attention.qkv.weight.clone(), attention.qkv.bias.clone()
        scale = self.head**-0.5
        weight[:width] *= scale
        bias[:width] *= scale
        bias[width : 2 * width] = 0
        self.qkv, self.bias, self.proj = frozen(weight.T), frozen(bias), attention.proj

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        _, cells, width = x.shape
        parts_by_head = (x @ self.qkv + self.bias).reshape(cells, 3 * self.heads, self.head).transpose(0, 1)
        q, k, v = torch.split(parts_by_head, self.heads)
        mixed = attend(q, k, v)
        out: Tensor = self.proj(mixed.transpose(0, 1).reshape(1, cells, width))
        return out


class Encoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to embedding [1, out, S / 16, S / 16]."""

    def __init__(self, encoder: efficient_sam.ImageEncoder, frame: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(frame)
        self.patch = patches(encoder.patch_embed.proj, self.normalise)
        self.grid = frame.grid
        self.positions = frozen(encoder.positions(frame.grid).flatten(2).transpose(1, 2))
        self.blocks = nn.ModuleList(PreNorm(b.norm1, Attention(b.attn), b.norm2, b.mlp) for b in encoder.blocks)
        self.neck = Neck(encoder.neck)

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        x = self.patch(self.normalise(image)).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.reshape(1, self.grid, self.grid, -1))
        return out


class MapNorm(nn.Module):
    """GroupNorm with one group, its means taken along one axis at a time."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        if norm.num_groups != 1:
            raise ValueError("only one group")
        self.weight, self.bias = frozen(norm.weight), frozen(norm.bias)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C], same shape out."""
        centred = x - _mean(x)
        scale = torch.sqrt(_mean(centred * centred) + self.eps)
        return centred / scale * self.weight + self.bias


def _mean(x: Tensor) -> Tensor:
    for axis in (2, 1, 3):
        x = x.mean(axis, keepdim=True)
    return x


class Decoder(nn.Module):
    """Points and boxes to masks."""

    def __init__(self, sam: EfficientSam) -> None:
        super().__init__()
        prompts = sam.prompt_encoder
        self.decoder, self.image_size = sam.mask_decoder, prompts.image_size
        self.frequencies = frozen(2 * math.pi * prompts.pe_layer.positional_encoding_gaussian_matrix)
        self.codes = frozen(torch.tensor([float(code) for code in prompts.by_label]))
        self.table = frozen(torch.cat(list(prompts.by_label.values())))
        self.dense_pe = frozen(prompts.dense_pe())
        (first, norm, _), (second, *_) = map(parts, parts(sam.mask_decoder.final_output_upscaling_layers))
        self.up1, self.up2 = Doubling(first), Doubling(second)
        self.norm = MapNorm(norm)

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode."""
        angle = ((point_coords + 0.5) * (2 / self.image_size) - 1) @ self.frequencies
        chosen = F.relu(1 - (point_labels[..., None] - self.codes).abs())
        sparse = torch.cat([angle.sin(), angle.cos()], dim=-1) + chosen @ self.table
        queries, x = self.decoder.attend(image_embeddings, self.dense_pe, sparse)
        x = F.gelu(self.norm(self.up1(x.permute(0, 2, 3, 1))))
        x = F.gelu(self.up2(x)).permute(0, 3, 1, 2)
        return self.decoder.masks(queries, x)


class PlainDecoder(nn.Module):
    """Prompt encoder and mask decoder as published."""

    def __init__(self, sam: EfficientSam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode."""
        sparse = self.prompt_encoder(point_coords, point_labels)
        out: tuple[Tensor, Tensor] = self.mask_decoder(image_embeddings, self.prompt_encoder.dense_pe(), sparse)
        return out


Build = Callable[[EfficientSam, ModelSpec, bool], nn.Module]
EXPORT: dict[str, Build] = {
    "encoder": lambda sam, spec, _: Encoder(sam.image_encoder, spec.frame),
    "decoder": lambda sam, *_: Decoder(sam),
}
PLAIN: dict[str, Build] = {
    "encoder": lambda sam, spec, _: PlainEncoder(sam.image_encoder, spec.frame),
    "decoder": lambda sam, *_: PlainDecoder(sam),
}
