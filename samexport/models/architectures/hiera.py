"""SAM 2's image encoder: a hierarchical ViT whose queries are pooled between stages, and a pyramid neck.

Sources: Hiera (arXiv 2306.00989) and SAM 2 (arXiv 2408.00714), ``sam2/modeling/backbones/{hieradet,image_encoder}.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import in_windows

WINDOW_EMBED = 8


@dataclass(frozen=True)
class HieraSize:
    """The numbers of a trunk. Width and heads double from stage to stage, so the width of a head is constant.

    Attributes:
        width: channels of the first stage.
        heads: of the first stage.
        blocks: in each of the four stages.
        global_blocks: indices of the blocks that attend to the whole map.
        windows: side of the attention windows in each stage.
        background: side of the position embedding that is stretched over the whole map.
    """

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background: int = 7

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the four stages."""
        return tuple(self.width << stage for stage in range(len(self.blocks)))


def _pool(x: Tensor) -> Tensor:
    """2x2 maximum of [B, H, W, C]."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Overlapping patches with a stride of 4, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 7, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, S / 4, S / 4, width]."""
        out: Tensor = self.proj(x).permute(0, 2, 3, 1)
        return out


class Attention(nn.Module):
    """Attention over a map; with ``pooled`` the queries are the 2x2 maxima, and so half as many a side.

    ``qkv`` rows are all q, all k, all v.
    """

    def __init__(self, width: int, out_width: int, heads: int, *, pooled: bool) -> None:
        super().__init__()
        self.heads, self.pooled = heads, pooled
        self.qkv = nn.Linear(width, 3 * out_width)
        self.proj = nn.Linear(out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] to [B, H, W, out_width], or half of H and W."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = _pool(q) if self.pooled else q
        mixed = F.scaled_dot_product_attention(self._split_heads(q), self._split_heads(k), self._split_heads(v))
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(q.shape))
        return out

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, _, _, width = x.shape
        return x.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        linears = (nn.Linear(width, hidden), nn.Linear(hidden, width))
        self.layers: Sequence[nn.Linear] = nn.ModuleList(linears)  # type: ignore[assignment]
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        first, last = self.layers
        out: Tensor = last(self.activation(first(x)))
        return out


class Block(nn.Module):
    """Pre-norm block. Where the width grows, the map shrinks, and the shortcut projects the normalised input.

    With a window, zeros are padded after the norm and take part in the attention.
    """

    def __init__(self, width: int, out_width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.pooled = window, out_width != width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, out_width, heads, pooled=self.pooled)
        self.norm2 = nn.LayerNorm(out_width, eps=1e-6)
        self.mlp = Mlp(out_width, 4 * out_width)
        if self.pooled:
            self.proj = nn.Linear(width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] to [B, H, W, out_width], or half of H and W."""
        normed = self.norm1(x)
        shortcut = _pool(self.proj(normed)) if self.pooled else x
        x = shortcut + (
            in_windows(self.attn, normed, self.window, 2 if self.pooled else 1) if self.window else self.attn(normed)
        )
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Hiera(nn.Module):
    """The trunk: four maps, each half as large and twice as deep as the one before."""

    def __init__(self, size: HieraSize) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(size.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, size.width, size.background, size.background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, size.width, WINDOW_EMBED, WINDOW_EMBED))
        self.blocks: Sequence[Block] = nn.ModuleList(self._blocks(size))  # type: ignore[assignment]
        self.stage_ends = tuple(sum(size.blocks[: stage + 1]) - 1 for stage in range(len(size.blocks)))

    @staticmethod
    def _blocks(size: HieraSize) -> list[Block]:
        blocks: list[Block] = []
        for stage, count in enumerate(size.blocks):
            for i in range(count):
                # the block that shrinks the map still sees the windows of the larger one
                earlier = max(stage - 1, 0) if i == 0 else stage
                window = 0 if len(blocks) in size.global_blocks else size.windows[earlier]
                blocks.append(Block(size.widths[earlier], size.widths[stage], size.heads << stage, window))
        return blocks

    def position_embedding(self, grid: int) -> Tensor:
        """What is added to the patches, [1, grid, grid, width]; ``grid`` is a multiple of 8."""
        background = F.interpolate(self.pos_embed, size=(grid, grid), mode="bicubic", align_corners=False)
        repeats = grid // WINDOW_EMBED
        return (background + self.pos_embed_window.repeat(1, 1, repeats, repeats)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, S, S] to the maps of the four stages, [B, width << i, S / (4 << i), S / (4 << i)]."""
        x = self.patch_embed(x)
        x = x + self.position_embedding(x.shape[1])
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.stage_ends:
                stages.append(x.permute(0, 3, 1, 2))
        return stages


class Lateral(nn.Module):
    """A 1x1 convolution; the extra module gives it its official name."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] to [B, out_width, H, W]."""
        out: Tensor = self.conv(x)
        return out


class PyramidNeck(nn.Module):
    """All stages at one width; the deepest is added to the one before it and then dropped."""

    def __init__(self, widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        # the official list begins with the deepest stage
        laterals = (Lateral(width, out_width) for width in reversed(widths))
        self.convs: Sequence[Lateral] = nn.ModuleList(laterals)  # type: ignore[assignment]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """The four stages to maps of strides 4, 8 and 16, [B, out_width, H, W]."""
        high, middle, low, deepest = (conv(x) for conv, x in zip(reversed(self.convs), stages, strict=True))
        return [high, middle, low + F.interpolate(deepest, scale_factor=2.0, mode="nearest")]


class ImageEncoder(nn.Module):
    """Trunk and neck: a normalised image [B, 3, S, S] to maps [B, out_width, S / 4 ..], S / 8 and S / 16.

    S is a multiple of 32.
    """

    def __init__(self, size: HieraSize, out_width: int = 256) -> None:
        super().__init__()
        self.trunk = Hiera(size)
        self.neck = PyramidNeck(size.widths, out_width)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode."""
        maps: list[Tensor] = self.neck(self.trunk(image))
        return maps
