"""Pictures in and masks out, in numpy and Pillow: reading, framing, mask upscaling.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``ResizeLongestSide``, ``Sam.preprocess`` and ``Sam.postprocess_masks`` (facebookresearch/segment-anything).
Large pictures are worked on in strips, so that copies of them do not pile up.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from samexport.errors import ConfigError, ImageError
from samexport.models.spec import Frame

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
        ImageError: the file is absent, not a regular file, empty, damaged, no picture, too large for
            ``max_pixels``, ``MAX_SIDE`` or the memory, or has NaN or infinite pixels.
    """
    is_path = isinstance(source, str | Path)
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


def resized_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the long side is ``size``.

    SAM's rounding in float64: scale = size / max(height, width), and a side becomes int(side * scale + 0.5). SAM
    fails where the short side rounds to 0; here it is at least 1.

    The whole recipe for a host: resize the picture to exactly this size, and multiply x by new width / width and
    y by new height / height. The two factors differ a little from ``scale`` and from each other, because sides
    are whole pixels: one factor for both is not what SAM does, and shifts prompts in long, thin pictures.
    """
    if min(height, width) < 1:
        raise ImageError(f"an image has at least one pixel, got height {height}, width {width}")
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_longest(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale uint8 RGB [H, W, 3] so that its long side is ``size``.

    Pillow's bilinear filter on 8-bit pixels, which widens when it shrinks: OpenCV's, torch's and ONNX
    Runtime's bilinear resizing give other pixels. An image that has the size already is returned as it is.

    Raises:
        ImageError: not uint8 [H, W, 3], or empty.
    """
    check_image(image)
    height, width = resized_size(image.shape[0], image.shape[1], size)
    if (height, width) == image.shape[:2]:
        return image
    # In one call Pillow 13 does the rows first where a picture is more than twice as tall as wide; 12 and SAM do not.
    columns = np.empty((image.shape[0], width, 3), np.uint8)
    for rows in strips((image.shape[0], image.shape[1])):  # its bilinear filter is one for columns, then one for rows
        strip = Image.fromarray(image[rows])
        columns[rows] = np.asarray(strip.resize((width, strip.height), Image.Resampling.BILINEAR))
    return np.array(Image.fromarray(columns).resize((width, height), Image.Resampling.BILINEAR))


def to_frame(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.float32]:
    """Make the encoder's ``image`` [1, 3, size, size] float32, RGB in 0..255, from uint8 RGB [H, W, 3].

    The resized picture is in the top left corner; right and below it is ``frame.mean``, which the
    normalisation inside the encoder turns into exactly 0, SAM's padding.

    Raises:
        ImageError: not uint8 [H, W, 3], or empty.
    """
    resized = resize_longest(image, frame.size)
    framed = np.empty((1, 3, frame.size, frame.size), np.float32)
    framed[:] = np.array(frame.mean, np.float32)[:, None, None]
    framed[0, :, : resized.shape[0], : resized.shape[1]] = resized.transpose(2, 0, 1)
    return framed


def _bilinear_taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Bilinear, ``align_corners=False``: two source indices for each target, and the second's weight."""
    centre = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    first = np.minimum(centre.astype(np.intp), source - 1)
    return first, np.minimum(first + 1, source - 1), centre - first


@lru_cache(maxsize=4)  # all prompts of a picture share them; a wide picture needs megabytes
def axis_weights(low_res: int, frame_size: int, resized: int, original: int) -> NDArray[np.float32]:
    """Weights [original, low_res] of one axis: to the frame, crop to ``resized``, to the image; in one."""
    first, second, weight = _bilinear_taps(low_res, frame_size)
    to_frame_side = np.zeros((frame_size, low_res))
    rows = np.arange(frame_size)
    to_frame_side[rows, first] += 1 - weight
    to_frame_side[rows, second] += weight
    # No index reaches ``resized``: that is the crop.
    first, second, weight = _bilinear_taps(resized, original)
    weights = np.empty((original, low_res), np.float32)
    for part in strips((original, low_res)):
        near, far = (1 - weight[part])[:, None], weight[part][:, None]
        weights[part] = near * to_frame_side[first[part]] + far * to_frame_side[second[part]]
    weights.flags.writeable = False
    return weights


_BAND_ROWS = 64


def _upscaled_bands(
    low_res_masks: NDArray[Any], image_hw: tuple[int, int], frame: Frame
) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Yield (index into [..., H, W], values [rows, W]), one band of one mask at a time to save memory."""
    side = frame.low_res
    if low_res_masks.shape[-2:] != (side, side):
        raise ConfigError(f"low_res_masks must end in [{side}, {side}], got {list(low_res_masks.shape)}")
    height, width = resized_size(image_hw[0], image_hw[1], frame.size)
    row_weights = axis_weights(side, frame.size, height, image_hw[0])
    column_weights = axis_weights(side, frame.size, width, image_hw[1])
    for mask in np.ndindex(low_res_masks.shape[:-2]):
        widened = low_res_masks[mask].astype(np.float32) @ column_weights.T
        for start in range(0, image_hw[0], _BAND_ROWS):
            band = row_weights[start : start + _BAND_ROWS]
            used = np.flatnonzero(band.any(axis=0))  # a band reads few low-res rows; the other weights are 0
            near = slice(used[0], used[-1] + 1)
            yield (*mask, slice(start, start + len(band))), band[:, near] @ widened[near]


def upscale_logits(low_res_masks: NDArray[Any], image_hw: tuple[int, int], frame: Frame) -> NDArray[np.float32]:
    """Scale low-resolution logits [..., L, L] to the original image: float32 [..., H, W].

    SAM resizes to the frame, cuts the padding off and resizes to the image, both bilinear with
    ``align_corners=False``. All three steps are linear and act on rows and columns apart, so each axis is one
    small matrix, computed in float64. A NaN or infinite logit spoils rows and columns beside it too.

    Raises:
        ConfigError: the last two axes are not the frame's low-resolution size.
        ImageError: the image has no pixel.
    """
    upscaled = np.empty((*low_res_masks.shape[:-2], *image_hw), np.float32)
    for index, values in _upscaled_bands(low_res_masks, image_hw, frame):
        upscaled[index] = values
    return upscaled


def upscale_mask(
    low_res_masks: NDArray[Any], image_hw: tuple[int, int], frame: Frame, threshold: float = 0.0
) -> NDArray[np.bool_]:
    """Exactly ``upscale_logits(...) > threshold``, bool [..., H, W], without holding the logits."""
    mask = np.empty((*low_res_masks.shape[:-2], *image_hw), np.bool_)
    for index, values in _upscaled_bands(low_res_masks, image_hw, frame):
        mask[index] = values > threshold
    return mask
