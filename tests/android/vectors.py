"""Writes the golden vectors of the Kotlin core: what our Python code computes from inputs that both sides can make.

``python -m tests.android.vectors`` writes the committed file anew.
"""

import base64
import hashlib
import json
import math
from pathlib import Path

import numpy as np

from samexport.exporter.deliver.android import app_manifest
from samexport.models.families.sam import sam_graphs
from samexport.models.spec import Preprocess
from samexport.runtimes.adapters.entry_points import Bucket, choose, plan
from samexport.runtimes.adapters.litert import EntryPoints
from samexport.runtimes.bundle import Artifact, Bundle, Manifest, WeightsInfo
from samexport.runtimes.host.detector import letterbox, postprocess
from samexport.runtimes.host.frames import FrameMap, resize_longest, to_frame, upscale_logits
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import count_tokens, pack, select_mask
from samexport.runtimes.parity.golden import Golden
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.verdicts import Check, Row, Verdict

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "android_demo_assets/core/src/test/resources/golden.json"
FRAME = Preprocess(64)
# height, width, size of the longest side: enlarged, shrunk, unchanged, one pixel thin
RESIZED = (
    (5, 3, 16), (27, 40, 64), (64, 64, 64), (150, 100, 64), (1, 200, 64), (1001, 33, 64), (3, 4, 1024),
    (427, 640, 1024), (1500, 1024, 1024), (1024, 300, 1024), (2000, 3001, 1024),
)  # fmt: skip
MARGIN = 1e-5


def picture(height, width):
    """A picture that is quick to write down in any language, uint8 [H, W, 3]."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((x * 37 + y * 91 + c * 53 + x * y % 17 * 11) % 256).astype(np.uint8)


def logits(side, seed):
    """Steps of a quarter, none near zero: float32 [side, side]."""
    y, x = np.mgrid[0:side, 0:side]
    return ((x * 7 + y * 13 + x * y + seed * 5) % 29 - 14).astype(np.float32) / 4 + np.float32(0.1371)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def numbers(array):
    return np.asarray(array, np.float64).ravel().tolist()


def bits(mask):
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def resizing():
    cases = []
    for height, width, size in RESIZED:
        resized = resize_longest(picture(height, width), size)
        case = {"height": height, "width": width, "size": size, "resized": list(resized.shape[:2])}
        case["sha256"] = sha256(resized)
        if resized.size < 1000:
            case["bytes"] = base64.b64encode(resized.tobytes()).decode()
        cases.append(case)
    frames = [
        {"height": h, "width": w, "sha256": sha256(to_frame(picture(h, w), FRAME).astype("<f4"))}
        for h, w in ((27, 40), (150, 100))
    ]
    return {"resize": cases, "frame": frames}


PROMPTS = (
    Prompt.make(points=[[11, 7.25]], labels=[1]),
    Prompt.make(points=[[0, 0], [40, 27], [13.37, 20.02]], labels=[1, 0, 1]),
    Prompt.make(box=[3.3, 4.4, 30.125, 26.999]),
    Prompt.make(points=[[17, 3]], labels=[0], box=[0, 0, 40, 27]),
)


def prompt_data(prompt):
    return {
        "points": numbers(prompt.points),
        "labels": prompt.labels.tolist(),
        "box": [] if prompt.box is None else numbers(prompt.box),
    }


def packing():
    cases = []
    for count, frame_size in ((1, 64), (4, 64), (4, 1024)):
        tensors = pack(PROMPTS[:count], FrameMap((27, 40), Preprocess(frame_size)))
        cases.append(
            {
                "size": frame_size,
                "prompts": [prompt_data(p) for p in PROMPTS[:count]],
                "point_coords": numbers(tensors["point_coords"]),
                "point_labels": numbers(tensors["point_labels"]),
                "tokens": count_tokens(tensors["point_labels"]).tolist(),
            }
        )
    scores = [[0.9, 0.1, 0.3, 0.2], [0.1, 0.5, 0.5, 0.25], [0.2, -1.0, -2.0, -0.5]]
    chosen = [
        {"scores": s, "tokens": t, "mask_outputs": list(m), "mask": select_mask(np.float32(s), t, m)}
        for s in scores
        for t in (1, 2, 3, 8)
        for m in ((0, 1, 2, 3), (1, 2, 3), (0,))
    ]
    return {"pack": cases, "select": chosen}


ENTRIES = plan((1, 4, 16))


def choosing():
    return {
        "entries": [{"name": b.name, "prompts": b.prompts, "points": b.points} for b in ENTRIES],
        "choose": [
            {"prompts": n, "points": k, "entry": choose(ENTRIES, n, k).name}
            for n in (1, 2, 4, 5, 16, 17, 40)
            for k in (0, 1, 2, 3, 8)
        ],
    }


def masks():
    cases = []
    for number, (height, width) in enumerate(((27, 40), (64, 64), (200, 3), (1, 90), (150, 100))):
        low_res = logits(FRAME.low_res, number)
        upscaled = upscale_logits(low_res, FrameMap((height, width), FRAME))
        assert np.abs(upscaled).min() > MARGIN, (height, width)
        case = {"height": height, "width": width, "seed": number, "mask": bits(upscaled > 0)}
        cases.append({**case, "sample": numbers(upscaled.ravel()[::97])})
    return {"masks": cases}


class Sums(EntryPoints):
    """A model of arithmetic: what it computes depends on every input, and absent slots change nothing."""

    def __init__(self, graph, buckets, calls):
        super().__init__(Path("sums"), graph)
        self.entry_points, self.calls = buckets, calls

    def _call(self, bucket, inputs):
        if self.graph.name == "encoder":
            pixels = inputs["image"].ravel()
            return {"image_embeddings": np.floor(pixels[: 64 * 4 * 4 * 12 : 12]).reshape(1, 64, 4, 4)}
        coords, labels = inputs["point_coords"], inputs["point_labels"]
        self.calls.append({"entry": bucket.name, "point_coords": numbers(coords), "point_labels": numbers(labels)})
        used = labels != -2
        slots = np.floor(coords[..., 0] * 4) * 3 + np.floor(coords[..., 1] * 4) * 5 + labels * 17
        image = inputs["image_embeddings"].ravel()
        total = (slots * used).sum(axis=1).astype(np.int64) + int(image[5]) + int(image[700])
        total = total + 1000 * used.sum(axis=1)
        y, x, m = np.arange(16)[:, None], np.arange(16), np.arange(4)
        low_res = (x * 7 + y * 13 + m[:, None, None] * 31 + total[:, None, None, None]) % 29 - 14
        scores = (total[:, None] + m * 37) % 101
        return {
            "low_res_masks": low_res.astype(np.float32) / 4 + np.float32(0.1371),
            "iou_predictions": scores.astype(np.float32) / np.float32(101),
        }

    def placement(self):
        return "nowhere"

    def close(self):
        pass


class SumsBundle(Bundle):
    """As much of a bundle as :class:`Segmenter` needs."""

    graph_names = ("encoder", "decoder")

    def __init__(self, manifest):
        super().__init__(Path("sums"), manifest)
        object.__setattr__(self, "calls", [])

    def graph(self, name):
        return next(g for g in self.manifest.graphs if g.name == name)

    def open(self, name, **_):
        return Sums(self.graph(name), ENTRIES if name == "decoder" else (Bucket("encoder", 1, 1),), self.calls)


def bundle_manifest():
    graphs = sam_graphs(FRAME, 64)[:2]
    artifacts = tuple(
        Artifact(g.name, f"{g.name}.tflite", "tflite", "fp32", str(i) * 64, 9) for i, g in enumerate(graphs)
    )
    parity = (Row(Check("case"), "masks", Verdict.PASS, max_error=2e-6, value_range=4.0, snr_db=120.0, mask_iou=1.0),)
    return Manifest(
        "test.sums", "Sums, \"not\" a network \\ é", "Apache-2.0", FRAME, (0, 1, 2, 3),
        WeightsInfo("random", "seed", None, 7), graphs, artifacts, {}, {"samexport": "0"}, parity,
    )  # fmt: skip


def whole_way():
    """The manifest that the app reads, and what becomes of a picture and 23 prompts."""
    manifest = bundle_manifest()
    shown = picture(27, 40)
    golden = Golden(shown, sha256(resize_longest(shown, 64)), np.zeros((2, 27, 40), bool), ())
    entries = {"encoder": (Bucket("encoder", 1, 1),), "decoder": ENTRIES}
    data = app_manifest(manifest, entries, golden, {a.path: a.sha256 for a in manifest.artifacts})
    prompts = [*PROMPTS, *(Prompt.make(points=[[1.5 * i, i]], labels=[1]) for i in range(19))]
    bundle = SumsBundle(manifest)
    with Segmenter(bundle, chunk=len(prompts)) as segmenter:
        segmenter.set_image(shown)
        answers = segmenter.predict(prompts)
    upscaled = [upscale_logits(a.low_res_masks[0], FrameMap(shown.shape[:2], FRAME)) for a in answers]
    assert min(np.abs(u).min() for u in upscaled) > MARGIN
    return {
        "manifest": json.dumps(data, sort_keys=True),
        "prompts": [prompt_data(p) for p in prompts],
        "calls": [{**call, "size": len(call["point_labels"])} for call in bundle.calls],
        "answers": [
            {"index": a.indices[0], "score": float(a.scores[0]), "area": int(a.masks.sum()),
             "sha256": hashlib.sha256(np.packbits(a.masks[0]).tobytes()).hexdigest()}
            for a in answers
        ],
    }  # fmt: skip


def sampling():
    letterboxes = []
    for height, width, rgb in ((27, 40, False), (300, 111, True), (64, 64, False), (3, 90, False)):
        image, placed = letterbox(picture(height, width), 96, rgb=rgb)
        place = [*placed.frame_hw, placed.left, placed.top]
        letterboxes.append(
            {"height": height, "width": width, "rgb": rgb, "sha256": sha256(image.astype("<f4")), "place": place}
        )
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 60, (24, 2)).round(2)
    boxes = np.concatenate([low, low + rng.uniform(2, 36, (24, 2)).round(2)], axis=1).astype(np.float32)
    boxes[12:18] = boxes[:6] + np.float32(0.25)
    scores = rng.uniform(0.3, 1, 24).round(2).astype(np.float32)
    scores[12:15] = scores[:3]
    placed = letterbox(picture(27, 40), 96)[1]
    found, kept = postprocess(boxes, scores, placed)
    return {
        "letterbox": letterboxes,
        "candidates": {"boxes": numbers(boxes), "scores": numbers(scores)},
        "found": {"boxes": numbers(found), "scores": numbers(kept)},
    }


def make():
    """All vectors, plain data."""
    return {**resizing(), **packing(), **choosing(), **masks(), **sampling(), "whole_way": whole_way()}


def close(found, expected):
    """Equal, floats to the last bits of float32, which depend on the machine's matrix product."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=2e-6)
    return found == expected


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(make(), separators=(",", ":"), sort_keys=True).replace("},{", "},\n{") + "\n")
