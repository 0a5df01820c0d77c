"""Pictures into a model's frame and masks out of it, in numpy and Pillow.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``ResizeLongestSide``, ``Sam.preprocess`` and ``Sam.postprocess_masks`` (facebookresearch/segment-anything).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import ConfigError, ImageError
from samexport.models.spec import Frame
from samexport.runtimes.host.image import check_image, strips


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
