"""What a picture's masks are to others: one record a mask, the same for prompts and for everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.runtimes.host.drawing import Panel, draw_masks, draw_prompts, outline_boxes, panel_sheet
from samexport.runtimes.host.masks import Rle, decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.everything import ObjectMask
from samexport.runtimes.tasks.segment import Segmentation

CATEGORY = 1
"""COCO's results need a category, and SAM knows none."""


@dataclass(frozen=True, eq=False)
class MaskResult:
    """One mask of a picture, and the prompt that it answers.

    Attributes:
        segmentation: COCO run lengths over the picture.
        area: pixels.
        bbox: x, y, width, height of the mask; all 0 where it is empty.
        score: of the mask: the detector's for its box, otherwise the predicted IoU.
        predicted_iou: the decoder's own estimate; may exceed 1.
        prompt: number of the prompt in its picture.
        mask: which of the model's masks 0..3; None where a grid found it.
        chosen: whether it is the one that answers the prompt.
        points: x and y of the prompt's points, in pixels.
        labels: 1 inside, 0 outside, of each point.
        box: x0, y0, x1, y1 of the prompt's box, in pixels, or None.
    """

    segmentation: Rle
    area: int
    bbox: tuple[int, int, int, int]
    score: float
    predicted_iou: float
    prompt: int
    mask: int | None
    chosen: bool = True
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, ...] | None = None

    def to_coco(self, image_id: int = 1, file_name: str = "") -> dict[str, Any]:
        """Plain data for JSON: a record that pycocotools' ``COCO.loadRes`` takes, with the prompt beside it."""
        return {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": CATEGORY,
            "segmentation": {"size": self.segmentation["size"], "counts": self.segmentation["counts"].decode()},
            "bbox": list(self.bbox),
            "area": self.area,
            "score": self.score,
            "predicted_iou": self.predicted_iou,
            "prompt": self.prompt,
            "mask": self.mask,
            "chosen": self.chosen,
            "points": [list(point) for point in self.points],
            "labels": list(self.labels),
            "box": None if self.box is None else list(self.box),
        }


def of_answer(number: int, prompt: Prompt, answer: Segmentation) -> Iterator[MaskResult]:
    """Every mask of an answer to a prompt; ``number`` is the prompt's."""
    from pycocotools import mask as coco

    points = tuple((float(x), float(y)) for x, y in prompt.points)
    box = None if prompt.box is None else tuple(float(side) for side in prompt.box)
    for index, score, mask in zip(answer.indices, answer.scores, answer.masks, strict=True):
        rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
        x, y, width, height = (int(value) for value in coco.toBbox(rle))
        yield MaskResult(
            rle, int(coco.area(rle)), (x, y, width, height), float(score), float(score), number, index,
            index == answer.chosen, points, tuple(prompt.labels.tolist()), box,
        )  # fmt: skip


def of_objects(masks: Iterable[ObjectMask]) -> list[MaskResult]:
    """The masks of everything, numbered in their order."""
    results = []
    for number, mask in enumerate(masks):
        is_box = len(mask.prompt) == 4
        results.append(
            MaskResult(
                mask.segmentation, mask.area, mask.bbox, mask.score, mask.predicted_iou, number, mask.index,
                points=() if is_box else ((mask.prompt[0], mask.prompt[1]),),
                labels=() if is_box else (1,),
                box=mask.prompt if is_box else None,
            )
        )  # fmt: skip
    return results


def draw(image: NDArray[np.uint8], masks: Sequence[MaskResult]) -> NDArray[np.uint8]:
    """The picture with the masks of prompts and the prompts themselves; one mask at a time is unpacked."""
    canvas = _painted(image, masks)
    seen = {mask.prompt: mask for mask in masks}.values()
    draw_prompts(
        canvas,
        points=[point for mask in seen for point in mask.points],
        labels=[label for mask in seen for label in mask.labels],
        boxes=[mask.box for mask in seen if mask.box is not None],
    )
    return canvas


def draw_everything(image: NDArray[np.uint8], masks: Sequence[MaskResult], *, boxes: bool = False) -> NDArray[np.uint8]:
    """The picture with every mask in a colour; with ``boxes`` also the box that each answers."""
    canvas = _painted(image, masks)
    if boxes:
        outline_boxes(canvas, {number: mask.box for number, mask in enumerate(masks) if mask.box is not None})
    return canvas


def draw_panels(image: NDArray[np.uint8], masks: Sequence[MaskResult], *, columns: int) -> NDArray[np.uint8]:
    """Every mask in a panel of its own with its score, a row a prompt; the one that answers the prompt is marked."""
    several = len({mask.prompt for mask in masks}) > 1
    panels = (
        Panel(
            ("" if not several else f"prompt {mask.prompt}, ") + f"mask {mask.mask}: score {mask.score:.3f}"
            + (" (the answer)" if mask.chosen else ""),
            number,
            decode_rle(mask.segmentation),
            mask.points,
            mask.labels,
            [] if mask.box is None else [mask.box],
        )
        for number, mask in enumerate(masks)
    )  # fmt: skip
    legend = "the answer: without --multimask; score: predicted IoU; green plus: inside, red minus: outside"
    return panel_sheet(image, panels, columns=columns, legend=legend)


def _painted(image: NDArray[np.uint8], masks: Sequence[MaskResult]) -> NDArray[np.uint8]:
    """The largest first, so that small ones stay visible; mask i in colour i."""
    largest_first = sorted(range(len(masks)), key=lambda number: -masks[number].area)
    return draw_masks(image, ((number, *_unpacked(masks[number])) for number in largest_first))


def _unpacked(mask: MaskResult) -> tuple[int, int, NDArray[np.bool_]]:
    """x, y and pixels of the mask's box."""
    x, y, width, height = mask.bbox
    return x, y, np.ascontiguousarray(decode_rle(mask.segmentation)[y : y + height, x : x + width])
