"""Everything in a picture with a bundle alone: boxes from a detector, one encode, one mask a box. Numpy.

The pipeline of MobileSAMv2 (arXiv 2312.09579): boxes are the prompts, mask 0 answers each, no mask is filtered
or suppressed. Grids of clicks, SAM's own way, are here too. A mask is upscaled, thresholded and compressed
as soon as it is decoded, so memory does not grow with their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError, PromptError
from samexport.files import in_words
from samexport.models.families.detector import SAMPLER
from samexport.runtimes.base import Runtime
from samexport.runtimes.bundle import AnyBundle, as_bundle
from samexport.runtimes.host.detector import SamplerOptions, letterbox, postprocess
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.grid import Decode, GridOptions, MaskRecord, count_points, generate, generate_hierarchical
from samexport.runtimes.host.image import Picture, as_pixels
from samexport.runtimes.host.masks import Rle, encode_rle, trace
from samexport.runtimes.host.prompts import Prompt, clip_boxes, look_normalised
from samexport.runtimes.session import Decoded, check_numbers
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK, Segmenter

MAX_BOXES = 100_000
"""Given boxes of a picture: hours of work, but no more than memory holds."""

Progress = Callable[[str, int, int], None]
"""Called with the stage, what is done and what there is to do."""


@dataclass(frozen=True)
class DetectorBoxes:
    """Boxes from the bundle's ``prompt_sampler``; what is None is as the bundle says.

    Attributes:
        options: thresholds.
        rgb: feed RGB instead of the released code's BGR.
    """

    options: SamplerOptions | None = None
    rgb: bool | None = None


@dataclass(frozen=True, eq=False)
class GivenBoxes:
    """Boxes from anywhere: float64 [M, 4] x0, y0, x1, y1 in pixels of the picture, and scores [M].

    They are cut off at the picture's edges; what has no area there is left out. M is at most ``MAX_BOXES``.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class GridPoints:
    """A grid of clicks instead of boxes: SAM's automatic masks, or TinySAM's hierarchical ones."""

    options: GridOptions = field(default_factory=GridOptions)
    hierarchical: bool = False


Sampling = DetectorBoxes | GivenBoxes | GridPoints


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One mask of a picture.

    Attributes:
        segmentation: COCO run lengths over the picture.
        area: pixels.
        bbox: x, y, width, height of the mask; all 0 where it is empty.
        score: of the box, as its detector gave it; of a grid's mask, the predicted IoU.
        predicted_iou: the decoder's own estimate.
        prompt: x0, y0, x1, y1 of the box, or x, y of the click, in pixels of the picture.
        index: which of the model's masks 0..3 it is; None where a grid found it.
    """

    segmentation: Rle
    area: int
    bbox: tuple[int, int, int, int]
    score: float
    predicted_iou: float
    prompt: tuple[float, ...]
    index: int | None = None


def fit_boxes(
    given: GivenBoxes, image_hw: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """The boxes inside a picture, their scores, and what a user should know about the others.

    Raises:
        PromptError: the boxes are none, or none of them has an area inside the picture.
    """
    count = len(given.boxes)
    if count > MAX_BOXES or given.scores.shape != (count,) or not np.isfinite(given.scores).all():
        raise PromptError(f"{count} boxes need as many finite scores, and may be {MAX_BOXES} at most")
    boxes, kept = clip_boxes(given.boxes, image_hw)
    size = f"the picture, {image_hw[1]} wide and {image_hw[0]} high"
    if count and not len(kept):
        raise PromptError(f"none of {count} boxes has an area inside {size}; a box is x0, y0, x1, y1 in pixels")
    notes = []
    if len(kept) < count:
        notes.append(f"{count - len(kept)} of {count} boxes have no area inside {size}, and are left out")
    if cut := np.count_nonzero((boxes != given.boxes[kept]).any(axis=1)):
        notes.append(f"{cut} of {count} boxes reach beyond {size}, and are cut off there")
    if look_normalised(boxes):
        notes.append("all boxes lie within 0..1, as normalised ones do; they were taken as pixels")
    return boxes, given.scores[kept], tuple(notes)


class SegmentEverything:
    """A bundle's sampler, encoder and decoder, opened; use as a context manager.

    ::

        with samexport.SegmentEverything("bundle") as everything:
            for mask in everything.masks("photo.jpg"):
                print(mask.area, mask.bbox, mask.score)

    :meth:`masks` does it all. Its stages, for those who time or replace one: :meth:`sample`, :meth:`encode`,
    :meth:`decode`, :meth:`compress`.

    Args:
        bundle: what :func:`samexport.open` returns, or its folder; with a decoder, and for ``DetectorBoxes`` a
            ``prompt_sampler``.
        sampling: a :class:`DetectorBoxes`, :class:`GivenBoxes` or :class:`GridPoints` of this module; None takes the
            bundle's detector, or SAM's grid where there is none.
        runtime: see ``samexport doctor``.
        threads: of the runtime.
        chunk: prompts that are decoded together, at least 1.

    Attributes:
        bundle: what runs.
        sampling: what is sampled.
        timings: milliseconds of each stage for the last picture; opening files is not in them.
        notes: what a user should know about the last picture's boxes.
        best_iou: the highest predicted IoU of the last picture's grid; None without one.

    Raises:
        BundleError: the bundle has no detector, and ``sampling`` needs one.
        ConfigError: ``bundle`` or ``sampling`` is something else, ``chunk`` is no whole number of at least 1, or
            ``threads`` is out of bounds.
    """

    def __init__(
        self,
        bundle: AnyBundle,
        sampling: Sampling | None = None,
        *,
        runtime: str | None = None,
        threads: int | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        if sampling is not None and not isinstance(sampling, Sampling):
            kinds = f"DetectorBoxes(...), GivenBoxes(...) or GridPoints(...) of {__name__}"
            raise ConfigError(f"sampling is {kinds}, not {in_words(sampling)}")
        bundle = as_bundle(bundle)
        has_detector = bundle.manifest.sampler is not None
        self.sampling = sampling or (DetectorBoxes() if has_detector else GridPoints())
        if isinstance(self.sampling, DetectorBoxes) and not has_detector:
            raise BundleError(
                f"{bundle.folder.name} has no {SAMPLER}; export it with --sampler object-aware, or sample a grid"
            )
        self.bundle, self.timings = bundle, dict.fromkeys(("sample", "encode", "decode", "upscale"), 0.0)
        self.notes: tuple[str, ...] = ()
        self.best_iou: float | None = None
        self._segmenter = Segmenter(bundle, runtime=runtime, threads=threads, chunk=chunk)
        self._options: dict[str, Any] = {"runtime": runtime, "threads": threads}
        self._opening = 0.0
        self._detector = self._open_detector() if self._uses_detector else None
        self._image_hw = (0, 0)

    def _open_detector(self) -> Runtime:
        start = time.perf_counter()
        detector = self.bundle.open(SAMPLER, **self._options)
        self._opening += 1e3 * (time.perf_counter() - start)
        return detector

    @property
    def opening(self) -> float:
        """Milliseconds that opening files took so far."""
        return self._opening + self._segmenter.opening

    @property
    def _uses_detector(self) -> bool:
        return isinstance(self.sampling, DetectorBoxes)

    def masks(self, image: Picture, progress: Progress = lambda *_: None) -> Iterator[ObjectMask]:
        """Every mask of a picture (a path, a Pillow image, or uint8 RGB [H, W, 3]), as soon as it is there.

        Masks of boxes come in the order of the boxes, best score first; those of a grid all at the end,
        because they compete.

        Raises:
            ImageError: the picture cannot be read or used.
            PromptError: given boxes are no boxes, or none of them has an area inside the picture.
            ParityFailed: a file returned NaN or infinity, or breaks its contract.
        """
        self.timings, self.notes, self.best_iou = dict.fromkeys(self.timings, 0.0), (), None
        pixels = as_pixels(image)
        if isinstance(self.sampling, GridPoints):
            yield from self._grid(pixels, self.sampling, progress)
            return
        progress("sample", 0, 1)
        boxes, scores = self.sample(pixels)
        progress("encode", 0, 1)
        if len(boxes):
            self.encode(pixels)
        for place, logits, predicted, chosen in self._decode_boxes(boxes):
            for box, score, mask, iou, index in zip(
                boxes[place], scores[place], logits, predicted, chosen, strict=True
            ):
                yield self.compress(mask, box, float(score), float(iou), index)
            progress("decode", place.stop, len(boxes))

    def sample(self, image: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes [M, 4] xyxy in pixels of the picture and scores [M], falling; M is 0 where nothing is found.

        Raises:
            ConfigError: a grid is sampled, not boxes.
            PromptError: given boxes are no boxes, or none of them has an area inside the picture.
            ParityFailed: the detector returned NaN or infinity, or breaks its contract.
        """
        pixels = as_pixels(image)
        if isinstance(self.sampling, GivenBoxes):
            inside, given_scores, self.notes = fit_boxes(self.sampling, (pixels.shape[0], pixels.shape[1]))
            return inside, given_scores
        info = self.bundle.manifest.sampler
        if info is None or not isinstance(self.sampling, DetectorBoxes):
            raise ConfigError("a grid of points has no boxes to sample; call masks")
        self._detector = detector = self._detector or self._open_detector()
        start = time.perf_counter()
        rgb = info.rgb if self.sampling.rgb is None else self.sampling.rgb
        framed, placed = letterbox(pixels, info.image_size, rgb=rgb)
        found = detector.run({"image": framed})
        check_numbers(SAMPLER, found["boxes"], found["scores"])
        boxes, scores = postprocess(found["boxes"], found["scores"], placed, self.sampling.options or info.options)
        self.timings["sample"] += 1e3 * (time.perf_counter() - start)
        return boxes.astype(np.float64), scores.astype(np.float64)

    def encode(self, image: Picture) -> None:
        """Compute the embedding that :meth:`decode` works on."""
        pixels = as_pixels(image)
        self._segmenter.set_image(pixels)
        self._segmenter.open_decoder()
        self._image_hw = (pixels.shape[0], pixels.shape[1])
        self.timings["encode"] += self._segmenter.timings["encode"]

    def decode(self, boxes: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
        """Box by box to logits, a chunk at a time: which boxes, logits [B, L, L], predicted IoU [B].

        The mask is the one that answers a box alone (:func:`samexport.runtimes.host.prompts.select_mask`): mask 0,
        or of a decoder that was trained without it the best one.
        """
        for place, logits, predicted, _ in self._decode_boxes(boxes):
            yield place, logits, predicted

    @property
    def _place(self) -> FrameMap:
        return FrameMap(self._image_hw, self.bundle.manifest.frame)

    def _decode_boxes(
        self, boxes: NDArray[np.float64]
    ) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32], list[int]]]:
        prompts = [Prompt.make(box=box) for box in boxes]
        tensors = self._segmenter.session.pack(prompts, self._place) if prompts else {}
        for begin in range(0, len(prompts), self._segmenter.chunk):
            place = slice(begin, min(begin + self._segmenter.chunk, len(prompts)))
            start = time.perf_counter()
            part = {name: value[place] for name, value in tensors.items()}
            logits, predicted = self._segmenter.decode(part)
            chosen = self._segmenter.session.choose(part, Decoded(logits, predicted))
            rows = np.arange(len(logits))
            self.timings["decode"] += 1e3 * (time.perf_counter() - start)
            yield place, logits[rows, chosen], predicted[rows, chosen], chosen

    def compress(
        self,
        logits: NDArray[np.float32],
        box: NDArray[np.float64],
        score: float,
        predicted_iou: float,
        index: int | None = None,
    ) -> ObjectMask:
        """Logits [L, L] of one box to its mask at the picture's size, as run lengths."""
        start = time.perf_counter()
        mask = trace(logits, self._place)
        x0, y0, x1, y1 = mask.box
        area = mask.area
        bbox = (x0, y0, x1 - x0 + 1, y1 - y0 + 1) if area else (0, 0, 0, 0)
        rle, prompt = encode_rle(mask, self._image_hw), tuple(float(side) for side in box)
        found = ObjectMask(rle, area, bbox, score, predicted_iou, prompt, index)
        self.timings["upscale"] += 1e3 * (time.perf_counter() - start)
        return found

    def _grid(self, image: NDArray[np.uint8], grid: GridPoints, progress: Progress) -> Iterator[ObjectMask]:
        """Masks of a grid; what is neither opening, encoding nor decoding counts as upscaling."""
        start, opening, total, done = time.perf_counter(), self.opening, count_points(grid.options), 0

        def encode(crop: NDArray[np.uint8]) -> Decode:
            self.encode(crop)

            def decode(points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
                nonlocal done
                logits, predicted = self._decode_points(points)
                best = float(predicted.max())
                self.best_iou = best if self.best_iou is None else max(best, self.best_iou)
                done += len(points)
                progress("decode", min(done, total), total)
                return logits, predicted

            return decode

        make = generate_hierarchical if grid.hierarchical else generate
        records = make(image, encode, self.bundle.manifest.frame, grid.options)
        elapsed = 1e3 * (time.perf_counter() - start) - (self.opening - opening)
        self.timings["upscale"] = elapsed - self.timings["encode"] - self.timings["decode"]
        yield from (_from_record(record) for record in records)

    def _decode_points(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points [B, 2] in the frame, one prompt each, to the masks of ambiguous clicks."""
        start = time.perf_counter()
        found = self._segmenter.decode_points(points)
        self.timings["decode"] += 1e3 * (time.perf_counter() - start)
        return found

    @property
    def placement(self) -> str:
        """Where the encoder runs."""
        return self._segmenter.placement

    def close(self) -> None:
        """Close the files that are open, and free their memory; what is needed again is opened again."""
        self._segmenter.close()
        if self._detector is not None:
            self._detector.close()
            self._detector = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _from_record(record: MaskRecord) -> ObjectMask:
    x, y, width, height = record.bbox
    bbox = (x, y, width + 1, height + 1) if record.area else (0, 0, 0, 0)
    score = record.predicted_iou
    return ObjectMask(record.segmentation, record.area, bbox, score, score, record.point_coords[0])
