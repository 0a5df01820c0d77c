"""Whole tasks as an app does them, from the photograph to masks of its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.benchmarks.contenders.official_grid import official_grid
from samexport.benchmarks.measuring.subject import Subject, import_runtime, summarise
from samexport.benchmarks.results.rows import Job, Parity
from samexport.models.contracts import SAMPLER
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.detector import SamplerOptions
from samexport.runtimes.host.grid import GridOptions, grid_points
from samexport.runtimes.host.image import resized_size
from samexport.runtimes.host.masks import trace
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.compare import compare_masks
from samexport.runtimes.parity.golden import picture_prompts
from samexport.runtimes.tasks.everything import DetectorBoxes, GivenBoxes, GridPoints, Sampling, SegmentEverything
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.verdicts import Check

BOXES = 300
_SIDE, _FINE_SIDE = 32, 64
_SEED = 6

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """What is timed.

    Attributes:
        name: what ``--task`` takes.
        prompts: that are decoded; 0 where the picture decides.
        work: does it once and returns the milliseconds of its stages.
        form: of the bundle: "export", or "plain" for the straightforward export.
        slow: takes a minute or so; called once.
        detector: needs a bundle with a sampler.
    """

    name: str
    prompts: int
    work: Callable[[TaskSubject], dict[str, float]]
    form: str = "export"
    slow: bool = False
    detector: bool = False

    def suits(self, bundle: Bundle) -> bool:
        """Whether the bundle has what it takes."""
        return "encoder" in bundle.graph_names and (not self.detector or SAMPLER in bundle.graph_names)


def _one_click(subject: TaskSubject) -> dict[str, float]:
    subject.segmenter.set_image(subject.picture)
    return _next_click(subject)


def _next_click(subject: TaskSubject) -> dict[str, float]:
    height, width = subject.picture.shape[:2]
    subject.segmenter.predict([Prompt.make(points=[[width // 3, height // 2]], labels=[1])])
    return dict(subject.segmenter.timings)


def _boxes(subject: TaskSubject) -> dict[str, float]:
    subject.segmenter.set_image(subject.picture)
    subject.segmenter.predict([Prompt.make(box=box) for box in subject.boxes(64)])
    return dict(subject.segmenter.timings)


def _everything(sampling: Callable[[TaskSubject], Sampling]) -> Callable[[TaskSubject], dict[str, float]]:
    def work(subject: TaskSubject) -> dict[str, float]:
        everything = subject.everything(sampling(subject))
        for _ in everything.masks(subject.picture):
            pass
        return dict(everything.timings)

    return work


def _given(subject: TaskSubject) -> Sampling:
    return GivenBoxes(subject.boxes(BOXES), np.ones(BOXES))


def _detected(subject: TaskSubject) -> Sampling:
    """Random weights are sure of nothing: without a threshold the best 300 boxes are taken."""
    return DetectorBoxes(SamplerOptions(confidence=0, max_boxes=BOXES))


def _official(side: int) -> Callable[[TaskSubject], dict[str, float]]:
    def work(subject: TaskSubject) -> dict[str, float]:
        segmenter = subject.segmenter
        segmenter.set_image(subject.picture)
        timings = {"encode": segmenter.timings["encode"], "decode": 0.0, "upscale": 0.0}
        image_hw = subject.picture.shape[0], subject.picture.shape[1]
        official_grid(segmenter.decode_points, image_hw, subject.bundle.manifest.frame, subject.grid(side), timings)
        return timings

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
    """A task on a photograph: the bundle's golden picture, scaled to the job's size."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.task = TASKS[job.graph]
        self._stages: dict[str, float] = {}
        self._everything: SegmentEverything | None = None

    def prepare(self) -> None:
        """Make the photograph, import the runtime."""
        picture = Image.fromarray(self.golden.picture)
        self.picture: Picture = np.array(picture.resize(self.job.photograph, Image.Resampling.BICUBIC))
        import_runtime(self.job.runtime)

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
        height, width = self.picture.shape[:2]
        corners = np.sort(np.random.default_rng(_SEED).uniform(0, 0.9, (count, 2, 2)), axis=1)
        corners[:, 1] += 0.1
        boxes: NDArray[np.float64] = (corners * (width, height)).reshape(count, 4)
        return boxes

    def grid(self, side: int) -> GridOptions:
        """A grid whose filters keep half of the candidates each, whatever the weights; SAM's keep about as many."""
        predicted, stable = self._medians
        return GridOptions(points_per_side=side, pred_iou_thresh=predicted, stability_score_thresh=stable)

    @cached_property
    def _medians(self) -> tuple[float, float]:
        """Of the predicted IoU, and of the stability of masks above it, over 64 points."""
        frame = self.bundle.manifest.frame
        height, width = resized_size(self.picture.shape[0], self.picture.shape[1], frame.size)
        logits, scores = self.segmenter.decode_points(grid_points(8) * (width, height))
        predicted = float(np.median(scores))
        likely = logits[scores > predicted]
        stable = [trace(mask, (height, width), frame, offset=1.0).stability for mask in likely]
        return predicted, float(np.median(np.nan_to_num(stable)))

    def call(self) -> None:
        """The whole task."""
        self._stages = self.task.work(self)

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds of the last call's stages."""
        return self._stages

    def check(self) -> Parity:
        """From the golden picture to its masks."""
        from samexport.benchmarks.contenders.known import find

        limits = find(self.job.runtime).tolerance(self.job.precision)
        self.segmenter.set_image(self.golden.picture)
        results = self.segmenter.predict(picture_prompts(self.golden.picture))
        masks = np.concatenate([r.masks for r in results])
        return summarise([compare_masks(Check("end_to_end"), "masks", self.golden.masks, masks, limits)])

    def placement(self) -> str:
        """The runtime's name; a task has several files."""
        return self.job.runtime

    def close(self) -> None:
        """Close the bundle."""
        self.segmenter.close()
        if self._everything is not None:
            self._everything.close()
