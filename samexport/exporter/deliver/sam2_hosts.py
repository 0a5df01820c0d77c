"""How programs turn a picture into SAM 2's input, and the decoder's outputs into a mask: facts, in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samexport.exporter.deliver import sam_hosts as hosts
from samexport.exporter.deliver.profile import Framed, Outputs
from samexport.runtimes.host.detector import resize_as_opencv


def stretched(image: NDArray[np.uint8], size: int) -> Framed:
    """To the square between neighbours, whatever the proportions, by ``cv2.resize``; normalised."""
    return _framed(hosts.normalised(resize_as_opencv(image, size, size), size, hosts.MEAN, hosts.STD), image)


def stretched_floats(image: NDArray[np.uint8], size: int) -> Framed:
    """To the square by Pillow's bilinear filter on floats, which widens when it shrinks, as SAM 2's own code does."""
    return _framed(hosts.normalised(hosts.pillow_floats(image, (size, size)), size, hosts.MEAN, hosts.STD), image)


def stretched_pixels(image: NDArray[np.uint8], size: int) -> Framed:
    """To the square by Pillow's bilinear filter on whole numbers, which widens when it shrinks; normalised."""
    return _framed(hosts.normalised(hosts.pillow(image, (size, size)), size, hosts.MEAN, hosts.STD), image)


def stretched_raw(image: NDArray[np.uint8], size: int) -> Framed:
    """As SAM 2's own code does it, 0..255: the handler that is delivered; but points scale by one factor, as in SAM."""
    framed = _framed(hosts.pillow_floats(image, (size, size)).transpose(2, 0, 1)[None], image)
    return replace(framed, scale=np.array([size / max(image.shape[:2])] * 2))


def in_square_usls(image: NDArray[np.uint8], size: int) -> Framed:
    """As usls frames pictures for SAM; the decoder is told the square."""
    return replace(hosts.in_square_usls(image, size), told=(size, size))


def _framed(tensor: NDArray[np.float32], image: NDArray[np.uint8]) -> Framed:
    hw = image.shape[0], image.shape[1]
    return Framed(tensor, np.array([tensor.shape[3] / hw[1], tensor.shape[2] / hw[0]]), hw, hw)


def unstretched(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The mask, scaled to the picture by ``cv2.resize``."""
    whole: NDArray[np.bool_] = hosts.neighbours(outputs["masks"][0, 0][..., None], framed.image_hw)[..., 0] > 0
    return whole


def best_unstretched(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The mask with the best score, scaled to the square, then to the picture."""
    low = outputs["pred_masks"][0, 0, outputs["iou_scores"][0, 0].argmax(), ..., None]
    side = framed.tensor.shape[2]
    whole: NDArray[np.bool_] = hosts.neighbours(hosts.neighbours(low, (side, side)), framed.image_hw)[..., 0] > 0
    return whole


def out_of_square_usls(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """Cut off the padding, scale between neighbours; logits below 1/255 round to 0."""
    low = next(iter(outputs.values()))[0, 0]
    inside = [round(side * low.shape[0] / max(framed.image_hw)) for side in framed.image_hw]
    whole: NDArray[np.bool_] = hosts.neighbours(low[: inside[0], : inside[1], None], framed.image_hw)[..., 0] >= 1 / 255
    return whole
