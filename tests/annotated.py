"""A small annotated data set whose scores can be worked out by hand: rectangles, and masks that cover part of them."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco

# x0, y0, x1, y1 in pixels; the name is the size class by area: 400, 3000, 10000 and 256 pixels
SMALL, MEDIUM, LARGE = (10, 10, 30, 30), (40, 5, 90, 65), (95, 20, 195, 120)
OTHER_SMALL = (20, 30, 36, 46)
CROWD = (60, 60, 100, 110)
FIRST_HW, SECOND_HW = (150, 200), (120, 110)


def mask_of(box, hw):
    mask = np.zeros(hw, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def rle_of(box, hw):
    return coco.encode(np.asfortranarray(mask_of(box, hw)))


def part(box, share):
    """The upper part of a rectangle: their IoU is the share."""
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0 + round((y1 - y0) * share)


def annotation(id_, image_id, box, **more):
    x0, y0, x1, y1 = box
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": 90 + id_,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "area": (x1 - x0) * (y1 - y0),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        **more,
    }


def uncompressed(box, hw):
    """COCO's run lengths as a list, column by column."""
    flat = np.concatenate([[0], mask_of(box, hw).T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    return {"size": list(hw), "counts": np.diff([0, *edges, hw[0] * hw[1]]).tolist()}


def coco_data():
    """Two polygons, one, run lengths and compressed ones; an id of 0; a crowd beside an object, and one alone."""
    compressed = rle_of(LARGE, FIRST_HW)
    halves = [[10, 10, 20, 10, 20, 30, 10, 30], [20, 10, 30, 10, 30, 30, 20, 30]]
    return {
        "images": [
            {"id": 8, "file_name": "second.png", "height": SECOND_HW[0], "width": SECOND_HW[1]},
            {"id": 3, "file_name": "first.png", "height": FIRST_HW[0], "width": FIRST_HW[1]},
            {"id": 9, "file_name": "absent.png", "height": 10, "width": 10},
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            annotation(0, 3, SMALL, iscrowd=0, segmentation=halves),
            annotation(5, 3, MEDIUM, iscrowd=0, segmentation=uncompressed(MEDIUM, FIRST_HW)),
            annotation(6, 3, LARGE, iscrowd=0, segmentation={**compressed, "counts": compressed["counts"].decode()}),
            annotation(7, 8, OTHER_SMALL, iscrowd=0),
            annotation(2, 8, CROWD, iscrowd=1, segmentation=uncompressed(CROWD, SECOND_HW)),
            annotation(1, 9, (1, 1, 9, 9), iscrowd=1, segmentation=uncompressed((1, 1, 9, 9), (10, 10))),
        ],
    }


def lvis_data():
    """The same objects as LVIS has them: no crowds, no file names, lists of categories."""
    data = coco_data()
    for image in data["images"]:
        image["coco_url"] = f"http://images.example.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [4], "not_exhaustive_category_ids": []}
    data["annotations"] = [a for a in data["annotations"] if not a.pop("iscrowd")]
    return data


def write(folder, data, pictures="pictures"):
    """Write the annotations and the pictures; their paths."""
    (folder / pictures).mkdir(parents=True)
    for name, hw, boxes in (
        ("first.png", FIRST_HW, (SMALL, MEDIUM, LARGE)),
        ("second.png", SECOND_HW, (OTHER_SMALL, CROWD)),
    ):
        y, x = np.mgrid[0 : hw[0], 0 : hw[1]]
        picture = np.stack([x, y, x * y % 256], axis=-1).astype(np.uint8)
        for number, box in enumerate(boxes):
            picture[mask_of(box, hw).astype(bool)] = (250 - 60 * number, 40 + 80 * number, 90)
        Image.fromarray(picture).save(folder / pictures / name)
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json", folder / pictures
