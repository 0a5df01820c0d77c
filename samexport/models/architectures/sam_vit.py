"""SAM's plain ViT encoder with window and global attention and decomposed relative positions, whole or pruned.

Source: Segment Anything (arXiv 2304.02643), ``segment_anything/modeling/image_encoder.py``; SlimSAM (arXiv
2312.05284), whose layers are narrower: the stream between the blocks, and in each block the heads and the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.errors import CheckpointError
from samexport.files import reason
from samexport.models.architectures.layers import in_windows, neck

MAX_DEPTH, MAX_WIDTH, MAX_GRID = 64, 8192, 64
"""What a checkpoint may ask for."""


class PatchEmbed(nn.Module):
    """16x16 patches, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, S / 16, S / 16, width]."""
        out: Tensor = self.proj(x).permute(0, 2, 3, 1)
        return out


class Attention(nn.Module):
    """Attention over a size x size grid; ``qkv`` rows are all q, all k, all v, each ``inner`` (None: ``width``)."""

    def __init__(self, width: int, heads: int, size: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        self.heads, self.size, self.scale = heads, size, (inner // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, inner // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, inner // heads))

    def relative_table(self, parameter: Tensor) -> Tensor:
        """Rows of the embedding for each (query, key) coordinate pair, [size, size, head width]."""
        place = torch.arange(self.size)
        return parameter[place[:, None] - place + self.size - 1]

    def forward(self, x: Tensor) -> Tensor:
        """[B, size, size, width], same shape out. The relative terms use the unscaled queries."""
        batch, size, _, _ = x.shape
        qkv = self.qkv(x).view(batch, size * size, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        grid = q.reshape(batch, self.heads, size, size, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, self.relative_table(self.rel_pos_h))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, self.relative_table(self.rel_pos_w))
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(batch, self.heads, size**2, size**2)
        mixed = (q * self.scale @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, size, size, -1))
        return out


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class Block(nn.Module):
    """Pre-norm block; with a window, zeros are padded after the norm and take part in the attention."""

    def __init__(
        self, width: int, heads: int, window: int, grid: int, inner: int | None = None, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, window or grid, inner)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden or 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width], same shape out."""
        x = x + (in_windows(self.attn, self.norm1(x), self.window) if self.window else self.attn(self.norm1(x)))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SamViT(nn.Module):
    """The encoder: [B, 3, S, S] normalised image to [B, out, S / 16, S / 16]."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        global_blocks: tuple[int, ...],
        *,
        grid: int = 64,
        window: int = 14,
        out_channels: int = 256,
        inner: Sequence[int] = (),
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width))
        windows = [0 if i in global_blocks else window for i in range(depth)]
        pruned = zip(windows, inner or [width] * depth, hidden or [4 * width] * depth, strict=True)
        blocks = (Block(width, heads, size, grid, heads_width, mlp) for size, heads_width, mlp in pruned)
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.neck = neck(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        return self.with_early(x)[0]

    @property
    def early(self) -> int:
        """How many blocks there are up to the first global one."""
        return 1 + [block.window for block in self.blocks].index(0)

    def with_early(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and the map after the first global block, [B, width, S / 16, S / 16], which HQ-SAM reads."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks[: self.early]:
            x = block(x)
        early = x
        for block in self.blocks[self.early :]:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2)), early.permute(0, 3, 1, 2)


def vit_b() -> SamViT:
    """SAM ViT-B."""
    return SamViT(768, 12, 12, (2, 5, 8, 11))


def vit_l() -> SamViT:
    """SAM ViT-L."""
    return SamViT(1024, 24, 16, (5, 11, 17, 23))


def vit_h() -> SamViT:
    """SAM ViT-H."""
    return SamViT(1280, 32, 16, (7, 15, 23, 31))


def slimsam_50() -> SamViT:
    """SlimSAM-50, all blocks alike."""
    return SamViT(384, 12, 12, (2, 5, 8, 11))


def slimsam_77() -> SamViT:
    """SlimSAM-77, all blocks alike."""
    return SamViT(168, 12, 12, (2, 5, 8, 11), hidden=[696] * 12)


def pruned(shapes: Mapping[str, tuple[int, ...]]) -> SamViT:
    """The encoder whose tensors have these shapes.

    Raises:
        CheckpointError: they are not those of such an encoder.
    """
    try:
        width, depth = shapes["patch_embed.proj.weight"][0], 1 + max(_block_of(name) for name in shapes)
        places = [shapes[f"blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
        inner = [shapes[f"blocks.{i}.attn.proj.weight"][1] for i in range(depth)]
        hidden = [shapes[f"blocks.{i}.mlp.lin1.weight"][0] for i in range(depth)]
        grid, (heads,) = shapes["pos_embed"][1], {a // place[1] for a, place in zip(inner, places, strict=True)}
        whole = tuple(i for i, place in enumerate(places) if place[0] == 2 * grid - 1)
        windows = {(place[0] + 1) // 2 for i, place in enumerate(places) if i not in whole}
        (window,) = windows or {14}
        out = shapes["neck.0.weight"][0]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"these are no weights of a pruned SAM ViT ({reason(error)})") from error
    if not (1 <= depth <= MAX_DEPTH and max(width, *inner, *hidden) <= MAX_WIDTH and grid <= MAX_GRID):
        raise CheckpointError("these are no weights of a pruned SAM ViT: its sizes are beyond any")
    return SamViT(width, depth, heads, whole, grid=grid, window=window, out_channels=out, inner=inner, hidden=hidden)


def _block_of(name: str) -> int:
    words = name.split(".")
    return int(words[1]) if words[0] == "blocks" else -1


def slim_test() -> SamViT:
    """Two blocks with other widths, at 64 pixels."""
    return SamViT(24, 2, 2, (1,), grid=4, window=3, out_channels=64, inner=(16, 12), hidden=(40, 72))


def vit_test() -> SamViT:
    """The same code at 64 pixels: one window block with padding (4 to 6), one global block."""
    return SamViT(32, 2, 4, (1,), grid=4, window=3, out_channels=64)
