"""Prompts as the tensors that SAM's decoder takes, and which of its masks answers one. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import PromptError
from samexport.models.families.sam import ABSENT
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.prompts import Prompt, check_finite, check_inside

BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 2, 3
PADDING = -1
"""SAM's own padding point: a token of its own that changes the masks."""
Tensors = dict[str, NDArray[np.float32]]
Slots = Callable[[Prompt], tuple[NDArray[np.float64], NDArray[Any]]]
"""The slots of a prompt: coordinates [S, 2] in the picture and labels [S]."""


def slots(prompt: Prompt) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """SAM's: the points, then the corners of the box, or with points and no box the padding point."""
    coords, labels = prompt.points, prompt.labels
    if prompt.box is not None:
        coords = np.concatenate([coords, prompt.box.reshape(2, 2)])
        labels = np.append(labels, (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT))
    elif len(coords) > 0:
        coords = np.concatenate([coords, np.zeros((1, 2))])
        labels = np.append(labels, PADDING)
    return coords, labels


def pack(prompts: Sequence[Prompt], place: FrameMap, slots: Slots = slots) -> Tensors:
    """Turn N prompts into the decoder's tensors, in the frame.

    Coordinates are scaled in float64, x * (resized width / width) and y * (resized height / height) with the sizes
    of :func:`samexport.runtimes.host.frames.resized_size`, then cast to float32. Slots of a prompt:
    its points; then the two corners of its box, labels 2 and 3; or, with points and no box, SAM's padding
    point, (0, 0) with label -1. A box gets no padding point. A prompt that is only a mask gets none either,
    because SAM's prompt encoder then makes no tokens at all. Missing slots at the end are (0, 0) with
    label -2. K is the largest number of slots, at least 1.

    In-image policy: 0 <= x <= width and 0 <= y <= height, edges included (a box over the whole image ends
    at width and height); anything beyond is an error, it is neither clipped (see :func:`fit_box`) nor passed on.

    Args:
        prompts: at least one.
        place: of the original image in the model's frame.
        slots: of a prompt; other families have other ones.

    Returns:
        ``point_coords`` [N, K, 2] and ``point_labels`` [N, K]; if any prompt has a mask also ``mask_input``
        [N, 1, L, L] (0 where there is none) and ``has_mask_input`` [N] (1 or 0). All float32.

    Raises:
        PromptError: no prompt, a coordinate outside the image, or a mask of another size than the frame's.
    """
    if len(prompts) == 0:
        raise PromptError("there is no prompt; give a point, a box or a mask")
    check_inside(prompts, place.image_hw)
    each = [slots(prompt) for prompt in prompts]
    most = max(1, *(len(labels) for _, labels in each))
    point_coords = np.zeros((len(prompts), most, 2), np.float32)
    point_labels = np.full((len(prompts), most), ABSENT, np.float32)
    for index, (coords, labels) in enumerate(each):
        point_coords[index, : len(labels)] = place.to_frame(coords)
        point_labels[index, : len(labels)] = labels
    packed = {"point_coords": point_coords, "point_labels": point_labels}
    if any(prompt.mask_input is not None for prompt in prompts):
        packed |= _pack_masks(prompts, place.frame)
    return packed


def _pack_masks(prompts: Sequence[Prompt], frame: Preprocess) -> Tensors:
    side = frame.low_res
    mask_input = np.zeros((len(prompts), 1, side, side), np.float32)
    has_mask_input = np.zeros(len(prompts), np.float32)
    for index, prompt in enumerate(prompts):
        if prompt.mask_input is None:
            continue
        if prompt.mask_input.shape != (side, side):
            got = list(prompt.mask_input.shape)
            raise PromptError(f"prompt {index}: mask_input must be [{side}, {side}] for this model, got {got}")
        mask_input[index, 0] = prompt.mask_input
        has_mask_input[index] = 1
    return {"mask_input": mask_input, "has_mask_input": has_mask_input}


def count_tokens(point_labels: NDArray[Any]) -> NDArray[np.int64]:
    """Number of tokens [N] of each prompt in ``point_labels`` [N, K]: its slots that are not absent."""
    counts: NDArray[np.int64] = np.count_nonzero(point_labels != ABSENT, axis=-1)
    return counts


def has_box(point_labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each prompt [N] of ``point_labels`` [N, K] has a box."""
    found: NDArray[np.bool_] = (point_labels == BOX_TOP_LEFT).any(axis=-1)
    return found


def select_mask(
    iou_predictions: NDArray[Any], num_tokens: int, mask_outputs: Sequence[int] = (0, 1, 2, 3), *, boxed: bool = False
) -> int:
    """Choose the one mask that answers a prompt: the rule of every command here.

    A single click (or a mask alone) may mean several things: the best score of masks 1..3 answers it. Whatever says
    more, a box or two clicks, is clear: mask 0. So does SAM's official ONNX model in single-mask mode, but for a
    box without a click, which it takes for ambiguous because it counts tokens (fewer than three). We follow SAM's
    predictor there, which answers clear prompts with mask 0 (``multimask_output=False``), and MobileSAMv2, whose
    boxes mask 0 answers as well.

    Args:
        iou_predictions: [4], the scores of one prompt.
        num_tokens: as :func:`count_tokens` counts them: the padding point counts, absent slots do not.
        mask_outputs: the masks that the model was trained for; others are never chosen.
        boxed: whether the prompt has a box.
    """
    if (boxed or num_tokens >= 3) and 0 in mask_outputs:
        return 0
    ambiguous = [index for index in mask_outputs if index != 0]
    return max(ambiguous, key=lambda index: float(iou_predictions[index]), default=0)


def stability(logits: NDArray[Any], offset: float = 1.0) -> NDArray[np.float32]:
    """IoU [N, M] of each low-resolution mask [N, M, L, L] with thresholds of ``offset`` and -``offset``.

    EdgeSAM ranks its masks by this number, over the whole square and its padding; a mask without a pixel has 0.
    """
    surely, likely = (np.count_nonzero(logits > threshold, axis=(-2, -1)) for threshold in (offset, -offset))
    scores: NDArray[np.float32] = np.divide(surely, np.maximum(likely, 1), dtype=np.float32)
    return scores


def check_tensors(point_coords: NDArray[Any], point_labels: NDArray[Any]) -> None:
    """Refuse prompt tensors that a decoder would turn into NaN or a wrong mask without complaint.

    Args:
        point_coords: [N, K, 2], finite.
        point_labels: [N, K], whole numbers from -2 to 3.

    Raises:
        PromptError: shapes do not fit each other, N or K is 0, or a value is not allowed.
    """
    if point_labels.ndim != 2 or point_coords.shape != (*point_labels.shape, 2):
        got = f"{list(point_coords.shape)} and {list(point_labels.shape)}"
        raise PromptError(f"point_coords is [N, K, 2] and point_labels [N, K], got {got}")
    if 0 in point_labels.shape:
        raise PromptError(f"N (prompts) and K (points) are at least 1, got {list(point_labels.shape)}")
    check_finite("point_coords", point_coords)
    if not np.isin(point_labels, range(ABSENT, BOX_BOTTOM_RIGHT + 1)).all():
        raise PromptError("point_labels are whole numbers: 1, 0, 2 and 3 (box), -1 (padding), -2 (absent)")
