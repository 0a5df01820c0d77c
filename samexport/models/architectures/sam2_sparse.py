"""Efficient-SAM2: SAM 2 that encodes only windows that matter, and reads only salient tokens of old memories.

Source: Efficient-SAM2 (arXiv 2602.08224), ``WB_Hiera``, ``WB_MemoryAttention`` and ``get_topk_mask`` of its code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.hiera import Block, HieraSize, ImageEncoder
from samexport.models.architectures.sam2_memory import MemoryAttention, RotaryAttention, rotary_angles, rotate, sine_2d


@dataclass(frozen=True)
class Routing:
    """Which part of a trunk is done for chosen windows alone.

    Attributes:
        first: the first such block, the one after the block that begins the third stage.
        last: the block after them, the trunk's last global one, which sees the whole map again.
        window: side of the windows in tokens.
        width: channels.
    """

    first: int
    last: int
    window: int
    width: int


def routing(size: HieraSize) -> Routing:
    """Of a trunk."""
    return Routing(sum(size.blocks[:2]) + 1, size.global_blocks[-1], size.windows[2], size.widths[2])


class Bypass(nn.Module):
    """What a window gets that is not chosen: a bottleneck in the place of the blocks, under its official names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down_project = nn.Linear(width, width // 2)
        self.up_project = nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        out: Tensor = x + self.up_project(F.relu(self.down_project(self.norm(x))))
        return out


def to_windows(x: Tensor, window: int) -> Tensor:
    """A map [1, H, W, C], padded with zeros, in windows row by row, [n, window, window, C]."""
    _, height, columns, width = x.shape
    padded = F.pad(x, (0, 0, 0, -columns % window, 0, -height % window))[0]
    rows, cols = (side // window for side in padded.shape[:2])
    split = padded.reshape(rows, window, cols, window, width).transpose(1, 2)
    return split.reshape(-1, window, window, width)


def to_map(windows: Tensor, side: int) -> Tensor:
    """The inverse of :func:`to_windows` for a square map."""
    window, width = windows.shape[1], windows.shape[-1]
    across = -(-side // window)
    rows = windows.reshape(across, across, window, window, width).transpose(1, 2)
    return rows.reshape(1, across * window, across * window, width)[:, :side, :side]


class RoutedEncoder(nn.Module):
    """The image encoder with chosen windows.

    All windows are not the dense encoder where the map is padded: padding is a token here, from the first of these
    blocks on.

    Args:
        encoder: trunk and neck.
        bypass: for the windows that are not chosen.
        size: of the trunk.
    """

    def __init__(self, encoder: ImageEncoder, bypass: nn.Module, size: HieraSize) -> None:
        super().__init__()
        self.encoder, self.bypass, self.routing = encoder, bypass, routing(size)

    def forward(self, image: Tensor, chosen: Tensor) -> list[Tensor]:
        """A normalised image [1, 3, S, S] and numbers of windows, sorted, [K], to the maps of :class:`ImageEncoder`."""
        trunk = self.encoder.trunk
        x = trunk.patch_embed(image)
        x = x + trunk.position_embedding(x.shape[1])
        stages = []
        for index, block in enumerate(trunk.blocks):
            if index == self.routing.first:
                x = self.middle(x, chosen)
            if not self.routing.first <= index < self.routing.last:
                x = block(x)
            if index in trunk.stage_ends:
                stages.append(x.permute(0, 3, 1, 2))
        maps: list[Tensor] = self.encoder.neck(stages)
        return maps

    def middle(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The map [1, H, H, C] before the first routed block, to the map before the last global block."""
        windows = to_windows(x, self.routing.window)
        merged = self.bypass(windows).clone()
        merged[chosen] = self.routed(windows[chosen], self.inside(x.shape[1])[chosen])
        return to_map(merged, x.shape[1])

    def inside(self, side: int) -> Tensor:
        """Which tokens of windows are on the map, [n, window, window]."""
        return to_windows(torch.ones(1, side, side, 1), self.routing.window)[..., 0] > 0

    def routed(self, windows: Tensor, inside: Tensor) -> Tensor:
        """Chosen windows [K, window, window, C] through the routed blocks."""
        for block in self.encoder.trunk.blocks[self.routing.first : self.routing.last]:
            if block.window:
                windows = _update(block, windows)
            else:
                tokens = _update(block, windows[inside][None, :, None])
                windows = torch.zeros_like(windows)
                windows[inside] = tokens[0, :, 0]
        return windows


def _update(block: Block, x: Tensor) -> Tensor:
    """A block on tokens that all attend to each other, [B, H, W, C]."""
    x = x + block.attn(block.norm1(x))
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


class PrunedMemoryAttention(nn.Module):
    """Memory attention that reads a part of the tokens, another in each layer, and tells which of a map are salient."""

    def __init__(self, attention: MemoryAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, vision: Tensor, memory: Tensor | Sequence[Tensor], memory_pos: Tensor, pointers: int,
        kept: Sequence[Tensor], newest: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Read the memory.

        Args:
            vision: features [1, width, grid, grid].
            memory: all tokens [1, L, 64], as in :class:`MemoryAttention`, or those of each layer.
            memory_pos: their positions.
            pointers: how many of the last tokens have no place on the map.
            kept: for each layer, which of the tokens with a place are read, sorted.
            newest: which memory's saliency is wanted, by its place in the bank.

        Returns:
            features as ``vision``, and saliency [layers, grid * grid]: of the softmax over the newest memory alone, the
            mean over the queries.
        """
        grid, width = vision.shape[-1], self.attention.width
        cells = grid * grid
        angles = rotary_angles(width, grid).to(vision)
        x = (vision + 0.1 * sine_2d(width, grid).to(vision)).flatten(2).transpose(1, 2)
        length = memory_pos.shape[1]
        placeless = torch.arange(length - pointers, length)
        banks = [memory] * len(kept) if isinstance(memory, Tensor) else memory
        saliency = []
        for layer, bank, places in zip(self.attention.layers, banks, kept, strict=True):
            own = layer.norm1(x)
            x = x + layer.self_attn(own, own, own, angles)
            read = torch.cat([places, placeless])
            tokens, positions = bank[:, read], memory_pos[:, read]
            on_newest = torch.nonzero(places // cells == newest)[:, 0]
            update, seen = _read(
                layer.cross_attn_image, layer.norm2(x), tokens, positions, angles, places % cells, on_newest
            )
            saliency.append(seen)
            x = x + update
            x = x + layer.linear2(F.relu(layer.linear1(layer.norm3(x))))
        out: Tensor = self.attention.norm(x).transpose(1, 2).reshape(vision.shape)
        return out, torch.cat(saliency)


def _read(
    attention: RotaryAttention, q: Tensor, tokens: Tensor, positions: Tensor, angles: Tensor, cells: Tensor,
    newest: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The update [1, P, width] and the mean weight of the keys ``newest`` among themselves, [1, n]."""
    q = rotate(attention.q_proj(q), angles)
    k = attention.k_proj(tokens + positions)
    k = torch.cat([rotate(k[:, : len(cells)], angles[cells]), k[:, len(cells) :]], dim=1)
    logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    update: Tensor = attention.out_proj(logits.softmax(-1) @ attention.v_proj(tokens))
    return update, logits[:, :, newest].softmax(-1).mean(1)


def most_salient(saliency: Tensor, count: int) -> Tensor:
    """Which tokens are kept, sorted: [layers, cells] to [layers, count]."""
    return saliency.topk(count, dim=-1).indices.sort(dim=-1).values
