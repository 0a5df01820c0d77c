"""Accuracy on annotated pictures: recall of object proposals, and IoU of masks that a click or a box asks for.

What SAM's and MobileSAMv2's papers report: AR@K of class-agnostic proposals by mask IoU (COCOeval of pycocotools
with ``useCats`` 0), and mIoU of prompts. pycocotools scores; this module makes prompts, and reads the results.

Every score is a ratio of sums over pictures, so pictures are scored one by one and nothing of them is kept.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samexport.errors import MissingDependency, ParityFailed
from samexport.installation import install_hint
from samexport.runtimes.accuracy.annotations import AnnotatedImage, Instance
from samexport.runtimes.host.grid import Decode, GridOptions, generate
from samexport.runtimes.host.masks import Rle, decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.everything import GivenBoxes, SegmentEverything
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


Propose = Callable[[AnnotatedImage, NDArray[np.uint8]], Iterable[Proposal]]
"""Everything in a picture, uint8 RGB [H, W, 3]; its annotations are for what stands in for a detector."""


@dataclass(frozen=True, eq=False)
class PictureScores:
    """What one picture adds to the scores of a data set.

    Attributes:
        ious: by the prompt's name, (area, IoU) of each object that was asked for.
        found: objects that a proposal found, int [IoU thresholds, size classes, K]; None without proposals.
        objects: objects of each size class, int [size classes].
        proposals: their number.
    """

    ious: dict[str, list[tuple[float, float]]]
    found: NDArray[np.int64] | None
    objects: NDArray[np.int64]
    proposals: int


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
    """Run a model over the pictures, one after the other, and score it; arguments as :func:`score_picture`.

    Raises:
        ImageError: a picture cannot be read, or does not have the size that its annotations are for.
        ParityFailed: see :func:`score_picture`.
    """
    return combine([score_picture(image, image.read(), segmenter, prompts, propose) for image in images])


def score_picture(
    image: AnnotatedImage,
    picture: NDArray[np.uint8],
    segmenter: Segmenter,
    prompts: Mapping[str, MakePrompt],
    propose: Propose | None = None,
) -> PictureScores:
    """Run a model on one picture.

    Args:
        image: its annotations.
        picture: its pixels.
        segmenter: the model; of several masks of a prompt the one that SAM's rule picks counts.
        prompts: by the name that the metric gets.
        propose: makes the proposals; without it there is no AR.

    Raises:
        ParityFailed: a file of the bundle breaks its contract, or answers NaN.
    """
    if prompts:
        segmenter.set_image(picture)
    ious = {name: _prompt_ious(segmenter, image.instances, make) for name, make in prompts.items()}
    proposals = [] if propose is None else list(propose(image, picture))
    if not np.isfinite([p.score for p in proposals]).all():
        raise ParityFailed("the score of a proposal is not a number (NaN or infinite)")
    found = None if propose is None else _found(image, proposals)
    return PictureScores(ious, found, _count_objects(image.instances), len(proposals))


def combine(pictures: Sequence[PictureScores]) -> Scores:
    """The scores of at least one picture, all of the same prompts."""
    names = pictures[0].ious
    values = {f"mIoU {name}": _mean_by_size([pair for p in pictures for pair in p.ious[name]]) for name in names}
    found = [p.found for p in pictures if p.found is not None]
    if not found:
        return Scores(values, None)
    objects = np.sum([p.objects for p in pictures], axis=0)
    proposals = sum(p.proposals for p in pictures) / len(pictures)
    return Scores(values | _recall(np.sum(found, axis=0), objects), proposals)


def average_recall(images: Sequence[AnnotatedImage], proposals: Mapping[int, Sequence[Proposal]]) -> dict[str, Values]:
    """AR@10, AR@100 and AR@1000 by size class, as COCOeval computes them without categories.

    The K proposals of highest score of each picture are matched one to one with its objects; recall over all
    objects is averaged over the IoU thresholds 0.5, 0.55 to 0.95. Crowds are no objects to be found. An object
    without pixels counts, and is missed.

    Args:
        images: with their annotations.
        proposals: by the picture's id.
    """
    found = np.sum([_found(image, proposals.get(image.id, ())) for image in images], axis=0)
    return _recall(found, np.sum([_count_objects(image.instances) for image in images], axis=0))


def _recall(found: NDArray[np.int64], objects: NDArray[np.int64]) -> dict[str, Values]:
    """From objects found [IoU thresholds, size classes, K], and all objects [size classes]."""
    mean = found.mean(axis=0)
    return {
        f"AR@{most}": {
            label: float(mean[size, k] / objects[size]) if objects[size] else None
            for size, label in enumerate(_size_classes())
        }
        for k, most in enumerate(MAX_PROPOSALS)
    }


def _found(image: AnnotatedImage, proposals: Sequence[Proposal]) -> NDArray[np.int64]:
    """How many objects of a picture are found, int [IoU thresholds, size classes, K]."""
    from pycocotools.cocoeval import COCOeval

    truths = [
        {"image_id": image.id, "segmentation": i.segmentation, "area": i.area, "iscrowd": int(i.crowd)}
        for i in image.instances
    ]
    # the area of a proposal decides about precision only
    found = [
        {"image_id": image.id, "segmentation": p.segmentation, "score": p.score, "area": 0, "iscrowd": 0}
        for p in proposals
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(_coco([image], truths), _coco([image], found), iouType="segm")
        scoring.params.useCats = 0
        scoring.params.maxDets = list(MAX_PROPOSALS)
        scoring.evaluate()
        scoring.accumulate()
    # summarize() is for COCO's own K only; eval["recall"] is [IoU, category, size, K], -1 where there is no object
    recall = np.maximum(scoring.eval["recall"][:, 0], 0)
    counts: NDArray[np.int64] = np.rint(recall * _count_objects(image.instances)[:, None]).astype(np.int64)
    return counts


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
    counts = _count_objects([i for image in images for i in image.instances])
    return dict(zip(_size_classes(), counts.tolist(), strict=True))


def _count_objects(instances: Sequence[Instance]) -> NDArray[np.int64]:
    """Objects of each size class."""
    areas = [i.area for i in instances if not i.crowd]
    ranges = _size_classes().values()
    return np.array([sum(low <= area <= high for area in areas) for low, high in ranges], np.int64)


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
            if not (np.isfinite(answer.scores).all() and np.isfinite(answer.low_res_masks).all()):
                raise ParityFailed(f"the answer for annotation {instance.id} is not a number (NaN or infinite)")
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

    def propose(_: AnnotatedImage, picture: NDArray[np.uint8]) -> list[ScoredMask]:
        found = generate(picture, encode, segmenter.bundle.manifest.frame, options)
        # an empty mask has no stability, and is no proposal
        return [ScoredMask(m.segmentation, (m.predicted_iou + m.stability_score) / 2) for m in found if m.area > 0]

    return propose


def box_proposals(everything: SegmentEverything) -> Propose:
    """Proposals from the annotated boxes, as if a detector had found each, ranked by predicted IoU.

    What no detector can exceed with these masks; ``everything`` gets them as its ``sampling``.
    """

    def propose(image: AnnotatedImage, picture: NDArray[np.uint8]) -> list[ScoredMask]:
        boxes = [instance.box for instance in image.instances if not instance.crowd]
        if not boxes:
            return []
        everything.sampling = GivenBoxes(np.array(boxes, np.float64), np.ones(len(boxes)))
        return [ScoredMask(m.segmentation, m.predicted_iou) for m in everything.masks(picture)]

    return propose
