"""SAM's prompt encoder: points, box corners and mask prompts to tokens.

Source: Segment Anything (arXiv 2304.02643), ``segment_anything/modeling/prompt_encoder.py`` and
``segment_anything/utils/onnx.py`` for the box corners given as points labelled 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samexport.models.architectures.layers import LayerNorm2d, cells


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of coordinates in [0, 1]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, features))
        self.positional_encoding_gaussian_matrix: Tensor

    def forward(self, coords: Tensor) -> Tensor:
        """x, y in [0, 1] as [..., 2] to [..., 2 * features]."""
        angle = 2 * math.pi * ((2 * coords - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Tokens of points and the dense map of a mask prompt.

    ``point_embeddings``: 0 outside, 1 inside, 2 top-left corner, 3 bottom-right corner. ``image_size`` is the side of
    the square in which points are given, ``grid`` that of the embedding, a sixteenth unless it is given.
    """

    def __init__(self, width: int, image_size: int, grid: int | None = None) -> None:
        super().__init__()
        self.image_size, self.grid = image_size, grid or image_size // 16
        self.pe_layer = PositionEmbeddingRandom(width // 2)
        points = (nn.Embedding(1, width) for _ in range(4))
        self.point_embeddings: Sequence[nn.Embedding] = nn.ModuleList(points)  # type: ignore[assignment]
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2), LayerNorm2d(4), nn.GELU(),
            nn.Conv2d(4, 16, 2, 2), LayerNorm2d(16), nn.GELU(),
            nn.Conv2d(16, width, 1),
        )  # fmt: skip

    def dense_pe(self) -> Tensor:
        """Encoding of every grid cell's centre, [1, width, grid, grid]."""
        centre = (torch.arange(self.grid, dtype=torch.float32) + 0.5) / self.grid
        row, column = cells(centre)
        encoded: Tensor = self.pe_layer(torch.stack([column, row], dim=-1))
        return encoded.permute(2, 0, 1)[None]

    def embed_points(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """Tokens of [N, K, 2] pixels and [N, K] labels (-2..3), [N, K, width]; label -2 gives zeros."""
        encoded: Tensor = self.pe_layer((point_coords + 0.5) / self.image_size)
        labels = point_labels[..., None]
        encoded = torch.where(labels < 0, torch.zeros_like(encoded), encoded)
        encoded = encoded + (labels == -1) * self.not_a_point_embed.weight
        for value, embedding in enumerate(self.point_embeddings):
            encoded = encoded + (labels == value) * embedding.weight
        return encoded

    def embed_mask(self, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
        """Dense map of [N, 1, 4 grid, 4 grid] logits where ``has_mask_input`` [N] is 1, [N, width, grid, grid]."""
        has = has_mask_input.view(-1, 1, 1, 1)
        dense: Tensor = has * self.mask_downscaling(mask_input) + (1 - has) * self.no_mask_dense()
        return dense

    def no_mask_dense(self) -> Tensor:
        """Dense map of a prompt without a mask, [1, width, 1, 1] (broadcasts over the grid)."""
        return self.no_mask_embed.weight.view(1, -1, 1, 1)
