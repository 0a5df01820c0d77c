"""Pictures into a model's frame and masks out of it, in numpy and Pillow.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow SAM's
``ResizeLongestSide``, ``Sam.preprocess`` and ``Sam.postprocess_masks`` (facebookresearch/segment-anything).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import ConfigError, ImageError
from samexport.models.spec import Preprocess
from samexport.runtimes.host.image import check_image, strips


def resized_size(
    height: int, width: int, size: int, rounding: Literal["nearest", "down"] = "nearest"
) -> tuple[int, int]:
    """Height and width once the long side is ``size``.

    SAM's rounding in float64: scale = size / max(height, width), and a side becomes int(side * scale + 0.5). SAM
    fails where the short side rounds to 0; here it is at least 1. NanoSAM rounds down, by the picture's aspect.

    The whole recipe for a host: resize the picture to exactly this size, and multiply x by new width / width and
    y by new height / height. The two factors differ a little from ``scale`` and from each other, because sides
    are whole pixels: one factor for both is not what SAM does, and shifts prompts in long, thin pictures.
    """
    if min(height, width) < 1:
        raise ImageError(f"an image has at least one pixel, got height {height}, width {width}")
    if rounding == "down":
        aspect = width / height
        return (max(1, int(size / aspect)), size) if aspect >= 1 else (size, max(1, int(size * aspect)))
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@dataclass(frozen=True)
class FrameMap:
    """One picture in a model's frame: how points and masks travel between them, both ways.

    Attributes:
        image_hw: height and width of the picture.
        frame: the model's.
    """

    image_hw: tuple[int, int]
    frame: Preprocess

    @property
    def inside(self) -> tuple[int, int]:
        """Height and width that the picture takes in the frame, in its top left corner."""
        if self.frame.resize == "longest":
            return resized_size(*self.image_hw, self.frame.size, self.frame.rounding)
        return self.frame.size, self.frame.size

    @property
    def prompted(self) -> tuple[int, int]:
        """Height and width that the picture takes in the square in which points are given."""
        if self.frame.resize == "longest":
            return resized_size(*self.image_hw, self.frame.prompts, self.frame.rounding)
        return self.frame.prompts, self.frame.prompts

    @property
    def masks(self) -> tuple[int, tuple[int, int]]:
        """The side that low-resolution masks are first scaled to, and how much of it, rows and columns, is the picture.

        SAM goes by the whole frame, whose padding is then cut off; a stretched frame has none, so they go directly.
        """
        if self.frame.resize == "longest":
            return self.frame.prompts, self.prompted
        return self.frame.low_res, (self.frame.low_res, self.frame.low_res)

    @property
    def scale(self) -> NDArray[np.float64]:
        """What x and y in the picture are multiplied by, [2]."""
        height, width = self.prompted
        return np.array([width / self.image_hw[1], height / self.image_hw[0]])

    def to_frame(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Points [..., 2], x and y in pixels of the picture, in those of the square in which points are given."""
        scaled: NDArray[np.float64] = points * self.scale
        return scaled

    def to_picture(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of :meth:`to_frame`."""
        scaled: NDArray[np.float64] = points / self.scale
        return scaled


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


def resize(image: NDArray[np.uint8], frame: Preprocess) -> NDArray[Any]:
    """The picture [h, w, 3] as it lies in the frame, 0..255: uint8, or float32 with the filter on floats.

    Raises:
        ImageError: not uint8 [H, W, 3], or empty.
    """
    if frame.resize == "longest" and frame.filter == "bilinear":
        return resize_longest(image, frame.size)
    check_image(image)
    height, width = FrameMap((image.shape[0], image.shape[1]), frame).inside
    if frame.filter in ("bilinear", "bicubic"):
        kind = Image.Resampling.BICUBIC if frame.filter == "bicubic" else Image.Resampling.BILINEAR
        return np.array(Image.fromarray(image).resize((width, height), kind))
    if frame.filter == "bilinear_plain":
        return _without_antialias(image, height, width)
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    return np.stack([np.asarray(c.resize((width, height), Image.Resampling.BILINEAR)) for c in channels], axis=-1)


def to_frame(image: NDArray[np.uint8], frame: Preprocess) -> NDArray[np.float32]:
    """Make the graph's ``image`` [1, 3, size, size] float32, RGB in 0..``white``, from uint8 RGB [H, W, 3].

    The resized picture is in the top left corner. Padding of ``frame.mean`` becomes exactly 0 in the normalisation
    inside the graph, SAM's padding.

    Raises:
        ImageError: not uint8 [H, W, 3], or empty.
    """
    resized = resize(image, frame)
    framed = np.zeros((1, 3, frame.size, frame.size), np.float32)
    if frame.padding == "mean":
        framed[:] = np.array(frame.mean, np.float32)[:, None, None]
    framed[0, :, : resized.shape[0], : resized.shape[1]] = resized.transpose(2, 0, 1)
    return framed if frame.white == 255 else framed * np.float32(frame.white / 255)


def _without_antialias(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Float32 [height, width, 3], bilinear between the two nearest pixels of each axis, however much it shrinks."""
    first, second, share = _bilinear_taps(image.shape[0], height)
    down, pixels = share[:, None, None].astype(np.float32), image.astype(np.float32)
    rows: NDArray[np.float32] = pixels[first] * (1 - down) + pixels[second] * down
    first, second, share = _bilinear_taps(image.shape[1], width)
    across = share[:, None].astype(np.float32)
    resized: NDArray[np.float32] = rows[:, first] * (1 - across) + rows[:, second] * across
    return resized


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


def _upscaled_bands(low_res_masks: NDArray[Any], place: FrameMap) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Yield (index into [..., H, W], values [rows, W]), one band of one mask at a time to save memory."""
    side, image_hw = place.frame.low_res, place.image_hw
    if low_res_masks.shape[-2:] != (side, side):
        raise ConfigError(f"low_res_masks must end in [{side}, {side}], got {list(low_res_masks.shape)}")
    size, (height, width) = place.masks
    row_weights = axis_weights(side, size, height, image_hw[0])
    column_weights = axis_weights(side, size, width, image_hw[1])
    for mask in np.ndindex(low_res_masks.shape[:-2]):
        widened = low_res_masks[mask].astype(np.float32) @ column_weights.T
        for start in range(0, image_hw[0], _BAND_ROWS):
            band = row_weights[start : start + _BAND_ROWS]
            used = np.flatnonzero(band.any(axis=0))  # a band reads few low-res rows; the other weights are 0
            near = slice(used[0], used[-1] + 1)
            yield (*mask, slice(start, start + len(band))), band[:, near] @ widened[near]


def upscale_logits(low_res_masks: NDArray[Any], place: FrameMap) -> NDArray[np.float32]:
    """Scale low-resolution logits [..., L, L] to the original image: float32 [..., H, W].

    SAM resizes to the frame, cuts the padding off and resizes to the image, both bilinear with
    ``align_corners=False``. All three steps are linear and act on rows and columns apart, so each axis is one
    small matrix, computed in float64. A NaN or infinite logit spoils rows and columns beside it too.

    Raises:
        ConfigError: the last two axes are not the frame's low-resolution size.
        ImageError: the image has no pixel.
    """
    upscaled = np.empty((*low_res_masks.shape[:-2], *place.image_hw), np.float32)
    for index, values in _upscaled_bands(low_res_masks, place):
        upscaled[index] = values
    return upscaled


def upscale_mask(low_res_masks: NDArray[Any], place: FrameMap, threshold: float = 0.0) -> NDArray[np.bool_]:
    """Exactly ``upscale_logits(...) > threshold``, bool [..., H, W], without holding the logits."""
    mask = np.empty((*low_res_masks.shape[:-2], *place.image_hw), np.bool_)
    for index, values in _upscaled_bands(low_res_masks, place):
        mask[index] = values > threshold
    return mask
