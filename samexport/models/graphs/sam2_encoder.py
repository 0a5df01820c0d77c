"""Export form of SAM 2's image encoder: Hiera, its neck and the decoder's two convolutions on the fine maps.

What differs from ``architectures/hiera.py``, and why it is the same function:

- ``std`` is in the patch convolution, the softmax scale in the query weights; the position embedding is baked.
- All but attention acts on each token alone, and attention in windows does not care where a window lies. So tokens
  stay in the order of the windows from block to block, through the pooling of queries as well (its 2x2 cells never
  cross a window), and are put in the order of the map only where a block needs other windows or padding.
- Global attention has no order at all.
- The key bias cancels in the softmax and is dropped; the value bias moves behind the attention, since the weights of
  a row sum to 1. Then a padding token, which is zero before its projection, has key and value zero after it: q, k and
  v are computed of real tokens alone and padded with zeros. A padding token's query is never read.
- Global attention takes queries in chunks, so its scores are never all in memory.
- The neck's maps of strides 4 and 8 have one reader, a 1x1 convolution after a 1x1 convolution: they are one.
- The deepest map is doubled by an addition that broadcasts. No tensor is above rank 4.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import hiera
from samexport.models.architectures.sam2 import Sam2
from samexport.models.graphs.layers import Normalise, attend, frozen, merge, partition, patches
from samexport.models.spec import Preprocess

# of a chunk's scores; more do not fit into the caches between the two products
_SCORE_BYTES = 1 << 25


class Layout:
    """How the tokens of a square map lie: [windows, window * window, C] in the order of rows, or the map itself.

    ``window`` 0 is the map, [1, side, side, C]. With padding there is no such order: only the map is used then.
    """

    def __init__(self, side: int, window: int) -> None:
        self.side, self.window = side, window

    def to(self, x: Tensor, other: Layout) -> Tensor:
        """Tokens in this order, in the other one."""
        if self.window == other.window:
            return x
        if self.window:
            x = merge(x, self.window, self.side, self.side)
        return partition(x, other.window) if other.window else x

    def pooled(self) -> Layout:
        """After a 2x2 pooling inside each window."""
        return Layout(self.side // 2, self.window // 2)


def _pool(x: Tensor, side: int) -> Tensor:
    """2x2 maximum of squares [n, side * side, C], [n, side * side / 4, C]."""
    count, _, width = x.shape
    rows = x.reshape(-1, 2, side * width).amax(1)
    cells = rows.reshape(-1, 2, width).amax(1)
    return cells.reshape(count, -1, width)


class Attention(nn.Module):
    """Attention of one block in windows of ``window``, padded if the map of ``side`` needs it; 0 is global."""

    def __init__(self, attention: hiera.Attention, side: int, window: int) -> None:
        super().__init__()
        width, heads = attention.proj.in_features, attention.heads
        self.heads, self.depth, self.pooled = heads, width // heads, attention.pooled
        self.side, self.window = side, window
        self.padding = -side % window if window else 0
        scale = self.depth**-0.5
        q, k, v = attention.qkv.weight.chunk(3)
        q_bias, _, v_bias = attention.qkv.bias.chunk(3)
        self.q, self.q_bias = frozen(q.T * scale), frozen(q_bias * scale)
        self.k, self.v = frozen(k.T), frozen(v.T)
        self.out = frozen(attention.proj.weight.T)
        self.out_bias = frozen(
            (attention.proj.bias.double() + attention.proj.weight.double() @ v_bias.double()).float()
        )
        self.chunk = max(64, _SCORE_BYTES // (4 * heads * max(window, side if not window else 1) ** 2))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in the block's layout to their update, with pooled queries a quarter of them."""
        q, k, v = x @ self.q + self.q_bias, x @ self.k, x @ self.v
        if self.padding:
            q, k, v = (partition(F.pad(y, (0, 0, 0, self.padding, 0, self.padding)), self.window) for y in (q, k, v))
        elif not self.window:
            q, k, v = (y.reshape(1, -1, y.shape[-1]) for y in (q, k, v))
        if self.pooled:
            q = _pool(q, self.window or self.side)
        mixed = attend(self._split(q), self._split(k), self._split(v), self.chunk)
        count, _, tokens, _ = mixed.shape
        mixed = mixed.transpose(1, 2).reshape(count, tokens, -1)
        if self.padding:
            step = 2 if self.pooled else 1
            mixed = merge(mixed, self.window // step, self.side // step, self.side // step)
        return mixed @ self.out + self.out_bias

    def _split(self, x: Tensor) -> Tensor:
        """[n, T, heads * depth] to [n, heads, T, depth]."""
        return x.reshape(x.shape[0], -1, self.heads, self.depth).transpose(1, 2)


class Block(nn.Module):
    """One block on tokens in the order ``before``, which it leaves in the order ``after``."""

    def __init__(self, block: hiera.Block, given: Layout) -> None:
        super().__init__()
        window = block.window
        padded = bool(window) and given.side % window != 0
        # a global block takes tokens as they come, unless it pools, which no model does without windows
        self.given, self.before = given, given if not window and not block.pooled else Layout(given.side, 0)
        if window and not padded:
            self.before = Layout(given.side, window)
        self.after = self.before.pooled() if block.pooled else self.before
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attention = Attention(block.attn, given.side, window)
        self.pooled = block.pooled
        if self.pooled:
            self.shortcut, self.shortcut_bias = frozen(block.proj.weight.T), frozen(block.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in the order ``given``, out in the order ``after``."""
        x = self.given.to(x, self.before)
        normed = self.norm1(x)
        shortcut = self._pooled(normed @ self.shortcut) + self.shortcut_bias if self.pooled else x
        x = shortcut + self.attention(normed).reshape(shortcut.shape)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _pooled(self, x: Tensor) -> Tensor:
        if self.before.window:
            return _pool(x, self.before.window)
        side = self.before.side
        return _pool(x.reshape(1, side * side, -1), side).reshape(1, side // 2, side // 2, -1)


class Lateral(nn.Module):
    """1x1 convolutions in a row on tokens, as one product, and their bias apart."""

    def __init__(self, *convolutions: nn.Conv2d) -> None:
        super().__init__()
        weights = [conv.weight[:, :, 0, 0].double().T for conv in convolutions]
        weight, bias = weights[0], _bias(convolutions[0])
        for (_, conv), after in zip(pairwise(convolutions), weights[1:], strict=True):
            weight, bias = weight @ after, bias @ after + _bias(conv)
        self.weight, self.bias = frozen(weight.float()), frozen(bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., out], without the bias."""
        return x @ self.weight


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise ValueError("every 1x1 convolution of the neck has a bias")
    return conv.bias.double()


class Sam2ImageEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to the maps that decoder and memory read; S is a multiple of 32.

    The outputs are those of the graph ``image_encoder``.
    """

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        trunk, neck, decoder = model.image_encoder.trunk, model.image_encoder.neck, model.sam_mask_decoder
        size = model.size.image_size
        self.normalise = Normalise(Preprocess(size))
        self.patch = patches(trunk.patch_embed.proj, self.normalise)
        self.given, self.ends = Layout(size // 4, 0), trunk.stage_ends
        blocks, layout = [], self.given
        for block in trunk.blocks:
            blocks.append(Block(block, layout))
            layout = blocks[-1].after
        self.blocks = nn.ModuleList(blocks)
        # added in the order of the first block's tokens
        self.first = blocks[0].before
        self.pos_embed = frozen(self.given.to(trunk.position_embedding(size // 4), self.first))
        blocks[0].given = self.first
        self.layouts = [blocks[end].after for end in self.ends]
        deepest, low, middle, high = (lateral.conv for lateral in neck.convs)
        self.high, self.middle = Lateral(high, decoder.conv_s0), Lateral(middle, decoder.conv_s1)
        self.low, self.deepest = Lateral(low), Lateral(deepest)
        bias = self.low.bias + self.deepest.bias
        self.vision_bias = frozen(bias[:, None, None])
        self.embed_bias = frozen((bias + model.no_mem_embed.flatten())[:, None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode."""
        x = self.embed(image)
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                stages.append(x)
        high, middle = self.fine(*stages[:2])
        embedding, vision = self.coarse(*stages[2:])
        return embedding, high, middle, vision

    def embed(self, image: Tensor) -> Tensor:
        """Tokens for the first block."""
        x = self.patch(self.normalise(image)).permute(0, 2, 3, 1)
        return self.given.to(x, self.first) + self.pos_embed

    def fine(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of strides 4 and 8."""
        high, middle = self._map(first, 0, self.high), self._map(second, 1, self.middle)
        return (high + self.high.bias).permute(0, 3, 1, 2), (middle + self.middle.bias).permute(0, 3, 1, 2)

    def coarse(self, third: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding without memory and ``vision``, of stride 16."""
        low, deepest = self._map(third, 2, self.low), self._map(fourth, 3, self.deepest)
        _, side, _, width = deepest.shape
        twice = torch.cat([deepest, deepest], dim=-1).reshape(side, 1, side, 2 * width)
        vision = (low.reshape(side, 2, side, 2 * width) + twice).reshape(low.shape).permute(0, 3, 1, 2)
        # two sums, since phones' GPUs give wrong results where an output is read again
        return vision + self.embed_bias, vision + self.vision_bias

    def _map(self, x: Tensor, stage: int, lateral: Lateral) -> Tensor:
        """Tokens of a stage through a lateral to a map [1, H, W, C]."""
        layout = self.layouts[stage]
        return layout.to(lateral(x), Layout(layout.side, 0))
