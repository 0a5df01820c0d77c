"""One mask at a time: from low-resolution logits to its pixels, box and RLE; and small regions. Numpy.

Work and memory go with the part of the image that a mask can reach, never with the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.models.spec import Frame
from samexport.runtimes.image import axis_weights, resized_size

Box = tuple[int, int, int, int]
Rle = dict[str, Any]
"""COCO's compressed run lengths: ``size`` [H, W] and ``counts``, bytes."""

_BAND_ROWS = 64


@dataclass(frozen=True, eq=False)
class TracedMask:
    """The pixels of one mask in an image, held for a rectangle that contains them all.

    Attributes:
        inside: bool [h, w], the mask within the rectangle.
        left: x of the rectangle in the image.
        top: y of the rectangle in the image.
        stability: pixels above ``threshold + offset`` by pixels above ``threshold - offset``; NaN for 0 / 0.
    """

    inside: NDArray[np.bool_]
    left: int
    top: int
    stability: np.float32

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.inside))

    @property
    def box(self) -> Box:
        """Outermost pixels x0, y0, x1, y1, all inclusive; 0, 0, 0, 0 for an empty mask."""
        columns, rows = np.flatnonzero(self.inside.any(axis=0)), np.flatnonzero(self.inside.any(axis=1))
        if len(rows) == 0:
            return (0, 0, 0, 0)
        x, y = columns[[0, -1]] + self.left, rows[[0, -1]] + self.top
        return (int(x[0]), int(y[0]), int(x[1]), int(y[1]))


def trace(
    low_res_mask: NDArray[Any],
    image_hw: tuple[int, int],
    frame: Frame,
    *,
    threshold: float = 0.0,
    offset: float = 0.0,
) -> TracedMask:
    """Upscale logits [L, L] to the image and threshold them, like ``image.upscale_mask``, where it matters.

    A pixel is a weighted mean of low-resolution logits, so it exceeds a number only where one of them does.

    Raises:
        ConfigError: the logits do not have the frame's low-resolution size.
    """
    side = frame.low_res
    if low_res_mask.shape != (side, side):
        raise ConfigError(f"a mask of this model is [{side}, {side}], got {list(low_res_mask.shape)}")
    height, width = resized_size(*image_hw, frame.size)
    row_weights = axis_weights(side, frame.size, height, image_hw[0])
    column_weights = axis_weights(side, frame.size, width, image_hw[1])
    possible = low_res_mask > threshold - offset
    rows, near_rows = _reach(np.flatnonzero(possible.any(axis=1)), row_weights)
    columns, near_columns = _reach(np.flatnonzero(possible.any(axis=0)), column_weights)
    near = low_res_mask[near_rows, near_columns].astype(np.float32)
    widened = near @ column_weights[columns, near_columns].T
    inside = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    surely = likely = 0
    for first, values in _bands(row_weights[rows, near_rows], widened):
        inside[first : first + len(values)] = values > threshold
        surely += int(np.count_nonzero(values > threshold + offset))
        likely += int(np.count_nonzero(values > threshold - offset))
    with np.errstate(invalid="ignore"):
        stability = np.float32(surely) / np.float32(likely)
    return TracedMask(inside, columns.start, rows.start, stability)


def _reach(possible: NDArray[np.intp], weights: NDArray[np.float32]) -> tuple[slice, slice]:
    """Image pixels of one axis that see a possible low-res pixel, and all low-res pixels that those see."""
    seen = np.flatnonzero(weights[:, possible].any(axis=1))
    if len(seen) == 0:
        return slice(0, 0), slice(0, 0)
    pixels = slice(int(seen[0]), int(seen[-1]) + 1)
    used = np.flatnonzero(weights[pixels].any(axis=0))
    return pixels, slice(int(used[0]), int(used[-1]) + 1)


def _bands(row_weights: NDArray[np.float32], widened: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First row and values of ``row_weights @ widened``, band by band; a band reads few low-res rows."""
    for first in range(0, len(row_weights), _BAND_ROWS):
        band = row_weights[first : first + _BAND_ROWS]
        used = np.flatnonzero(band.any(axis=0))
        near = slice(used[0], used[-1] + 1)
        yield first, band[:, near] @ widened[near]


def encode_rle(mask: TracedMask, image_hw: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> Rle:
    """Compress a mask into COCO run lengths of an image.

    Args:
        mask: the mask, in a crop of the image.
        image_hw: height and width of the image.
        origin: x, y of the crop in the image.
    """
    from pycocotools import mask as coco

    height, width = image_hw
    column, row = np.divmod(_edges(mask.inside.T), mask.inside.shape[0] + 2)
    position = (column + mask.left + origin[0]) * height + row + mask.top + origin[1]
    # starts and ends alternate; a run over whole columns ends where the next one starts
    goes_on = np.flatnonzero(position[1:] == position[:-1])
    position = np.delete(position, [goes_on, goes_on + 1])
    counts = np.diff(position, prepend=0, append=height * width).tolist()
    if counts[-1] == 0:
        counts.pop()
    rle: Rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return rle


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """The mask bool [H, W] of COCO run lengths."""
    from pycocotools import mask as coco

    mask: NDArray[np.bool_] = coco.decode(rle).astype(np.bool_)
    return mask


def remove_small_regions(mask: NDArray[np.bool_], min_area: float) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes, then remove islands, of fewer than ``min_area`` pixels (SAM's ``remove_small_regions``).

    Regions touch also at corners. The background around the mask counts as a hole like any other. Where every
    island is small, the largest stays.

    Returns:
        a new mask [H, W], and whether there was any small region.
    """
    cleaned = mask.copy()
    lengths, regions, areas = _label_runs(~mask)
    hole = areas < min_area
    cleaned[~mask] = np.repeat(hole[regions], lengths)
    lengths, regions, areas = _label_runs(cleaned)
    large = areas >= min_area
    small_found = bool(hole.any() or not large.all())
    if len(areas) and not large.any():
        large[areas.argmax()] = True
    cleaned[cleaned] = np.repeat(large[regions], lengths)
    return cleaned, small_found


def _label_runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Horizontal runs of a mask, row by row: lengths, 8-connected regions; and the area of each region."""
    stride = mask.shape[1] + 2
    edges = _edges(mask)
    starts, ends = edges[::2], edges[1::2]
    first = np.searchsorted(ends - stride, starts, side="left")
    last = np.searchsorted(starts - stride, ends, side="right")
    above = np.repeat(np.arange(len(starts)), last - first)
    below = np.arange(len(above)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
    below += np.repeat(first, last - first)
    region = np.arange(len(starts))
    while True:  # roots of touching runs hook onto the lower one, then paths are cut short
        one, other = region[above], region[below]
        if np.array_equal(one, other):
            break
        np.minimum.at(region, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(region, region[region]):
            region = region[region]
    regions = np.unique(region, return_inverse=True)[1]
    return ends - starts, regions, np.bincount(regions, ends - starts).astype(np.int64)


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Where runs along the rows of [H, W] start and end, in turn, as positions row * (W + 2) + column.

    The two extra columns keep the rows apart.
    """
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.bool_)
    padded[:, 1:-1] = mask
    flat = padded.ravel()
    return np.flatnonzero(flat[1:] != flat[:-1])
