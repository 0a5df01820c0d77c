"""SAM 2's graphs without any rewrite: the architecture wrapped in the graph contracts, the reference of every check.

Where a contract has slots that may be absent, they are left out before the architecture sees them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samexport.models.architectures.sam2 import Features, Sam2
from samexport.models.families.sam2 import ABSENT_ROW, image_frame
from samexport.models.graphs.decoder import ABSENT
from samexport.models.graphs.layers import frozen

Decoded = tuple[Tensor, Tensor, Tensor, Tensor]


class _Plain(nn.Module):
    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.model = model


class PlainImageEncoder(_Plain):
    """Normalisation and the encoder as published."""

    def __init__(self, model: Sam2) -> None:
        super().__init__(model)
        frame = image_frame(model.size.image_size)
        self.mean = frozen(torch.tensor(frame.mean).view(1, 3, 1, 1))
        self.std = frozen(torch.tensor(frame.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Decoded:
        """Encode."""
        high, middle, vision = self.model.features((image - self.mean) / self.std)
        return self.model.without_memory(vision), high, middle, vision


class PlainMaskDecoder(_Plain):
    """Prompt encoder, mask decoder and the projection of pointers as published."""

    def _decode(self, source: Tensor, feat_s0: Tensor, feat_s1: Tensor, coords: Tensor, labels: Tensor) -> Decoded:
        prompts = self.model.sam_prompt_encoder
        sparse = prompts.embed_points(coords, labels)
        absent = (labels == -2) * ABSENT
        source = source.expand(len(sparse), -1, -1, -1)
        found = self.model.sam_mask_decoder(source, prompts.dense_pe(), sparse, absent, feat_s0, feat_s1)
        return found.masks, found.iou, found.object_score, self.model.obj_ptr_proj(found.tokens)

    def forward(
        self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> Decoded:
        """Decode."""
        source = image_embed + self.model.sam_prompt_encoder.no_mask_dense()
        return self._decode(source, feat_s0, feat_s1, point_coords, point_labels)


class PlainMaskDecoderWithMask(PlainMaskDecoder):
    """The same with a mask prompt."""

    def forward(  # type: ignore[override]
        self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask_input: Tensor,
    ) -> Decoded:  # fmt: skip
        """Decode."""
        source = image_embed + self.model.sam_prompt_encoder.embed_mask(mask_input, has_mask_input)
        return self._decode(source, feat_s0, feat_s1, point_coords, point_labels)


class PlainTrackedDecoder(_Plain):
    """The decoder without prompts, as a frame of a video that is followed asks it."""

    def forward(self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> Decoded:
        """Decode."""
        count = len(image_embed)
        nothing = image_embed.new_zeros(count, 1, 2), image_embed.new_full((count, 1), -1)
        found = self.model.decode(image_embed, Features(feat_s0, feat_s1, image_embed), *nothing, None)
        return found.masks, found.iou, found.object_score, self.model.obj_ptr_proj(found.tokens)


class PlainMemoryAttention(_Plain):
    """One object after the other, each with the memories and pointers that it has."""

    def forward(
        self, vision: Tensor, memory: Tensor, memory_row: Tensor, pointers: Tensor, pointer_age: Tensor,
        pointer_present: Tensor,
    ) -> Tensor:  # fmt: skip
        """Read the memory."""
        objects = zip(memory, memory_row, pointers, pointer_age, pointer_present, strict=True)
        return torch.cat([self._read(vision, *each) for each in objects])

    def _read(
        self, vision: Tensor, memory: Tensor, row: Tensor, pointers: Tensor, age: Tensor, present: Tensor
    ) -> Tensor:
        model, grid = self.model, vision.shape[-1]
        tokens, places = [], []
        for cells, when in zip(memory, row.tolist(), strict=True):
            if when != ABSENT_ROW:
                seen, place = model.memory_tokens(cells.T.reshape(1, -1, grid, grid), int(when))
                tokens.append(seen)
                places.append(place)
        kept = present > 0
        count = 0
        if kept.any():
            made = [each[None] for each in pointers[kept]]
            seen, place = model.pointer_tokens(made, age[kept].tolist(), 1)
            tokens.append(seen)
            places.append(place)
            count = seen.shape[1]
        return model.with_memory(vision, torch.cat(tokens, dim=1), torch.cat(places, dim=1), count)


class PlainMemoryEncoder(_Plain):
    """One object after the other."""

    def forward(self, vision: Tensor, mask_logits: Tensor, binary: Tensor, object_present: Tensor) -> Tensor:
        """Encode."""
        logits = self.model.whole_frame(mask_logits)
        made = [
            self.model.encode_memory(vision, one[None], 2 * present.view(1, 1) - 1, binary=bool(hard > 0))
            for one, hard, present in zip(logits, binary, object_present, strict=True)
        ]
        return torch.cat(made).flatten(2).transpose(1, 2)
