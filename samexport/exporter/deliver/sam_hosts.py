"""How programs turn a picture into the encoder's input, and the decoder's outputs into a mask: facts, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.exporter.deliver.profile import Framed, Outputs
from samexport.exporter.deliver.sam_adapters import canvas
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap, upscale_mask

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""SAM's, as programs have them in their own code."""
USLS_MEAN, USLS_STD = (123.5, 116.5, 103.5), (58.5, 57.0, 57.5)
OPENVINO_PADDING = 116
"""The one number that is nearest to SAM's mean of each channel."""


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


def pillow(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, 3] to [h, w, 3] by Pillow's bilinear filter on whole numbers, which widens when it shrinks."""
    return np.asarray(Image.fromarray(image).resize((hw[1], hw[0]), Image.Resampling.BILINEAR))


def pillow_floats(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W, 3] to [h, w, 3] by Pillow's bilinear filter on floats, which widens when it shrinks."""
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    return np.stack([np.asarray(c.resize((hw[1], hw[0]), Image.Resampling.BILINEAR)) for c in channels], axis=-1)


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
    return Framed(normalised(pillow(image, hw), size, MEAN, STD), scale, _hw(image), _hw(image))


def in_square_share(image: NDArray[np.uint8], size: int) -> Framed:
    """The long side scaled on whole numbers by a filter that widens, 0..1, SAM's mean as padding."""
    framed = in_square(image, size)
    return replace(framed, tensor=_unnormalised(framed.tensor) / np.float32(255))


def _unnormalised(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    return tensor * np.array(STD, np.float32)[:, None, None] + np.array(MEAN, np.float32)[:, None, None]


def first_mask(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The first mask, which has the picture's size already."""
    mask: NDArray[np.bool_] = next(iter(outputs.values()))[0, 0] > 0
    return mask


def in_square_usls(image: NDArray[np.uint8], size: int) -> Framed:
    """The long side scaled, grey 114 as padding, normalised by usls's own mean and deviation."""
    factor = size / max(image.shape[:2])
    hw = round(image.shape[0] * factor), round(image.shape[1] * factor)
    pixels = np.full((size, size, 3), 114, np.uint8)
    pixels[: hw[0], : hw[1]] = pillow(image, hw)
    return Framed(normalised(pixels, size, USLS_MEAN, USLS_STD), np.array([factor] * 2), _hw(image), _hw(image))


def in_square_darktable(image: NDArray[np.uint8], size: int) -> Framed:
    """The long side scaled between four neighbours, the last row and column repeated; normalised; zeros as padding."""
    factor = size / max(image.shape[:2])
    hw = int(image.shape[0] * factor + 0.5), int(image.shape[1] * factor + 0.5)
    edged = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    pixels = sample(edged, (1 / factor, 1 / factor), hw)
    return Framed(normalised(pixels, size, MEAN, STD), np.array([factor] * 2), _hw(image), (size, size))


def out_of_square_darktable(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """Cut off the padding, scale corner to corner. Then the program makes edges follow the picture; not done here."""
    mask = outputs["masks"][0, 0]
    inside = [min(int(side * framed.scale[0] + 0.5), mask.shape[0]) for side in framed.image_hw]
    valid = np.pad(mask[: inside[0], : inside[1]], ((0, 1), (0, 1)), mode="edge")
    step = [(inside[axis] - 1) / max(framed.image_hw[axis] - 1, 1) for axis in (0, 1)]
    whole: NDArray[np.bool_] = sample(valid, (step[0], step[1]), framed.image_hw) > 0
    return whole


def in_rectangle(image: NDArray[np.uint8], size: int) -> Framed:
    """Stretched to the file's own 684x1024, whole numbers."""
    hw = canvas(size)
    scale = np.array([hw[1] / image.shape[1], hw[0] / image.shape[0]])
    return Framed(pillow(image, hw).transpose(2, 0, 1)[None], scale, _hw(image), hw)


def out_of_rectangle(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The first mask, the nearest pixel of it."""
    mask = next(iter(outputs.values()))[0, 0] > 0
    rows, columns = (np.arange(framed.image_hw[axis]) * mask.shape[axis] // framed.image_hw[axis] for axis in (0, 1))
    whole: NDArray[np.bool_] = mask[np.ix_(rows, columns)]
    return whole


def in_square_raw(image: NDArray[np.uint8], size: int) -> Framed:
    """The long side scaled by Pillow, 0..255, the mean as padding: the handler that is delivered with the files."""
    framed = in_square(image, size)
    factor = size / max(image.shape[:2])
    return Framed(_unnormalised(framed.tensor), np.array([factor] * 2), _hw(image), _hw(image))


def patched(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The rectangle at its place."""
    left, top, right, bottom = (int(outputs[name][0]) for name in ("xtl", "ytl", "xbr", "ybr"))
    whole = np.zeros(framed.image_hw, np.bool_)
    whole[top : bottom + 1, left : right + 1] = outputs["masks"][0, 0] > 0
    return whole


def in_square_openvino(image: NDArray[np.uint8], size: int) -> Framed:
    """The long side scaled to whole pixels between neighbours, one grey as padding; 0..255."""
    hw = _longest(_hw(image), size)
    pixels = np.full((size, size, 3), OPENVINO_PADDING, np.float32)
    pixels[: hw[0], : hw[1]] = neighbours(image, hw)
    scale = np.array([hw[1] / image.shape[1], hw[0] / image.shape[0]])
    return Framed(pixels.transpose(2, 0, 1)[None], scale, _hw(image), _hw(image))


def neighbours(image: NDArray[Any], hw: tuple[int, int]) -> NDArray[np.float32]:
    """Between the two nearest pixels of each axis, centres aligned, whatever the scale."""
    value = image.astype(np.float32)
    for axis in (0, 1):
        size = value.shape[axis]
        at = np.clip((np.arange(hw[axis]) + 0.5) * size / hw[axis] - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        share = (at - low).astype(np.float32).reshape((-1, *[1] * (2 - axis)))
        above = np.take(value, np.minimum(low + 1, size - 1), axis)
        value = np.take(value, low, axis) * (1 - share) + above * share
    return value


def best_of_three(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The mask with the best score, scaled to the frame, cut, scaled to the picture."""
    scores, masks = outputs["iou_scores"][0, 0], outputs["pred_masks"][0, 0]
    return _out_of_square(masks[scores.argmax()], framed)


def only_low_res(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The only mask, scaled to the frame, cut, scaled to the picture."""
    return _out_of_square(outputs["masks"][0, 0], framed)


def _out_of_square(low: NDArray[Any], framed: Framed) -> NDArray[np.bool_]:
    return upscale_mask(low, FrameMap(framed.image_hw, Preprocess(4 * low.shape[0])))


def best_after_first(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The mask with the best score, the first one left out; it has the picture's size already."""
    place = 1 + outputs["iou_predictions"][0, 1:].argmax()
    mask: NDArray[np.bool_] = outputs["upscaled_masks"][0, place] > 0
    return mask
