"""Drawn scenes with exact masks: where objects lie, what covers what, and which object is part of which."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samexport.training.shapes import NUMBERS, REACH, SHAPES, inside
from samexport.training.surfaces import paint

LAYERS = 3
"""Slots of one object: itself and up to two parts that lie on it."""

HELD_OUT = 1 << 31
"""Seeds from here on belong to held-out scenes; training stays below. A CPU reads 32 bits of a seed alone."""


@dataclass(frozen=True)
class SceneSettings:
    """What is drawn.

    Attributes:
        size: side of the pictures in pixels.
        objects: most objects without their parts; the number is drawn so that its logarithm is even.
        texture: 0 for plain colours up to 1 for strong patterns, photographs, shadows and noise.
        ragged: share of the pictures that fill the frame only in part, as those that are not square do.
    """

    size: int
    objects: int = 40
    texture: float = 1.0
    ragged: float = 0.5


@dataclass(frozen=True)
class Scenes:
    """A batch of drawn pictures.

    Attributes:
        pictures: float32 [B, 3, S, S], RGB, whole numbers 0..255; what lies outside of a picture is ``VOID``'s.
        ids: int16 [B, S, S], the slot that is seen at each pixel: 0 the background, ``1 + LAYERS * g`` the g-th
            object, the following ones its parts, -1 outside of the picture.
        slots: slots of a picture, the background included.
    """

    pictures: Tensor
    ids: Tensor
    slots: int

    def areas(self) -> Tensor:
        """Pixels of each slot's whole object (an object's parts belong to it), int64 [B, slots]."""
        batch = len(self.ids)
        flat = self.ids.flatten(1).long() + 1
        offset = torch.arange(batch, device=flat.device)[:, None] * (self.slots + 1)
        counts = torch.bincount((flat + offset).flatten(), minlength=batch * (self.slots + 1))
        own = counts.view(batch, -1)[:, 1:]
        groups = own[:, 1:].view(batch, -1, LAYERS)
        whole = torch.cat([groups.sum(2, keepdim=True), groups[:, :, 1:]], dim=2)
        return torch.cat([own[:, :1], whole.flatten(1)], dim=1)

    def seen(self) -> Tensor:
        """Slots of which enough is seen to ask for them: 1/2048 of the frame, 96 pixels; bool [B, slots]."""
        return self.areas() >= max(96, self.ids.shape[-1] ** 2 // 2048)

    def masks(self, chosen: Tensor) -> Tensor:
        """The visible masks of the slots ``chosen`` [B, P], bool [B, P, S, S]; an object's mask includes its parts."""
        ids, slot = self.ids[:, None], chosen[:, :, None, None]
        last = torch.where((slot > 0) & ((slot - 1) % LAYERS == 0), slot + LAYERS - 1, slot)
        return (ids >= slot) & (ids <= last)


@dataclass(frozen=True)
class _Layout:
    """Objects and parts of a batch in one list, E long, by picture and by depth."""

    picture: Tensor
    slot: Tensor
    whole: Tensor
    centre: Tensor
    scale: Tensor
    angle: Tensor
    kind: Tensor
    numbers: Tensor


def draw(count: int, settings: SceneSettings, generator: torch.Generator) -> Scenes:
    """Draw ``count`` scenes on the generator's device; the same generator state gives the same scenes."""
    layout = _lay_out(count, settings, generator)
    size = settings.size
    ids = _see(layout, count, size)
    slots = 1 + LAYERS * settings.objects
    pictures = paint(ids, layout.picture, layout.slot, layout.centre, layout.scale, slots, settings.texture, generator)
    outside = _outside(count, size, settings.ragged, generator)
    return Scenes(pictures, torch.where(outside, -1, ids).to(torch.int16), slots)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _between(low: float, high: float, numbers: Tensor) -> Tensor:
    return low + (high - low) * numbers


def _lay_out(count: int, settings: SceneSettings, generator: torch.Generator) -> _Layout:
    groups = settings.objects
    drawn = _random(generator, count, 1, 3)
    number = (groups ** drawn[..., 0]).round()
    # many objects are smaller ones; larger ones lie further back, so that they do not hide the others
    largest = (1.1 / number.sqrt()).clamp(max=0.45)
    smallest = (0.02 + 0.1 * drawn[..., 1]).minimum(0.6 * largest)
    size = smallest * (largest / smallest) ** _random(generator, count, groups)
    size = size.sort(dim=1, descending=True).values * _between(0.8, 1.25, _random(generator, count, groups))
    exists = torch.zeros(count, groups, LAYERS, dtype=torch.bool, device=generator.device)
    exists[..., 0] = torch.arange(groups, device=generator.device) < number
    parted = _random(generator, count, groups, 2)
    exists[..., 1] = exists[..., 0] & (parted[..., 0] < 0.35)
    exists[..., 2] = exists[..., 1] & (parted[..., 1] < 0.4)

    picture, group, layer = exists.nonzero(as_tuple=True)
    total = len(picture)
    index = torch.full((count, groups), -1, device=generator.device)
    index[picture[layer == 0], group[layer == 0]] = (layer == 0).nonzero()[:, 0]
    whole = index[picture, group]
    stretch = torch.exp(_between(-0.6, 0.6, _random(generator, total)))
    own = size[picture, group]
    scale = torch.stack([own * stretch, own / stretch], dim=1)
    angle = 2 * math.pi * _random(generator, total)
    centre = _between(-0.02, 1.02, _random(generator, total, 2))
    part = layer > 0
    # a part lies in its whole's own coordinates
    shift = _between(-0.55, 0.55, _random(generator, total, 2)) * scale[whole]
    cos, sin = angle[whole].cos(), angle[whole].sin()
    turned = torch.stack([shift[:, 0] * cos - shift[:, 1] * sin, shift[:, 0] * sin + shift[:, 1] * cos], dim=1)
    shrink = _between(0.25, 0.6, _random(generator, total, 1))
    centre = torch.where(part[:, None], centre[whole] + turned, centre)
    scale = torch.where(part[:, None], scale[whole] * shrink, scale)
    weights = torch.tensor([weight for _, weight in SHAPES], device=generator.device)
    kind = torch.multinomial(weights, total, replacement=True, generator=generator)
    return _Layout(
        picture,
        1 + LAYERS * group + layer,
        whole,
        centre,
        scale,
        torch.where(part & (_random(generator, total) < 0.5), angle[whole], angle),
        kind,
        _random(generator, total, NUMBERS),
    )


def _see(layout: _Layout, count: int, size: int) -> Tensor:
    """The slot at each pixel, int32 [B, S, S]: the highest of all outlines that cover it.

    Each outline is evaluated in a window around it alone; windows of a size go together.
    """
    ids = torch.zeros(count * size * size, dtype=torch.int32, device=layout.slot.device)
    sides = 2 * REACH * layout.scale.amax(1) * size + 2
    widths = [w for w in (32, 64, 128, 256, 512) if w < size] + [size]
    fits = torch.bucketize(sides, torch.tensor(widths[:-1], device=ids.device))
    for index, width in enumerate(widths):
        # in turns, so that memory does not grow with the number of objects
        for chosen in torch.split((fits == index).nonzero()[:, 0], max(1, (1 << 26) // width**2)):
            if len(chosen):
                corner = (layout.centre[chosen] * size - width / 2).round().long() * int(width < size)
                _see_window(ids, layout, chosen, corner[..., None] + torch.arange(width, device=ids.device), size)
    return ids.view(count, size, size)


def _see_window(ids: Tensor, layout: _Layout, chosen: Tensor, axes: Tensor, size: int) -> None:
    """Write the ``chosen`` outlines into ``ids``; ``axes`` [chosen, 2, W] has their windows' columns and rows."""
    shown = _covered(layout, chosen, (axes + 0.5) / size)
    parts = (layout.whole[chosen] != chosen).nonzero()[:, 0]
    if len(parts):
        # a part ends where its whole ends
        shown[parts] &= _covered(layout, layout.whole[chosen[parts]], (axes[parts] + 0.5) / size)
    exists = (axes >= 0) & (axes < size)
    columns, rows = axes.clamp(0, size - 1).unbind(1)
    shown &= exists[:, 0, None, :] & exists[:, 1, :, None]
    pixel = (layout.picture[chosen, None] * size + rows)[:, :, None] * size + columns[:, None, :]
    depth = shown * layout.slot[chosen, None, None].int()
    ids.scatter_reduce_(0, pixel.flatten(), depth.flatten(), "amax")


def _covered(layout: _Layout, chosen: Tensor, axes: Tensor) -> Tensor:
    """The outlines of ``chosen`` objects, hidden parts included, in windows of ``axes`` [chosen, 2, W] in shares."""
    dx = axes[:, 0, None, :] - layout.centre[chosen, 0, None, None]
    dy = axes[:, 1, :, None] - layout.centre[chosen, 1, None, None]
    cos, sin = (f(layout.angle[chosen])[:, None, None] for f in (torch.cos, torch.sin))
    u = (dx * cos + dy * sin) / layout.scale[chosen, 0, None, None]
    v = (dy * cos - dx * sin) / layout.scale[chosen, 1, None, None]
    return inside(layout.kind[chosen], u, v, layout.numbers[chosen]) & (u.square() + v.square() < REACH**2)


def _outside(count: int, size: int, ragged: float, generator: torch.Generator) -> Tensor:
    """Pixels below or right of pictures that do not fill the frame, bool [B, S, S]."""
    axis = (torch.arange(size, device=generator.device) + 0.5) / size
    drawn = _random(generator, count, 3)
    edge = torch.where(drawn[:, 0] < ragged, _between(0.5, 1.0, drawn[:, 1]), torch.ones_like(drawn[:, 0]))
    wide = drawn[:, 2] < 0.5
    beyond = axis[None, :] >= edge[:, None]
    return torch.where(wide[:, None, None], beyond[:, :, None], beyond[:, None, :])
