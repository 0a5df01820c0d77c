"""Masks and prompts drawn on pictures: overlays, and panels of several masks with their scores. Numpy and Pillow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from samexport.errors import ImageError
from samexport.runtimes.host.image import check_image

PALETTE = (
    (30, 144, 255),
    (255, 127, 14),
    (46, 204, 64),
    (240, 50, 130),
    (255, 221, 0),
    (150, 80, 230),
    (0, 215, 215),
    (230, 40, 40),
    (170, 240, 90),
    (255, 150, 200),
)
"""Mask colours, RGB; neighbours differ in hue and in lightness. Mask i has colour i modulo the length."""


def overlay(
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    *,
    points: ArrayLike = (),
    labels: ArrayLike = (),
    boxes: ArrayLike = (),
    opacity: float = 0.45,
) -> NDArray[np.uint8]:
    """Draw masks [M, H, W] and their prompts over uint8 RGB [H, W, 3]; returns a new uint8 [H, W, 3].

    Large masks are painted first, so small ones stay visible; line widths grow with the picture.

    Args:
        image: the picture.
        masks: mask i is filled and outlined in colour i of ``PALETTE``.
        points: [P, 2], x and y in pixels.
        labels: [P]; 1 is drawn as a green plus, 0 as a red minus.
        boxes: [B, 4], x0, y0, x1, y1 in pixels.
        opacity: of the filling, 0..1.

    Raises:
        ImageError: the image is not uint8 [H, W, 3], or the masks have another size.
    """
    _check_image(image)
    if masks.shape[1:] != image.shape[:2]:
        raise ImageError(f"masks of an image {list(image.shape[:2])} are [M, H, W], got {list(masks.shape)}")
    unit = _line_width(image)
    largest_first = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    filled = draw_masks(image, ((int(i), 0, 0, masks[i].astype(np.bool_)) for i in largest_first), opacity)
    picture = Image.fromarray(filled)
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in np.asarray(boxes, np.float64).reshape(-1, 4):
        draw.rectangle((x0 - unit, y0 - unit, x1 + unit, y1 + unit), outline=(0, 0, 0), width=3 * unit)
        draw.rectangle((x0, y0, x1, y1), outline=(255, 255, 255), width=unit)
    radius = 7 * unit
    for (x, y), label in zip(np.asarray(points, np.float64).reshape(-1, 2), np.ravel(labels), strict=True):
        marker = _marker(radius, positive=bool(label == 1))
        picture.paste(marker, (round(x) - radius, round(y) - radius), marker)
    return np.array(picture)


def draw_masks(
    image: NDArray[np.uint8], masks: Iterable[tuple[int, int, int, NDArray[np.bool_]]], opacity: float = 0.45
) -> NDArray[np.uint8]:
    """Paint masks, one after the other, over uint8 RGB [H, W, 3]; returns a new uint8 [H, W, 3].

    Args:
        image: the picture.
        masks: in the order of painting; of each a number, which chooses its colour, x and y of a rectangle that
            contains the mask, and the pixels [h, w] of that rectangle.
        opacity: of the filling, 0..1.
    """
    canvas, line = image.copy(), _line_width(image) + 1
    for number, left, top, mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            # the mask's own pixels, and as much around as its outline needs
            y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            place = slice(top + y.start, top + y.stop), slice(left + x.start, left + x.stop)
            colour = PALETTE[number % len(PALETTE)]
            _paint_mask(
                canvas[place], image[place], mask[y, x], _inner(mask[y, x], place, image, line), colour, opacity
            )
    return canvas


def outline_boxes(image: NDArray[np.uint8], boxes: Mapping[int, Sequence[float]]) -> NDArray[np.uint8]:
    """Draw boxes x0, y0, x1, y1, by number, in the colours of :func:`draw_masks`; returns a new uint8 [H, W, 3]."""
    picture, line = Image.fromarray(image), _line_width(image)
    draw = ImageDraw.Draw(picture)
    for number, (x0, y0, x1, y1) in boxes.items():
        draw.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline=(0, 0, 0), width=4 * line)
        draw.rectangle((x0, y0, x1, y1), outline=PALETTE[number % len(PALETTE)], width=2 * line)
    return np.array(picture)


def _line_width(image: NDArray[np.uint8]) -> int:
    side: int = max(image.shape)
    return max(1, round(side / 500))


def _inner(
    mask: NDArray[np.bool_], place: tuple[slice, slice], image: NDArray[np.uint8], line: int
) -> NDArray[np.bool_]:
    """The mask without its outline, which is ``line`` pixels wide; none along the picture's own edges."""
    touches = [(part.start == 0, part.stop == side) for part, side in zip(place, image.shape, strict=False)]
    padded = np.pad(mask, line, mode="edge")
    for axis, ends in enumerate(touches):
        edges = np.moveaxis(padded, axis, 0)
        for touching, edge in zip(ends, (edges[:line], edges[len(edges) - line :]), strict=True):
            if not touching:
                edge[:] = False
    for axis in (0, 1):
        padded = np.moveaxis(_erode(np.moveaxis(padded, axis, 0), 2 * line + 1), 0, axis)
    return padded


def _erode(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Of the first axis: whether ``width`` pixels from here on are set; shorter by ``width - 1``."""
    covered, every = 1, mask
    while covered < width:
        step = min(covered, width - covered)
        every = every[: len(every) - step] & every[step:]
        covered += step
    return every


def _paint_mask(
    canvas: NDArray[np.uint8],
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    inner: NDArray[np.bool_],
    colour: tuple[int, int, int],
    opacity: float,
) -> None:
    """Fill and outline one mask, in place.

    The colour is mixed with ``image``, not with the masks painted before, so that overlaps stay clear.
    """
    for channel, value in enumerate(colour):
        mixed = np.round(np.arange(256) * (1 - opacity) + value * opacity).astype(np.uint8)
        canvas[..., channel][mask] = mixed[image[..., channel][mask]]
    canvas[mask & ~inner] = colour


def _marker(radius: int, *, positive: bool) -> Image.Image:
    """A green plus or a red minus on a disc with a white rim, RGBA, 2 * radius + 1 pixels wide."""
    side, oversampling = 2 * radius + 1, 8
    full = side * oversampling
    large = Image.new("RGBA", (full, full), (255, 255, 255, 0))
    draw = ImageDraw.Draw(large)
    rim, middle, arm, half = 0.12 * full, full / 2, 0.24 * full, 0.065 * full
    draw.ellipse((0, 0, full - 1, full - 1), fill=(255, 255, 255, 255))
    draw.ellipse((rim, rim, full - 1 - rim, full - 1 - rim), fill=(0, 150, 60, 255) if positive else (214, 30, 40, 255))
    draw.rectangle((middle - arm, middle - half, middle + arm, middle + half), fill=(255, 255, 255, 255))
    if positive:
        draw.rectangle((middle - half, middle - arm, middle + half, middle + arm), fill=(255, 255, 255, 255))
    return large.resize((side, side), Image.Resampling.BOX)
