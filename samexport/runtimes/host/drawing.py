"""Masks and prompts drawn on pictures: overlays, and panels of several masks with their scores. Numpy and Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from samexport.errors import ImageError
from samexport.runtimes.host.frames import resize_longest
from samexport.runtimes.host.image import check_image, strips

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
    check_image(image)
    if masks.shape[1:] != image.shape[:2]:
        raise ImageError(f"masks of an image {list(image.shape[:2])} are [M, H, W], got {list(masks.shape)}")
    largest_first = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    canvas = draw_masks(image, ((int(i), 0, 0, masks[i].astype(np.bool_)) for i in largest_first), opacity)
    draw_prompts(canvas, points=points, labels=labels, boxes=boxes)
    return canvas


def draw_prompts(
    canvas: NDArray[np.uint8], *, points: ArrayLike = (), labels: ArrayLike = (), boxes: ArrayLike = ()
) -> None:
    """Draw prompts as :func:`overlay` does, in place."""
    unit = _line_width(canvas)
    radius = 7 * unit
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    clicks = [
        (round(x) - radius, round(y) - radius, _marker(radius, positive=bool(label == 1)))
        for (x, y), label in zip(np.asarray(points, np.float64).reshape(-1, 2), np.ravel(labels), strict=True)
    ]

    def paint(strip: Image.Image, top: int) -> None:
        for box in corners:
            _rectangle(strip, top, box, unit, (0, 0, 0), 3 * unit)
            _rectangle(strip, top, box, 0, (255, 255, 255), unit)
        for left, upper, marker in clicks:
            strip.paste(marker, (left, upper - top), marker)

    if len(corners) or clicks:
        _paint_strips(canvas, paint)


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


def outline_boxes(canvas: NDArray[np.uint8], boxes: Mapping[int, Sequence[float]]) -> None:
    """Draw boxes x0, y0, x1, y1, by number, in the colours of :func:`draw_masks`, in place."""
    line = _line_width(canvas)

    def paint(strip: Image.Image, top: int) -> None:
        for number, box in boxes.items():
            _rectangle(strip, top, box, line, (0, 0, 0), 4 * line)
            _rectangle(strip, top, box, 0, PALETTE[number % len(PALETTE)], 2 * line)

    if boxes:
        _paint_strips(canvas, paint)


@dataclass(frozen=True, eq=False)
class Panel:
    """One mask on a sheet of panels.

    Attributes:
        title: shown above it.
        number: chooses its colour.
        mask: bool [H, W], at the size of the picture.
        points: [P, 2], x and y in pixels of the picture.
        labels: [P], 1 or 0.
        boxes: [B, 4], x0, y0, x1, y1 in pixels of the picture.
    """

    title: str
    number: int
    mask: NDArray[np.bool_]
    points: ArrayLike = field(default=())
    labels: ArrayLike = field(default=())
    boxes: ArrayLike = field(default=())


def panel_sheet(
    image: NDArray[np.uint8], panels: Iterable[Panel], *, columns: int, legend: str = "", side: int = 640
) -> NDArray[np.uint8]:
    """Masks side by side, each on a copy of the picture of its own, row by row; uint8 [h, w, 3].

    The long side of a panel is that of the picture, but 320 at least and ``side`` at most. One panel at a time is
    taken, so ``panels`` may make their masks on the way.

    Raises:
        ImageError: the image is not uint8 [H, W, 3].
    """
    small = resize_longest(image, min(max(320, *image.shape[:2]), side))
    height, width = small.shape[:2]
    rows, left = ((np.arange(n) + 0.5) * (whole / n) for n, whole in zip((height, width), image.shape, strict=False))
    across = width / image.shape[1], height / image.shape[0]
    font = ImageFont.load_default(16)
    tiles = []
    for panel in panels:
        mask = panel.mask[rows.astype(np.intp)][:, left.astype(np.intp)]
        drawn = draw_masks(small, [(panel.number, 0, 0, mask)])
        points = np.asarray(panel.points, np.float64).reshape(-1, 2) * across
        boxes = np.asarray(panel.boxes, np.float64).reshape(-1, 4) * (across * 2)
        draw_prompts(drawn, points=points, labels=panel.labels, boxes=boxes)
        tiles.append(_titled(drawn, panel, font))
    return _sheet(tiles, columns, legend, font)


_GAP, _BAR = 8, 26


def _titled(drawn: NDArray[np.uint8], panel: Panel, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    height, width = drawn.shape[:2]
    tile = Image.new("RGB", (max(width, round(font.getlength(panel.title)) + _BAR), _BAR + height), (255, 255, 255))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 5, 15, 20), fill=PALETTE[panel.number % len(PALETTE)])
    draw.text((22, 3), panel.title, (0, 0, 0), font)
    tile.paste(Image.fromarray(drawn), (0, _BAR))
    return tile


def _sheet(
    tiles: Sequence[Image.Image], columns: int, legend: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> NDArray[np.uint8]:
    cell_width = _GAP + max((tile.width for tile in tiles), default=0)
    cell_height = _GAP + max((tile.height for tile in tiles), default=0)
    bottom = -(-len(tiles) // columns) * cell_height + _GAP
    width = max(min(columns, len(tiles)) * cell_width, round(font.getlength(legend)) + _GAP) + _GAP
    sheet = Image.new("RGB", (width, bottom + (_BAR if legend else 0)), (255, 255, 255))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (_GAP + column * cell_width, _GAP + row * cell_height))
    ImageDraw.Draw(sheet).text((_GAP, bottom), legend, (60, 60, 60), font)
    return np.array(sheet)


def _paint_strips(canvas: NDArray[np.uint8], paint: Callable[[Image.Image, int], None]) -> None:
    """Let ``paint`` draw on each strip of the canvas, whose first row it is told."""
    for rows in strips((canvas.shape[0], canvas.shape[1])):
        strip = Image.fromarray(canvas[rows])
        paint(strip, rows.start)
        canvas[rows] = np.asarray(strip)


def _rectangle(
    strip: Image.Image, top: int, box: Sequence[float] | NDArray[np.float64], grow: int,
    colour: tuple[int, int, int], width: int,
) -> None:  # fmt: skip
    # whole pixels first: Pillow rounds towards zero, which for a strip is another place than for the picture
    x0, y0, x1, y1 = (int(value) for value in (box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow))
    ImageDraw.Draw(strip).rectangle((x0, y0 - top, x1, y1 - top), outline=colour, width=width)


def _line_width(image: NDArray[np.uint8]) -> int:
    """Grows with the picture, but not with the length of a thin one, whose markers would have no room."""
    short, long = sorted(map(int, image.shape[:2]))
    return max(1, round(min(long, 4 * short) / 500))


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
