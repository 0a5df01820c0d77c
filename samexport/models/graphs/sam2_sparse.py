"""Export forms of Efficient-SAM2: the encoder in three parts, and memory attention on a part of the tokens.

What differs from ``architectures/sam2_sparse.py``, and why it is the same function:

- The bypass is computed for every window, in the first part, where it costs nothing; the host puts the rows that were
  routed in their places, so no graph gathers or scatters windows.
- Tokens beyond the map, and those of rows that are no windows, are told by ``inside``. In inner global blocks their
  keys carry a bias of ABSENT in one more channel, which meets a 1 in the queries (their projection makes it, since
  phones' GPUs pad with zeros alone), and their results become 0. So all
  tokens of the chosen windows are one sequence, and nothing depends on how many of them are inside.
- The queries of those blocks go in parts of each window, so their number is fixed and the scores are never all in
  memory.
- The saliency of the newest memory is taken from the scores that the attention has anyway.

The rest is as in ``sam2_encoder.py`` and ``sam2_memory.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import hiera
from samexport.models.architectures.mask_decoder import HEADS
from samexport.models.architectures.sam2 import Sam2
from samexport.models.architectures.sam2_memory import MEMORY_WIDTH
from samexport.models.architectures.sam2_sparse import routing
from samexport.models.graphs.decoder_attention import ABSENT, TokenToImage
from samexport.models.graphs.layers import frozen, in_chunks, joined, merge, partition
from samexport.models.graphs.sam2_decoder import OWN_TOKENS, Sam2TrackedDecoder, Sam2Transformer
from samexport.models.graphs.sam2_encoder import Attention, Layout, Sam2ImageEncoder
from samexport.models.graphs.sam2_memory import MemoryLayer, Sam2MemoryAttention

_QUERY_PARTS = 4
# the tokens for presence, IoU and masks, and the first of the prompt
_WATCHED = OWN_TOKENS + 1


class Stem(Sam2ImageEncoder):
    """Image [1, 3, S, S] in 0..255 to the fine maps, the windows [n, T, C] and, if there is a bypass, its results."""

    def __init__(self, model: Sam2) -> None:
        super().__init__(model)
        where = routing(model.size.trunk)
        self.blocks = self.blocks[: where.first]
        self.bypass, self.window = model.bypass, where.window
        self.after: Layout = self.blocks[-1].after  # type: ignore[assignment]
        self.padding = -self.after.side % where.window

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Encode."""
        x = self.embed(image)
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.ends:
                stages.append(x)
        whole = self.after.to(x, Layout(self.after.side, 0))
        padded = F.pad(whole, (0, 0, 0, self.padding, 0, self.padding))
        # the bypass does not read the windows: phones' GPUs give wrong results where an output is read again
        passed = () if self.bypass is None else (partition(self.bypass(padded), self.window),)
        return (*self.fine(*stages), partition(padded, self.window), *passed)


class InsideAttention(Attention):
    """Global attention of windows [K, T, C]; ``bias`` [K, T, 1] is added to the scores of keys."""

    def __init__(self, attention: hiera.Attention, side: int, window: int) -> None:
        super().__init__(attention, side, window)
        # one more channel for each head, which is 1 for every token
        weight = self.q.reshape(len(self.q), self.heads, self.depth)
        self.q = frozen(F.pad(weight, (0, 1)).flatten(1))
        self.q_bias = frozen(F.pad(self.q_bias.reshape(self.heads, self.depth), (0, 1), value=1.0).flatten())

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        """Attend."""
        count, tokens, _ = x.shape
        q, k, v = x @ self.q + self.q_bias, x @ self.k, x @ self.v
        shared = bias.reshape(1, 1, count * tokens, 1).expand(1, self.heads, count * tokens, 1)
        keys, values = torch.cat([self._all_heads(k), shared], dim=-1).transpose(-1, -2), self._all_heads(v)
        mixed = []
        for part in torch.split(q, -(-tokens // _QUERY_PARTS), dim=1):
            read = ((self._all_heads(part) @ keys).softmax(-1) @ values).transpose(1, 2)
            mixed.append(read.reshape(count, part.shape[1], self.heads * self.depth))
        return torch.cat(mixed, dim=1) @ self.out + self.out_bias

    def _all_heads(self, x: Tensor) -> Tensor:
        """[K, t, heads * depth] to [1, heads, K * t, depth]."""
        return x.reshape(1, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class RoutedBlock(nn.Module):
    """One block on chosen windows [K, T, C]."""

    def __init__(self, block: hiera.Block, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.everywhere = not block.window
        kind = InsideAttention if self.everywhere else Attention
        self.attention = kind(block.attn, window, window)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Same shape out."""
        normed = self.norm1(x)
        x = x + (self.attention(normed, bias) if self.everywhere else self.attention(normed))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Routed(nn.Module):
    """Chosen windows [K, T, C] through the routed blocks; ``inside`` [K, T] tells the tokens that are on the map."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        where, blocks = routing(model.size.trunk), model.image_encoder.trunk.blocks
        self.blocks = nn.ModuleList(RoutedBlock(block, where.window) for block in blocks[where.first : where.last])

    def forward(self, chosen: Tensor, inside: Tensor) -> Tensor:
        """Encode."""
        windows = chosen
        bias = (1 - inside[..., None]) * ABSENT
        for block in self.blocks:
            windows = block(windows, bias)
            if block.everywhere:
                windows = windows * inside[..., None]
        return windows


class Tail(Sam2ImageEncoder):
    """All windows [n, T, C], those that were routed among them, to the embedding without memory and ``vision``."""

    def __init__(self, model: Sam2) -> None:
        super().__init__(model)
        where = routing(model.size.trunk)
        self.skipped, self.window = where.last, where.window
        self.blocks = self.blocks[where.last :]
        self.enters: Layout = self.blocks[0].given  # type: ignore[assignment]

    def forward(self, merged: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode."""
        side = self.enters.side
        x = merged if self.enters.window else merge(merged, self.window, side, side)
        stages = []
        for i, block in enumerate(self.blocks, self.skipped):
            x = block(x)
            if i in self.ends:
                stages.append(x)
        return self.coarse(*stages)


class PrunedLayer(MemoryLayer):
    """A layer that reads the newest memory, whole ones, and of old ones the tokens that were kept."""

    def read(self, x: Tensor, keys: Tensor, tokens: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """Update [1 or N, P, width], and the mean weights of the first ``cells`` keys among themselves, [N, cells]."""
        x = self.itself(x)
        queries, turned = self.queries(x), keys.transpose(-1, -2)
        mixed, seen = [], []
        for part in in_chunks(queries, self.chunk):
            scores = part @ turned
            mixed.append(scores.softmax(-1) @ tokens)
            seen.append(scores[..., :cells].softmax(-1).sum(1, keepdim=True))
        return self.updated(x, joined(mixed)), joined(seen).sum(1) / queries.shape[1]

    def kept_keys(self, placed: Tensor, cell: Tensor, bias: Tensor) -> Tensor:
        """Keys [N, M, width + 1] of tokens [N, M, 64] whose places are the cells [N, M]."""
        even, odd = self.key.halves(placed)
        cos, sin = self.key.cos[cell], self.key.sin[cell]
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos, bias], dim=-1)


class PrunedMemoryAttention(Sam2MemoryAttention):
    """The graph ``memory_attention_pruned``: ``newest`` is the memory of the frame before, which has no slot."""

    layer = PrunedLayer

    def forward(  # type: ignore[override]
        self, vision: Tensor, newest: Tensor, memory: Tensor, memory_row: Tensor, kept: Tensor, kept_cell: Tensor,
        kept_row: Tensor, pointers: Tensor, pointer_age: Tensor, pointer_present: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Read the memory."""
        count, cells = newest.shape[:2]
        pointer_tokens, placeless, pointer_bias = self.memory.pointers(pointers, pointer_age, pointer_present)
        whole, bias = self.memory.maps(memory, memory_row)
        # row 0 of the times is that of an absent slot
        latest = newest + self.memory.sine[0] + self.memory.times[1]
        old_bias, old_time = self._rows(kept_row)
        x = (vision + self.place).flatten(2).transpose(1, 2)
        saliency = []
        layers: Sequence[PrunedLayer] = self.layers  # type: ignore[assignment]
        for index, layer in enumerate(layers):
            tokens, cell = kept[:, index], kept_cell[:, index]
            old = layer.kept_keys(tokens + self.memory.sine[0, 0][cell] + old_time, cell, old_bias)
            first = layer.key(latest, latest[..., :1] * 0)
            # those of whole memories and pointers
            rest = layer.keys((whole, bias), (placeless, pointer_bias))
            mixed = torch.cat([newest, memory.reshape(count, -1, MEMORY_WIDTH), pointer_tokens, tokens], dim=1)
            x, seen = layer.read(x, torch.cat([first, rest, old], dim=1), mixed, cells)
            saliency.append(seen)
        out: Tensor = self.norm(x).transpose(1, 2).reshape(count, -1, self.grid, self.grid)
        return out, torch.stack(saliency, dim=1)

    def _rows(self, kept_row: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of tokens [N, M] to biases of their keys [N, M, 1] and what their age adds, [N, M, 64]."""
        chosen = F.relu(1 - (kept_row[..., None] - self.memory.rows).abs())
        return chosen[..., :1] * ABSENT, chosen @ self.memory.times


class SalientDecoder(Sam2TrackedDecoder):
    """The graph ``mask_decoder_salient``: the tracked decoder, and where it looked, [N, grid, grid].

    That is the mean over its three attentions to the image, all heads and the first seven tokens.
    """

    def forward(self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Decode."""
        count, _, side, _ = image_embed.shape
        image, own, bias = self.given(image_embed)
        parts: Sam2Transformer = self.transformer
        queries, image, first = self.first(image, own, bias)
        layer, attention = parts.layer1, cast(TokenToImage, parts.layer1.to_image)
        queries = layer.among_tokens(queries, own, bias)
        weights = attention.weights(queries + own, image)
        looked = [_mean(first, own.shape[1]), _mean(weights, own.shape[1])]
        queries, image = layer.with_image(queries, attention.mix(weights, image), own, bias, (image,))
        queries, own = queries[:, :_WATCHED], own[:, :_WATCHED]
        weights = parts.final.weights(queries + own, image)
        looked.append(_mean(weights, _WATCHED))
        queries = parts.norm(queries + parts.final.mix(weights, image))
        decoded = parts.masks(queries[:, :OWN_TOKENS], image, feat_s0, feat_s1)
        return *decoded, ((looked[0] + looked[1] + looked[2]) / 3).reshape(count, side, side)


def _mean(weights: Tensor, tokens: int) -> Tensor:
    """Weights [N, heads * tokens, P] of the tokens that are watched, [N, P]."""
    by_token = weights.reshape(-1, HEADS, tokens * weights.shape[-1])[:, :, : _WATCHED * weights.shape[-1]]
    return by_token.mean(1).reshape(-1, _WATCHED, weights.shape[-1]).mean(1)
