"""SAM 2's graphs without any rewrite: the architecture wrapped in the graph contracts, the reference of every check.

Where a contract has slots that may be absent, their keys get a bias after which they weigh exactly nothing. Benchmarks
export these modules too, so every size is asked as a shape: torch takes ``len`` of a tensor for a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samexport.models.architectures.sam2 import Features, Sam2
from samexport.models.architectures.sam2_memory import sine_2d
from samexport.models.families.sam2 import ABSENT_ROW, image_frame
from samexport.models.graphs.decoder_attention import ABSENT
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
        source = source.expand(sparse.shape[0], -1, -1, -1)
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
        count = image_embed.shape[0]
        nothing = image_embed.new_zeros(count, 1, 2), image_embed.new_full((count, 1), -1)
        found = self.model.decode(image_embed, Features(feat_s0, feat_s1, image_embed), *nothing, None)
        return found.masks, found.iou, found.object_score, self.model.obj_ptr_proj(found.tokens)


class PlainMemoryAttention(_Plain):
    """The memory attention as published; absent slots have keys that nothing reads."""

    def forward(
        self, vision: Tensor, memory: Tensor, memory_row: Tensor, pointers: Tensor, pointer_age: Tensor,
        pointer_present: Tensor,
    ) -> Tensor:  # fmt: skip
        """Read the memory."""
        model, (count, _, cells, width) = self.model, memory.shape
        place = sine_2d(width, model.size.image_size // 16).to(memory).flatten(2).transpose(1, 2)
        times = model.maskmem_tpos_enc[memory_row.clamp(min=0).long(), 0, 0]
        parts = pointers.shape[-1] // width
        ages = model.share_times(pointer_age).repeat_interleave(parts, dim=1)
        absent = torch.cat(
            [
                (memory_row == ABSENT_ROW).repeat_interleave(cells, dim=1),
                (pointer_present == 0).repeat_interleave(parts, dim=1),
            ],
            dim=1,
        )
        tokens = torch.cat([memory.reshape(count, -1, width), pointers.reshape(count, -1, width)], dim=1)
        places = torch.cat([(place[:, None] + times[:, :, None]).reshape(count, -1, width), ages], dim=1)
        bias = (absent * ABSENT)[:, None]
        return model.with_memory(vision.expand(count, -1, -1, -1), tokens, places, ages.shape[1], bias)


class PlainMemoryEncoder(_Plain):
    """The memory encoder as published, on masks of both kinds."""

    def forward(self, vision: Tensor, mask_logits: Tensor, binary: Tensor, object_present: Tensor) -> Tensor:
        """Encode."""
        logits = self.model.whole_frame(mask_logits)
        mask = torch.where(binary[:, None, None, None] > 0, (logits > 0).to(logits), logits.sigmoid())
        made = self.model.encode_mask(vision.expand(mask.shape[0], -1, -1, -1), mask, 2 * object_present[:, None] - 1)
        return made.flatten(2).transpose(1, 2)
