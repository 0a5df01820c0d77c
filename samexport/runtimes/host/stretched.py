"""Pictures for models that stretch them to a square, sides apart, and masks back again. Numpy and Pillow.

Facts follow SAM 2's image predictor (torchvision's antialiased bilinear filter on floats) and its video predictor
(Pillow's bicubic filter on 8 bits): the official code has both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.runtimes.host.image import check_image


@lru_cache(maxsize=16)  # all masks and pictures of one size share them
def linear_weights(source: int, target: int) -> NDArray[np.float32]:
    """Weights [target, source] of bilinear resizing along one axis, ``align_corners`` False.

    Where it shrinks, the filter widens (antialias), and where it enlarges, it is the plain one.
    """
    scale = source / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    raw = np.maximum(0.0, 1 - np.abs((np.arange(source) + 0.5 - centre[:, None]) / support))
    weights: NDArray[np.float32] = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def resize(maps: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Maps [..., H, W] bilinearly to [..., height, width], as :func:`linear_weights` says."""
    values = maps.astype(np.float32)
    rows, columns = linear_weights(maps.shape[-2], height), linear_weights(maps.shape[-1], width)
    resized: NDArray[np.float32] = rows @ (values @ columns.T)
    return resized


def picture_square(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Uint8 RGB [H, W, 3] to an encoder's ``image`` [1, 3, size, size], as the official image predictor has it.

    Raises:
        ImageError: not uint8 [H, W, 3], or empty.
    """
    check_image(image)
    return resize(image.transpose(2, 0, 1), size, size)[None]


def video_square(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """The same as the official video predictor has it, whole numbers; raises as :func:`picture_square`."""
    check_image(image)
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1)[None])


def stretch_points(points: NDArray[Any], image_hw: tuple[int, int], size: int) -> NDArray[np.float32]:
    """Points [..., 2] (x, y) in pixels of the image, in pixels of the square."""
    height, width = image_hw
    stretched: NDArray[np.float32] = (points * np.array([size / width, size / height])).astype(np.float32)
    return stretched


def from_square(low_res_masks: NDArray[Any], image_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Logits [..., L, L] of a stretched frame at the size of the image, [..., H, W]."""
    return resize(low_res_masks, *image_hw)
