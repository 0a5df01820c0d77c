"""Writes the golden numbers of the Swift package's tests, from the inputs that the Kotlin core's tests have too.

``python -m tests.exporter.deliver.swift_vectors`` writes the committed file anew.
"""

import json

import numpy as np

from samexport.exporter.deliver.sam_swift import SOURCES
from samexport.runtimes.host.frames import FrameMap, resize_longest, upscale_mask
from samexport.runtimes.host.sam_prompts import select_mask
from tests.android.vectors import FRAME, RESIZED, choosing, logits, packing, picture

FILE = SOURCES / "Tests/SamExportTests/golden.json"
# Swift's tests are compiled without optimisation
LARGEST = 700_000
SHOWN = ((27, 40), (64, 64), (200, 3), (1, 90), (150, 100))


def checksum(values):
    """Each byte times its place, counted anew from 1 every 65521 bytes, modulo 2**32."""
    data = np.asarray(values, np.uint8).ravel().astype(np.uint64)
    return int((data * (np.arange(data.size, dtype=np.uint64) % 65521 + 1)).sum() % 2**32)


def make():
    """All vectors, plain data."""
    resize = []
    for height, width, size in RESIZED:
        resized = resize_longest(picture(height, width), size)
        if max(resized.size, 3 * height * width) < LARGEST:
            shape = list(resized.shape[:2])
            case = {"height": height, "width": width, "size": size, "resized": shape, "checksum": checksum(resized)}
            resize.append(case)
    pack = []
    for case in packing()["pack"]:
        count, slots = len(case["prompts"]), len(case["point_labels"]) // len(case["prompts"])
        coords = np.reshape(case["point_coords"], (count, slots, 2))
        labels = np.reshape(case["point_labels"], (count, slots))
        # Swift fills up with absent slots when it calls
        used = [row != -2 for row in labels]
        pack.append(
            {
                "size": case["size"],
                "prompts": case["prompts"],
                "coords": [xy[own].ravel().tolist() for xy, own in zip(coords, used, strict=True)],
                "labels": [row[own].tolist() for row, own in zip(labels, used, strict=True)],
            }
        )
    select = [
        {"scores": s, "tokens": t, "boxed": b, "outputs": list(m), "mask": select_mask(np.float32(s), t, m, boxed=b)}
        for s in ([0.9, 0.1, 0.3, 0.2], [0.1, 0.5, 0.5, 0.25], [0.2, -1.0, -2.0, -0.5])
        for t in (1, 2, 3, 8)
        for b in (False, True)
        for m in ((0, 1, 2, 3), (1, 2, 3), (0,))
    ]
    masks = []
    for seed, (height, width) in enumerate(SHOWN):
        mask = upscale_mask(logits(FRAME.low_res, seed), FrameMap((height, width), FRAME))
        case = {"height": height, "width": width, "seed": seed, "area": int(mask.sum()), "checksum": checksum(mask)}
        masks.append(case)
    return {"resize": resize, "pack": pack, "select": select, **choosing(), "masks": masks}


if __name__ == "__main__":
    text = json.dumps(make(), separators=(",", ":"), sort_keys=True).replace("},{", "},\n{")
    FILE.write_text(text + "\n")
