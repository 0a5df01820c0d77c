"""Pictures in and masks out, in numpy and Pillow: reading, framing, mask upscaling, overlays.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``ResizeLongestSide``, ``Sam.preprocess`` and ``Sam.postprocess_masks`` (facebookresearch/segment-anything).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from samexport.errors import ConfigError, ImageError
from samexport.models.spec import Frame

MAX_PIXELS = 120_000_000
"""The largest photographs of common phones have 108 million pixels."""

def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture file as uint8 RGB, shape [H, W, 3], upright (its EXIF orientation is applied).

    8-bit files become what Pillow's ``convert("RGB")`` makes of them, as in SAM's own pipeline: alpha and
    transparent colours are dropped, not blended; CMYK is converted without a colour profile; of
    16-bit colours Pillow keeps the upper byte. Deeper grey files are scaled, never clipped:

    - 16-bit (and 32-bit integers that all fit in 0..65535): round(value / 257);
    - other 32-bit integers and floats have no agreed range: their own minimum..maximum becomes 0..255,
      a constant picture becomes 0.

    Of a file with several pictures the first is read. EPS is refused, as it would run Ghostscript.

    Args:
        path: the file.
        max_pixels: limit on H * W, checked on the header, before anything is decoded. Pillow's own limit
            (about 179 million) stays in force above it.

    Raises:
        ImageError: the file is absent, empty, damaged, too large, no picture, or has NaN or infinite pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caller gets a picture or one error, not remarks as well
            return _decode(Path(path), max_pixels)
    except Exception as error:  # decoders given damaged bytes raise almost anything
        raise ImageError(f"{path}: {_reason(error)}") from error


def _decode(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    Image.init()
    formats = [name for name in Image.ID if name != "EPS"]
    # Not by name: Pillow 13.0 would map raw TIFFs into memory and misread those with orientation 5 to 8.
    with path.open("rb") as file, Image.open(file, formats=formats) as opened:
        if opened.width * opened.height > max_pixels:
            size = f"{opened.width}x{opened.height}"
            raise ImageError(f"{size} is more than {max_pixels} pixels; make it smaller or raise the limit")
        ImageOps.exif_transpose(opened, in_place=True)
        if opened.mode == "F" or opened.mode.startswith("I"):
            grey = _grey_to_8_bit(np.asarray(opened))
            return np.stack([grey, grey, grey], axis=-1)
        return np.array(opened.convert("RGB"))


def _grey_to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("the picture has NaN or infinite pixels; replace them first")
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    scale = 255 / (high - low) if high > low else 0.0
    return np.floor((values.astype(np.float64) - low) * scale + 0.5).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow's guard against bombs allows; make the picture smaller"
    if isinstance(error, UnidentifiedImageError):
        return "empty, or no picture that Pillow can read; save it as PNG or JPEG"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}; give the path of a picture file"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"the picture is damaged ({detail}); save it again as PNG or JPEG"


def _check_image(image: NDArray[Any]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image is uint8 [H, W, 3] and not empty, got {image.dtype} {list(image.shape)}")


def resized_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the long side is ``size``.

    SAM's rounding, int(side * scale + 0.5) in float64. SAM fails where the short side rounds to 0; here it
    is at least 1.
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
    _check_image(image)
    height, width = resized_size(image.shape[0], image.shape[1], size)
    if (height, width) == image.shape[:2]:
        return image
    # In one call Pillow 13 does the rows first where a picture is more than twice as tall as wide; 12 and SAM do not.
    columns = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.array(columns.resize((width, height), Image.Resampling.BILINEAR))


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
    weights = (1 - weight)[:, None] * to_frame_side[first] + weight[:, None] * to_frame_side[second]
    result = weights.astype(np.float32)
    result.flags.writeable = False
    return result


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
