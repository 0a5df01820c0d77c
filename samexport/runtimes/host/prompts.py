"""Prompts in image pixels: what a user points at. Numpy only.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``SamPredictor`` and ``SamOnnxModel`` (facebookresearch/segment-anything).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samexport.errors import PromptError
from samexport.files import in_words, reason

MAX_POINTS = 1000
"""Of a prompt; a decoder's memory grows with their square."""
_MAX_NUMBERS = 4096 * 4096


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
        check_finite("points", points)
        if not np.isin(labels, (0, 1)).all():
            raise PromptError(f"labels are 1 (inside) or 0 (outside), got {labels.tolist()}")
        if box is not None:
            _check_box(box)
        if mask is not None:
            check_finite("mask_input", mask)
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


def as_prompts(given: Iterable[Prompt]) -> list[Prompt]:
    """The prompts of anything iterable; PromptError if it is none, or holds something else."""
    made = "prompts are made with Prompt.make(...), one as Prompt.make([320, 200])"
    try:
        each = iter(given)
    except TypeError as error:
        raise PromptError(f"{made}; this is {in_words(given)}") from error
    prompts = list(each)
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise PromptError(f"{made}; number {index} is {in_words(prompt)}")
    return prompts


def _numbers(name: str, values: ArrayLike, kinds: str = "iuf") -> NDArray[np.float64]:
    """A copy in float64, whose size is bounded before it is allocated."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PromptError(f"{name} must be an array of numbers; {reason(error)}") from error
    if array.size > _MAX_NUMBERS:
        raise PromptError(f"{name}: {array.size} numbers are too many, at most {_MAX_NUMBERS}")
    if array.dtype.kind not in kinds and (array.size or array.dtype.kind == "c"):
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


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Refuse what is no real number, NaN and infinity; PromptError says which ``name``."""
    if values.dtype.kind not in "iufb":
        raise PromptError(f"{name} must be an array of numbers, got {values.dtype}")
    if not np.isfinite(values).all():
        raise PromptError(f"{name} must be finite numbers, got NaN or infinity")


def _check_box(box: NDArray[np.float64]) -> None:
    if box.shape != (4,):
        raise PromptError(f"a box is x0, y0, x1, y1, got an array {list(box.shape)}")
    check_finite("box", box)
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
    check_finite("boxes", boxes)
    height, width = image_hw
    inside = np.clip(boxes.astype(np.float64), 0, (width, height, width, height))
    kept = np.flatnonzero((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    return inside[kept], kept


def look_normalised(coordinates: NDArray[Any]) -> bool:
    """Whether all coordinates lie within 0..1, so that they may be parts of the image where pixels are meant."""
    return coordinates.size > 0 and bool(coordinates.min() >= 0 and coordinates.max() <= 1)


def check_inside(prompts: Sequence[Prompt], image_hw: tuple[int, int]) -> None:
    """Refuse prompts beyond an image; its edges, 0 and width or height, are inside. PromptError names the first."""
    height, width = image_hw
    for index, prompt in enumerate(prompts):
        corners = [] if prompt.box is None else prompt.box.reshape(2, 2).tolist()
        for x, y in [*prompt.points.tolist(), *corners]:
            if not (0 <= x <= width and 0 <= y <= height):
                raise PromptError(
                    f"prompt {index}: ({x:g}, {y:g}) is outside the image, {width} wide and {height} high"
                )
