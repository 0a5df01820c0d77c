"""Outlines of drawn objects, as functions of their own coordinates, evaluated for many objects at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

NUMBERS = 16
"""Random numbers in [0, 1) that describe one outline."""

REACH = 1.45
"""No outline goes further from its centre, in its own coordinates; a box's corner is at 1.41."""

Shape = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(u, v) of each pixel [E, S, S] and the outlines' numbers [E, 16] to inside [E, S, S]; outlines fill about [-1, 1]."""

_GLYPHS = "ABCDEFGHJKLMNPQRSTUVWXYZ234679&?#@%$"
_GLYPH_SIDE = 96


def _column(numbers: Tensor, index: int) -> Tensor:
    return numbers[:, index, None, None]


def _blob(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A circle whose radius waves with the angle; without waves a disc."""
    angle, radius = torch.atan2(v, u), torch.hypot(u, v)
    strength = (_column(numbers, 0) * 2 - 1).clamp(min=0)
    edge = torch.ones_like(radius)
    for k in range(1, 6):
        wave = torch.cos(k * angle + 2 * math.pi * _column(numbers, k))
        edge = edge + strength * 0.5 * _column(numbers, 5 + k) / k**0.7 * wave
    return radius < 0.85 * edge


def _superellipse(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """From diamonds over ellipses to boxes."""
    power = 2.0 ** (4 * _column(numbers, 0))
    return u.abs().clamp(min=1e-4) ** power + v.abs().clamp(min=1e-4) ** power < 1


def _polygon(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """Three to eight half planes at uneven angles and distances."""
    sides = 3 + (numbers[:, 0] * 6).floor()
    furthest = torch.full_like(u, -math.inf)
    for k in range(8):
        angle = 2 * math.pi * (k + 0.5 * numbers[:, 1 + k % 7]) / sides
        reach = 0.6 + 0.3 * numbers[:, 8 + k % 7]
        plane = u * angle.cos()[:, None, None] + v * angle.sin()[:, None, None] - reach[:, None, None]
        used = (k < sides)[:, None, None]
        furthest = torch.where(used, torch.maximum(furthest, plane), furthest)
    return (furthest < 0) & (torch.hypot(u, v) < 1.3)


def _star(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A star with straight edges."""
    arms = 4 + (_column(numbers, 0) * 5).floor()
    inner = 0.35 + 0.35 * _column(numbers, 1)
    phase = torch.remainder(torch.atan2(v, u) * arms / (2 * math.pi), 1.0)
    part = (phase - 0.5).abs() * 2
    half = math.pi / arms
    # the edge from the tip (1, 0) to the notch at the angle half, as a radius at the angle (1 - part) * half
    angle = (1 - part) * half
    edge = inner * half.sin() / (inner * (half - angle).sin() + angle.sin()).clamp(min=1e-4)
    return torch.hypot(u, v) < torch.minimum(edge, torch.ones_like(edge))


def _ring(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A ring, at times an open one."""
    radius = torch.hypot(u, v)
    open_from = math.pi * (0.4 + 1.2 * _column(numbers, 1))
    gap = (torch.atan2(v, u).abs() > open_from) & (_column(numbers, 2) < 0.4)
    return (radius < 1) & (radius > 0.35 + 0.5 * _column(numbers, 0)) & ~gap


def _stroke(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A bent line of even width: a cubic Bezier curve as a chain of capsules."""
    points = 1.8 * numbers[:, :8].view(-1, 4, 2) - 0.9
    points[:, 0, 0], points[:, 3, 0] = -0.9, 0.9
    t = torch.linspace(0, 1, 13, device=u.device)[None, :, None]
    curve = sum(math.comb(3, k) * t**k * (1 - t) ** (3 - k) * points[:, k, None] for k in range(4))  # [E, 13, 2]
    assert isinstance(curve, Tensor)
    nearest = torch.full_like(u, math.inf)
    for start, end in zip(curve.unbind(1)[:-1], curve.unbind(1)[1:], strict=True):
        along, length = end - start, (end - start).square().sum(1).clamp(min=1e-6)
        du, dv = u - start[:, 0, None, None], v - start[:, 1, None, None]
        share = (du * along[:, 0, None, None] + dv * along[:, 1, None, None]) / length[:, None, None]
        share = share.clamp(0, 1)
        away = (du - share * along[:, 0, None, None]).square() + (dv - share * along[:, 1, None, None]).square()
        nearest = torch.minimum(nearest, away)
    return nearest < (0.04 + 0.16 * _column(numbers, 8)) ** 2


def _mug(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A body with a handle."""
    body = _superellipse((u + 0.25) / 0.65, v / 0.8, numbers)
    radius = torch.hypot(u - 0.4, v / (0.6 + 0.4 * _column(numbers, 3)))
    handle = (radius < 0.5) & (radius > 0.2 + 0.15 * _column(numbers, 2)) & (u > 0.3)
    return body | handle


def _holed(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A blob with a round hole off its centre."""
    hole = torch.hypot(u - 0.5 * _column(numbers, 12) + 0.25, v - 0.5 * _column(numbers, 13) + 0.25)
    return _blob(u, v, numbers) & (hole > 0.2 + 0.25 * _column(numbers, 14))


@functools.cache
def _glyphs(device: torch.device) -> Tensor:
    """[glyphs, 1, 96, 96], ink 1, each stretched to the edges."""
    font = ImageFont.load_default(2 * _GLYPH_SIDE)
    tiles = []
    for letter in _GLYPHS:
        page = Image.new("L", (4 * _GLYPH_SIDE, 4 * _GLYPH_SIDE))
        ImageDraw.Draw(page).text((_GLYPH_SIDE, _GLYPH_SIDE // 2), letter, 255, font=font, stroke_width=4)
        tile = page.crop(page.getbbox()).resize((_GLYPH_SIDE, _GLYPH_SIDE))
        tiles.append(torch.frombuffer(bytearray(tile.tobytes()), dtype=torch.uint8).view(_GLYPH_SIDE, _GLYPH_SIDE))
    return torch.stack(tiles)[:, None].to(device).float() / 255


def _letter(u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """A letter or digit of Pillow's own font."""
    tiles = _glyphs(u.device)
    chosen = tiles[(numbers[:, 0] * len(tiles)).long()]
    inked: Tensor = F.grid_sample(chosen, torch.stack([u, v], dim=-1), align_corners=False)[:, 0]
    return inked > 0.5


SHAPES: tuple[tuple[Shape, float], ...] = (
    (_blob, 4),
    (_superellipse, 4),
    (_polygon, 3),
    (_star, 1),
    (_ring, 1),
    (_stroke, 1.5),
    (_mug, 1),
    (_holed, 1),
    (_letter, 1.5),
)
"""Each outline and how often it is drawn."""


def inside(kind: Tensor, u: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    """Which pixels lie in which outline.

    Args:
        kind: [E], index into ``SHAPES``.
        u: each object's own coordinate of each pixel, [E, S, S].
        v: the other one, likewise.
        numbers: [E, 16] in [0, 1).

    Returns:
        bool [E, S, S].
    """
    found = torch.zeros(u.shape, dtype=torch.bool, device=u.device)
    for index, (shape, _) in enumerate(SHAPES):
        chosen = (kind == index).nonzero()[:, 0]
        if len(chosen):
            found[chosen] = shape(u[chosen], v[chosen], numbers[chosen])
    return found
