"""Accuracy on annotated pictures: recall of object proposals, and IoU of masks that a click or a box asks for.

What SAM's and MobileSAMv2's papers report: AR@K of class-agnostic proposals by mask IoU (COCOeval of pycocotools
with ``useCats`` 0), and mIoU of prompts. pycocotools scores; this module makes prompts, and reads the results.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samexport.errors import MissingDependency
from samexport.installation import install_hint
from samexport.runtimes.accuracy.annotations import AnnotatedImage, Instance
from samexport.runtimes.host.grid import Decode, GridOptions, generate
from samexport.runtimes.host.masks import Rle, decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.segment import Segmenter

MAX_PROPOSALS = (10, 100, 1000)
"""The K of AR@K."""

Values = dict[str, float | None]
"""One metric by size class; None where no object has the class."""

MakePrompt = Callable[[Instance], Prompt]


class Proposal(Protocol):
    """A mask that may be an object; whatever else a record has is not looked at."""

    @property
    def segmentation(self) -> Rle:
        """Run lengths over the picture."""

    @property
    def score(self) -> float:
        """Of more than K proposals those of the highest score count."""


@dataclass(frozen=True, eq=False)
class ScoredMask:
    """The least that a :class:`Proposal` is."""

    segmentation: Rle
    score: float


Propose = Callable[[NDArray[np.uint8]], Iterable[Proposal]]
"""Everything in a picture, uint8 RGB [H, W, 3]."""


@dataclass(frozen=True)
class Scores:
    """``values`` by metric ("mIoU click", "AR@10"), in 0..1; ``proposals`` is their mean number a picture."""

    values: dict[str, Values]
    proposals: float | None


def measure(
    images: Iterable[AnnotatedImage],
    segmenter: Segmenter,
    prompts: Mapping[str, MakePrompt],
    propose: Propose | None = None,
) -> Scores:
    """Run a model over the pictures, one after the other, and score it.

    Args:
        images: at least one.
        segmenter: the model; of several masks of a prompt the one that SAM's rule picks counts.
        prompts: by the name that the metric gets.
        propose: makes the proposals; without it there is no AR.

    Raises:
        ImageError: a picture cannot be read, or does not have the size that its annotations are for.
        ParityFailed: a file of the bundle breaks its contract.
    """
    seen: list[AnnotatedImage] = []
    ious: dict[str, list[tuple[float, float]]] = {name: [] for name in prompts}
    proposals: dict[int, list[Proposal]] = {}
    for image in images:
        seen.append(image)
        picture = image.read()
        if prompts:
            segmenter.set_image(picture)
        for name, make in prompts.items():
            ious[name] += _prompt_ious(segmenter, image.instances, make)
        if propose is not None:
            proposals[image.id] = list(propose(picture))
    values = {f"mIoU {name}": _mean_by_size(found) for name, found in ious.items()}
    if propose is None:
        return Scores(values, None)
    count = sum(map(len, proposals.values())) / len(seen)
    return Scores(values | average_recall(seen, proposals), count)


def average_recall(images: Sequence[AnnotatedImage], proposals: Mapping[int, Sequence[Proposal]]) -> dict[str, Values]:
    """AR@10, AR@100 and AR@1000 by size class, as COCOeval computes them without categories.

    The K proposals of highest score of each picture are matched one to one with its objects; recall over all
    objects is averaged over the IoU thresholds 0.5, 0.55 to 0.95. Crowds are no objects to be found. An object
    without pixels counts, and is missed.

    Args:
        images: with their annotations.
        proposals: by the picture's id.
    """
    from pycocotools.cocoeval import COCOeval

    truths = [
        {"image_id": image.id, "segmentation": i.segmentation, "area": i.area, "iscrowd": int(i.crowd)}
        for image in images
        for i in image.instances
    ]
    # the area of a proposal decides about precision only
    found = [
        {"image_id": id_, "segmentation": p.segmentation, "score": p.score, "area": 0, "iscrowd": 0}
        for id_, several in proposals.items()
        for p in several
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(_coco(images, truths), _coco(images, found), iouType="segm")
        scoring.params.useCats = 0
        scoring.params.maxDets = list(MAX_PROPOSALS)
        scoring.evaluate()
        scoring.accumulate()
    # summarize() is for COCO's own K only; eval["recall"] is [IoU, category, size, K], -1 where there is no object
    recall = scoring.eval["recall"][:, 0].mean(axis=0)
    labels = scoring.params.areaRngLbl
    return {
        f"AR@{most}": {label: None if value < 0 else float(value) for label, value in zip(labels, column, strict=True)}
        for most, column in zip(MAX_PROPOSALS, recall.T, strict=True)
    }


def _coco(images: Sequence[AnnotatedImage], annotations: Sequence[dict[str, Any]]) -> Any:
    """An indexed COCO data set of one category; ids from 1, because COCOeval takes a match with id 0 for none."""
    from pycocotools.coco import COCO

    data = COCO()
    data.dataset = {
        "images": [{"id": i.id, "height": i.image_hw[0], "width": i.image_hw[1]} for i in images],
        "categories": [{"id": 1}],
        "annotations": [{**a, "id": i, "category_id": 1} for i, a in enumerate(annotations, start=1)],
    }
    data.createIndex()
    return data


def objects_by_size(images: Iterable[AnnotatedImage]) -> dict[str, int]:
    """How many objects (no crowds) each size class has."""
    areas = [i.area for image in images for i in image.instances if not i.crowd]
    return {label: sum(low <= area <= high for area in areas) for label, (low, high) in _size_classes().items()}


def _size_classes() -> dict[str, tuple[float, float]]:
    """COCO's size classes, smallest and largest area in pixels; both ends belong to the class."""
    from pycocotools.cocoeval import Params

    params = Params(iouType="segm")
    return {label: (low, high) for label, (low, high) in zip(params.areaRngLbl, params.areaRng, strict=True)}


def _mean_by_size(ious: Sequence[tuple[float, float]]) -> Values:
    """Mean IoU by size class of (area, IoU)."""
    values: Values = {}
    for label, (low, high) in _size_classes().items():
        chosen = [iou for area, iou in ious if low <= area <= high]
        values[label] = float(np.mean(chosen)) if chosen else None
    return values


def _prompt_ious(segmenter: Segmenter, instances: Sequence[Instance], make: MakePrompt) -> list[tuple[float, float]]:
    """Area and IoU of every object that has pixels and is no crowd; in chunks, as masks are of the picture's size."""
    from pycocotools import mask as coco

    objects = [i for i in instances if i.pixels > 0 and not i.crowd]
    found = []
    for start in range(0, len(objects), segmenter.chunk):
        some = objects[start : start + segmenter.chunk]
        for instance, answer in zip(some, segmenter.predict([make(i) for i in some]), strict=True):
            rle = coco.encode(np.asfortranarray(answer.masks[0].astype(np.uint8)))
            found.append((instance.area, float(coco.iou([rle], [instance.segmentation], [0])[0, 0])))
    return found


def interior_click(instance: Instance) -> Prompt:
    """A click on the pixel that is farthest from the outside, the first one of several.

    The centre of the largest circle inside the mask, SAM's own choice. The picture's edge is outside.

    Raises:
        MissingDependency: scipy is not installed.
    """
    try:
        from scipy.ndimage import distance_transform_edt
    except ModuleNotFoundError as error:
        raise MissingDependency(f"interior clicks need scipy: {install_hint('eval')}") from error
    mask = decode_rle(instance.segmentation)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    inside = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    distance = distance_transform_edt(inside)
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    return Prompt.make(points=[[column - 1 + columns[0], row - 1 + rows[0]]], labels=[1])


def random_click(instance: Instance, seed: int) -> Prompt:
    """A click on a pixel of the object; the same one for the same ``seed`` and id, whatever else is evaluated."""
    pixels = np.argwhere(decode_rle(instance.segmentation))
    row, column = pixels[np.random.default_rng([seed, instance.id]).integers(len(pixels))]
    return Prompt.make(points=[[column, row]], labels=[1])


def box_prompt(instance: Instance) -> Prompt:
    """The annotated box."""
    return Prompt.make(box=instance.box)


def grid_proposals(segmenter: Segmenter, options: GridOptions) -> Propose:
    """Proposals from a grid of points, ranked as in SAM's paper: by the mean of predicted IoU and stability."""

    def encode(crop: NDArray[np.uint8]) -> Decode:
        segmenter.set_image(crop)
        return segmenter.decode_points

    def propose(picture: NDArray[np.uint8]) -> list[ScoredMask]:
        found = generate(picture, encode, segmenter.bundle.manifest.frame, options)
        # an empty mask has no stability, and is no proposal
        return [ScoredMask(m.segmentation, (m.predicted_iou + m.stability_score) / 2) for m in found if m.area > 0]

    return propose
