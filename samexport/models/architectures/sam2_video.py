"""SAM 2's tracker for one object, frame by frame, forwards: what it remembers of a video and what it reads again.

Source: SAM 2 (arXiv 2408.00714), ``sam2/modeling/sam2_base.py`` and ``sam2/sam2_video_predictor.py``. The reference of
every faster tracker: plain PyTorch, all computation is :class:`Sam2`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samexport.errors import PromptError
from samexport.models.architectures.sam2 import MEMORY_FRAMES, Features, ObjectMask, Sam2

MAX_POINTERS = 16
PROMPTED_ROW = MEMORY_FRAMES - 1
_CLAMP = 32.0


@dataclass(frozen=True)
class Remembered:
    """A frame that was decoded: its mask and its memory [1, 64, grid, grid] in bfloat16."""

    mask: ObjectMask
    memory: Tensor


class Sam2Tracker:
    """Follows one object through the frames of a video, in order.

    Args:
        model: in evaluation mode.
        frames: length of the video where it is known. It sets the unit of the pointers' ages in videos of less than
            16 frames; a stream of unknown length counts as long.
        postprocess: the official predictor's default. An unstable single mask falls back on the best candidate, and
            memories of frames with prompts are made from binary masks.
    """

    def __init__(self, model: Sam2, *, frames: int = MAX_POINTERS, postprocess: bool = True) -> None:
        self.model, self.postprocess = model, postprocess
        self.max_pointers = min(frames, MAX_POINTERS)
        self.prompted: dict[int, Remembered] = {}
        self.tracked: dict[int, Remembered] = {}

    def click(self, frame: int, features: Features, points: Tensor, labels: Tensor) -> ObjectMask:
        """Prompt with all points of a frame so far; a box is its two corners before the points.

        The mask that the object has on this frame already is a prompt too. A frame that was tracked before stays a
        tracked frame, and its memories take part.

        Args:
            frame: index, from 0.
            features: of this frame.
            points: x, y in pixels of the model's frame, [1, K, 2].
            labels: [1, K], as in :meth:`Sam2.decode`.
        """
        place = self.tracked if frame in self.tracked else self.prompted
        earlier = place.get(frame)
        mask = None if earlier is None else earlier.mask.low_res.clamp(-_CLAMP, _CLAMP)
        if place is self.tracked:
            embedding = self._with_memory(frame, features.vision)
        else:
            embedding = self.model.without_memory(features.vision)
        multimask = points.shape[1] <= 1
        found = self.model.object_mask(
            embedding, features, points, labels, mask, multimask=multimask, fallback=self.postprocess
        )
        place[frame] = self._remember(features, found, binary=self.postprocess)
        return found

    def give_mask(self, frame: int, features: Features, mask: Tensor) -> ObjectMask:
        """Prompt with a mask [1, 1, S, S] of zeros and ones, which becomes the frame's mask."""
        place = self.tracked if frame in self.tracked else self.prompted
        found = self.model.mask_as_output(features, mask, fallback=self.postprocess)
        place[frame] = self._remember(features, found, binary=self.postprocess)
        return found

    def track(self, frame: int, features: Features) -> ObjectMask:
        """Find the object on the next frame; a frame with prompts keeps its mask. PromptError before any prompt."""
        if frame in self.prompted:
            return self.prompted[frame].mask
        embedding = self._with_memory(frame, features.vision)
        found = self.model.object_mask(embedding, features, multimask=True, fallback=self.postprocess)
        self.tracked[frame] = self._remember(features, found, binary=False)
        return found

    def _remember(self, features: Features, found: ObjectMask, *, binary: bool) -> Remembered:
        logits = self.model.whole_frame(found.low_res)
        memory = self.model.encode_memory(features.vision, logits, found.object_score, binary=binary)
        # the official predictor stores it so on every device: the rounding is part of the reference
        return Remembered(found, memory.bfloat16())

    def _with_memory(self, frame: int, vision: Tensor) -> Tensor:
        return self.model.with_memory(vision, *self.bank(frame))

    def bank(self, frame: int) -> tuple[Tensor, Tensor, int]:
        """What ``frame`` reads: memory tokens [1, L, 64], their positions, and how many of the last are pointers.

        In order: every frame with prompts, up to six tracked frames before this one from the oldest on, then the
        pointers, of frames with prompts first, of tracked frames from the newest on. PromptError if no prompt is at or
        before ``frame``.
        """
        if not any(when <= frame for when in self.prompted):
            raise PromptError(
                f"frame {frame} comes before every prompt; start with a click or a mask on the first frame"
            )
        rows = [(PROMPTED_ROW, kept) for kept in self.prompted.values()]
        for age in range(MEMORY_FRAMES - 1, 0, -1):
            if frame - age in self.tracked:
                rows.append((age - 1, self.tracked[frame - age]))
        ages = [(frame - when, kept) for when, kept in self.prompted.items() if when <= frame]
        for age in range(1, self.max_pointers):
            if frame - age in self.tracked:
                ages.append((age, self.tracked[frame - age]))
        parts = [self.model.memory_tokens(kept.memory.float(), row) for row, kept in rows]
        pointers, times = self.model.pointer_tokens(
            [kept.mask.pointer for _, kept in ages], [age for age, _ in ages], self.max_pointers - 1
        )
        memory = torch.cat([tokens for tokens, _ in parts] + [pointers], dim=1)
        positions = torch.cat([place for _, place in parts] + [times], dim=1)
        return memory, positions, pointers.shape[1]
