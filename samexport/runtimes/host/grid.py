"""Everything in a picture from a grid of points: SAM's automatic mask generator, and TinySAM's in two passes.

Facts follow ``SamAutomaticMaskGenerator`` (facebookresearch/segment-anything) and
``SamHierarchicalMaskGenerator`` (xinghaochen/TinySAM). Numpy and pycocotools, on top of any decoder. Masks
are traced one at a time and kept as run lengths; logits at the size of the picture never exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.models.spec import Preprocess
from samexport.runtimes.host.detector import nms
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.masks import (
    Box,
    Rle,
    TracedMask,
    decode_rle,
    encode_rle,
    remove_small_regions,
    trace,
)

Decode = Callable[[NDArray[np.float64]], tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]]
"""Points [B, 2], x and y in the frame, one prompt each, to the three multimask outputs: logits [B, 3, L, L]
and predicted IoU [B, 3]."""

Encode = Callable[[NDArray[np.uint8]], Decode]
"""An image or a crop of it, uint8 RGB [h, w, 3], to the decoder of its embedding."""

MAX_SIDE, MAX_BATCH, MAX_LAYERS = 1024, 1024, 4
"""A million points or 341 crops take hours; a batch of 1024 takes a gigabyte for its logits."""

_FLOAT_MAX = 1e9
_RANGES: dict[str, tuple[float, float]] = {
    "points_per_side": (1, MAX_SIDE),
    "points_per_batch": (1, MAX_BATCH),
    "pred_iou_thresh": (-_FLOAT_MAX, _FLOAT_MAX),
    "stability_score_thresh": (-_FLOAT_MAX, _FLOAT_MAX),
    "stability_score_offset": (0, _FLOAT_MAX),
    "box_nms_thresh": (0, 1),
    "crop_n_layers": (0, MAX_LAYERS),
    "crop_nms_thresh": (0, 1),
    "crop_overlap_ratio": (0, 1),
    "crop_n_points_downscale_factor": (1, MAX_SIDE),
    "min_mask_region_area": (0, _FLOAT_MAX),
}

EDGE = 20
"""A box side this close to a crop's side, and not to the image's, belongs to a mask that the crop cuts."""


@dataclass(frozen=True)
class GridOptions:
    """SAM's options with SAM's names and defaults.

    Attributes:
        points_per_side: of the grid over the whole image, at most ``MAX_SIDE``.
        points_per_batch: prompts that are decoded together, at most ``MAX_BATCH``.
        pred_iou_thresh: masks need a higher predicted IoU; 0 keeps all.
        stability_score_thresh: masks need at least this stability; 0 keeps all.
        stability_score_offset: distance of the two thresholds that the stability compares, in logits.
        box_nms_thresh: IoU of boxes above which the mask of lower predicted IoU goes.
        crop_n_layers: layer i adds 4**i crops of the image; at most ``MAX_LAYERS``.
        crop_nms_thresh: like ``box_nms_thresh``, between crops; the mask of the larger crop goes.
        crop_overlap_ratio: overlap of the first layer's crops by the short side of the image.
        crop_n_points_downscale_factor: the grid of layer i has this factor ** i fewer points a side.
        min_mask_region_area: islands and holes of fewer pixels are removed.

    Raises:
        ConfigError: a value is not finite or out of its range, or the last layer has no point.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        for option in fields(self):
            value, (low, high) = getattr(self, option.name), _RANGES[option.name]
            whole = isinstance(option.default, int)
            kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            if not isinstance(value, kinds) or not low <= value <= high:  # NaN is in no range
                kind = "a whole number, " if whole else ""
                raise ConfigError(f"{option.name} is {kind}at least {low:g} and at most {high:g}, got {value}")
        if self.points_per_side < self.crop_n_points_downscale_factor**self.crop_n_layers:
            raise ConfigError("the last crop layer has no point; raise points_per_side or use fewer layers")


@dataclass(frozen=True, eq=False)
class MaskRecord:
    """One mask; ``dataclasses.asdict`` gives SAM's record.

    Attributes:
        segmentation: run lengths over the image.
        area: pixels.
        bbox: x, y, w, h; w and h are one pixel short, as SAM computes them.
        predicted_iou: the model's own estimate.
        point_coords: the one point that found it, x and y in pixels.
        stability_score: see ``masks.TracedMask``.
        crop_box: x, y, w, h of the crop it was found in.
    """

    segmentation: Rle
    area: int
    bbox: Box
    predicted_iou: float
    point_coords: tuple[tuple[float, float], ...]
    stability_score: float
    crop_box: Box


@dataclass(frozen=True, eq=False)
class _Found:
    """A mask on its way; ``box``, ``point`` and ``crop`` (xyxy) are in pixels of the image."""

    rle: Rle
    area: int
    box: Box
    iou: np.float32
    stability: np.float32
    point: tuple[float, float]
    crop: Box


def grid_points(points_per_side: int) -> NDArray[np.float64]:
    """Centres of n x n cells of the unit square, x and y [n * n, 2], row by row."""
    line = (np.arange(points_per_side) + 0.5) / points_per_side
    return np.stack([np.tile(line, points_per_side), np.repeat(line, points_per_side)], axis=-1)


def crop_boxes(image_hw: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """The crops xyxy and their layer: the whole image, then layer by layer, column by column."""
    height, width = image_hw
    crops: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(image_hw) * (2 / count))
        crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        lefts = [int((crop_width - overlap) * i) for i in range(count)]
        tops = [int((crop_height - overlap) * i) for i in range(count)]
        corners = [(x, y, min(x + crop_width, width), min(y + crop_height, height)) for x in lefts for y in tops]
        crops += [(corner, layer) for corner in corners]
    return crops


def count_points(options: GridOptions) -> int:
    """Prompts that :func:`generate` decodes."""
    factor = options.crop_n_points_downscale_factor
    sides = [int(options.points_per_side / factor**layer) for layer in range(options.crop_n_layers + 1)]
    return sum(4**layer * side**2 for layer, side in enumerate(sides))


def generate(
    image: NDArray[np.uint8], encode: Encode, frame: Preprocess, options: GridOptions = GridOptions()
) -> list[MaskRecord]:
    """Every object that a grid of clicks finds, by falling predicted IoU (with crops: small crops first).

    Args:
        image: uint8 RGB [H, W, 3].
        encode: called once for the image and once for each crop.
        frame: the model's frame.
        options: thresholds and grids.
    """
    image_hw = image.shape[0], image.shape[1]
    crops = crop_boxes(image_hw, options.crop_n_layers, options.crop_overlap_ratio)
    found: list[_Found] = []
    for crop, layer in crops:
        x0, y0, x1, y1 = crop
        side = int(options.points_per_side / options.crop_n_points_downscale_factor**layer)
        points = grid_points(side) * (x1 - x0, y1 - y0)
        decode = encode(image[y0:y1, x0:x1])
        here = [mask for mask, _ in _sample(decode, points, crop, image_hw, frame, options)]
        found += _suppress(here, [mask.iou for mask in here], options.box_nms_thresh)
    if len(crops) > 1:
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (mask.crop for mask in found)]
        found = _suppress(found, [1 / area for area in areas], options.crop_nms_thresh)
    return [_record(mask) for mask in _clean(found, options)]


def generate_hierarchical(
    image: NDArray[np.uint8],
    encode: Encode,
    frame: Preprocess,
    options: GridOptions = GridOptions(),
    high_score_thresh: float = 8.5,
) -> list[MaskRecord]:
    """TinySAM's two passes: a grid four times coarser, then only the fine points it left unexplained.

    Args:
        image: uint8 RGB [H, W, 3].
        encode: called once.
        frame: the model's frame.
        options: of the fine grid; ``points_per_side`` at least 4, no crop layers.
        high_score_thresh: logits above it mean that a pixel is explained.

    Raises:
        ConfigError: fewer than 4 points a side, or crop layers.
    """
    if options.points_per_side < 4 or options.crop_n_layers:
        raise ConfigError("hierarchical sampling needs 4 points per side or more, and no crop layers")
    height, width = image.shape[:2]
    whole = (0, 0, width, height)
    decode = encode(image)
    explained = np.zeros((height, width), np.bool_)
    coarse: list[_Found] = []
    points = grid_points(options.points_per_side // 4) * (width, height)
    for mask, low_res_mask in _sample(decode, points, whole, (height, width), frame, options):
        coarse.append(mask)
        sure = trace(low_res_mask, FrameMap((height, width), frame), threshold=high_score_thresh)
        rows, columns = sure.inside.shape
        explained[sure.top : sure.top + rows, sure.left : sure.left + columns] |= sure.inside
    left = _unexplained(points, explained, options.points_per_side)
    fine = [mask for mask, _ in _sample(decode, left, whole, (height, width), frame, options)]
    found = fine + coarse
    found = _suppress(found, [mask.iou for mask in found], options.box_nms_thresh)
    return [_record(mask) for mask in _clean(found, options)]


def _unexplained(
    points: NDArray[np.float64], explained: NDArray[np.bool_], points_per_side: int
) -> NDArray[np.float64]:
    """The fine points [P, 2] around coarse ones that are not explained.

    The 8 neighbours at fine spacing (whole pixels), then the next column, the next row and the corner between
    them, each where it is inside the image.
    """
    height, width = explained.shape
    step_x, step_y = width // points_per_side, height // points_per_side
    near = (-1, 0, 1)
    around = [(i, j) for i in near for j in near if (i, j) != (0, 0)]
    around += [(2, j) for j in near] + [(i, 2) for i in near] + [(2, 2)]
    chosen = []
    for x, y in points:
        for i, j in around:
            inside = (i < 2 or x + 2 * step_x < width) and (j < 2 or y + 2 * step_y < height)
            if inside and not explained[int(y + j * step_y), int(x + i * step_x)]:
                chosen.append((x + i * step_x, y + j * step_y))
    return np.array(chosen, np.float64).reshape(-1, 2)


def _sample(
    decode: Decode,
    points: NDArray[np.float64],
    crop: Box,
    image_hw: tuple[int, int],
    frame: Preprocess,
    options: GridOptions,
) -> Iterator[tuple[_Found, NDArray[np.floating[Any]]]]:
    """Masks of ``points`` [P, 2] (pixels of the crop) that pass all filters, each with its logits [L, L]."""
    x0, y0, x1, y1 = crop
    crop_hw = y1 - y0, x1 - x0
    place = FrameMap(crop_hw, frame)
    for start in range(0, len(points), options.points_per_batch):
        batch = points[start : start + options.points_per_batch]
        low_res_masks, iou_predictions = decode(place.to_frame(batch))
        scores = iou_predictions.astype(np.float32)
        likely = np.ones(scores.shape, np.bool_)
        if options.pred_iou_thresh > 0:
            likely = scores > np.float32(options.pred_iou_thresh)
        for prompt, output in np.argwhere(likely):
            low_res_mask = low_res_masks[prompt, output]
            mask = trace(low_res_mask, place, offset=options.stability_score_offset)
            left, top, right, bottom = mask.box
            box = (left + x0, top + y0, right + x0, bottom + y0)
            if _stable(mask, options.stability_score_thresh) and not _is_cut(box, crop, image_hw):
                point = (float(batch[prompt, 0] + x0), float(batch[prompt, 1] + y0))
                rle = encode_rle(mask, image_hw, (x0, y0))
                score = scores[prompt, output]
                yield _Found(rle, mask.area, box, score, mask.stability, point, crop), low_res_mask


def _stable(mask: TracedMask, threshold: float) -> bool:
    return threshold <= 0 or bool(mask.stability >= np.float32(threshold))  # NaN, 0 / 0, is not


def _is_cut(box: Box, crop: Box, image_hw: tuple[int, int]) -> bool:
    """Whether a side of the box is at a side of the crop that is not a side of the image."""
    whole = (0, 0, image_hw[1], image_hw[0])
    return any(
        abs(side - at_crop) <= EDGE < abs(side - at_image)
        for side, at_crop, at_image in zip(box, crop, whole, strict=True)
    )


def _suppress(found: Sequence[_Found], scores: Sequence[Any], iou: float) -> list[_Found]:
    """NMS on boxes; what stays comes by falling score."""
    boxes = np.array([mask.box for mask in found], np.float32).reshape(-1, 4)
    return [found[i] for i in nms(boxes, np.array(scores, np.float32), iou)]


def _clean(found: list[_Found], options: GridOptions) -> list[_Found]:
    """Remove small regions, then the duplicates that this makes; untouched masks win."""
    if options.min_mask_region_area == 0:
        return found
    cleaned, untouched = [], []
    for mask in found:
        pixels, small_found = remove_small_regions(decode_rle(mask.rle), options.min_mask_region_area)
        if small_found:
            traced = TracedMask(pixels, 0, 0, mask.stability)
            mask = replace(mask, rle=encode_rle(traced, pixels.shape), area=traced.area, box=traced.box)
        cleaned.append(mask)
        untouched.append(float(not small_found))
    return _suppress(cleaned, untouched, max(options.box_nms_thresh, options.crop_nms_thresh))


def _xywh(box: Box) -> Box:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def _record(mask: _Found) -> MaskRecord:
    return MaskRecord(
        segmentation=mask.rle,
        area=mask.area,
        bbox=_xywh(mask.box),
        predicted_iou=float(mask.iou),
        point_coords=(mask.point,),
        stability_score=float(mask.stability),
        crop_box=_xywh(mask.crop),
    )
