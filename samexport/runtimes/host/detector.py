"""Before and after the object-aware detector: a picture into its frame, its candidates into boxes. Numpy.

The reference that the Kotlin, Swift and JavaScript ports are checked against. Facts follow the released
MobileSAMv2 pipeline (arXiv 2312.09579): letterbox, confidence, NMS, border snap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError, ImageError

STRIDE = 32
"""The detector's coarsest stride."""

MAX_SIZE = 4096
"""Of the detector's input, which is square."""

PADDING = 114
"""Grey of the letterbox's bars."""

_COORDINATE_BITS = 11  # OpenCV's fixed point for bilinear weights


@dataclass(frozen=True)
class SamplerOptions:
    """How candidates become boxes; the defaults are those of MobileSAMv2's released code.

    Attributes:
        confidence: a candidate needs a higher score.
        nms_iou: of two boxes that overlap more than this, the one with the higher score stays.
        max_boxes: the best that are kept; the paper says 320, the code 300.
        border: a side of a box closer than this many pixels to the frame's edge moves onto it.
    """

    confidence: float = 0.4
    nms_iou: float = 0.9
    max_boxes: int = 300
    border: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.confidence <= 1 and 0 <= self.nms_iou <= 1):
            raise ConfigError(f"confidence and nms_iou lie in 0..1, got {self.confidence} and {self.nms_iou}")
        if self.max_boxes < 1 or not 0 <= self.border < np.inf:
            raise ConfigError(f"max_boxes is at least 1 and border at least 0, got {self.max_boxes} and {self.border}")


@dataclass(frozen=True)
class Letterbox:
    """Where a picture lies in the detector's input.

    The *frame* is the official input: the scaled picture with bars of at most half a stride, which make its
    sides multiples of 32. It lies ``left`` and ``top`` pixels into the square that a fixed-shape graph takes.

    Attributes:
        image_hw: height and width of the original picture.
        frame_hw: height and width of the frame.
        left: x of the frame in the input.
        top: y of the frame in the input.
    """

    image_hw: tuple[int, int]
    frame_hw: tuple[int, int]
    left: int = 0
    top: int = 0

    @property
    def scale(self) -> float:
        """Pixels of the frame per pixel of the original picture."""
        return min(self.frame_hw[0] / self.image_hw[0], self.frame_hw[1] / self.image_hw[1])


def check_size(size: int) -> None:
    """Refuse a side of the detector's input that is no multiple of 32, or too large to be meant.

    Raises:
        ConfigError: with the bounds.
    """
    if not STRIDE <= size <= MAX_SIZE or size % STRIDE:
        raise ConfigError(f"the sampler's image size is a multiple of {STRIDE}, {MAX_SIZE} at most, got {size}")


def letterbox(
    image: NDArray[np.uint8], size: int, *, rgb: bool = False, square: bool = True
) -> tuple[NDArray[np.float32], Letterbox]:
    """Make the sampler's ``image`` from uint8 RGB [H, W, 3].

    The long side becomes ``size`` (small pictures are enlarged), sides are rounded half to even, and bars of
    the grey ``PADDING`` fill up to the next multiple of 32, half of them on each side. With ``square`` more
    bars make it ``size`` x ``size``; they are whole strides wide, so that the detector's cells keep their
    places in the picture.

    Args:
        image: the picture.
        size: a multiple of 32, at most ``MAX_SIZE``.
        rgb: keep the channel order. The released code hands the network BGR, whatever it was trained with.
        square: for a graph of fixed shape; without it the input is the official, mostly oblong one.

    Returns:
        float32 [1, 3, h, w] in 0..255, and where the picture lies in it.

    Raises:
        ConfigError: ``size`` is not a positive multiple of 32, or too large.
        ImageError: not uint8 [H, W, 3], or empty.
    """
    check_size(size)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image is uint8 [H, W, 3] and not empty, got {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    resized = resize_as_opencv(image, max(1, round(height * scale)), max(1, round(width * scale)))
    frame = (_next_multiple(resized.shape[0]), _next_multiple(resized.shape[1]))
    top, left = ((size - side) // (2 * STRIDE) * STRIDE if square else 0 for side in frame)
    y, x = (round((side - new) / 2 - 0.1) for side, new in zip(frame, resized.shape, strict=False))
    shape = (size, size) if square else frame
    framed = np.full((1, 3, *shape), PADDING, np.float32)
    inside = framed[0, :, top + y : top + y + resized.shape[0], left + x : left + x + resized.shape[1]]
    inside[:] = (resized if rgb else resized[..., ::-1]).transpose(2, 0, 1)
    return framed, Letterbox((height, width), frame, left, top)


def _next_multiple(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def resize_as_opencv(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """OpenCV's bilinear resizing of 8-bit pictures (no antialiasing), to the last bit of its fixed point."""
    if image.shape[:2] == (height, width):
        return image
    first, second, near, far = _taps(image.shape[0], height)
    rows, row_of = np.unique(np.concatenate([first, second]), return_inverse=True)
    left, right, near_x, far_x = _taps(image.shape[1], width)
    left, right = np.clip(left, 0, None), np.clip(right, 0, image.shape[1] - 1)
    rows = np.clip(rows, 0, image.shape[0] - 1)[:, None]
    widened = (image[rows, left] * near_x[:, None] + image[rows, right] * far_x[:, None]) >> 4
    above, below = widened[row_of[:height]], widened[row_of[height:]]
    total = (above * near[:, None, None] >> 16) + (below * far[:, None, None] >> 16)
    resized: NDArray[np.uint8] = ((total + 2) >> 2).astype(np.uint8)
    return resized


def _taps(
    source: int, target: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Two source indices for each target pixel, not clipped, and their weights times 2048."""
    centre = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(centre)
    weight = centre - first
    one = np.float32(1 << _COORDINATE_BITS)
    index = first.astype(np.int64)
    return (
        index,
        index + 1,
        np.rint((1 - weight) * one).astype(np.int32),
        np.rint(weight * one).astype(np.int32),
    )


def postprocess(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    placed: Letterbox,
    options: SamplerOptions = SamplerOptions(),
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn the sampler's candidates into boxes of the original picture.

    Confidence, NMS, the best ``max_boxes``, border snap in the frame (bars included), back to the picture,
    clamped to it. Boxes that the clamping empties lay in the bars; they are dropped.

    Args:
        boxes: [K, 4] xyxy in pixels of the input that :func:`letterbox` made.
        scores: [K] in 0..1.
        placed: where the picture lies in the input.
        options: thresholds.

    Returns:
        boxes [M, 4] xyxy in pixels of the picture and scores [M], descending; M is 0 where nothing was found.
    """
    likely = np.flatnonzero(scores > np.float32(options.confidence))
    boxes, scores = boxes[likely], scores[likely]
    kept = nms(boxes, scores, options.nms_iou, options.max_boxes)
    boxes = boxes[kept] - np.array([placed.left, placed.top] * 2, np.float32)
    boxes = to_image(snap(boxes, placed.frame_hw, options.border), placed)
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes[solid], scores[kept][solid]


def nms(
    boxes: NDArray[np.floating], scores: NDArray[np.floating], iou: float, most: int | None = None
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression, torchvision's definition: indices that stay, by descending score.

    A box goes when its IoU with a better one that stays is above ``iou``; areas are (x1 - x0) * (y1 - y0);
    equal scores keep their order. Boxes [K, 4] xyxy, scores [K]; computed in float32. ``most`` ends the
    search once so many stay.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = np.ascontiguousarray(boxes.astype(np.float32)[order].T)
    areas = (x1 - x0) * (y1 - y0)
    alive = np.ones(len(order), np.bool_)
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) == most:
            break
        if not alive[i]:
            continue
        kept.append(i)
        rest = slice(i + 1, None)
        across = np.maximum(np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest]), 0)
        down = np.maximum(np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest]), 0)
        shared = across * down
        with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0, which is not above anything
            alive[rest] &= ~(shared / (areas[i] + areas[rest] - shared) > np.float64(iou))
    return order[kept]


def snap(boxes: NDArray[np.float32], frame_hw: tuple[int, int], border: float = 20.0) -> NDArray[np.float32]:
    """Move sides that are closer than ``border`` to the frame's edge onto it; boxes [M, 4] xyxy."""
    height, width = frame_hw
    low, high = boxes[:, :2], boxes[:, 2:]
    far = np.array([width, height], np.float32)
    return np.concatenate([np.where(low < border, 0, low), np.where(high > far - border, far, high)], axis=1)


def to_image(boxes: NDArray[np.float32], placed: Letterbox) -> NDArray[np.float32]:
    """From pixels of the frame to pixels of the picture, clamped to it; boxes [M, 4] xyxy."""
    (height, width), scale = placed.image_hw, placed.scale
    frame_height, frame_width = placed.frame_hw
    # the released code takes the bars from unrounded sides, so this may differ by 1 from where they are
    x, y = round((frame_width - width * scale) / 2 - 0.1), round((frame_height - height * scale) / 2 - 0.1)
    moved = (boxes - np.array([x, y, x, y], np.float32)) / np.float32(scale)
    return np.clip(moved, 0, np.array([width, height, width, height], np.float32))
