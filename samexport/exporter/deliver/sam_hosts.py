"""How programs turn a picture into the encoder's input, and the decoder's outputs into a mask: facts, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.exporter.deliver.profile import Framed, Outputs
from samexport.exporter.deliver.sam_adapters import canvas

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""SAM's, as programs have them in their own code."""


def sample(image: NDArray[Any], step: tuple[float, float], hw: tuple[int, int]) -> NDArray[np.float64]:
    """Pixels of [H, W, ...] at (row, column) * ``step``, between four neighbours: corners stay corners; 0 outside.

    OpenCV's ``warpAffine`` of a scaling, which neither aligns centres nor widens its filter when it shrinks.
    """
    value = image.astype(np.float64)
    for axis in (0, 1):
        at = np.arange(hw[axis]) * step[axis]
        low = np.floor(at).astype(int)
        size = value.shape[axis]
        share = (at - low).reshape((-1, *[1] * (value.ndim - axis - 1)))
        known = [np.take(value, np.clip(i, 0, size - 1), axis) for i in (low, low + 1)]
        inside = [((i >= 0) & (i < size)).reshape(share.shape) for i in (low, low + 1)]
        value = known[0] * inside[0] * (1 - share) + known[1] * inside[1] * share
    return value


def normalised(pixels: NDArray[Any], size: int, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """[h, w, 3] in 0..255 to [1, 3, size, size], zeros right and below."""
    tensor = np.zeros((1, 3, size, size), np.float32)
    values = (pixels.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    tensor[0, :, : pixels.shape[0], : pixels.shape[1]] = values.transpose(2, 0, 1)
    return tensor


def _pillow(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((hw[1], hw[0]), Image.Resampling.BILINEAR))


def _longest(image_hw: tuple[int, int], size: int) -> tuple[int, int]:
    long_side = max(image_hw)
    return round(image_hw[0] * size / long_side), round(image_hw[1] * size / long_side)


def _hw(image: NDArray[Any]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def in_canvas(image: NDArray[np.uint8], size: int) -> Framed:
    """Scaled by one factor into 684x1024 by ``warpAffine``, black around it; rows, columns, channels, 0..255."""
    room = canvas(size)
    factor = min(room[0] / image.shape[0], room[1] / image.shape[1])
    pixels = np.rint(sample(image, (1 / factor, 1 / factor), room)).astype(np.float32)
    return Framed(pixels, np.array([factor, factor]), _hw(image), room)


def out_of_canvas(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The first mask, scaled back by ``warpAffine``."""
    factor = float(framed.scale[0])
    whole: NDArray[np.bool_] = sample(outputs["masks"][0, 0], (factor, factor), framed.image_hw) > 0
    return whole


def in_square(image: NDArray[np.uint8], size: int) -> Framed:
    """The long side scaled by Pillow, normalised by SAM's mean and deviation, zeros as padding."""
    hw = _longest(_hw(image), size)
    scale = np.array([hw[1] / image.shape[1], hw[0] / image.shape[0]])
    return Framed(normalised(_pillow(image, hw), size, MEAN, STD), scale, _hw(image), _hw(image))


def first_mask(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The first mask, which has the picture's size already."""
    mask: NDArray[np.bool_] = next(iter(outputs.values()))[0, 0] > 0
    return mask
