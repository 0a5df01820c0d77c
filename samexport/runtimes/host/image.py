"""Pictures in and masks out, in numpy and Pillow: reading, framing, mask upscaling.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``ResizeLongestSide``, ``Sam.preprocess`` and ``Sam.postprocess_masks`` (facebookresearch/segment-anything).
Large pictures are worked on in strips, so that copies of them do not pile up.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from samexport.errors import ImageError

MAX_PIXELS = 210_000_000
"""Phones make photographs of 200 million pixels."""

MAX_SIDE = 200_000
"""Scaling a mask takes a kilobyte for each row and each column, so a thin picture can need much memory too."""

Picture = str | Path | Image.Image | NDArray[np.uint8]
"""The path of a picture file, a picture of Pillow, or uint8 RGB [H, W, 3]."""

Note = Callable[[str], None]
"""Takes what a user should know about an input that can be used all the same."""

_STRIP_PIXELS = 1 << 22
_guard = threading.Lock()


def as_pixels(picture: Picture) -> NDArray[np.uint8]:
    """A picture of any kind as uint8 RGB [H, W, 3], upright; an array is returned as it is.

    Raises:
        ImageError: as :func:`read_image`; an array that is not uint8 [H, W, 3], is empty, or has a side of more
            than ``MAX_SIDE`` pixels; an object of another type.
    """
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        with _one_error("the picture"):
            picture = _to_rgb(ImageOps.exif_transpose(picture), lambda _: None)
    check_image(picture)
    return picture


def read_image(
    source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS, note: Note = lambda _: None
) -> NDArray[np.uint8]:
    """Read a picture file as uint8 RGB, shape [H, W, 3], upright (its EXIF orientation is applied).

    8-bit files become what Pillow's ``convert("RGB")`` makes of them, as in SAM's own pipeline: alpha and
    transparent colours are dropped, not blended; CMYK is converted without a colour profile; of
    16-bit colours Pillow keeps the upper byte. Deeper grey files are scaled, never clipped:

    - 16-bit (and 32-bit integers that all fit in 0..65535): round(value / 257);
    - other 32-bit integers and floats have no agreed range: their own minimum..maximum becomes 0..255,
      a constant picture becomes 0.

    Of a file with several pictures the first is read. EPS is refused, as it would run Ghostscript.

    Args:
        source: a path, or a stream of bytes that can be read twice.
        max_pixels: limit on H * W, checked on the header, before anything is decoded; it replaces Pillow's own.
            A colour picture takes 7 bytes of memory a pixel while it is read, 3 afterwards.
        note: is told where 16-bit values use 12 bits at most, which makes the picture nearly black.

    Raises:
        ImageError: the source is neither; the file is absent, not a regular file, empty, damaged, no picture, too
            large for ``max_pixels``, ``MAX_SIDE`` or the memory, or has NaN or infinite pixels.
    """
    is_path = isinstance(source, str | Path)
    if not is_path and (isinstance(source, io.TextIOBase) or not hasattr(source, "read")):
        hint = "; use it as it is" if isinstance(source, np.ndarray | Image.Image) else ""
        hint = "; wrap it in io.BytesIO" if isinstance(source, bytes | bytearray) else hint
        raise ImageError(f"a picture is read from a path or a file opened as bytes, got {type(source).__name__}{hint}")
    with _one_error(str(source) if is_path else "the picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller gets a picture or one error, not remarks as well
        if not isinstance(source, str | Path):
            return _decode(source, max_pixels, note)
        with _open_regular(source) as file:
            return _decode(file, max_pixels, note)


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders given damaged bytes raise almost anything
        raise ImageError(f"{name}: {_reason(error)}") from error


def _open_regular(path: str | Path) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise ImageError(f"{error}; give the path of a picture file") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for its writer
        raise ImageError("not a regular file; give the path of a picture file")
    # Not by name: Pillow 13.0 would map raw TIFFs into memory and misread those with orientation 5 to 8.
    return open(path, "rb")


def _decode(file: BinaryIO, max_pixels: int, note: Note) -> NDArray[np.uint8]:
    Image.init()
    with _without_guard():
        opened = Image.open(file, formats=[name for name in Image.ID if name != "EPS"])
    with opened:
        _check_size(opened, max_pixels)
        deep = not _is_deep_grey(opened) and any(";16" in str(tile) for tile in getattr(opened, "tile", ()))
        ImageOps.exif_transpose(opened, in_place=True)
        pixels = _to_rgb(opened, note)
        if deep and 0 < pixels.max() < 16:
            note("its 16-bit colours use 12 bits at most, so it is nearly black; scale them to 0..65535 first")
    return pixels


@contextmanager
def _without_guard() -> Iterator[None]:
    """Pillow's guard is a number for the whole process and below 200 megapixels; ours looks at the same header."""
    with _guard:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(opened: Image.Image, max_pixels: int) -> None:
    if opened.width * opened.height > max_pixels:
        size = f"{opened.width}x{opened.height}"
        raise ImageError(f"{size} is more than {max_pixels} pixels; make it smaller or raise the limit (--max-pixels)")
    _check_sides(opened.height, opened.width)


def _check_sides(height: int, width: int) -> None:
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"{width}x{height} has a side of more than {MAX_SIDE} pixels; cut it up")


def strips(image_hw: tuple[int, int]) -> Iterator[slice]:
    """Slices of rows that cover a picture, a few million pixels each."""
    height, width = image_hw
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _to_rgb(image: Image.Image, note: Note) -> NDArray[np.uint8]:
    """Strip by strip: whole, Pillow makes two more copies on the way to an array."""
    _check_sides(image.height, image.width)
    to_8_bit = _grey_scale(image, note) if _is_deep_grey(image) else None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in _cut(image):
        if to_8_bit is not None:
            pixels[rows] = to_8_bit(np.asarray(strip))[..., None]
        else:
            pixels[rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _cut(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    for rows in strips((image.height, image.width)):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _grey_scale(image: Image.Image, note: Note) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """How pixels of this deep grey picture become 8 bits."""
    ends = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _cut(image))]
    low, high = float(np.min([end[0] for end in ends])), float(np.max([end[1] for end in ends]))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("the picture has NaN or infinite pixels; replace them first")
    if image.mode != "F" and low >= 0 and high <= 65535:
        if 0 < high < 4096:
            note(f"its 16-bit values reach {high:.0f} only, so it is nearly black; scale them to 0..65535 first")
        return lambda values: ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    scale = 255 / (high - low) if high > low else 0.0
    return lambda values: np.floor((values.astype(np.float64) - low) * scale + 0.5).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "empty, or no picture that Pillow can read; save it as PNG or JPEG"
    if isinstance(error, MemoryError) or "out of memory" in str(error):  # Pillow's decoders say it as an OSError
        return "there is not enough memory for a picture of this size; make it smaller"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}; give the path of a picture file"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"the picture is damaged ({detail}); save it again as PNG or JPEG"


def check_image(image: NDArray[Any]) -> None:
    """Refuse what is not a picture in memory.

    Raises:
        ImageError: not an array, not uint8 [H, W, 3], empty, or a side of more than ``MAX_SIDE`` pixels.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"a picture is a path, a Pillow image or an array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image is uint8 [H, W, 3] and not empty, got {image.dtype} {list(image.shape)}")
    _check_sides(image.shape[0], image.shape[1])
