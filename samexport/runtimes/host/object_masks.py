"""Which of a SAM 2 decoder's four masks is an object's, and what goes with it. Numpy and Pillow.

Facts follow SAM 2's ``SAM2Base._forward_sam_heads`` and ``MaskDecoder`` (facebookresearch/sam2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98
ABSENT_LOGIT = -1024.0
"""Mask logits of an object that is not in the picture."""


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object on one frame.

    Attributes:
        low_res: mask logits [L, L].
        iou: predicted IoU of the candidates, [3], or of the only one, [1].
        pointer: what stands for the object in later frames, [width].
        score: logit of the object being there.
    """

    low_res: Floats
    iou: Floats
    pointer: Floats
    score: float

    @property
    def present(self) -> bool:
        """Whether the object is in the picture."""
        return self.score > 0


def stability(logits: Floats, delta: float = STABILITY_DELTA) -> NDArray[np.float64]:
    """IoU of the masks at thresholds ``delta`` and ``-delta``, of [..., H, W]; 1 where the larger one is empty."""
    inner, outer = (np.count_nonzero(logits > threshold, axis=(-2, -1)) for threshold in (delta, -delta))
    return np.where(outer > 0, inner / np.maximum(outer, 1), 1.0)


def answers(masks: Floats, iou: Floats, *, multimask: bool, fallback: bool) -> tuple[int, ...]:
    """Which of the four masks [4, L, L] of one prompt answer it: 1, 2, 3 if ``multimask``, else one.

    That one is mask 0, or with ``fallback``, where mask 0 is unstable, the best of the others.
    """
    if multimask:
        return (1, 2, 3)
    if fallback and stability(masks[0]) < STABILITY_THRESHOLD:
        return (1 + int(iou[1:].argmax()),)
    return (0,)


def object_mask(
    decoded: Mapping[str, NDArray[Any]], item: int, nothing: Floats, *, multimask: bool, fallback: bool
) -> ObjectMask:
    """The mask of one object.

    Args:
        decoded: the outputs of a mask decoder.
        item: which of its N prompts or objects.
        nothing: the pointer of an object that is not there, [width].
        multimask: take the best of masks 1..3.
        fallback: see :func:`answers`. The pointer stays that of mask 0 even then, as in the official code.
    """
    masks, iou, pointers = (decoded[name][item] for name in ("low_res_masks", "iou_predictions", "object_pointers"))
    score = float(decoded["object_score"][item, 0])
    asked = answers(masks, iou, multimask=multimask, fallback=fallback)
    best = max(asked, key=lambda index: float(iou[index]))
    pointer = pointers[best if multimask else 0]
    low_res = masks[best].copy() if score > 0 else np.full_like(masks[best], ABSENT_LOGIT)
    return ObjectMask(low_res, iou[list(asked)].copy(), (pointer if score > 0 else nothing).copy(), score)


def given_mask(mask: NDArray[np.bool_], size: int) -> Floats:
    """A mask [H, W] on the square of the model, [size, size] of zeros and ones."""
    return (_resize(mask, size) >= 0.5).astype(np.float32)


def _resize(values: NDArray[Any], side: int) -> Floats:
    """[H, W] to [side, side], bilinear with antialias as torch has it."""
    resized = Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    return np.array(resized)


def mask_prompt(square: Floats, constants: Mapping[str, NDArray[Any]]) -> Floats:
    """The mask prompt [1, 1, L, L] that a given mask [4 L, 4 L] becomes."""
    side = len(square) // 4
    cells = square.reshape(side, 4, side, 4)
    summed = np.einsum("ykxl,kl->yx", cells, constants["mask_downsample"])
    prompt: Floats = (summed + constants["mask_downsample_bias"]).astype(np.float32)
    return prompt[None, None]


def as_output(square: Floats, seen: ObjectMask, nothing: Floats) -> ObjectMask:
    """A given mask [S, S] as if it had been predicted; ``seen`` is what its prompt was decoded to, for the pointer."""
    present = bool(square.any())
    side = len(square) // 4
    low_res = _resize(20 * square - 10, side)
    pointer = seen.pointer if present else nothing
    return ObjectMask(low_res, np.ones(1, np.float32), pointer.copy(), 10.0 if present else -10.0)
