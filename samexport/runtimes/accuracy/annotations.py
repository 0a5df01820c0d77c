"""Annotated pictures in COCO's and LVIS's format: chosen and checked, before a model runs. pycocotools reads the masks.

Categories are not read: everything here is about masks, whatever they show. LVIS differs in three ways that
matter: there is no ``iscrowd`` (nothing is a crowd), the file name may only be in ``coco_url``, and its lists of
categories (``neg_category_ids``, ``not_exhaustive_category_ids``) tell which labels of a picture are complete, which
a measure of recall without labels does not need.
"""

from __future__ import annotations

import codecs
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import AnnotationError, FileError, ImageError
from samexport.files import read_bytes, reason
from samexport.runtimes.host.image import MAX_PIXELS, read_image
from samexport.runtimes.host.masks import Rle

Corners = tuple[float, float, float, float]
_FORMAT = "give COCO's or LVIS's instances .json"
_LIMIT = 4 << 30
"""Bytes of a file; LVIS's training set has 1.1 GB."""
_ORIENTATION = 0x0112
# EXIF orientations that turn a picture by 90 degrees
_ON_ITS_SIDE = (5, 6, 7, 8)


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
        if picture.shape[:2] == self.image_hw:
            return picture
        (height, width), (wanted_height, wanted_width) = picture.shape[:2], self.image_hw
        sizes = f"{self.path} is {width}x{height}, its annotations are for {wanted_width}x{wanted_height}"
        if (width, height) == self.image_hw and self.orientation in _ON_ITS_SIDE:
            raise ImageError(
                f"{sizes}: they are for the stored picture, which its EXIF orientation turns upright; remove the"
                " orientation from the file (exiftool -Orientation= FILE), or annotate the upright picture"
            )
        raise ImageError(f"{sizes}; give the folder of pictures that were annotated")

    @property
    def orientation(self) -> int:
        """EXIF's number for how the stored picture is turned, 1 for upright; 1 for a file that cannot be read."""
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(self.path) as opened:
                found = opened.getexif().get(_ORIENTATION, 1)
        except Exception:  # decoders given damaged bytes raise almost anything
            return 1
        return found if found in range(1, 9) else 1

    @property
    def ambiguous(self) -> bool:
        """Whether the annotations may be for the stored picture instead of the upright one, and no size tells."""
        height, width = self.image_hw
        return self.orientation != 1 and (height == width or self.orientation not in _ON_ITS_SIDE)


@dataclass(frozen=True)
class Annotations:
    """The chosen pictures, and what of the whole file is left out.

    Attributes:
        images: by id.
        crowds: annotations of many objects at once.
        empty: annotations without a segmentation.
        bare: pictures without an object.
    """

    images: tuple[AnnotatedImage, ...]
    crowds: int = 0
    empty: int = 0
    bare: int = 0

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know, a line each."""
        counts = (
            (self.crowds, "crowds (iscrowd 1), which are not one object"),
            (self.empty, "annotations with an empty segmentation"),
            (self.bare, "pictures without an object"),
        )
        return [f"left out: {count} {what}" for count, what in counts if count]


class _Picture(msgspec.Struct):
    """A record of ``images``; what it holds is checked when it is used."""

    id: Any = None
    file_name: Any = ""
    coco_url: Any = ""
    height: Any = None
    width: Any = None


class _Annotation(msgspec.Struct):
    """A record of ``annotations``; the segmentation is read when it is used."""

    id: Any = None
    image_id: Any = None
    iscrowd: Any = 0
    segmentation: msgspec.Raw = msgspec.Raw()
    area: Any = None
    bbox: Any = None

    @property
    def crowd(self) -> bool:
        return bool(self.iscrowd)

    @property
    def is_empty(self) -> bool:
        """Whether it has a list of polygons without any number."""
        raw = bytes(self.segmentation)
        return bool(raw) and not raw.translate(None, b" \t\r\n[],")


class _File(msgspec.Struct):
    images: list[_Picture]
    annotations: list[_Annotation]


def read_annotations(
    path: Path, images: Path, *, max_images: int | None = None, seed: int | None = None
) -> Annotations:
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
    whole = {i: [a for a in found if not a.is_empty] for i, found in by_image.items() if i in records}
    ids = sorted(i for i, found in whole.items() if not all(a.crowd for a in found))
    crowds = sum(a.crowd for found in whole.values() for a in found)
    empty = sum(a.is_empty for i, found in by_image.items() if i in records for a in found)
    if not ids:
        raise AnnotationError(_nothing_left(path, len(records), crowds, empty))
    bare = len(records) - len(ids)
    if max_images is not None and max_images < len(ids):
        rng = np.random.default_rng(seed)
        ids = ids[:max_images] if seed is None else sorted(rng.choice(ids, max_images, replace=False).tolist())
    chosen = tuple(_image(path, images, records[i], whole[i]) for i in ids)
    return Annotations(chosen, crowds, empty, bare)


def _nothing_left(path: Path, images: int, crowds: int, empty: int) -> str:
    what = f"{path} has no annotated object in any of its {images} images"
    if crowds and not empty:
        return (
            f"{what}: all {crowds} annotations are crowds (iscrowd 1), which are not one object; set iscrowd to 0 if"
            " they are"
        )
    if crowds or empty:
        return f"{what}: {crowds} annotations are crowds, {empty} have an empty segmentation"
    return f"{what}; {_FORMAT}"


def _load(path: Path) -> tuple[dict[int, _Picture], dict[int, list[_Annotation]]]:
    """The file's image records by id, and its annotations by the id of their image."""
    try:
        # editors on Windows begin a file with a byte order mark
        text = read_bytes(path, limit=_LIMIT).removeprefix(codecs.BOM_UTF8)
        data = msgspec.json.decode(text, type=_File)
    except FileError as error:
        raise AnnotationError(f"{error}; {_FORMAT}") from error
    except msgspec.ValidationError as error:
        raise AnnotationError(f"{path} has no lists of images and annotations ({reason(error)}); {_FORMAT}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not JSON ({reason(error)}); {_FORMAT}") from error
    records: dict[int, _Picture] = {}
    for record in data.images:
        number = _number(record.id, "id", path, "image")
        if number in records:
            raise AnnotationError(f"{path} has two images with the id {number}; {_FORMAT}")
        records[number] = record
    by_image = defaultdict(list)
    for annotation in data.annotations:
        _number(annotation.id, "id", path, "annotation")
        by_image[_number(annotation.image_id, "image_id", path, "annotation")].append(annotation)
    return records, by_image


def _number(value: Any, key: str, path: Path, kind: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise AnnotationError(f"{path} has an {kind} without a whole number as its {key}; {_FORMAT}")
    return value


def _image(path: Path, folder: Path, record: _Picture, annotations: Sequence[_Annotation]) -> AnnotatedImage:
    height, width = (_number(getattr(record, side), side, path, "image") for side in ("height", "width"))
    if not 0 < height * width <= MAX_PIXELS:
        raise AnnotationError(f"{path}: image {record.id} cannot be {width}x{height} pixels; {_FORMAT}")
    instances = []
    for annotation in annotations:
        try:
            instances.append(_instance(annotation, height, width))
        except (
            msgspec.MsgspecError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            why = f"no {error}" if isinstance(error, KeyError) else reason(error)
            name = f"annotation {annotation.id} of image {record.id}"
            raise AnnotationError(f"{path}: {name} is damaged ({why}); mend or remove it") from error
    return AnnotatedImage(record.id, _find(path, folder, record), (height, width), tuple(instances))


def _find(path: Path, folder: Path, record: _Picture) -> Path:
    """The picture's file: ``file_name``, else the end of ``coco_url``, without or with the folder it names.

    Tools on Windows write backslashes; a file whose name really has some comes first.
    """
    try:
        url = PurePosixPath(urlsplit(str(record.coco_url)).path)
    except ValueError:
        url = PurePosixPath()
    name = record.file_name or url.name
    if not isinstance(name, str) or not name or name[-1] in "/\\" or not _inside(name):
        raise AnnotationError(f"{path}: image {record.id} has no file_name inside a folder; {_FORMAT}")
    candidates = [folder / name, folder / name.replace("\\", "/"), folder / url.parent.name / url.name]
    try:
        found = [candidate for candidate in candidates if candidate.is_file()]
    except (OSError, ValueError) as error:
        shown = name if len(name) < 100 else f"{name[:80]}..."
        raise ImageError(f"{shown!r} of image {record.id} cannot be a file: {reason(error)}") from error
    if not found:
        raise ImageError(f"{candidates[0]} is missing; --images is the folder of the annotated pictures")
    return found[0]


def _inside(name: str) -> bool:
    """Whether a path stays in its folder, whichever way its slashes lean."""
    paths = PurePosixPath(name), PurePosixPath(name.replace("\\", "/"))
    return all(p.name and not p.is_absolute() and ".." not in p.parts for p in paths)


def _instance(record: _Annotation, height: int, width: int) -> Instance:
    """Check and convert one annotation; an error of Python's if it is damaged."""
    from pycocotools import mask as coco

    if not bytes(record.segmentation):
        raise KeyError("segmentation")
    rle = _rle(msgspec.json.decode(record.segmentation), height, width)
    pixels = int(coco.area(rle))
    area = float(pixels if record.area is None else record.area)
    if not (np.isfinite(area) and area >= 0):
        raise ValueError("its area is no number from 0 up")
    box = np.array(coco.toBbox(rle) if record.bbox is None else record.bbox, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError("its bbox is not x, y, width, height")
    corners = _clip(box, height, width)
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        corners = _clip(coco.toBbox(rle), height, width)
    return Instance(record.id, rle, pixels, area, corners, record.crowd)


def _clip(box: NDArray[np.float64], height: int, width: int) -> Corners:
    """Corners within the picture of x, y, width, height."""
    x0, y0, x1, y1 = np.clip([*box[:2], *(box[:2] + box[2:])], 0, [width, height] * 2).tolist()
    return x0, y0, x1, y1


def _rle(segmentation: Any, height: int, width: int) -> Rle:
    """COCO's compressed run lengths of polygons, run lengths or compressed run lengths."""
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if polygon != []]
        for polygon in polygons:
            _check_polygon(np.array(polygon, np.float64), height, width)
        merged: Rle = coco.merge(coco.frPyObjects(polygons, height, width))
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
