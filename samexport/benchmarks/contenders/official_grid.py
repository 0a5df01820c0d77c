"""SAM's automatic masks done the way that SAM's own generator does them: the baseline of "segment everything".

Every candidate is scaled to the picture's size before anything is known of it, in torch: three masks a point, from the
frame to the picture in two steps; filters, boxes and run lengths read those pixels. The masks are those of
``runtimes.grid``. Facts follow ``SamAutomaticMaskGenerator`` (facebookresearch/segment-anything).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.models.spec import Preprocess
from samexport.runtimes.host.detector import nms
from samexport.runtimes.host.frames import resized_size
from samexport.runtimes.host.grid import Decode, GridOptions, grid_points

if TYPE_CHECKING:
    from torch import Tensor

# of 12-megapixel masks a batch of 64 points would need 9 GB; the work is the same in slices
_SLICE = 16


def official_grid(
    decode: Decode, image_hw: tuple[int, int], frame: Preprocess, options: GridOptions, timings: dict[str, float]
) -> list[dict[str, Any]]:
    """Masks of a grid over the whole picture, by falling predicted IoU: rle, bbox (xyxy), predicted_iou and point.

    Adds milliseconds to ``timings``: "decode", and "upscale" for all that comes after.
    """
    points = grid_points(options.points_per_side) * (image_hw[1], image_hw[0])
    resized = resized_size(*image_hw, frame.prompts, frame.rounding)
    to_frame = np.array([resized[1] / image_hw[1], resized[0] / image_hw[0]])
    found: list[dict[str, Any]] = []
    for begin in range(0, len(points), options.points_per_batch):
        start = time.perf_counter()
        batch = points[begin : begin + options.points_per_batch]
        logits, scores = decode(batch * to_frame)
        timings["decode"] += 1e3 * (time.perf_counter() - start)
        start = time.perf_counter()
        flat_logits, flat_scores = logits.reshape(-1, *logits.shape[2:]), scores.reshape(-1)
        origin = np.repeat(batch, logits.shape[1], axis=0)
        for first in range(0, len(flat_logits), _SLICE):
            part = slice(first, first + _SLICE)
            found += _filtered(flat_logits[part], flat_scores[part], origin[part], image_hw, frame, options)
        timings["upscale"] += 1e3 * (time.perf_counter() - start)
    start = time.perf_counter()
    boxes = np.array([mask["bbox"] for mask in found], np.float32).reshape(-1, 4)
    kept = nms(boxes, np.array([mask["predicted_iou"] for mask in found]), options.box_nms_thresh)
    timings["upscale"] += 1e3 * (time.perf_counter() - start)
    return [found[i] for i in kept]


def _filtered(
    logits: NDArray[Any], scores: NDArray[Any], points: NDArray[Any], image_hw: tuple[int, int], frame: Preprocess,
    options: GridOptions,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """What passes the filters of logits [M, L, L], all of them at the picture's size; ``points`` [M, 2] made them."""
    import torch

    masks = _upscale(torch.from_numpy(np.ascontiguousarray(logits)), image_hw, frame)
    predicted = torch.from_numpy(np.ascontiguousarray(scores))
    keep = predicted > options.pred_iou_thresh
    masks, predicted, points = masks[keep], predicted[keep], points[keep.numpy()]
    offset = options.stability_score_offset
    surely, likely = (_count(masks > threshold) for threshold in (offset, -offset))
    keep = surely / likely >= options.stability_score_thresh
    masks, predicted, points = masks[keep] > 0, predicted[keep], points[keep.numpy()]
    for mask, score, point in zip(masks, predicted, points.tolist(), strict=True):
        yield {"rle": _run_lengths(mask), "bbox": _box(mask), "predicted_iou": float(score), "point": tuple(point)}


def _upscale(logits: Tensor, image_hw: tuple[int, int], frame: Preprocess) -> Tensor:
    from torch.nn import functional as F

    height, width = resized_size(*image_hw, frame.prompts, frame.rounding)
    framed = F.interpolate(logits[:, None], (frame.prompts, frame.prompts), mode="bilinear", align_corners=False)
    return F.interpolate(framed[..., :height, :width], image_hw, mode="bilinear", align_corners=False)[:, 0]


def _count(masks: Tensor) -> Tensor:
    import torch

    return masks.sum(-1, dtype=torch.int16).sum(-1, dtype=torch.int32)


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    """Outermost pixels, inclusive."""
    columns, rows = mask.any(0).nonzero().flatten(), mask.any(1).nonzero().flatten()
    if len(rows) == 0:
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))


def _run_lengths(mask: Tensor) -> list[int]:
    """Uncompressed, column by column, beginning with zeros."""
    flat = mask.T.flatten()
    changes = (flat[1:] != flat[:-1]).nonzero().flatten() + 1
    edges = [0, *changes.tolist(), len(flat)]
    lengths = np.diff(edges).tolist()
    return [0, *lengths] if bool(flat[0]) else lengths
