"""``samexport everything``: every object of pictures, from a detector's boxes, given boxes or a grid of clicks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samexport.cli.options import BundleFolder, Force, Json, RuntimeName, Threads
from samexport.cli.pictures import (
    RESULTS,
    Annotations,
    Masks,
    MaxPixels,
    Note,
    Out,
    Pictures,
    Reporter,
    Source,
    Stages,
    find_pictures,
    process,
    show_timings,
)
from samexport.errors import ConfigError, FileError, PromptError
from samexport.files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from samexport.cli.results import Results
    from samexport.runtimes.bundle import Bundle, SamplerInfo
    from samexport.runtimes.host.detector import SamplerOptions
    from samexport.runtimes.tasks.everything import GivenBoxes, Sampling, SegmentEverything
    from samexport.runtimes.tasks.records import MaskResult

GRID, HIERARCHICAL = "grid", "hierarchical"


def _detector(text: str, *names: str) -> Any:
    metavar = None if names else "NUMBER"
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel="Options of the detector")


def _grid(text: str) -> Any:
    return typer.Option(metavar="NUMBER", help=text, rich_help_panel="Options of the grid, as in SAM's generator")


def everything(
    bundle: BundleFolder,
    image: Pictures,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="object-aware, grid, hierarchical, or a .json of boxes; default: the bundle's, else grid.",
        ),
    ] = None,
    out: Out = None,
    masks: Masks = None,
    draw_boxes: Annotated[
        bool, typer.Option("--draw-boxes", help="In --out, also the boxes.", rich_help_panel=RESULTS)
    ] = False,
    confidence: Annotated[float | None, _detector("Boxes need a higher score; default 0.4.")] = None,
    nms_iou: Annotated[float | None, _detector("Boxes that overlap more are one; default 0.9.")] = None,
    max_boxes: Annotated[int | None, _detector("The best that are kept; default 300 (the paper: 320).")] = None,
    sampler_rgb: Annotated[bool, _detector("Feed it RGB, not BGR.", "--sampler-rgb")] = False,
    points_per_side: Annotated[int | None, _grid("Points a side; default 32.")] = None,
    pred_iou_thresh: Annotated[float | None, _grid("Masks need a higher predicted IoU; default 0.88.")] = None,
    stability_score_thresh: Annotated[float | None, _grid("Masks need this stability; default 0.95.")] = None,
    stability_score_offset: Annotated[float | None, _grid("Distance of stability's thresholds; default 1.")] = None,
    box_nms_thresh: Annotated[float | None, _grid("Masks whose boxes overlap more are one; default 0.7.")] = None,
    crop_n_layers: Annotated[int | None, _grid("Layer i adds 4**i crops of the picture; default 0.")] = None,
    crop_nms_thresh: Annotated[float | None, _grid("As --box-nms-thresh, between crops; default 0.7.")] = None,
    crop_overlap_ratio: Annotated[float | None, _grid("Overlap of crops, by the short side; default 0.341.")] = None,
    crop_n_points_downscale_factor: Annotated[
        int | None, _grid("Layer i has this factor ** i fewer points a side; default 1.")
    ] = None,
    min_mask_region_area: Annotated[int | None, _grid("Islands and holes of fewer pixels go; default 0.")] = None,
    annotations: Annotations = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
    runtime: RuntimeName = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Segment every object of pictures, without prompts.

    Example: samexport everything BUNDLE photo.jpg --out overlay.png --masks masks.json
    """
    grid = {
        "points_per_side": points_per_side, "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh, "stability_score_offset": stability_score_offset,
        "box_nms_thresh": box_nms_thresh, "crop_n_layers": crop_n_layers, "crop_nms_thresh": crop_nms_thresh,
        "crop_overlap_ratio": crop_overlap_ratio, "crop_n_points_downscale_factor": crop_n_points_downscale_factor,
        "min_mask_region_area": min_mask_region_area,
    }  # fmt: skip
    detector = {"confidence": confidence, "nms_iou": nms_iou, "max_boxes": max_boxes}
    request = EverythingRequest(bundle, tuple(image), sampler, _given(detector), _given(grid), sampler_rgb, draw_boxes)
    run_everything(
        request, out=out, masks=masks, annotations=annotations, max_pixels=max_pixels, as_json=as_json,
        runtime=runtime, threads=threads, force=force,
    )  # fmt: skip


def old_spelling(arguments: Sequence[str]) -> list[str]:
    """``segment ... --everything`` as ``everything ...``, which has replaced it; other command lines as they are.

    Raises:
        ConfigError: there are prompts too.
    """
    flag = "--everything"
    if not arguments or arguments[0] != "segment" or flag not in arguments:
        return list(arguments)
    prompts = ("--point", "--box", "--mask", "--multimask", "--logits")
    if any(argument.split("=")[0] in prompts for argument in arguments):
        raise ConfigError("--everything takes no prompts and writes no logits")
    return ["everything", *(argument for argument in arguments[1:] if argument != flag)]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class EverythingRequest:
    """The options of the command line.

    Attributes:
        bundle: its folder.
        images: pictures, folders, "-".
        sampler: a detector's name, "grid", "hierarchical", or the path of a .json with boxes; None takes the bundle's
            detector, or the grid.
        detector: ``SamplerOptions`` that were given; what is absent is as the bundle says.
        grid: ``GridOptions`` that were given.
        rgb: feed the detector RGB.
        draw_boxes: draw the boxes too.
    """

    bundle: Path
    images: tuple[str, ...]
    sampler: str | None = None
    detector: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    rgb: bool = False
    draw_boxes: bool = False

    @property
    def boxes(self) -> Path | None:
        """The file of boxes, if there is one."""
        return Path(self.sampler) if self.sampler is not None and self.sampler.endswith(".json") else None

    def sampling(self, bundle: Bundle) -> Sampling:
        """What to sample; ConfigError where options do not go together or the bundle has no such sampler."""
        from samexport.runtimes.host.grid import GridOptions
        from samexport.runtimes.tasks.everything import DetectorBoxes, GridPoints

        info, name = bundle.manifest.sampler, self.sampler
        if name is None:
            name = GRID if info is None else info.name
        is_grid = name in (GRID, HIERARCHICAL)
        if (self.detector or self.rgb) and (is_grid or self.boxes):
            raise ConfigError(
                "--confidence, --nms-iou, --max-boxes and --sampler-rgb belong to a detector in the bundle"
            )
        if self.grid and not is_grid:
            raise ConfigError(f"{_options(self.grid)} belong to --sampler grid and hierarchical")
        if self.boxes:
            return read_boxes(self.boxes)
        if is_grid:
            return GridPoints(GridOptions(**self.grid), name == HIERARCHICAL)
        if info is None or name != info.name:
            has = f"its sampler is {info.name}" if info else "it has none"
            raise ConfigError(
                f"{bundle.folder.name} has no sampler {name!r}, {has}; use grid, hierarchical or a .json of boxes"
            )
        return DetectorBoxes(_thresholds(info, self.detector), True if self.rgb else None)


def _options(names: Mapping[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _thresholds(info: SamplerInfo, given: Mapping[str, Any]) -> SamplerOptions:
    from samexport.runtimes.host.detector import SamplerOptions

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
    import numpy as np

    from samexport.runtimes.tasks.everything import GivenBoxes

    try:
        content = read_json(path)
    except FileError as error:
        raise PromptError(str(error)) from error
    if isinstance(content, dict):
        content = content.get("annotations")
    usage = "a list of [x0, y0, x1, y1], or of COCO records with bbox [x, y, width, height]"
    if not isinstance(content, list):
        raise PromptError(f"{path} must hold {usage}")
    ids = [entry.get("image_id") for entry in content if isinstance(entry, dict)]
    if any(other != ids[0] for other in ids):
        raise PromptError(f"{path} has boxes of several pictures; leave those of one")
    found = []
    for number, entry in enumerate(content):
        try:
            found.append(_box(entry))
        except (KeyError, ValueError, OverflowError) as error:
            raise PromptError(f"{path}: entry {number} is not a box; give {usage}") from error
    boxes = np.array([box for box, _ in found], np.float64).reshape(-1, 4)
    scores = np.array([score for _, score in found], np.float64)
    order = np.argsort(-scores, kind="stable")
    return GivenBoxes(boxes[order], scores[order])


def _box(entry: Any) -> tuple[tuple[float, float, float, float], float]:
    """Corners and score of an entry of JSON; KeyError, ValueError or OverflowError if it is none."""
    is_record = isinstance(entry, dict)
    sides, score = (entry["bbox"], entry.get("score", 1)) if is_record else (entry, 1)
    if not isinstance(sides, list) or len(sides) != 4 or any(type(n) not in (int, float) for n in (*sides, score)):
        raise ValueError("not four numbers")
    x, y, right, bottom, score = (float(number) for number in (*sides, score))
    if not all(map(math.isfinite, (x, y, right, bottom, score))):
        raise ValueError("not finite")
    return ((x, y, x + right, y + bottom) if is_record else (x, y, right, bottom)), score


def run_everything(
    request: EverythingRequest, *, out: str | None, masks: str | None,
    runtime: str | None, threads: int | None, force: bool,
    annotations: Path | None = None, max_pixels: int | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Segment everything in every picture, write what was asked for, then print counts and timing.

    Raises:
        SamExportError: a picture, option, bundle or path cannot be used; paths are checked before the model runs.
    """
    from samexport.cli.results import Results, least_weights
    from samexport.runtimes.bundle import MANIFEST, open_bundle
    from samexport.runtimes.tasks.everything import SegmentEverything

    sources = find_pictures(request.images)
    if request.boxes and len(sources) > 1:
        raise ConfigError(f"{request.boxes} has the boxes of one picture, and there are {len(sources)}")
    reporter = Reporter(as_json, len(sources) > 1)
    inputs = [request.bundle / MANIFEST, *([request.boxes] if request.boxes else [])]
    with Results(sources, out, masks, None, force, inputs, annotations, reporter.announce) as results:
        bundle = open_bundle(request.bundle)
        with SegmentEverything(bundle, request.sampling(bundle), runtime=runtime, threads=threads) as model:
            if warning := least_weights(model).warning:
                reporter.announce(f"this bundle has {warning}")
            process(sources, _Work(model, request, results), reporter, max_pixels)


@dataclass
class _Work:
    model: SegmentEverything
    request: EverythingRequest
    results: Results
    opening: float = 0.0

    def __call__(
        self, source: Source, image: NDArray[np.uint8], note: Note, stages: Stages
    ) -> tuple[list[str], dict[str, Any]]:
        from samexport.runtimes.tasks.records import draw_everything, of_objects

        model = self.model
        self.results.check_size(source, (image.shape[0], image.shape[1]))
        found = of_objects(model.masks(image, stages))
        for text in model.notes:
            note(text)
        written = self.results.write(
            source, found, lambda: draw_everything(image, found, boxes=self.request.draw_boxes)
        )
        timings, self.opening = {"open": model.opening - self.opening, **model.timings}, model.opening
        lines = [self._summary(found, f"{image.shape[1]} x {image.shape[0]} pixels")]
        lines += [f"wrote {path}: {what}" for path, what in written.items()]
        lines.append(show_timings(timings, model.placement))
        return lines, self.results.describe(source, found, written, model, timings)

    def _summary(self, found: Sequence[MaskResult], picture: str) -> str:
        from samexport.runtimes.tasks.everything import DetectorBoxes, GridPoints

        sampling, best = self.model.sampling, self.model.best_iou
        if found:
            return f"{len(found)} mask{'s' * (len(found) != 1)} in {picture}"
        if isinstance(sampling, DetectorBoxes):
            return f"no object was found in {picture}; a lower --confidence finds more"
        if isinstance(sampling, GridPoints) and best is not None:
            options = sampling.options
            sure = f"--pred-iou-thresh ({options.pred_iou_thresh:g})"
            stable = f"--stability-score-thresh ({options.stability_score_thresh:g})"
            lower = stable if best > options.pred_iou_thresh else f"{sure} or {stable}"
            return (
                f"no mask in {picture} is sure and stable enough: the best predicted IoU is {best:.3f}; lower {lower}"
            )
        return f"there was no box, so there is no mask in {picture}"
