"""Annotated pictures in COCO's and LVIS's format: chosen and checked, before a model runs. pycocotools reads the masks.

Categories are not read: everything here is about masks, whatever they show. LVIS differs in three ways that
matter: there is no ``iscrowd`` (nothing is a crowd), the file name may only be in ``coco_url``, and its lists of
categories (``neg_category_ids``, ``not_exhaustive_category_ids``) tell which labels of a picture are complete, which
a measure of recall without labels does not need.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from samexport.errors import AnnotationError, ImageError
from samexport.runtimes.host.image import MAX_PIXELS, read_image
from samexport.runtimes.host.masks import Rle

Corners = tuple[float, float, float, float]
_FORMAT = "give COCO's or LVIS's instances .json"


@dataclass(frozen=True, eq=False)
class Instance:
    """One annotated object.

    Attributes:
        id: as in the file.
        segmentation: run lengths over the picture.
        pixels: of the segmentation; some small polygons have none.
        area: as in the file, which decides the size class; ``pixels`` where the file has none.
        box: x0, y0, x1, y1 in pixels, as in the file but clipped to the picture; the mask's own where the file
            has none or an empty one.
        crowd: one mask over many objects.
    """

    id: int
    segmentation: Rle
    pixels: int
    area: float
    box: Corners
    crowd: bool


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """A picture of the data set; ``image_hw`` is the size that its annotations are for."""

    id: int
    path: Path
    image_hw: tuple[int, int]
    instances: tuple[Instance, ...]

    def read(self) -> NDArray[np.uint8]:
        """The picture, uint8 RGB [H, W, 3]; ImageError if it cannot be read or has another size."""
        picture = read_image(self.path)
        if picture.shape[:2] != self.image_hw:
            (height, width), (wanted_height, wanted_width) = picture.shape[:2], self.image_hw
            raise ImageError(
                f"{self.path} is {width}x{height}, its annotations are for {wanted_width}x{wanted_height};"
                " give the folder of pictures that were annotated"
            )
        return picture


def read_annotations(
    path: Path, images: Path, *, max_images: int | None = None, seed: int | None = None
) -> tuple[AnnotatedImage, ...]:
    """The pictures that have an object (crowds do not count), by id, with all their annotations.

    Args:
        path: COCO's or LVIS's instances .json.
        images: the folder of the pictures, or for LVIS also the one above ``train2017`` and ``val2017``.
        max_images: take only so many: the first, or with ``seed`` a random choice.
        seed: of that choice.

    Raises:
        AnnotationError: the file or an annotation of a chosen picture cannot be used, or no object is left.
        ImageError: the file of a chosen picture is missing.
    """
    records, by_image = _load(path)
    ids = sorted(i for i, found in by_image.items() if i in records and not all(map(_is_crowd, found)))
    if not ids:
        raise AnnotationError(f"{path} has no annotated object in any of its {len(records)} images; {_FORMAT}")
    if max_images is not None and max_images < len(ids):
        rng = np.random.default_rng(seed)
        ids = ids[:max_images] if seed is None else sorted(rng.choice(ids, max_images, replace=False).tolist())
    return tuple(_image(path, images, records[i], by_image[i]) for i in ids)


def _load(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """The file's image records by id, and its annotations by the id of their image."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read: {error.strerror}; {_FORMAT}") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not JSON ({str(error).splitlines()[0]}); {_FORMAT}") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(k), list) for k in ("images", "annotations")):
        raise AnnotationError(f"{path} has no lists of images and annotations; {_FORMAT}")
    records: dict[int, dict[str, Any]] = {}
    for record in data["images"]:
        if _number(record, "id", path, "image") in records:
            raise AnnotationError(f"{path} has two images with the id {record['id']}; {_FORMAT}")
        records[record["id"]] = record
    by_image = defaultdict(list)
    for record in data["annotations"]:
        _number(record, "id", path, "annotation")
        by_image[_number(record, "image_id", path, "annotation")].append(record)
    return records, by_image


def _number(record: Any, key: str, path: Path, kind: str) -> int:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, int) or value < 0:
        raise AnnotationError(f"{path} has an {kind} without a whole number as its {key}; {_FORMAT}")
    return value


def _is_crowd(record: Mapping[str, Any]) -> bool:
    return bool(record.get("iscrowd", 0))


def _image(
    path: Path, folder: Path, record: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]
) -> AnnotatedImage:
    height, width = (_number(record, side, path, "image") for side in ("height", "width"))
    if not 0 < height * width <= MAX_PIXELS:
        raise AnnotationError(f"{path}: image {record['id']} cannot be {width}x{height} pixels; {_FORMAT}")
    instances = []
    for annotation in annotations:
        try:
            instances.append(_instance(annotation, height, width))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            name = f"annotation {annotation['id']} of image {record['id']}"
            raise AnnotationError(f"{path}: {name} is damaged ({reason}); mend or remove it") from error
    return AnnotatedImage(record["id"], _find(path, folder, record), (height, width), tuple(instances))


def _find(path: Path, folder: Path, record: Mapping[str, Any]) -> Path:
    """The picture's file: ``file_name``, else the end of ``coco_url``, without or with the folder it names."""
    url = PurePosixPath(urlsplit(str(record.get("coco_url", ""))).path)
    name = PurePosixPath(str(record.get("file_name") or url.name))
    if not name.name or name.is_absolute() or ".." in name.parts:
        raise AnnotationError(f"{path}: image {record['id']} has no file_name inside a folder; {_FORMAT}")
    for candidate in (folder / name, folder / url.parent.name / url.name):
        if candidate.is_file():
            return candidate
    raise ImageError(f"{folder / name} is missing; --images is the folder of the annotated pictures")


def _instance(record: Mapping[str, Any], height: int, width: int) -> Instance:
    """Check and convert one annotation; an error of Python's if it is damaged."""
    from pycocotools import mask as coco

    rle = _rle(record["segmentation"], height, width)
    pixels = int(coco.area(rle))
    area = float(record.get("area", pixels))
    if not (np.isfinite(area) and area >= 0):
        raise ValueError("its area is no number from 0 up")
    box = np.array(record.get("bbox", coco.toBbox(rle)), np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError("its bbox is not x, y, width, height")
    corners = _clip(box, height, width)
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        corners = _clip(coco.toBbox(rle), height, width)
    return Instance(record["id"], rle, pixels, area, corners, _is_crowd(record))


def _clip(box: NDArray[np.float64], height: int, width: int) -> Corners:
    """Corners within the picture of x, y, width, height."""
    x0, y0, x1, y1 = np.clip([*box[:2], *(box[:2] + box[2:])], 0, [width, height] * 2).tolist()
    return x0, y0, x1, y1


def _rle(segmentation: Any, height: int, width: int) -> Rle:
    """COCO's compressed run lengths of polygons, run lengths or compressed run lengths."""
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(np.array(polygon, np.float64), height, width)
        if not segmentation:
            raise ValueError("it has no polygon")
        merged: Rle = coco.merge(coco.frPyObjects(segmentation, height, width))
        return merged
    counts, size = segmentation["counts"], segmentation["size"]
    if list(size) != [height, width]:
        raise ValueError(f"its mask is {size}, its image {[height, width]}")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError("its run lengths do not add up to the image")
        rle: Rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return rle
    text = counts.encode()
    # decode leaves pixels undefined where runs are missing, and iou would never end; only a whole mask comes back equal
    again: Rle = coco.encode(coco.decode({"size": [height, width], "counts": text}))
    if again["counts"] != text:
        raise ValueError("its run lengths are cut off, or not what pycocotools writes")
    return again


def _check_polygon(polygon: NDArray[np.float64], height: int, width: int) -> None:
    # pycocotools takes four numbers for a box, and walks every pixel of an edge however long it is
    if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon is x, y of three points or more")
    if not (np.abs(polygon.reshape(-1, 2) - (width / 2, height / 2)) <= (1.5 * width, 1.5 * height)).all():
        raise ValueError("a polygon is far outside of the image")
