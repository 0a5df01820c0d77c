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

from samexport.errors import BundleError
from samexport.models.contracts import SAMPLER
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.detector import SamplerOptions, letterbox, postprocess
from samexport.runtimes.host.grid import Decode, GridOptions, MaskRecord, count_points, generate, generate_hierarchical
from samexport.runtimes.host.masks import Rle, encode_rle, trace
from samexport.runtimes.host.prompts import Prompt, pack
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK, Segmenter

Picture = NDArray[np.uint8]
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
    """Boxes from anywhere: float64 [M, 4] x0, y0, x1, y1 in pixels of the picture, and scores [M]."""

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
    """

    segmentation: Rle
    area: int
    bbox: tuple[int, int, int, int]
    score: float
    predicted_iou: float
    prompt: tuple[float, ...]


class SegmentEverything:
    """A bundle's sampler, encoder and decoder, opened; use as a context manager.

    :meth:`masks` does it all. Its stages, for those who time or replace one: :meth:`sample`, :meth:`encode`,
    :meth:`decode`, :meth:`compress`. ``timings`` holds the milliseconds that each took for the last picture.

    Args:
        bundle: with a decoder, and for ``DetectorBoxes`` a ``prompt_sampler``.
        sampling: None takes the bundle's detector, or SAM's grid where there is none.
        runtime: see ``samexport doctor``.
        threads: of the runtime.
        chunk: prompts that are decoded together.

    Raises:
        BundleError: the bundle has no detector, and ``sampling`` needs one.
    """

    def __init__(
        self,
        bundle: Bundle,
        sampling: Sampling | None = None,
        *,
        runtime: str | None = None,
        threads: int | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        has_detector = bundle.manifest.sampler is not None
        self.sampling = sampling or (DetectorBoxes() if has_detector else GridPoints())
        if isinstance(self.sampling, DetectorBoxes) and not has_detector:
            raise BundleError(
                f"{bundle.folder.name} has no {SAMPLER}; export it with --sampler object-aware, or sample a grid"
            )
        self.bundle, self.timings = bundle, dict.fromkeys(("sample", "encode", "decode", "upscale"), 0.0)
        self._segmenter = Segmenter(bundle, runtime=runtime, threads=threads, chunk=chunk)
        self._detector = bundle.open(SAMPLER, runtime=runtime, threads=threads) if self._uses_detector else None
        self._image_hw = (0, 0)

    @property
    def _uses_detector(self) -> bool:
        return isinstance(self.sampling, DetectorBoxes)

    def masks(self, image: Picture, progress: Progress = lambda *_: None) -> Iterator[ObjectMask]:
        """Every mask of uint8 RGB [H, W, 3], as soon as it is there.

        Masks of boxes come in the order of the boxes, best score first; those of a grid all at the end,
        because they compete.

        Raises:
            ImageError: the picture is something else.
            PromptError: a given box is empty or reaches beyond the picture.
        """
        self.timings = dict.fromkeys(self.timings, 0.0)
        if isinstance(self.sampling, GridPoints):
            yield from self._grid(image, self.sampling, progress)
            return
        progress("sample", 0, 1)
        boxes, scores = self.sample(image)
        progress("encode", 0, 1)
        if len(boxes):
            self.encode(image)
        for place, logits, predicted in self.decode(boxes):
            for box, score, mask, iou in zip(boxes[place], scores[place], logits, predicted, strict=True):
                yield self.compress(mask, box, float(score), float(iou))
            progress("decode", place.stop, len(boxes))

    def sample(self, image: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes [M, 4] xyxy in pixels of the picture and scores [M], falling; M is 0 where nothing is found."""
        if isinstance(self.sampling, GivenBoxes):
            return self.sampling.boxes, self.sampling.scores
        info, detector = self.bundle.manifest.sampler, self._detector
        if info is None or detector is None or not isinstance(self.sampling, DetectorBoxes):
            raise BundleError("a grid of points has no boxes to sample")
        start = time.perf_counter()
        rgb = info.rgb if self.sampling.rgb is None else self.sampling.rgb
        pixels, placed = letterbox(image, info.image_size, rgb=rgb)
        found = detector.run({"image": pixels})
        boxes, scores = postprocess(found["boxes"], found["scores"], placed, self.sampling.options or info.options)
        self.timings["sample"] += 1e3 * (time.perf_counter() - start)
        return boxes.astype(np.float64), scores.astype(np.float64)

    def encode(self, image: Picture) -> None:
        """Compute the embedding that :meth:`decode` works on."""
        self._segmenter.set_image(image)
        self._image_hw = (image.shape[0], image.shape[1])
        self.timings["encode"] += self._segmenter.timings["encode"]

    def decode(self, boxes: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
        """Box by box to logits, a chunk at a time: which boxes, logits [B, L, L], predicted IoU [B].

        Mask 0 answers a box, as in MobileSAMv2; of a decoder that was trained without it, the best one.
        """
        outputs = self.bundle.manifest.mask_outputs
        prompts = [Prompt.make(box=box) for box in boxes]
        tensors = pack(prompts, self._image_hw, self.bundle.manifest.frame) if prompts else {}
        for begin in range(0, len(prompts), self._segmenter.chunk):
            place = slice(begin, min(begin + self._segmenter.chunk, len(prompts)))
            start = time.perf_counter()
            logits, predicted = self._segmenter.decode({name: value[place] for name, value in tensors.items()})
            best = np.zeros(len(logits), np.intp)
            if 0 not in outputs:
                best = np.array(outputs)[predicted[:, list(outputs)].argmax(1)]
            rows = np.arange(len(logits))
            self.timings["decode"] += 1e3 * (time.perf_counter() - start)
            yield place, logits[rows, best], predicted[rows, best]

    def compress(
        self, logits: NDArray[np.float32], box: NDArray[np.float64], score: float, predicted_iou: float
    ) -> ObjectMask:
        """Logits [L, L] of one box to its mask at the picture's size, as run lengths."""
        start = time.perf_counter()
        mask = trace(logits, self._image_hw, self.bundle.manifest.frame)
        x0, y0, x1, y1 = mask.box
        area = mask.area
        bbox = (x0, y0, x1 - x0 + 1, y1 - y0 + 1) if area else (0, 0, 0, 0)
        found = ObjectMask(
            encode_rle(mask, self._image_hw), area, bbox, score, predicted_iou, tuple(float(side) for side in box)
        )
        self.timings["upscale"] += 1e3 * (time.perf_counter() - start)
        return found

    def _grid(self, image: Picture, grid: GridPoints, progress: Progress) -> Iterator[ObjectMask]:
        """Masks of a grid; what is neither encoding nor decoding counts as upscaling."""
        start, total, done = time.perf_counter(), count_points(grid.options), 0

        def encode(crop: Picture) -> Decode:
            self.encode(crop)

            def decode(points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
                nonlocal done
                logits, predicted = self._decode_points(points)
                done += len(points)
                progress("decode", min(done, total), total)
                return logits, predicted

            return decode

        make = generate_hierarchical if grid.hierarchical else generate
        records = make(image, encode, self.bundle.manifest.frame, grid.options)
        elapsed = 1e3 * (time.perf_counter() - start)
        self.timings["upscale"] = elapsed - self.timings["encode"] - self.timings["decode"]
        yield from (_from_record(record) for record in records)

    def _decode_points(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points [B, 2] in the frame, one prompt each, to the multimask outputs: logits [B, 3, L, L], IoU [B, 3]."""
        start = time.perf_counter()
        found = self._segmenter.decode_points(points)
        self.timings["decode"] += 1e3 * (time.perf_counter() - start)
        return found

    @property
    def placement(self) -> str:
        """Where the encoder runs."""
        return self._segmenter.placement

    def close(self) -> None:
        """Close what was opened."""
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


def to_coco(masks: list[ObjectMask]) -> list[dict[str, Any]]:
    """Plain data for JSON, a record a mask, as COCO results have them."""
    return [
        {
            "score": mask.score,
            "segmentation": {"size": mask.segmentation["size"], "counts": mask.segmentation["counts"].decode()},
            "bbox": list(mask.bbox),
            "area": mask.area,
            "predicted_iou": mask.predicted_iou,
            "prompt": list(mask.prompt),
        }
        for mask in masks
    ]
