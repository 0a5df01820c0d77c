"""What a picture's masks are to others: one record a mask, the same for prompts and for everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from samexport.runtimes.host.masks import Rle
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
