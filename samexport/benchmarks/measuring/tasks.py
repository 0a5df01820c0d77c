"""Whole tasks as an app does them, from the photograph to masks of its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.benchmarks.contenders.known import find
from samexport.benchmarks.contenders.official_grid import official_grid
from samexport.benchmarks.measuring.masks import FoundMask, Reference, compare_found, read_reference
from samexport.benchmarks.measuring.subject import Subject, import_runtime, judged_as, summarise
from samexport.benchmarks.results.rows import Job, Parity
from samexport.errors import ConfigError
from samexport.models.catalog import find_family
from samexport.models.families.detector import SAMPLER
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.detector import SamplerOptions
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.grid import GridOptions, grid_points
from samexport.runtimes.host.masks import trace
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.compare import TIERS, tier
from samexport.runtimes.tasks.everything import (
    DetectorBoxes,
    GivenBoxes,
    GridPoints,
    ObjectMask,
    Sampling,
    SegmentEverything,
)
from samexport.runtimes.tasks.segment import Segmentation, Segmenter
from samexport.runtimes.verdicts import Check, Verdict

BOXES = 300
_SIDE, _FINE_SIDE = 32, 64
_SEED = 6
# of the masks of a picture, so many may be less sure than the limit allows for
_LEAST_SURE = 0.05

Picture = NDArray[np.uint8]
Stages = dict[str, float]
Masks = Sequence[Segmentation | ObjectMask | dict[str, Any]]
"""Answers to prompts, masks of everything, or the official grid's records: what a task leaves behind."""


@dataclass(frozen=True)
class Task:
    """What is timed.

    Attributes:
        name: what ``--task`` takes.
        prompts: that are decoded; 0 where the picture decides.
        work: does it once and returns the milliseconds of its stages, and the masks.
        form: of the bundle: "export", or "plain" for the straightforward export.
        slow: takes a minute or so; called once.
        detector: needs a bundle with a sampler.
    """

    name: str
    prompts: int
    work: Callable[[TaskSubject], tuple[Stages, Masks]]
    form: str = "export"
    slow: bool = False
    detector: bool = False

    def suits(self, bundle: Bundle) -> bool:
        """Whether the bundle has what it takes."""
        first = find_family(bundle.manifest.family).first
        return first in bundle.graph_names and (not self.detector or SAMPLER in bundle.graph_names)


def _one_click(subject: TaskSubject) -> tuple[Stages, Masks]:
    subject.segmenter.set_image(subject.picture)
    return _next_click(subject)


def _next_click(subject: TaskSubject) -> tuple[Stages, Masks]:
    height, width = subject.picture.shape[:2]
    found = subject.segmenter.predict([Prompt.make(points=[[width // 3, height // 2]], labels=[1])])
    return dict(subject.segmenter.timings), found


def _boxes(subject: TaskSubject) -> tuple[Stages, Masks]:
    subject.segmenter.set_image(subject.picture)
    found = subject.segmenter.predict([Prompt.make(box=box) for box in subject.boxes(64)])
    return dict(subject.segmenter.timings), found


def _everything(sampling: Callable[[TaskSubject], Sampling]) -> Callable[[TaskSubject], tuple[Stages, Masks]]:
    def work(subject: TaskSubject) -> tuple[Stages, Masks]:
        everything = subject.everything(sampling(subject))
        found = list(everything.masks(subject.picture))
        return dict(everything.timings), found

    return work


def _given(subject: TaskSubject) -> Sampling:
    return GivenBoxes(subject.boxes(BOXES), np.ones(BOXES))


def _detected(subject: TaskSubject) -> Sampling:
    """Random weights are sure of nothing: without a threshold the best 300 boxes are taken."""
    return DetectorBoxes(SamplerOptions(confidence=0, max_boxes=BOXES))


def _official(side: int) -> Callable[[TaskSubject], tuple[Stages, Masks]]:
    def work(subject: TaskSubject) -> tuple[Stages, Masks]:
        segmenter = subject.segmenter
        segmenter.set_image(subject.picture)
        timings = {"encode": segmenter.timings["encode"], "decode": 0.0, "upscale": 0.0}
        frame, options = subject.bundle.manifest.frame, subject.grid(side)
        return timings, official_grid(segmenter.decode_points, subject.image_hw, frame, options, timings)

    return work


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("one click", 1, _one_click),
        Task("next click", 1, _next_click),
        Task("64 boxes", 64, _boxes),
        Task(f"everything: {BOXES} boxes", BOXES, _everything(_given), slow=True),
        Task(f"everything: {BOXES} boxes of the detector", BOXES, _everything(_detected), slow=True, detector=True),
        Task(
            f"everything: grid {_SIDE}x{_SIDE}",
            _SIDE**2,
            _everything(lambda s: GridPoints(s.grid(_SIDE))),
            slow=True,
        ),
        Task(
            f"everything: hierarchical {_SIDE}x{_SIDE}",
            0,
            _everything(lambda s: GridPoints(s.grid(_SIDE), hierarchical=True)),
            slow=True,
        ),
        Task(f"everything: grid {_SIDE}x{_SIDE}, official", _SIDE**2, _official(_SIDE), "plain", slow=True),
        Task(
            f"everything: grid {_FINE_SIDE}x{_FINE_SIDE}, official",
            _FINE_SIDE**2,
            _official(_FINE_SIDE),
            "plain",
            slow=True,
        ),
    )
}


class TaskSubject(Subject):
    """A task on a photograph: the bundle's golden picture, scaled to the job's size.

    Args:
        job: with a task as its graph.
        reference: the file of a :class:`Reference`, which the work is compared with; without one it is not.
        bundle: runs in place of the job's own.
    """

    def __init__(self, job: Job, reference: Path | None = None, bundle: Bundle | None = None) -> None:
        super().__init__(job)
        self.bundle = bundle or self.bundle
        self.task = TASKS[job.graph]
        self._reference = reference
        self._stages: Stages = {}
        self._found: Masks = ()
        self._everything: SegmentEverything | None = None

    def prepare(self) -> None:
        """Make the photograph, import the runtime."""
        picture = Image.fromarray(self.golden.picture)
        self.picture: Picture = np.array(picture.resize(self.job.photograph, Image.Resampling.BICUBIC))
        import_runtime(self.job.runtime)
        if self._reference is not None and (shared := read_reference(self._reference).thresholds):
            self.thresholds = shared

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the photograph."""
        return self.picture.shape[0], self.picture.shape[1]

    def open(self) -> None:
        """Open the bundle and encode once, which opens the encoder's file; files open when first used."""
        options = {"chunk": self.job.batch} if self.job.batch else {}
        self.segmenter = Segmenter(self.bundle, runtime=self.job.runtime, threads=self.job.threads, **options)
        self.segmenter.set_image(self.picture)

    def everything(self, sampling: Sampling) -> SegmentEverything:
        """The bundle opened for everything; the first call opens it."""
        if self._everything is None:
            options = {"chunk": self.job.batch} if self.job.batch else {}
            self._everything = SegmentEverything(
                self.bundle, sampling, runtime=self.job.runtime, threads=self.job.threads, **options
            )
        return self._everything

    def boxes(self, count: int) -> NDArray[np.float64]:
        """Seeded boxes [count, 4] of all sizes, xyxy in pixels of the photograph."""
        height, width = self.image_hw
        corners = np.sort(np.random.default_rng(_SEED).uniform(0, 0.9, (count, 2, 2)), axis=1)
        corners[:, 1] += 0.1
        boxes: NDArray[np.float64] = (corners * (width, height)).reshape(count, 4)
        return boxes

    def grid(self, side: int) -> GridOptions:
        """A grid whose filters keep half of the candidates each, whatever the weights; SAM's keep about as many."""
        predicted, stable = self.thresholds
        return GridOptions(points_per_side=side, pred_iou_thresh=predicted, stability_score_thresh=stable)

    @cached_property
    def thresholds(self) -> tuple[float, float]:
        """Medians of the predicted IoU, and of the stability of masks above it, over 64 points."""
        scores, logits = self._sample
        stable = [self._stability(mask, 1.0) for mask in logits]
        return float(np.median(scores)), float(np.median(stable))

    @cached_property
    def _sample(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Predicted IoU of the masks of 64 points, and the logits [M, L, L] of the better half of them."""
        height, width = self._place.prompted
        logits, scores = self.segmenter.decode_points(grid_points(8) * (width, height))
        return scores, logits[scores > np.median(scores)]

    @property
    def _place(self) -> FrameMap:
        return FrameMap(self.image_hw, self.bundle.manifest.frame)

    def _stability(self, logits: NDArray[np.float32], offset: float) -> float:
        found = trace(logits, self._place, offset=offset)
        return float(np.nan_to_num(found.stability))

    def sureness(self) -> dict[str, float]:
        """IoU of a mask and the same one after rounding, by the name of the tier; one in twenty may be less.

        Rounding moves logits by the tier's band, and where a mask's logits hardly differ (as random weights make
        them) that moves many pixels: the mask of the surely positive ones by that of the possibly positive ones.
        """
        _, logits = self._sample
        found = {}
        for name, limits in TIERS.items():
            stable = [self._stability(mask, limits.band * float(np.ptp(mask))) for mask in logits]
            found[name] = float(np.quantile(stable, _LEAST_SURE)) if stable else 1.0
        return found

    def call(self) -> None:
        """The whole task."""
        self._found = ()  # two sets of masks of a photograph would double the memory
        self._stages, self._found = self.task.work(self)

    @property
    def stages(self) -> Stages:
        """Milliseconds of the last call's stages."""
        return self._stages

    def found(self) -> list[FoundMask]:
        """The masks of the last call."""
        return [_found_mask(number, mask, self.image_hw) for number, mask in enumerate(self._found)]

    def as_reference(self) -> Reference:
        """The last call's masks, and the thresholds it used."""
        used = self.thresholds if "thresholds" in vars(self) else None
        return Reference(tuple(self.found()), used, self.sureness())

    def check(self) -> Parity:
        """The masks of the last timed call against PyTorch's."""
        recipes = find(self.job.runtime).recipes(judged_as(self.bundle, self.job.precision))
        try:
            limits = tier(*recipes)
        except ConfigError as error:
            return Parity(Verdict.SKIPPED, str(error))
        if self._reference is None:
            return Parity(Verdict.SKIPPED, "not compared: there are no masks of PyTorch")
        expected = read_reference(self._reference)
        check = Check("end_to_end", self.bundle.graph_names, self.job.graph, against="PyTorch")
        sureness = expected.sureness[limits.name]
        return summarise([compare_found(check, expected.masks, self.found(), self.image_hw, limits, sureness)])

    def placement(self) -> str:
        """The runtime's name; a task has several files."""
        return self.job.runtime

    def close(self) -> None:
        """Close the bundle."""
        self.segmenter.close()
        if self._everything is not None:
            self._everything.close()


def _found_mask(number: int, mask: Segmentation | ObjectMask | dict[str, Any], image_hw: tuple[int, int]) -> FoundMask:
    from pycocotools import mask as coco

    if isinstance(mask, Segmentation):
        prompt: tuple[float, ...] = (float(number) * max(image_hw),)
        rle = coco.encode(np.asfortranarray(mask.masks[0].astype(np.uint8)))
    elif isinstance(mask, ObjectMask):
        prompt, rle = mask.prompt, mask.segmentation
    else:
        prompt = mask["point"]
        rle = coco.frPyObjects({"size": list(image_hw), "counts": mask["rle"]}, *image_hw)
    return FoundMask(tuple(map(float, prompt)), rle["counts"].decode())
