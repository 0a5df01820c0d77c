"""SAM's mask decoder: a two-way transformer between a few tokens and the image, then hypernetwork masks.

Source: Segment Anything (arXiv 2304.02643), ``segment_anything/modeling/{mask_decoder,transformer}.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import LayerNorm2d

HEADS = 8
MASK_TOKENS = 4


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the embedding's."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """[B, Q, width] attends to [B, P, width]; ``key_bias`` [B, P] is added to the logits."""
        q, k, v = (split_heads(x) for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v)))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if key_bias is not None:
            logits = logits + key_bias[:, None, None]
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed)
        return out


def split_heads(x: Tensor) -> Tensor:
    """[B, T, width] to [B, heads, T, width / heads]."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, HEADS, width // HEADS).transpose(1, 2)


class TransformerMlp(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens.

    In the first block the self-attention has no position term and replaces the tokens.
    """

    def __init__(self, width: int, hidden: int, eps: float, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width)
        self.norm1 = nn.LayerNorm(width, eps)
        self.cross_attn_token_to_image = Attention(width, width // 2)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = TransformerMlp(width, hidden)
        self.norm3 = nn.LayerNorm(width, eps)
        self.norm4 = nn.LayerNorm(width, eps)
        self.cross_attn_image_to_token = Attention(width, width // 2)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, token_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens [B, T, width] and image [B, P, width]; ``token_bias`` [B, T] masks absent tokens."""
        if self.first:
            queries = self.self_attn(queries, queries, queries, token_bias)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries, token_bias)
        queries = self.norm1(queries)
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = self.norm3(queries + self.mlp(queries))
        mixed = self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries, token_bias)
        return queries, self.norm4(keys + mixed)


class TwoWayTransformer(nn.Module):
    """Two blocks and a last token-to-image attention."""

    def __init__(self, width: int, hidden: int, eps: float = 1e-5) -> None:
        super().__init__()
        blocks = (TwoWayBlock(width, hidden, eps, first=i == 0) for i in range(2))
        self.layers: Sequence[TwoWayBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.final_attn_token_to_image = Attention(width, width // 2)
        self.norm_final_attn = nn.LayerNorm(width, eps)

    def forward(self, tokens: Tensor, keys: Tensor, key_pe: Tensor, token_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, width] and image [B, P, width], both updated."""
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe, token_bias)
        mixed = self.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + mixed), keys


class HeadMlp(nn.Module):
    """Three Linear layers with ReLU between."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        linears = (nn.Linear(width, n) for n in (width, width, outputs))
        self.layers: Sequence[nn.Linear] = nn.ModuleList(linears)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., outputs]."""
        first, second, last = self.layers
        out: Tensor = last(F.relu(second(F.relu(first(x)))))
        return out


class MaskDecoder(nn.Module):
    """Four masks and their predicted IoU for each prompt."""

    def __init__(self, width: int, hidden: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(width, hidden, eps)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2), LayerNorm2d(width // 4), nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2), nn.GELU(),
        )  # fmt: skip
        heads = (HeadMlp(width, width // 8) for _ in range(MASK_TOKENS))
        self.output_hypernetworks_mlps: Sequence[HeadMlp] = nn.ModuleList(heads)  # type: ignore[assignment]
        self.iou_prediction_head = HeadMlp(width, MASK_TOKENS)

    def forward(self, source: Tensor, dense_pe: Tensor, sparse: Tensor, token_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            source: embedding plus dense prompt, [N, width, grid, grid].
            dense_pe: [1, width, grid, grid].
            sparse: prompt tokens, [N, K, width].
            token_bias: [N, K], 0 for a present token, very negative for an absent one.

        Returns:
            logits [N, 4, 4 grid, 4 grid] and predicted IoU [N, 4].
        """
        return self.masks(*self.attend(source, dense_pe, sparse, token_bias))

    def own_tokens(self) -> Tensor:
        """Those before the prompt's, [5, width]: of the predicted IoU and of each mask."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def attend(self, source: Tensor, dense_pe: Tensor, sparse: Tensor, token_bias: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens [N, T, width] and the upscaled image [N, width / 8, 4 grid, 4 grid]; inputs as in forward."""
        batch, width, grid, _ = source.shape
        own = self.own_tokens().expand(batch, -1, -1)
        tokens = torch.cat([own, sparse], dim=1)
        bias = F.pad(token_bias, (own.shape[1], 0))
        queries, keys = self.transformer(
            tokens, source.flatten(2).transpose(1, 2), dense_pe.flatten(2).transpose(1, 2), bias
        )
        return queries, self.output_upscaling(keys.transpose(1, 2).reshape(batch, width, grid, grid))

    def masks(self, queries: Tensor, upscaled: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, from what :meth:`attend` does."""
        hyper = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (hyper @ upscaled.flatten(2)).view(-1, MASK_TOKENS, *upscaled.shape[2:])
        return masks, self.iou_prediction_head(queries[:, 0])
