"""Efficient-SAM2's graphs without any rewrite: the architecture wrapped in the graph contracts.

Where a contract has slots that may be absent, they are left out before the architecture sees them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from samexport.models.architectures.mask_decoder import HEADS, Attention
from samexport.models.architectures.sam2 import Sam2
from samexport.models.architectures.sam2_sparse import (
    PrunedMemoryAttention,
    RoutedEncoder,
    routing,
    to_map,
    to_windows,
)
from samexport.models.families.sam2 import ABSENT_ROW
from samexport.models.graphs.sam2_decoder import OWN_TOKENS
from samexport.models.graphs.sam2_plain import PlainImageEncoder, PlainTrackedDecoder


class _Encoder(PlainImageEncoder):
    def __init__(self, model: Sam2) -> None:
        super().__init__(model)
        size = model.size.trunk
        self.routed = RoutedEncoder(model.image_encoder, model.bypass or nn.Identity(), size)
        self.where = routing(size)

    def blocks(self, x: Tensor, first: int, last: int | None) -> tuple[Tensor, list[Tensor]]:
        """Blocks of the trunk, and the stages that end among them."""
        trunk, stages = self.model.image_encoder.trunk, []
        for index, block in list(enumerate(trunk.blocks))[first:last]:
            x = block(x)
            if index in trunk.stage_ends:
                stages.append(x.permute(0, 3, 1, 2))
        return x, stages


class PlainStem(_Encoder):
    """The blocks before the routed ones, and the bypass."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Encode."""
        encoder, decoder = self.model.image_encoder, self.model.sam_mask_decoder
        x = encoder.trunk.patch_embed((image - self.mean) / self.std)
        x, stages = self.blocks(x + encoder.trunk.position_embedding(x.shape[1]), 0, self.where.first)
        windows = to_windows(x, self.where.window)
        *_, second, first = encoder.neck.convs
        fine = decoder.conv_s0(first(stages[0])), decoder.conv_s1(second(stages[1]))
        passed = () if self.model.bypass is None else (self.routed.bypass(windows).flatten(1, 2),)
        return *fine, windows.flatten(1, 2), *passed


class PlainRouted(_Encoder):
    """The routed blocks."""

    def forward(self, chosen: Tensor, inside: Tensor) -> Tensor:  # type: ignore[override]
        """Encode."""
        windows = chosen.unflatten(1, (self.where.window, -1))  # type: ignore[no-untyped-call]
        return self.routed.routed(windows, inside.view(windows.shape[:3]) > 0).flatten(1, 2)


class PlainTail(_Encoder):
    """The blocks after the routed ones, and the neck."""

    def forward(self, merged: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode."""
        windows = merged.unflatten(1, (self.where.window, -1))  # type: ignore[no-untyped-call]
        x = to_map(windows, self.model.size.image_size // 16)
        _, (third, fourth) = self.blocks(x, self.where.last, None)
        convs = self.model.image_encoder.neck.convs
        deepest = torch.nn.functional.interpolate(convs[0](fourth), scale_factor=2.0, mode="nearest")
        vision = convs[1](third) + deepest
        return self.model.without_memory(vision), vision


class PlainPrunedAttention(nn.Module):
    """One object after the other; a bank of whole maps, of which the tokens are read that were kept."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model, self.attention = model, PrunedMemoryAttention(model.memory_attention)

    def forward(
        self, vision: Tensor, newest: Tensor, memory: Tensor, memory_row: Tensor, kept: Tensor, kept_cell: Tensor,
        kept_row: Tensor, pointers: Tensor, pointer_age: Tensor, pointer_present: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Read the memory."""
        objects = zip(
            newest, memory, memory_row, kept, kept_cell, kept_row, pointers, pointer_age, pointer_present, strict=True
        )
        read = [self._read(vision, *each) for each in objects]
        return torch.cat([features for features, _ in read]), torch.stack([saliency for _, saliency in read])

    def _read(self, vision: Tensor, newest: Tensor, memory: Tensor, memory_row: Tensor, *others: Tensor) -> Any:
        kept, cell, row, pointers, age, present = others
        bank = [
            (cells, int(when)) for cells, when in zip(memory, memory_row.tolist(), strict=True) if when != ABSENT_ROW
        ]
        whole = len(bank)
        old = [when for when in dict.fromkeys(row.int().tolist()) if when != ABSENT_ROW]
        cells = newest.shape[0]
        reads, layers = [], []
        for tokens, places in zip(kept, cell, strict=True):
            maps, parts = [], [torch.arange(whole * cells)]
            for slot, when in enumerate(old, whole):
                here = row == when
                maps.append((newest.new_zeros(newest.shape).index_copy(0, places[here], tokens[here]), when))
                parts.append(slot * cells + places[here].sort().values)
            newest_slot = whole + len(old)
            parts.append(torch.arange(newest_slot * cells, (newest_slot + 1) * cells))
            reads.append(torch.cat(parts))
            layers.append([*bank, *maps, (newest, 0)])
        made = [pointer[None] for pointer in pointers[present > 0]]
        added, times = self.model.pointer_tokens(made, age[present > 0].tolist(), 1)
        tokens, places = [], []
        for maps in layers:
            seen = [self.model.memory_tokens(each.T.reshape(1, -1, *vision.shape[2:]), when) for each, when in maps]
            tokens.append(torch.cat([each for each, _ in seen] + [added], dim=1))
            places.append(torch.cat([each for _, each in seen] + [times], dim=1))
        return self.attention(vision, tokens, places[0], added.shape[1], reads, whole + len(old))


class PlainSalientDecoder(PlainTrackedDecoder):
    """The tracked decoder, watched while it attends to the image."""

    def forward(self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Decode."""
        transformer = self.model.sam_mask_decoder.transformer
        watched = [layer.cross_attn_token_to_image for layer in transformer.layers]
        weights: list[Tensor] = []

        def note(attention: nn.Module, args: tuple[Tensor, ...]) -> None:
            own = cast(Attention, attention)
            q, k = own.q_proj(args[0]), own.k_proj(args[1])
            q, k = (x.view(len(x), -1, HEADS, x.shape[-1] // HEADS).transpose(1, 2) for x in (q, k))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights.append(scores.softmax(-1)[:, :, : OWN_TOKENS + 1].mean((1, 2)))

        hooks = [each.register_forward_pre_hook(note) for each in (*watched, transformer.final_attn_token_to_image)]
        try:
            decoded = super().forward(image_embed, feat_s0, feat_s1)
        finally:
            for hook in hooks:
                hook.remove()
        return *decoded, torch.stack(weights).mean(0).view(-1, *image_embed.shape[2:])
