"""What ``samexport segment`` does: texts to prompts, a bundle's answer to files and lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError, PromptError
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.host.image import overlay, read_image
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.segment import Segmentation, Segmenter


@dataclass(frozen=True)
class SegmentRequest:
    """The texts of the command line: points "x,y" or "x,y,label", boxes "x0,y0,x1,y1", a mask file."""

    bundle: Path
    image: Path
    points: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    mask: Path | None = None
    multimask: bool = False

    def prompts(self) -> list[Prompt]:
        """All points (and the mask) are one prompt; with boxes, one prompt a box, and points join a single box."""
        points = [_numbers(text, (2, 3), "--point x,y or x,y,label") for text in self.points]
        coords, labels = [p[:2] for p in points], [p[2] if len(p) == 3 else 1 for p in points]
        boxes = [_numbers(text, (4,), "--box x0,y0,x1,y1") for text in self.boxes]
        mask = None if self.mask is None else _read_mask(self.mask)
        if len(boxes) > 1:
            if points or mask is not None:
                raise PromptError("points and --mask go with one box at most; run the command once a box")
            return [Prompt.make(box=box) for box in boxes]
        return [Prompt.make(coords, labels, boxes[0] if boxes else None, mask)]


def run_segment(
    request: SegmentRequest, *, out: Path | None, masks: Path | None, logits: Path | None,
    runtime: str | None, threads: int | None, force: bool,
) -> None:  # fmt: skip
    """Segment, print a line a mask and the timing, write what was asked for.

    Raises:
        SamExportError: the picture, prompts, bundle or a path cannot be used; checked before the model runs.
    """
    for path in (out, masks, logits):
        if path is not None and path.exists() and not force:
            raise ConfigError(f"{path} exists; choose another name, or --force to overwrite it")
    if logits is not None and logits.suffix != ".npy":
        raise ConfigError(f"--logits {logits} must end in .npy")
    prompts, image = request.prompts(), read_image(request.image)
    with Segmenter(open_bundle(request.bundle), runtime=runtime, threads=threads) as segmenter:
        if segmenter.bundle.manifest.weights.kind == "random":
            print("this bundle has RANDOM weights: its masks mean nothing")
        if segmenter.notice:
            print(segmenter.notice)
        segmenter.set_image(image)
        results = segmenter.predict(prompts, multimask=request.multimask)
        timings, placement = dict(segmenter.timings), segmenter.placement
    for number, result in enumerate(results):
        for index, score, mask in zip(result.indices, result.scores, result.masks, strict=True):
            print(f"prompt {number}, mask {index}: score {score:.3f}, {mask.sum()} pixels")
    print(", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in timings.items()), f"on {placement}")
    _write(image, prompts, results, out, masks, logits)


def _write(
    image: NDArray[np.uint8], prompts: list[Prompt], results: list[Segmentation],
    out: Path | None, masks: Path | None, logits: Path | None,
) -> None:  # fmt: skip
    from PIL import Image

    every = np.concatenate([r.masks for r in results])
    try:
        for path in (out, masks, logits):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        if out is not None:
            points = np.concatenate([p.points for p in prompts])
            labels = np.concatenate([p.labels for p in prompts])
            boxes = [p.box for p in prompts if p.box is not None]
            Image.fromarray(overlay(image, every, points=points, labels=labels, boxes=boxes)).save(out)
        if masks is not None and masks.suffix == ".json":
            masks.write_text(json.dumps(_coco(results), indent=1) + "\n", encoding="utf-8")
        elif masks is not None:
            masks.mkdir(exist_ok=True)
            for number, result in enumerate(results):
                for index, mask in zip(result.indices, result.masks, strict=True):
                    Image.fromarray(mask).save(masks / f"prompt{number}_mask{index}.png")
        if logits is not None:
            np.save(logits, np.concatenate([r.low_res_masks for r in results]), allow_pickle=False)
    except (OSError, ValueError) as error:
        # Pillow raises ValueError for an ending it does not know
        names = ", ".join(str(path) for path in (out, masks, logits) if path is not None)
        raise ConfigError(f"{names} cannot be written: {error}") from error


def _coco(results: list[Segmentation]) -> list[dict[str, object]]:
    """One record a mask, as COCO results have them: compressed RLE, xywh box, area, score."""
    from pycocotools import mask as coco

    records: list[dict[str, object]] = []
    for number, result in enumerate(results):
        for index, score, mask in zip(result.indices, result.scores, result.masks, strict=True):
            rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            box, area = coco.toBbox(rle).tolist(), int(coco.area(rle))
            text = {"size": rle["size"], "counts": rle["counts"].decode()}
            records.append(
                {
                    "prompt": number,
                    "mask": index,
                    "score": float(score),
                    "segmentation": text,
                    "bbox": box,
                    "area": area,
                }
            )
    return records


def _numbers(text: str, counts: tuple[int, ...], usage: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PromptError(f"{text!r} is not {usage}") from error
    if len(values) not in counts:
        raise PromptError(f"{text!r} is not {usage}")
    return values


def _read_mask(path: Path) -> NDArray[np.float32]:
    """Logits [L, L], or the first of [..., L, L]."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PromptError(f"{path} cannot be read as .npy logits: {str(error).splitlines()[0]}") from error
    if not isinstance(values, np.ndarray) or values.ndim < 2:
        raise PromptError(f"{path} must hold logits [L, L] as written by --logits")
    return np.asarray(values.reshape(-1, *values.shape[-2:])[0])
