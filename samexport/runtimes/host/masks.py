"""One mask at a time: from low-resolution logits to its pixels, box and RLE; and small regions. Numpy.

Work and memory go with the part of the image that a mask can reach, never with the number of masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.runtimes.host.frames import FrameMap, axis_weights

Box = tuple[int, int, int, int]
Rle = dict[str, Any]
"""COCO's compressed run lengths: ``size`` [H, W] and ``counts``, bytes."""


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
        return int(np.count_nonzero(self.inside.T))

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
    place: FrameMap,
    *,
    threshold: float = 0.0,
    offset: float = 0.0,
) -> TracedMask:
    """Upscale logits [L, L] to the image and threshold them, like ``image.upscale_mask``, where it matters.

    A pixel is a weighted mean of low-resolution logits, so it exceeds a number only where one of them does, and
    it surely does where all do: only tiles that a border crosses are computed.

    Raises:
        ConfigError: the logits do not have the frame's low-resolution size.
    """
    side, image_hw = place.frame.low_res, place.image_hw
    if low_res_mask.shape != (side, side):
        raise ConfigError(f"a mask of this model is [{side}, {side}], got {list(low_res_mask.shape)}")
    size, (height, width) = place.masks
    row_weights, row_taps = _axis(side, size, height, image_hw[0])
    column_weights, column_taps = _axis(side, size, width, image_hw[1])
    thresholds = threshold - offset, threshold, threshold + offset
    possible_rows, possible_columns = np.nonzero(low_res_mask > thresholds[0])
    rows, columns = _reach(possible_rows, row_taps), _reach(possible_columns, column_taps)
    columns_first = np.empty((columns.stop - columns.start, rows.stop - rows.start), np.bool_)
    logits = low_res_mask.astype(np.float32)
    # products of such tiles are too small for BLAS to wake its threads, which costs more than it saves
    tile = 96 if max(image_hw) < 8 * side else 128
    surely = likely = 0
    for left in range(columns.start, columns.stop, tile):
        band = slice(left, min(left + tile, columns.stop))
        near = slice(column_taps[band, 0].min(), column_taps[band, 1].max())
        tiles = _Tiles(logits[:, near], column_weights[band, near], row_weights[rows], row_taps[rows], tile)
        out = columns_first[left - columns.start : band.stop - columns.start]
        above = tiles.threshold_into(out, thresholds)
        surely, likely = surely + above[1], likely + above[0]
    with np.errstate(invalid="ignore"):
        stability = np.float32(surely) / np.float32(likely)
    # run lengths go column by column, so that is how the pixels lie in memory
    return TracedMask(columns_first.T, columns.start, rows.start, stability)


@dataclass(frozen=True, eq=False)
class _Tiles:
    """A band of image columns: the low-res columns that it sees, and the weights of both axes."""

    seen: NDArray[np.float32]
    column_weights: NDArray[np.float32]
    row_weights: NDArray[np.float32]
    row_taps: NDArray[np.intp]
    tile: int

    def threshold_into(self, out: NDArray[np.bool_], thresholds: tuple[float, float, float]) -> tuple[int, int]:
        """Set ``out`` [columns, rows] where the band exceeds the middle threshold.

        Returns:
            pixels above the lowest and above the highest threshold.
        """
        low, middle, high = thresholds
        full = _all(self.seen > high, self.row_taps)
        mixed = ~full & ~_all(self.seen <= low, self.row_taps)
        out[:] = full
        likely = surely = int(np.count_nonzero(full)) * len(out)
        for run in _runs(mixed, self.tile):
            taps = self.row_taps[run]
            used = slice(taps[:, 0].min(), taps[:, 1].max())
            values = self.column_weights @ self.seen[used].T @ self.row_weights[run, used].T
            out[:, run] = values > middle
            if low < high:
                known = int(np.count_nonzero(full[run])) * len(out)
                likely += int(np.count_nonzero(values > low)) - known
                surely += int(np.count_nonzero(values > high)) - known
        if low == high:
            likely = surely = int(np.count_nonzero(out))
        return likely, surely


@lru_cache(maxsize=4)
def _axis(low_res: int, frame_size: int, resized: int, original: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Weights [original, low_res] of one axis, and [original, 2], where each row's weights start and stop."""
    weights = axis_weights(low_res, frame_size, resized, original)
    used = weights != 0
    return weights, np.stack([used.argmax(axis=1), low_res - used[:, ::-1].argmax(axis=1)], axis=1)


def _all(flags: NDArray[np.bool_], taps: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether every flag [low_res, ...] that an image pixel of the first axis sees is set."""
    counts = np.concatenate([[0], np.cumsum(flags.all(axis=1))])
    every: NDArray[np.bool_] = counts[taps[:, 1]] - counts[taps[:, 0]] == taps[:, 1] - taps[:, 0]
    return every


def _reach(possible: NDArray[np.intp], taps: NDArray[np.intp]) -> slice:
    """The image pixels of one axis from the first to the last that sees one of these low-res pixels."""
    if len(possible) == 0:
        return slice(0, 0)
    seen = np.flatnonzero((taps[:, 0] <= possible.max()) & (taps[:, 1] > possible.min()))
    return slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 0)


def _runs(mixed: NDArray[np.bool_], tile: int) -> Iterator[slice]:
    """Slices of at most ``tile`` that hold all flagged places."""
    for start in range(0, len(mixed), tile):
        places = np.flatnonzero(mixed[start : start + tile])
        if len(places):
            yield slice(start + int(places[0]), start + int(places[-1]) + 1)


def encode_rle(mask: TracedMask, image_hw: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> Rle:
    """Compress a mask into COCO run lengths of an image.

    Args:
        mask: the mask, in a crop of the image.
        image_hw: height and width of the image.
        origin: x, y of the crop in the image.
    """
    from pycocotools import mask as coco

    height, width = image_hw
    if 2 * mask.inside.size > height * width:
        # a scan in C is quicker then
        whole = np.zeros((width, height), np.uint8)
        x, y = mask.left + origin[0], mask.top + origin[1]
        whole[x : x + mask.inside.shape[1], y : y + mask.inside.shape[0]] = mask.inside.T
        scanned: Rle = coco.encode(whole.T)
        return scanned
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

    mask: NDArray[np.bool_] = coco.decode(rle).view(np.bool_)
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


def intersection_over_union(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of boolean masks over the last two axes; 1 where both are empty."""
    both = np.count_nonzero(first & second, axis=(-2, -1))
    either = np.count_nonzero(first | second, axis=(-2, -1))
    ratio: NDArray[np.float64] = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    return ratio
