"""Prompts in image pixels, and the point tensors that the decoder takes. Numpy only.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``SamPredictor`` and ``SamOnnxModel`` (facebookresearch/segment-anything).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samexport.errors import PromptError
from samexport.files import reason
from samexport.models.spec import Frame
from samexport.runtimes.host.image import resized_size

BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 2, 3
PADDING = -1
"""SAM's own padding point: a token of its own that changes the masks."""
ABSENT = -2
"""A slot without a point: exactly neutral, so prompts with different numbers of points share a batch."""

MAX_POINTS = 1000
"""Of a prompt; a decoder's memory grows with their square."""
_MAX_NUMBERS = 4096 * 4096

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What to segment: points, a box and an earlier mask, any one of which may be left out.

    :meth:`make` takes lists and arrays of any number type; the fields are checked either way.

    Attributes:
        points: float64 [P, 2], x and y in pixels of the original image; P is at most ``MAX_POINTS``.
        labels: int64 [P]; 1 is inside the object, 0 outside.
        box: float64 [4], x0, y0, x1, y1 in pixels of the original image, or None.
        mask_input: float32 [L, L], logits of an earlier ``low_res_masks`` as they came, or None.

    Raises:
        PromptError: a value is not finite, a label is not 0 or 1, shapes do not fit, a box is empty or has
            its corners swapped, there are too many points, or there is no point, no box and no mask.
    """

    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    box: NDArray[np.float64] | None = None
    mask_input: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        points, labels, box, mask = self.points, self.labels, self.box, self.mask_input
        if not all(isinstance(value, np.ndarray) for value in (points, labels, box, mask) if value is not None):
            raise PromptError("the fields of a prompt are arrays; Prompt.make takes lists")
        if points.ndim != 2 or points.shape[1] != 2 or len(points) > MAX_POINTS:
            raise PromptError(f"points are [P, 2] (x, y), P at most {MAX_POINTS}, got {list(points.shape)}")
        if labels.shape != (len(points),):
            raise PromptError(f"{len(points)} points need as many labels, got {list(labels.shape)}")
        _check_finite("points", points)
        if not np.isin(labels, (0, 1)).all():
            raise PromptError(f"labels are 1 (inside) or 0 (outside), got {labels.tolist()}")
        if box is not None:
            _check_box(box)
        if mask is not None:
            _check_finite("mask_input", mask)
            if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
                raise PromptError(f"mask_input is square, low_res_masks[n, i], got {list(mask.shape)}")
        if len(points) == 0 and box is None and mask is None:
            raise PromptError("a prompt needs a point, a box or a mask")

    @classmethod
    def make(
        cls,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
    ) -> Self:
        """Build a prompt from anything array-like, for example ``Prompt.make([320, 200])``.

        Args:
            points: [P, 2], or one point [2]; x and y in pixels.
            labels: [P]; left out, every point is inside the object.
            box: [4], x0, y0, x1, y1 in pixels.
            mask_input: [L, L], or [1, L, L] as ``Segmentation.low_res_masks`` holds the one mask of a prompt.

        Raises:
            PromptError: see the class; a mask of several; values that are no real numbers.
        """
        point_array = _numbers("points", points)
        if point_array.size == 0:
            point_array = point_array.reshape(0, 2)
        elif point_array.shape == (2,):
            point_array = point_array[None]
        inside = np.ones(point_array.shape[:1])
        label_array = inside if labels is None else _numbers("labels", labels, "iufb")
        if not np.isin(label_array, (0, 1)).all():  # before the cast to integers hides a half
            raise PromptError(f"labels are 1 (inside) or 0 (outside), got {label_array.tolist()}")
        return cls(
            points=point_array,
            labels=np.atleast_1d(label_array).astype(np.int64),
            box=None if box is None else _numbers("box", box),
            mask_input=None if mask_input is None else _one_mask(mask_input),
        )


def _numbers(name: str, values: ArrayLike, kinds: str = "iuf") -> NDArray[np.float64]:
    """A copy in float64, whose size is bounded before it is allocated."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PromptError(f"{name} must be an array of numbers; {reason(error)}") from error
    if array.size > _MAX_NUMBERS:
        raise PromptError(f"{name}: {array.size} numbers are too many, at most {_MAX_NUMBERS}")
    if array.size and array.dtype.kind not in kinds:
        raise PromptError(f"{name} must be an array of numbers, got {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows is then refused as infinite
        return array.astype(np.float64)


def _one_mask(values: ArrayLike) -> NDArray[np.float32]:
    mask = _numbers("mask_input", values)  # a mask of True and False is no prompt for SAM
    while mask.ndim > 2 and len(mask) == 1:
        mask = mask[0]
    if mask.ndim == 3 and mask.shape[1] == mask.shape[2]:
        raise PromptError(f"mask_input holds {len(mask)} masks; give one of them, low_res_masks[i]")
    with np.errstate(over="ignore"):
        return mask.astype(np.float32)


def _check_finite(name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind not in "iufb":
        raise PromptError(f"{name} must be an array of numbers, got {values.dtype}")
    if not np.isfinite(values).all():
        raise PromptError(f"{name} must be finite numbers, got NaN or infinity")


def _check_box(box: NDArray[np.float64]) -> None:
    if box.shape != (4,):
        raise PromptError(f"a box is x0, y0, x1, y1, got an array {list(box.shape)}")
    _check_finite("box", box)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise PromptError(f"box {box.tolist()} is empty; give x0, y0, x1, y1 with x1 > x0 and y1 > y0")


def fit_box(prompt: Prompt, image_hw: tuple[int, int]) -> Prompt:
    """The prompt with its box cut off at the edges of the image, height and width ``image_hw``; itself if it fits.

    Raises:
        PromptError: nothing of the box is inside.
    """
    if prompt.box is None:
        return prompt
    inside, _ = clip_boxes(prompt.box[None], image_hw)
    if len(inside) == 0:
        raise PromptError(f"box {prompt.box.tolist()} is outside the image, {image_hw[1]} wide and {image_hw[0]} high")
    return prompt if np.array_equal(inside[0], prompt.box) else replace(prompt, box=inside[0])


def clip_boxes(boxes: NDArray[Any], image_hw: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Cut boxes [N, 4] (x0, y0, x1, y1) off at the edges of the image, and leave out those without an area there.

    Detectors return boxes that end a fraction of a pixel outside, and empty ones.

    Returns:
        boxes [M, 4] and which of the N they are, [M].

    Raises:
        PromptError: the array has another shape, or a number that is not finite.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise PromptError(f"boxes are [N, 4] (x0, y0, x1, y1), got {list(boxes.shape)}")
    _check_finite("boxes", boxes)
    height, width = image_hw
    inside = np.clip(boxes.astype(np.float64), 0, (width, height, width, height))
    kept = np.flatnonzero((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    return inside[kept], kept


def look_normalised(coordinates: NDArray[Any]) -> bool:
    """Whether all coordinates lie within 0..1, so that they may be parts of the image where pixels are meant."""
    return coordinates.size > 0 and bool(coordinates.min() >= 0 and coordinates.max() <= 1)


def pack(prompts: Sequence[Prompt], image_hw: tuple[int, int], frame: Frame) -> Tensors:
    """Turn N prompts into the decoder's tensors, in the frame.

    Coordinates are scaled in float64, x * (resized width / width) and y * (resized height / height) with the sizes
    of :func:`samexport.runtimes.host.image.resized_size`, then cast to float32. Slots of a prompt:
    its points; then the two corners of its box, labels 2 and 3; or, with points and no box, SAM's padding
    point, (0, 0) with label -1. A box gets no padding point. A prompt that is only a mask gets none either,
    because SAM's prompt encoder then makes no tokens at all. Missing slots at the end are (0, 0) with
    label -2. K is the largest number of slots, at least 1.

    In-image policy: 0 <= x <= width and 0 <= y <= height, edges included (a box over the whole image ends
    at width and height); anything beyond is an error, it is neither clipped (see :func:`fit_box`) nor passed on.

    Args:
        prompts: at least one.
        image_hw: height and width of the original image.
        frame: the model's frame.

    Returns:
        ``point_coords`` [N, K, 2] and ``point_labels`` [N, K]; if any prompt has a mask also ``mask_input``
        [N, 1, L, L] (0 where there is none) and ``has_mask_input`` [N] (1 or 0). All float32.

    Raises:
        PromptError: no prompt, a coordinate outside the image, or a mask of another size than the frame's.
    """
    if len(prompts) == 0:
        raise PromptError("there is no prompt; give a point, a box or a mask")
    for index, prompt in enumerate(prompts):
        _check_inside(index, prompt, image_hw)
    slots = [_slots(prompt, image_hw, frame) for prompt in prompts]
    most = max(1, *(len(labels) for _, labels in slots))
    point_coords = np.zeros((len(prompts), most, 2), np.float32)
    point_labels = np.full((len(prompts), most), ABSENT, np.float32)
    for index, (coords, labels) in enumerate(slots):
        point_coords[index, : len(labels)] = coords
        point_labels[index, : len(labels)] = labels
    packed = {"point_coords": point_coords, "point_labels": point_labels}
    if any(prompt.mask_input is not None for prompt in prompts):
        packed |= _pack_masks(prompts, frame)
    return packed


def _check_inside(index: int, prompt: Prompt, image_hw: tuple[int, int]) -> None:
    height, width = image_hw
    corners = [] if prompt.box is None else prompt.box.reshape(2, 2).tolist()
    for x, y in [*prompt.points.tolist(), *corners]:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(f"prompt {index}: ({x:g}, {y:g}) is outside the image, {width} wide and {height} high")


def _slots(prompt: Prompt, image_hw: tuple[int, int], frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coordinates [S, 2] in the frame and labels [S] of one prompt."""
    height, width = image_hw
    new_height, new_width = resized_size(height, width, frame.size)
    coords, labels = prompt.points, prompt.labels
    if prompt.box is not None:
        coords = np.concatenate([coords, prompt.box.reshape(2, 2)])
        labels = np.append(labels, (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT))
    elif len(coords) > 0:
        coords = np.concatenate([coords, np.zeros((1, 2))])
        labels = np.append(labels, PADDING)
    return coords * np.array([new_width / width, new_height / height]), labels


def _pack_masks(prompts: Sequence[Prompt], frame: Frame) -> Tensors:
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
    _check_finite("point_coords", point_coords)
    if not np.isin(point_labels, range(ABSENT, BOX_BOTTOM_RIGHT + 1)).all():
        raise PromptError("point_labels are whole numbers: 1, 0, 2 and 3 (box), -1 (padding), -2 (absent)")
