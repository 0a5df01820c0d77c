"""Held-out scenes as COCO, read back by the reader of ``samexport eval`` and by pycocotools."""

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from samexport.runtimes.accuracy.annotations import read_annotations
from samexport.runtimes.host.masks import decode_rle
from samexport.training.dataset import write_scenes
from samexport.training.measure import held_out
from samexport.training.scenes import LAYERS, SceneSettings

SETTINGS = SceneSettings(128, 10)
FIRST, COUNT = 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    told = []
    objects = write_scenes(out, COUNT, SETTINGS, FIRST, told.append)
    assert told == [1, 2, 3]
    return out, objects


def wanted(number):
    """Visible masks of a scene from its map of slots, by hand, and the picture, cut to its size."""
    scenes = held_out(number, SETTINGS, torch.device("cpu"))
    ids = scenes.ids[0].numpy()
    height, width = (ids >= 0).any(1).sum(), (ids >= 0).any(0).sum()
    masks = []
    for slot in range(1, scenes.slots):
        last = slot + LAYERS - 1 if (slot - 1) % LAYERS == 0 else slot
        mask = (ids >= slot) & (ids <= last)
        if mask.sum() >= 96:
            masks.append(mask[:height, :width])
    return scenes.pictures[0].numpy()[:, :height, :width].transpose(1, 2, 0), masks


def check(number, picture, masks, boxes, areas):
    expected, slots = wanted(number)
    assert np.array_equal(picture, expected)
    assert len(masks) == len(slots) > 0
    for mask, slot, box, area in zip(masks, slots, boxes, areas, strict=True):
        assert np.array_equal(mask, slot)
        assert area == slot.sum()
        y, x = np.nonzero(slot)
        assert box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_our_reader_finds_the_masks_that_were_drawn(folder):
    out, objects = folder
    data = read_annotations(out / "annotations.json", out)
    assert len(data.images) == COUNT
    assert sum(len(image.instances) for image in data.images) == objects
    for number, image in enumerate(data.images, FIRST):
        assert image.path.name == f"scene-{number:05d}.png"
        found = image.instances
        masks = [decode_rle(one.segmentation) for one in found]
        check(number, image.read(), masks, [one.box for one in found], [one.area for one in found])


def test_pycocotools_finds_the_masks_that_were_drawn(folder):
    out, _ = folder
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(out / "annotations.json")
    for number, image in enumerate(data.loadImgs(data.getImgIds()), FIRST):
        found = data.loadAnns(data.getAnnIds(image["id"]))
        with Image.open(out / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
            picture = np.array(opened)
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in found)]
        check(number, picture, [data.annToMask(one) for one in found], boxes, [one["area"] for one in found])
