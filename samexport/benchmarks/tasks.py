"""Whole tasks as an app does them, from the photograph to masks of its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.benchmarks.rows import Job, Parity
from samexport.benchmarks.subject import Subject, import_runtime, summarise
from samexport.runtimes.golden import picture_prompts
from samexport.runtimes.grid import Decode, GridOptions, generate
from samexport.runtimes.parity import compare_masks
from samexport.runtimes.prompts import PADDING, Prompt
from samexport.runtimes.segment import Segmenter

PHOTOGRAPH = (3024, 4032)
"""Height and width of a phone's 12-megapixel photograph."""
_POINTS_PER_SIDE = 16
_SEED = 6

Picture = NDArray[np.uint8]


def _one_click(segmenter: Segmenter, picture: Picture) -> None:
    height, width = picture.shape[:2]
    segmenter.set_image(picture)
    segmenter.predict([Prompt.make(points=[[width // 2, height // 2]], labels=[1])])


def _next_click(segmenter: Segmenter, picture: Picture) -> None:
    height, width = picture.shape[:2]
    segmenter.predict([Prompt.make(points=[[width // 3, height // 2]], labels=[1])])


def _boxes(segmenter: Segmenter, picture: Picture) -> None:
    height, width = picture.shape[:2]
    rng = np.random.default_rng(_SEED)
    corners = np.sort(rng.uniform(0, 0.9, (64, 2, 2)), axis=1)
    corners[:, 1] += 0.1
    segmenter.set_image(picture)
    segmenter.predict([Prompt.make(box=(c * (width, height)).ravel()) for c in corners])


def _everything(segmenter: Segmenter, picture: Picture) -> None:
    """Random weights make no stable masks, so that their filters drop nearly all; trained ones do more work."""

    def encode(crop: Picture) -> Decode:
        segmenter.set_image(crop)

        def decode(points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            padded = np.stack([points, np.zeros_like(points)], axis=1).astype(np.float32)
            labels = np.tile(np.array([1, PADDING], np.float32), (len(points), 1))
            logits, scores = segmenter.decode({"point_coords": padded, "point_labels": labels})
            return logits[:, 1:], scores[:, 1:]

        return decode

    options = GridOptions(points_per_side=_POINTS_PER_SIDE)
    generate(picture, encode, segmenter.bundle.manifest.frame, options)


@dataclass(frozen=True)
class Task:
    """``prompts`` is what is decoded in one go; ``encodes`` says whether the picture is encoded each time."""

    name: str
    prompts: int
    work: Callable[[Segmenter, Picture], None]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("one click", 1, _one_click),
        Task("next click", 1, _next_click),
        Task("64 boxes", 64, _boxes),
        Task(f"everything {_POINTS_PER_SIDE}x{_POINTS_PER_SIDE}", _POINTS_PER_SIDE**2, _everything),
    )
}


class TaskSubject(Subject):
    """A task on a photograph: the bundle's golden picture, enlarged."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.task = TASKS[job.graph]

    def prepare(self) -> None:
        """Make the photograph, import the runtime."""
        picture = self.golden.picture
        scale = PHOTOGRAPH[1] / picture.shape[1]
        size = PHOTOGRAPH[1], round(picture.shape[0] * scale)
        self.picture: Picture = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        import_runtime(self.job.runtime)

    def open(self) -> None:
        """Open the bundle and encode once, which opens the encoder's file; files open when first used."""
        options = {"chunk": self.job.batch} if self.job.batch else {}
        self.segmenter = Segmenter(self.bundle, runtime=self.job.runtime, threads=self.job.threads, **options)
        self.segmenter.set_image(self.picture)

    def call(self) -> None:
        """The whole task."""
        self.task.work(self.segmenter, self.picture)

    def check(self) -> Parity:
        """From the golden picture to its masks."""
        from samexport.benchmarks.contenders import find

        limits = find(self.job.runtime).tolerance(self.job.precision)
        self.segmenter.set_image(self.golden.picture)
        results = self.segmenter.predict(picture_prompts(self.golden.picture))
        masks = np.concatenate([r.masks for r in results])
        return summarise([compare_masks("picture", "masks", self.golden.masks, masks, limits)])

    def placement(self) -> str:
        """The runtime's name; a task has several files."""
        return self.job.runtime

    def close(self) -> None:
        """Close the bundle."""
        self.segmenter.close()
