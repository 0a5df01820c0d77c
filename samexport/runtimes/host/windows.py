"""Which windows of the next frame are worth encoding, from what was found on this one. Numpy only.

Facts follow Efficient-SAM2's ``dilate_mask``, ``select_mask_windows_v2`` and ``cumulative_threshold_selection``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

DILATION = 5
"""Side of the square around each pixel of a mask that counts as mask too."""


@dataclass(frozen=True)
class Windows:
    """How a square map is cut.

    Attributes:
        grid: side of the map in tokens.
        window: side of a window in tokens; the last ones may reach beyond the map.
    """

    grid: int
    window: int

    @property
    def across(self) -> int:
        """Windows in a row."""
        return -(-self.grid // self.window)

    @property
    def count(self) -> int:
        """Windows, numbered row by row."""
        return self.across**2

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which tokens of windows lie on the map, [count, window * window]."""
        on_map = np.arange(self.across * self.window) < self.grid
        return self._cut(on_map[:, None] & on_map)

    def _cut(self, values: NDArray[Any]) -> NDArray[Any]:
        """A map of whole windows, by windows, [count, window * window]."""
        cut = values.reshape(self.across, self.window, self.across, self.window).swapaxes(1, 2)
        return cut.reshape(self.count, -1)

    def boxes(self, ids: Iterable[int], image_hw: tuple[int, int]) -> list[tuple[float, float, float, float]]:
        """Windows x0, y0, x1, y1 in pixels of a picture that was stretched to the frame."""
        edges = np.minimum(np.arange(self.across + 1) * self.window, self.grid) / self.grid
        found = []
        for number in ids:
            y, x = divmod(number, self.across)
            across, down = edges[[x, x + 1]] * image_hw[1], edges[[y, y + 1]] * image_hw[0]
            found.append((float(across[0]), float(down[0]), float(across[1]), float(down[1])))
        return found

    def peaks(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The highest value in each window and its surroundings, [count]; of [..., 4 grid, 4 grid]."""
        low, side, around = 4 * self.grid, 4 * self.window, DILATION // 2
        highest = logits.reshape(-1, low, low).max(axis=0)
        edges = [(max(0, at - around), at + side + around) for at in range(0, low, side)]
        return np.array([highest[top:bottom, left:right].max() for top, bottom in edges for left, right in edges])

    def of_masks(self, masks: NDArray[np.bool_]) -> Ids:
        """Windows that a pixel of any mask, or its surroundings, lies in; [..., 4 grid, 4 grid], sorted."""
        return np.flatnonzero(self.peaks(masks))

    def sums(self, saliency: NDArray[np.float32]) -> NDArray[np.float32]:
        """The attention [grid, grid] that each window holds, [count]."""
        found: NDArray[np.float32] = self._cut(np.pad(saliency, (0, self.window * self.across - self.grid))).sum(axis=1)
        return found

    def ranked(self, saliency: NDArray[np.float32]) -> Ids:
        """All windows, those with most of the attention first."""
        return np.argsort(-self.sums(saliency), kind="stable")

    def of_saliency(self, saliency: NDArray[np.float32], share: float) -> Ids:
        """The fewest windows that hold ``share`` of the attention [grid, grid], sorted; all where they never do."""
        order = self.ranked(saliency)
        count = int(np.searchsorted(np.cumsum(self.sums(saliency)[order]), share)) + 1
        return np.sort(order[:count])


def choose(
    windows: Windows, masks: NDArray[np.bool_], scores: NDArray[np.float32], saliency: NDArray[np.float32],
    *, object_threshold: float, share: float,
) -> Ids:  # fmt: skip
    """Windows for the next frame, sorted.

    Args:
        windows: how its map is cut.
        masks: the three candidates of every object on this frame, [objects, 3, 4 grid, 4 grid].
        scores: logits of the objects being there, [objects].
        saliency: where the decoder looked for each object, [objects, grid, grid].
        object_threshold: an object whose score is lower is looked for where the decoder looked, too.
        share: how much of that attention is to be seen.
    """
    wanted = windows.of_masks(masks)
    unsure = np.flatnonzero(scores < object_threshold) if len(wanted) else np.arange(len(scores))
    looked = [windows.of_saliency(saliency[item], share) for item in unsure]
    return np.unique(np.concatenate([wanted, *looked]))


def choose_as_published(
    windows: Windows, masks: NDArray[np.bool_], scores: NDArray[np.float32], looked: list[NDArray[np.float32]],
    *, object_threshold: float, share: float,
) -> Ids:  # fmt: skip
    """As :func:`choose`, but one unsure object asks the attention of all, to all frames since it was last asked.

    ``looked`` has a map [grid, grid] for each object and frame; it is empty afterwards if it was asked.
    """
    wanted = windows.of_masks(masks)
    if len(wanted) and (scores >= object_threshold).all():
        return wanted
    asked = [windows.of_saliency(each, share) for each in looked]
    looked.clear()
    return np.unique(np.concatenate([wanted, *asked]))
