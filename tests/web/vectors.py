"""Writes the vectors of the page's host arithmetic: what our Python code computes from inputs that both sides can make.

``python -m tests.web.vectors FILE`` writes them; the test of pytest hands them to Node each time.
"""

import json
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as coco
from skimage.measure import label

from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.grid import grid_points
from samexport.runtimes.host.masks import trace
from tests.android.vectors import FRAME, bits, logits, masks, numbers, packing, resizing, sampling


def shapes():
    """Masks of every kind that run lengths and outlines may go wrong on."""
    rng = np.random.default_rng(5)
    yield from (np.zeros((4, 5), bool), np.ones((4, 5), bool), np.ones((1, 1), bool))
    yield rng.random((9, 13)) < 0.5
    yield rng.random((40, 31)) < 0.8
    checkered = np.indices((6, 7)).sum(axis=0) % 2 == 1
    yield from (checkered, ~checkered)
    columns = np.zeros((5, 9), bool)
    columns[:, 2:5] = columns[3:, 5] = columns[0, 6] = columns[:, 8] = True
    yield columns
    ring = np.zeros((60, 70), bool)
    ring[5:50, 8:60], ring[10:40, 20:50], ring[20:30, 30:40] = True, False, True
    yield ring
    # a length above two groups of five bits, and differences below zero
    large = np.zeros((300, 257), bool)
    large[17:290, 3:200] = rng.random((273, 197)) < 0.999
    yield large


def loops(mask):
    """Outlines of a mask whose pixels hang together at edges alone: its regions, and the holes in them."""
    return int(label(mask, connectivity=1).max()) + int(label(~np.pad(mask, 1), connectivity=2).max()) - 1


def runs():
    cases = []
    for mask in shapes():
        rle = coco.encode(np.asfortranarray(mask.view(np.uint8)))
        cases.append(
            {
                "size": list(mask.shape),
                "mask": bits(mask),
                "counts": rle["counts"].decode(),
                "area": int(coco.area(rle)),
                "bbox": [int(side) for side in coco.toBbox(rle)],
                "loops": loops(mask),
            }
        )
    return {"runs": cases}


def tracing():
    """Masks and how stable they are, from logits."""
    cases = []
    for number, (height, width) in enumerate(((27, 40), (150, 100), (5, 90), (64, 64))):
        for low in (-9.0, 0.0, 2.5, None):
            if low is None:
                # what may be inside reaches further than what is
                values = np.full((FRAME.low_res, FRAME.low_res), -8, np.float32)
                values[4:10, 3:9], values[6:8, 5:7] = -0.4371, 2.1371
            else:
                values = logits(FRAME.low_res, number) + np.float32(low)
            # a part without a mask on each side
            values[:3], values[:, -4:] = -8, -8
            found = trace(values, FrameMap((height, width), FRAME), offset=1.0)
            full = np.zeros((height, width), bool)
            rows, columns = found.inside.shape
            full[found.top : found.top + rows, found.left : found.left + columns] = found.inside
            cases.append(
                {
                    "height": height,
                    "width": width,
                    "logits": numbers(values),
                    "area": found.area,
                    "mask": bits(full),
                    "stability": None if np.isnan(found.stability) else float(found.stability),
                }
            )
    return {"traced": cases}


def make():
    """All vectors, plain data."""
    grid = {"side": 3, "height": 27, "width": 40, "points": numbers(grid_points(3) * (40, 27))}
    return {**resizing(), **packing(), **masks(), **sampling(), **runs(), **tracing(), "grid": grid}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(make()))
