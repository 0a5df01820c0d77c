"""SAM 2's memory: how a frame and its mask become memory, and how a new frame reads memories.

Source: SAM 2 (arXiv 2408.00714), ``sam2/modeling/{memory_encoder,memory_attention,position_encoding}.py`` and
``sam2/modeling/sam/transformer.py``; rotary positions: arXiv 2104.09864, in two dimensions arXiv 2403.13298.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import LayerNorm2d

MEMORY_WIDTH = 64
MEMORY_LAYERS = 4
_PERIOD = 10000.0


def _periods(count: int) -> Tensor:
    """1 to nearly 10000 in geometric steps, each twice, [count]."""
    powers: Tensor = _PERIOD ** (2 * (torch.arange(count) // 2) / count)
    return powers


def sine_1d(values: Tensor, width: int) -> Tensor:
    """Encoding of numbers, [...] to [..., width]: all sines, then all cosines."""
    angles = values[..., None] / _periods(width // 2).to(values)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sine_2d(width: int, grid: int) -> Tensor:
    """Encoding of the cells of a square map, [1, width, grid, grid]: channels of y, then of x; sine, cosine in turn."""
    angles = 2 * math.pi * torch.arange(1, grid + 1)[:, None] / (grid + 1e-6) / _periods(width // 2)
    axis = torch.stack([angles[:, ::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1).T
    y, x = axis[:, :, None].expand(-1, -1, grid), axis[:, None, :].expand(-1, grid, -1)
    return torch.cat([y, x])[None]


def rotary_angles(width: int, grid: int) -> Tensor:
    """Angle of each channel pair at each cell of a square map, row by row, [grid * grid, width / 2].

    The first half of the pairs turns with x, the second with y.
    """
    frequencies = _PERIOD ** (-4 * torch.arange(width // 4) / width)
    cell = torch.arange(grid * grid)
    x, y = (place[:, None] * frequencies for place in (cell % grid, cell // grid))
    return torch.cat([x, y], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs of neighbouring channels of [B, T, width] by ``angles`` [T, width / 2]."""
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class RotaryAttention(nn.Module):
    """Attention with one head; queries and the first keys are turned by their places on the map."""

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(memory_width, width)
        self.v_proj = nn.Linear(memory_width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, placeless: int = 0, bias: Tensor | None = None
    ) -> Tensor:
        """[B, P, width] attends to [B, L, memory_width].

        Args:
            q: tokens of a map, in the order of ``angles`` [P, width / 2].
            k: tokens of as many maps as there are, then ``placeless`` tokens that are not turned.
            v: the same tokens without their positions.
            angles: of :func:`rotary_angles`.
            placeless: how many of the last keys have no place.
            bias: added to what each key scores, [B, 1, L]; the official code has none.
        """
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        placed = k.shape[1] - placeless
        turned = rotate(k[:, :placed], angles.repeat(placed // len(angles), 1))
        k = torch.cat([turned, k[:, placed:]], dim=1)
        mixed = F.scaled_dot_product_attention(
            rotate(q, angles)[:, None], k[:, None], v[:, None], None if bias is None else bias[:, None]
        )
        out: Tensor = self.out_proj(mixed[:, 0])
        return out


class MemoryAttentionLayer(nn.Module):
    """The frame attends to itself, then to the memory."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(width, width)
        self.cross_attn_image = RotaryAttention(width, MEMORY_WIDTH)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        angles: Tensor,
        pointers: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Update tokens [B, P, width]; the rest as in :class:`MemoryAttention`."""
        own = self.norm1(x)
        x = x + self.self_attn(own, own, own, angles)
        x = x + self.cross_attn_image(self.norm2(x), memory + memory_pos, memory, angles, pointers, bias)
        out: Tensor = x + self.linear2(F.relu(self.linear1(self.norm3(x))))
        return out


class MemoryAttention(nn.Module):
    """Features of a frame, changed by what is remembered of earlier frames."""

    def __init__(self, width: int, hidden: int = 2048, count: int = MEMORY_LAYERS) -> None:
        super().__init__()
        self.width = width
        layers = (MemoryAttentionLayer(width, hidden) for _ in range(count))
        self.layers: Sequence[MemoryAttentionLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)

    def forward(
        self, vision: Tensor, memory: Tensor, memory_pos: Tensor, pointers: int, bias: Tensor | None = None
    ) -> Tensor:
        """Read the memory.

        Args:
            vision: features [B, width, grid, grid].
            memory: [B, L, 64]: the cells of remembered maps, row by row, then ``pointers`` tokens of object pointers.
            memory_pos: positions of these tokens, [B, L, 64].
            pointers: how many of the last tokens have no place on the map.
            bias: of each token's key, [B, 1, L]; very negative where a slot is empty. The official code has none.

        Returns:
            features of the same shape as ``vision``.
        """
        grid = vision.shape[-1]
        angles = rotary_angles(self.width, grid).to(vision)
        x = (vision + 0.1 * sine_2d(self.width, grid).to(vision)).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, memory, memory_pos, angles, pointers, bias)
        out: Tensor = self.norm(x).transpose(1, 2).reshape(vision.shape)
        return out


class MaskDownsampler(nn.Module):
    """A mask of the whole frame to the size of the features, in four steps that widen it by 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        widths = (1, 4, 16, 64, 256)
        for narrow, wide in itertools.pairwise(widths):
            steps += [nn.Conv2d(narrow, wide, 3, 2, 1), LayerNorm2d(wide), nn.GELU()]
        self.encoder = nn.Sequential(*steps, nn.Conv2d(widths[-1], width, 1))

    def forward(self, mask: Tensor) -> Tensor:
        """[B, 1, S, S] to [B, width, S / 16, S / 16]."""
        out: Tensor = self.encoder(mask)
        return out


class FuserBlock(nn.Module):
    """ConvNeXt block: depthwise 7x7, then an MLP on each pixel, scaled, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        pixels: Tensor = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        pixels = self.gamma * self.pwconv2(F.gelu(self.pwconv1(pixels)))
        return x + pixels.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Two blocks; the extra module gives them their official names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(FuserBlock(width), FuserBlock(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = self.layers(x)
        return out


class MemoryEncoder(nn.Module):
    """Features and mask of a frame to its memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(width)
        self.pix_feat_proj = nn.Conv2d(width, width, 1)
        self.fuser = Fuser(width)
        self.out_proj = nn.Conv2d(width, MEMORY_WIDTH, 1)

    def forward(self, vision: Tensor, mask: Tensor) -> Tensor:
        """Features [B, width, grid, grid] and a mask [B, 1, 16 grid, 16 grid] in -10..10 to [B, 64, grid, grid]."""
        out: Tensor = self.out_proj(self.fuser(self.pix_feat_proj(vision) + self.mask_downsampler(mask)))
        return out
