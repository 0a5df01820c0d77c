"""Writes the vectors of the page's host arithmetic: what our Python code computes from inputs that both sides can make.

``python -m tests.web.vectors FILE`` writes them; the test of pytest hands them to Node each time.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from pycocotools import mask as coco
from skimage.measure import label

from samexport.exporter.deliver.web import frame_rules, prompt_rules
from samexport.models.catalog import MODELS
from samexport.models.families.sam import sam_graphs
from samexport.models.families.sam2 import image_frame
from samexport.models.spec import Preprocess
from samexport.runtimes.adapters.entry_points import plan, run_in_buckets
from samexport.runtimes.families.efficient_sam import EfficientSamSession
from samexport.runtimes.families.sam import SamSession
from samexport.runtimes.families.sam2_session import Sam2Session
from samexport.runtimes.host.frames import FrameMap, to_frame, upscale_logits
from samexport.runtimes.host.grid import grid_points
from samexport.runtimes.host.masks import trace
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import stability
from samexport.runtimes.session import Decoded
from tests.android.vectors import (
    FRAME,
    PROMPTS,
    bits,
    choosing,
    logits,
    masks,
    numbers,
    picture,
    prompt_data,
    resizing,
    sampling,
)

# each filter, rounding, padding and pair of scales
FRAMES = (
    replace(FRAME, mean=(1.0, 2.5, 250.0)),
    image_frame(64),
    replace(MODELS["efficientsam.efficient_sam_ti"].frame, size=64),
    replace(MODELS["nanosam.nanosam_resnet18"].frame, size=64),
    MODELS["test.efficientvit64"].frame,
    Preprocess(64, filter="bicubic", padding="black", white=1.0),
)
SESSIONS = {"sam": SamSession, "sam2": Sam2Session, "efficient_sam": EfficientSamSession}
FOREGROUND = (
    Prompt.make(points=[[11, 7.25]]),
    Prompt.make(points=[[0, 0], [40, 27], [13.37, 20.02]]),
    Prompt.make(box=[3.3, 4.4, 30.125, 26.999]),
    Prompt.make(points=[[17, 3]], box=[0, 0, 40, 27]),
)


def session(family, scores="predicted", outputs=(0, 1, 2, 3)):
    """A family's session without graphs."""
    found = object.__new__(SESSIONS[family])
    found.manifest = SimpleNamespace(model=family, scores=scores, mask_outputs=outputs)
    return found


def frames():
    """Pictures in every kind of frame, and masks out of it."""
    cases = []
    for number, frame in enumerate(FRAMES):
        for height, width in ((27, 40), (150, 100), (64, 64), (5, 90)):
            place = FrameMap((height, width), frame)
            values = logits(frame.low_res, number)
            upscaled = upscale_logits(values, place)
            cases.append(
                {
                    "frame": frame_rules(frame),
                    "height": height,
                    "width": width,
                    "seed": number,
                    "inside": list(place.inside),
                    "prompted": list(place.prompted),
                    "image": numbers(to_frame(picture(height, width), frame).ravel()[::13]),
                    "mask": numbers(upscaled.ravel()[::97]),
                }
            )
    return {"frames": cases}


def prompting():
    """Prompts as the tensors of each family, and the mask that answers each."""
    rng, place = np.random.default_rng(11), FrameMap((27, 40), FRAME)
    packed, chosen = [], []
    kinds = (
        ("sam", "predicted", (0, 1, 2, 3)),
        ("sam", "predicted", (1, 2, 3)),
        ("sam", "stability", (0, 1, 2, 3)),
        ("sam2", "predicted", (0, 1, 2, 3)),
        ("efficient_sam", "predicted", (1, 2, 3)),
    )
    for family, scores, outputs in kinds:
        own, prompts = session(family, scores, outputs), FOREGROUND if family == "efficient_sam" else PROMPTS
        tensors = own.pack(prompts, place)
        case = {"family": family, "rules": prompt_rules(family), "prompts": [prompt_data(p) for p in prompts]}
        packed.append({**case, **{name: numbers(value) for name, value in tensors.items()}})
        for _ in range(6):
            # steps of a tenth: SAM 2's threshold lies between two of them, and most masks near it are unstable
            values = rng.integers(-60, 60, (len(prompts), 4, 8, 8)).astype(np.float32) / 10
            values[::2, 0] += np.float32(0.01) * np.sign(values[::2, 0])
            predicted = rng.random((len(prompts), 4)).astype(np.float32)
            ranked = stability(values) if scores == "stability" else predicted
            answer = "stability" if scores == "stability" else "sam2" if family == "sam2" else "sam"
            chosen.append(
                {
                    **case,
                    "answer": answer,
                    "outputs": list(outputs),
                    "logits": numbers(values),
                    "scores": numbers(predicted),
                    "ranked": numbers(ranked),
                    "chosen": own.choose(tensors, Decoded(values, ranked)),
                }
            )
    return {"packed": packed, "chosen": chosen}


def chunking():
    """Prompts on files of fixed sizes: a sum over the slots of each stands for the network."""
    graph = sam_graphs(FRAME, 64)[1]
    rng, calls = np.random.default_rng(2), []
    given = {
        "image_embeddings": np.full((1, 64, 4, 4), 2, np.float32),
        "point_coords": rng.integers(0, 64, (23, 7, 2)).astype(np.float32),
        "point_labels": np.full((23, 7), -2, np.float32),
    }
    for number, count in enumerate(rng.integers(1, 3, 23)):
        given["point_labels"][number, : 7 if number == 20 else count] = number % 4

    def call(bucket, inputs):
        assert inputs["point_labels"].shape == (bucket.prompts, bucket.points)
        calls.append(bucket.name)
        x, y = np.moveaxis(inputs["point_coords"], -1, 0)
        labels = inputs["point_labels"]
        total = ((1000 + 3 * x + 5 * y + labels) * (labels != -2)).sum(axis=1) + inputs["image_embeddings"][0, 0, 0, 0]
        return {"low_res_masks": np.zeros((bucket.prompts, 4, 16, 16)), "iou_predictions": np.tile(total, (4, 1)).T}

    found = run_in_buckets(graph, given, plan((1, 4, 16)), call)
    arrays = {name: {"shape": list(value.shape), "data": numbers(value)} for name, value in given.items()}
    return {"chunked": {"given": arrays, "calls": calls, "scores": numbers(found["iou_predictions"])}}


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
    return {
        **resizing(), **frames(), **prompting(), **choosing(), **chunking(), **masks(), **sampling(), **runs(),
        **tracing(), "grid": grid,
    }  # fmt: skip


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(make()))
