"""EfficientSAM: a plain ViT of 12 global blocks, six prompt tokens, and a two-way transformer unlike SAM's in places.

Source: EfficientSAM (arXiv 2312.00863), ``efficient_sam/efficient_sam_{encoder,decoder}.py`` and
``two_way_transformer.py`` of yformer/EfficientSAM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import cells, neck, no_values
from samexport.models.architectures.mask_decoder import MASK_TOKENS, Attention
from samexport.models.architectures.prompt_encoder import PositionEmbeddingRandom
from samexport.models.families.efficient_sam import EfficientSamSize
from samexport.models.spec import ModelSpec

POSITIONS = 14
"""Side of the grid of learned positions; it is scaled to the embedding's."""


class EncoderAttention(nn.Module):
    """Attention over all cells; ``qkv`` rows are all q, all k, all v."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, width], same shape out."""
        batch, cells, width = x.shape
        q, k, v = self.qkv(x).view(batch, cells, 3, -1, self.head).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) * self.head**-0.5).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, cells, width))
        return out


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EncoderAttention(width, head)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, width], same shape out."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """16x16 patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, width, S / 16, S / 16]."""
        out: Tensor = self.proj(x)
        return out


class ImageEncoder(nn.Module):
    """[B, 3, S, S] normalised image to [B, out, S / 16, S / 16]."""

    def __init__(self, width: int, depth: int, head: int, out_channels: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        # the first one is a class token's, which is not there
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + POSITIONS**2, width))
        blocks = (Block(width, head) for _ in range(depth))
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.neck = neck(width, out_channels)

    def positions(self, grid: int) -> Tensor:
        """Of every cell, [1, width, grid, grid]; bicubic (a = -0.75)."""
        known = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, POSITIONS, POSITIONS)
        return F.interpolate(known, (grid, grid), mode="bicubic", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        x = self.patch_embed(x)
        grid = x.shape[-1]
        x = (x + self.positions(grid)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.transpose(1, 2).reshape(x.shape[0], -1, grid, grid))
        return out


class PromptEncoder(nn.Module):
    """Points to tokens. A label that is none of 1, 2, 3 and -1 adds nothing to the position."""

    def __init__(self, width: int, image_size: int, grid: int) -> None:
        super().__init__()
        self.image_size, self.grid = image_size, grid
        self.pe_layer = PositionEmbeddingRandom(width // 2)
        self.invalid_points = nn.Embedding(1, width)
        self.point_embeddings = nn.Embedding(1, width)
        self.bbox_top_left_embeddings = nn.Embedding(1, width)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, width)

    @property
    def by_label(self) -> dict[int, Tensor]:
        """What is added to the position, [1, width] each."""
        return {
            -1: self.invalid_points.weight,
            1: self.point_embeddings.weight,
            2: self.bbox_top_left_embeddings.weight,
            3: self.bbox_bottom_right_embeddings.weight,
        }

    def dense_pe(self) -> Tensor:
        """Encoding of every grid cell's centre, [1, width, grid, grid]."""
        centre = (torch.arange(self.grid, dtype=torch.float32) + 0.5) / self.grid
        row, column = cells(centre)
        encoded: Tensor = self.pe_layer(torch.stack([column, row], dim=-1))
        return encoded.permute(2, 0, 1)[None]

    def forward(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """Tokens [N, 6, width] of [N, 6, 2] pixels of the frame and [N, 6] labels; absent ones are (-1, -1), -1."""
        tokens: Tensor = self.pe_layer((point_coords + 0.5) / self.image_size)
        for label, embedding in self.by_label.items():
            tokens = tokens + (point_labels[..., None] == label) * embedding
        return tokens


class LayersMlp(nn.Module):
    """Linear layers with GELU between, under the official names."""

    def __init__(self, width: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        before = (nn.Sequential(nn.Linear(width if i == 0 else hidden, hidden), nn.GELU()) for i in range(depth))
        self.layers = nn.ModuleList(before)
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., outputs]."""
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.fc(x)
        return out


class TwoWayBlock(nn.Module):
    """As SAM's, but the self-attention has a residual in the first block, and its inputs carry the position in both."""

    def __init__(self, width: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, width // 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = LayersMlp(width, hidden, width, 1)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, width // 2)

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens [N, T, width] and image [N or 1, P, width]."""
        if not self.first:
            queries = queries + query_pe
        queries = self.norm1(queries + self.self_attn(queries, queries, queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = self.norm3(queries + self.mlp(queries))
        mixed = self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries)
        return queries, self.norm4(keys + mixed)


class TwoWayTransformer(nn.Module):
    """Two blocks and a last token-to-image attention."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        blocks = (TwoWayBlock(width, hidden, first=i == 0) for i in range(2))
        self.layers: Sequence[TwoWayBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.final_attn_token_to_image = Attention(width, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, keys: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, T, width] and image [1, P, width], both updated to [N, ...]."""
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe)
        mixed = self.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + mixed), keys


class MaskDecoder(nn.Module):
    """Four masks and their predicted IoU for each prompt."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(width, hidden)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, width)
        half, quarter = width // 4, width // 8
        self.final_output_upscaling_layers = nn.ModuleList([
            nn.Sequential(nn.ConvTranspose2d(width, half, 2, 2), nn.GroupNorm(1, half), nn.GELU()),
            nn.Sequential(nn.ConvTranspose2d(half, quarter, 2, 2), nn.Identity(), nn.GELU()),
        ])  # fmt: skip
        heads = (LayersMlp(width, width, quarter, 2) for _ in range(MASK_TOKENS))
        self.output_hypernetworks_mlps: Sequence[LayersMlp] = nn.ModuleList(heads)  # type: ignore[assignment]
        self.iou_prediction_head = LayersMlp(width, width, MASK_TOKENS, 2)

    def own_tokens(self) -> Tensor:
        """Those before the prompt's, [1, 5, width]."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])[None]

    def attend(self, embedding: Tensor, dense_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, 11, width] and image [N, width, grid, grid], updated; inputs as in :meth:`forward`."""
        tokens = torch.cat([self.own_tokens().expand(sparse.shape[0], -1, -1), sparse], dim=1)
        queries, keys = self.transformer(tokens, *(x.flatten(2).transpose(1, 2) for x in (embedding, dense_pe)))
        return queries, keys.transpose(1, 2).reshape(-1, *embedding.shape[1:])

    def masks(self, queries: Tensor, upscaled: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, from tokens and the upscaled image [N, width / 8, 4 grid, 4 grid]."""
        hyper = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (hyper @ upscaled.flatten(2)).view(-1, MASK_TOKENS, *upscaled.shape[2:])
        return masks, self.iou_prediction_head(queries[:, 0])

    def forward(self, embedding: Tensor, dense_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            embedding: [1, width, grid, grid].
            dense_pe: the same.
            sparse: prompt tokens, [N, 6, width].

        Returns:
            logits [N, 4, 4 grid, 4 grid] and predicted IoU [N, 4].
        """
        queries, x = self.attend(embedding, dense_pe, sparse)
        for layer in self.final_output_upscaling_layers:
            x = layer(x)
        return self.masks(queries, x)


class EfficientSam(nn.Module):
    """The three parts under their official names."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        size: EfficientSamSize = spec.size
        self.image_encoder = ImageEncoder(size.width, size.depth, size.head, size.embed_dim)
        self.prompt_encoder = PromptEncoder(size.embed_dim, spec.frame.size, spec.frame.grid)
        self.mask_decoder = MaskDecoder(size.embed_dim, size.hidden)


def empty(spec: ModelSpec) -> EfficientSam:
    """An EfficientSAM whose tensors have shapes and no values."""
    with no_values():
        return EfficientSam(spec)
