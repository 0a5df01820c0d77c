"""Export form of SAM's ViT.

What differs from ``architectures/sam_vit.py``, and why it is the same function:

- ``std`` is in the patch convolution, the softmax scale in the query weights.
- The relative-position terms q . Rh[row] and q . Rw[column] enter the one product q k^T: queries carry them
  as extra channels, keys carry the one-hot row and column, so nothing is added to the scores. In global blocks these
  would be 128 channels beside the 64 of a head: there the terms are added, one after the other, to the scores of a
  chunk of queries at a time (0.68 of the time in ONNX Runtime, at 64 x 64 with 12 heads, and 0.1 GB instead of 0.8).
- The key bias cancels in the softmax and is dropped. In window blocks qkv runs on real tokens: a padding
  token is zero before qkv, so its q, k, v are the biases; the value bias moves behind the attention (the
  weights of a row sum to 1) and the query of a padding token is never read, so the padding is a plain Pad.
- No tensor is above rank 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import sam_vit
from samexport.models.graphs.layers import (
    QUERY_CHUNK,
    Neck,
    Normalise,
    PreNorm,
    frozen,
    in_chunks,
    joined,
    merge,
    partition,
    patches,
)
from samexport.models.spec import Preprocess

LARGEST_FOLDED = 32
"""Sides of windows up to which relative positions are in the product of queries and keys."""


class GridAttention(nn.Module):
    """Attention of one block on [1, H, W, C], in windows or global (one window that is the whole grid)."""

    def __init__(self, attention: sam_vit.Attention) -> None:
        super().__init__()
        inner, self.heads, self.size = attention.proj.in_features, attention.heads, attention.size
        weight, bias = (
            attention.qkv.weight.double().view(3, inner, -1),
            attention.qkv.bias.double().view(3, inner),
        )
        self.qkv = frozen(torch.cat([weight[0] * attention.scale, weight[1], weight[2]]).T.float())
        self.q_bias = frozen(torch.cat([bias[0] * attention.scale, torch.zeros(2 * inner)]).float())
        # the relative terms want the unscaled queries
        rows, columns = (
            attention.relative_table(attention.rel_pos_h),
            attention.relative_table(attention.rel_pos_w),
        )
        self.rows = frozen(rows.transpose(1, 2) / attention.scale)
        self.columns = frozen(columns.transpose(1, 2) / attention.scale)
        self.folded = self.size <= LARGEST_FOLDED
        if self.folded:
            place = torch.arange(self.size**2)
            one_hot = [F.one_hot(place // self.size, self.size), F.one_hot(place % self.size, self.size)]
            self.places = frozen(F.pad(torch.cat(one_hot, dim=1).float(), (inner // self.heads, 0))[None])
        self.proj = frozen(attention.proj.weight.T)
        self.proj_bias = frozen((attention.proj.bias.double() + attention.proj.weight.double() @ bias[2]).float())

    def forward(self, x: Tensor) -> Tensor:
        """[1, H, W, C], same shape out."""
        _, height, columns, _ = x.shape
        inner = self.proj.shape[0]
        size, tokens, depth = self.size, self.size**2, inner // self.heads
        qkv = F.pad(x @ self.qkv + self.q_bias, (0, 0, 0, -columns % size, 0, -height % size))
        heads = partition(qkv, size).reshape(-1, tokens, 3 * self.heads, depth).transpose(1, 2)
        q, k, v = (part.reshape(-1, tokens, depth) for part in torch.split(heads, self.heads, dim=1))
        grid = q.reshape(-1, size, size, depth)
        by_row = (grid @ self.rows).reshape(-1, tokens, size)
        by_column = (grid.transpose(1, 2) @ self.columns).transpose(1, 2).reshape(-1, tokens, size)
        mixed = (self._folded if self.folded else self._added)(q, k, v, by_row, by_column)
        mixed = mixed.reshape(-1, self.heads, tokens, depth).transpose(1, 2).reshape(-1, tokens, inner)
        return merge(mixed, size, height, columns) @ self.proj + self.proj_bias

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """[heads and windows, queries, depth]; the terms are [heads and windows, queries, rows or columns of keys]."""
        # a sum, because an expanded constant would be stored for each head and window
        k = F.pad(k, (0, 2 * self.size)) + self.places
        return (torch.cat([q, by_row, by_column], dim=-1) @ k.transpose(-1, -2)).softmax(-1) @ v

    def _added(self, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """As :meth:`_folded`."""
        size, tokens, keys, mixed = self.size, self.size**2, k.transpose(-1, -2), []
        for part, row, column in zip(*(in_chunks(each, QUERY_CHUNK) for each in (q, by_row, by_column)), strict=True):
            scores = (part @ keys).reshape(len(part), -1, size, size) + row[..., None] + column[:, :, None]
            mixed.append(scores.reshape(len(part), -1, tokens).softmax(-1) @ v)
        return joined(mixed)


class Block(PreNorm):
    """Attention and MLP on [1, H, W, C]."""

    def __init__(self, block: sam_vit.Block) -> None:
        super().__init__(block.norm1, GridAttention(block.attn), block.norm2, block.mlp)


class SamViTEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to embedding [1, out, S / 16, S / 16]."""

    def __init__(self, encoder: sam_vit.SamViT, frame: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(frame)
        self.patch = patches(encoder.patch_embed.proj, self.normalise)
        self.pos_embed = frozen(encoder.pos_embed)
        self.blocks = nn.ModuleList(Block(b) for b in encoder.blocks)
        self.neck = Neck(encoder.neck)
        self.early = encoder.early

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        return self.with_early(image)[0]

    def with_early(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and the map after the first global block, [1, width, S / 16, S / 16]."""
        x = self.patch(self.normalise(image)).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks[: self.early]:
            x = block(x)
        early = x
        for block in self.blocks[self.early :]:
            x = block(x)
        return self.neck(x), early.permute(0, 3, 1, 2)
