"""Held-out scenes as pictures with COCO annotations, so that whatever reads COCO can measure on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samexport.files import to_json
from samexport.training.measure import held_out
from samexport.training.scenes import SceneSettings

ANNOTATIONS = "annotations.json"


def write_scenes(
    out: Path, count: int, settings: SceneSettings, first: int = 0, done: Callable[[int], None] = lambda _: None
) -> int:
    """Draw held-out scenes on the CPU; returns how many objects they have.

    Args:
        out: a folder that exists; it gets ``scene-00000.png`` and so on, and ``annotations.json`` (COCO, masks as
            run lengths, the visible part of every object that is large enough; an object's mask includes its parts).
        count: how many scenes.
        settings: what is drawn.
        first: number of the first scene: other numbers are other scenes.
        done: told after each scene.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first, first + count):
        scenes = held_out(number, settings, torch.device("cpu"))
        exists = scenes.ids[0] >= 0
        # the frame's empty part belongs to the model, not to the picture
        height, width = int(exists.any(1).sum()), int(exists.any(0).sum())
        picture = scenes.pictures[0, :, :height, :width].permute(1, 2, 0).byte().numpy()
        name = f"scene-{number:05d}.png"
        Image.fromarray(picture).save(out / name)
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        slots = scenes.seen()[0].nonzero()[:, 0]
        masks = scenes.masks(slots[slots > 0][None])[0, :, :height, :width].numpy()
        annotations += [_annotation(len(annotations) + 1 + i, number + 1, mask) for i, mask in enumerate(masks)]
        done(number - first + 1)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (out / ANNOTATIONS).write_text(to_json(content), encoding="utf-8")
    return len(annotations)


def _annotation(number: int, image: int, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    from pycocotools import mask as coco

    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [float(v) for v in coco.toBbox(runs)],
        "segmentation": {"size": [int(v) for v in runs["size"]], "counts": runs["counts"].decode("ascii")},
    }
