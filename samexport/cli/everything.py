"""What ``samexport segment --everything`` does: options to a sampling, masks to files and lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.cli.terminal import ProgressBar
from samexport.errors import ConfigError, PromptError
from samexport.runtimes.bundle import Bundle, SamplerInfo, open_bundle
from samexport.runtimes.host.detector import SamplerOptions
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.host.image import draw_masks, outline_boxes, read_image
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.tasks.everything import (
    DetectorBoxes,
    GivenBoxes,
    GridPoints,
    ObjectMask,
    Sampling,
    SegmentEverything,
    to_coco,
)

GRID, HIERARCHICAL = "grid", "hierarchical"


@dataclass(frozen=True)
class EverythingRequest:
    """The options of the command line; None takes the bundle's, or the method's own value.

    ``sampler`` is a detector's name, "grid", "hierarchical", or the path of a .json with boxes.
    """

    bundle: Path
    image: Path
    sampler: str | None = None
    confidence: float | None = None
    nms_iou: float | None = None
    max_boxes: int | None = None
    rgb: bool = False
    points_per_side: int | None = None
    draw_boxes: bool = False

    def sampling(self, bundle: Bundle) -> Sampling:
        """What to sample; ConfigError where options do not go together or the bundle has no such sampler."""
        info, name = bundle.manifest.sampler, self.sampler
        if name is None:
            name = GRID if info is None else info.name
        thresholds = {"confidence": self.confidence, "nms_iou": self.nms_iou, "max_boxes": self.max_boxes}
        given = {key: value for key, value in thresholds.items() if value is not None}
        is_grid, is_file = name in (GRID, HIERARCHICAL), name.endswith(".json")
        if (given or self.rgb) and (is_grid or is_file):
            raise ConfigError(
                "--confidence, --nms-iou, --max-boxes and --sampler-rgb belong to a detector in the bundle"
            )
        if self.points_per_side is not None and not is_grid:
            raise ConfigError("--points-per-side belongs to --sampler grid and hierarchical")
        if is_file:
            return read_boxes(Path(name))
        if is_grid:
            sides = {} if self.points_per_side is None else {"points_per_side": self.points_per_side}
            return GridPoints(GridOptions(**sides), name == HIERARCHICAL)
        if info is None or name != info.name:
            has = f"its sampler is {info.name}" if info else "it has no sampler"
            raise ConfigError(
                f"{bundle.folder.name} has no sampler {name!r}, {has}; use grid, hierarchical or a .json of boxes"
            )
        return DetectorBoxes(_options(info, given), True if self.rgb else None)


def _options(info: SamplerInfo, given: dict[str, Any]) -> SamplerOptions:
    stored = info.options
    if info.nms == "in-graph" and given.get("nms_iou", 0) > stored.nms_iou:
        raise ConfigError(
            f"the graph of this bundle has applied NMS at {stored.nms_iou} already; --nms-iou can only be lower"
        )
    if info.nms == "in-graph" and given.get("max_boxes", 0) > stored.max_boxes:
        raise ConfigError(f"the graph of this bundle returns {stored.max_boxes} boxes; --max-boxes can only be lower")
    return SamplerOptions(**{**vars(stored), **given})


def read_boxes(path: Path) -> GivenBoxes:
    """Boxes of a .json: [[x0, y0, x1, y1], ...] in pixels, or COCO records with ``bbox`` [x, y, width, height].

    Records may have a ``score``; boxes then come best first. COCO's whole annotation files (``annotations``)
    are for one picture at most.

    Raises:
        PromptError: the file cannot be read, or a box in it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise PromptError(f"{path} cannot be read as JSON: {reason}") from error
    if isinstance(content, dict):
        content = content.get("annotations")
    usage = "a list of [x0, y0, x1, y1], or of COCO records with bbox [x, y, width, height]"
    if not isinstance(content, list):
        raise PromptError(f"{path} must hold {usage}")
    if len({entry.get("image_id") for entry in content if isinstance(entry, dict)}) > 1:
        raise PromptError(f"{path} has boxes of several pictures; leave those of one")
    boxes, scores = np.zeros((len(content), 4)), np.ones(len(content))
    for number, entry in enumerate(content):
        try:
            if isinstance(entry, dict):
                x, y, width, height = (float(value) for value in entry["bbox"])
                boxes[number], scores[number] = (x, y, x + width, y + height), float(entry.get("score", 1))
            else:
                boxes[number] = [float(value) for value in entry]
        except (KeyError, TypeError, ValueError) as error:
            raise PromptError(f"{path}: entry {number} is not a box; give {usage}") from error
    order = np.argsort(-scores, kind="stable")
    return GivenBoxes(boxes[order], scores[order])


def run_everything(
    request: EverythingRequest, *, out: Path | None, coco: Path | None,
    runtime: str | None, threads: int | None, force: bool,
) -> None:  # fmt: skip
    """Segment everything, print counts and timing, write what was asked for.

    Raises:
        SamExportError: the picture, options, bundle or a path cannot be used; checked before the model runs.
    """
    for path in (out, coco):
        if path is not None and path.exists() and not force:
            raise ConfigError(f"{path} exists; choose another name, or --force to overwrite it")
    if coco is not None and coco.suffix != ".json":
        raise ConfigError(f"--coco {coco} must end in .json")
    bundle = open_bundle(request.bundle)
    sampling, image = request.sampling(bundle), read_image(request.image)
    kinds = {bundle.manifest.weights.kind}
    if isinstance(sampling, DetectorBoxes) and bundle.manifest.sampler is not None:
        kinds.add(bundle.manifest.sampler.weights.kind)
    if "random" in kinds:
        print("this bundle has RANDOM weights: its masks mean nothing")
    with SegmentEverything(bundle, sampling, runtime=runtime, threads=threads) as everything:
        with ProgressBar() as bar:
            masks = list(everything.masks(image, bar.update))
        timings, placement = dict(everything.timings), everything.placement
    height, width = image.shape[:2]
    print(_summary(sampling, masks, f"{width} x {height} pixels"))
    print(", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in timings.items()), f"on {placement}")
    _write(image, masks, out, coco, request.draw_boxes)


def _summary(sampling: Sampling, masks: list[ObjectMask], picture: str) -> str:
    if masks:
        return f"{len(masks)} masks in {picture}"
    if isinstance(sampling, DetectorBoxes):
        return f"no object was found in {picture}; a lower --confidence finds more"
    if isinstance(sampling, GridPoints):
        return f"no mask in {picture} is sure and stable enough"
    return f"there was no box, so there is no mask in {picture}"


def _write(
    image: NDArray[np.uint8], masks: list[ObjectMask], out: Path | None, coco: Path | None, draw_boxes: bool
) -> None:
    from PIL import Image

    try:
        for path in (out, coco):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        if coco is not None:
            coco.write_text(json.dumps(to_coco(masks), indent=1) + "\n", encoding="utf-8")
        if out is not None:
            Image.fromarray(draw_everything(image, masks, boxes=draw_boxes)).save(out)
    except (OSError, ValueError) as error:
        # Pillow raises ValueError for an ending it does not know
        names = ", ".join(str(path) for path in (out, coco) if path is not None)
        raise ConfigError(f"{names} cannot be written: {error}") from error


def draw_everything(image: NDArray[np.uint8], masks: list[ObjectMask], *, boxes: bool = False) -> NDArray[np.uint8]:
    """The picture with every mask in a colour, the largest first; one mask at a time is unpacked.

    With ``boxes`` also the box that each mask answers.
    """
    largest_first = sorted(range(len(masks)), key=lambda number: -masks[number].area)
    canvas = draw_masks(image, ((number, *_unpacked(masks[number])) for number in largest_first))
    if not boxes:
        return canvas
    return outline_boxes(canvas, {number: mask.prompt for number, mask in enumerate(masks) if len(mask.prompt) == 4})


def _unpacked(mask: ObjectMask) -> tuple[int, int, NDArray[np.bool_]]:
    """x, y and pixels of the mask's box."""
    x, y, width, height = mask.bbox
    return x, y, np.ascontiguousarray(decode_rle(mask.segmentation)[y : y + height, x : x + width])
