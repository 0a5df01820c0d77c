"""What drawn objects look like: colours, patterns, pieces of photographs, shading, shadows, blur and noise."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

_PHOTOGRAPHS = ("brick", "grass", "gravel", "coffee", "chelsea", "rocket", "astronaut")
"""Pictures that scikit-image carries, all in the public domain or CC0 (``skimage/data/README.txt``)."""
_TILE = 384
_KINDS = 5
_NUMBERS = 20


@functools.cache
def _photographs(device: torch.device) -> Tensor:
    """Side by side, [1, 3, 384, 384 * n], 0..255."""
    import numpy as np
    import skimage.data
    from PIL import Image

    tiles = []
    for name in _PHOTOGRAPHS:
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((_TILE, _TILE))
        tiles.append(torch.from_numpy(np.array(picture)))
    return torch.cat(tiles, dim=1).permute(2, 0, 1)[None].to(device).float()


@functools.cache
def _cloud(device: torch.device) -> Tensor:
    """Noise of several octaves, [1, 1, 256, 256], about 0..1; the same everywhere and always."""
    generator = torch.Generator().manual_seed(20)
    total = torch.zeros(1, 1, 256, 256)
    for octave in range(6):
        coarse = torch.rand(1, 1, 4 << octave, 4 << octave, generator=generator) - 0.5
        total += F.interpolate(coarse, size=256, mode="bicubic") / 1.5**octave
    return (0.5 + total / (4 * total.std())).to(device)


def _mirrored(x: Tensor) -> Tensor:
    """Any number into [0, 1], back and forth."""
    return 1 - (torch.remainder(x, 2) - 1).abs()


def paint(
    ids: Tensor,
    picture: Tensor,
    slot: Tensor,
    centre: Tensor,
    scale: Tensor,
    slots: int,
    texture: float,
    generator: torch.Generator,
) -> Tensor:
    """Pictures of a map of slots.

    Args:
        ids: int32 [B, S, S], the slot at each pixel, 0 for the background; a higher one lies above.
        picture: of each object, [E].
        slot: its number in the picture, [E].
        centre: in shares of the side, [E, 2].
        scale: likewise.
        slots: slots of a picture.
        texture: 0 plain up to 1.
        generator: of the random numbers, on the device of ``ids``.

    Returns:
        float32 [B, 3, S, S], whole numbers 0..255.
    """
    batch, size, _ = ids.shape
    numbers = torch.rand(batch, slots, _NUMBERS, generator=generator, device=ids.device)
    place = torch.tensor([0.5, 0.5, 0.7], device=ids.device).expand(batch, slots, 3).clone()
    place[picture, slot] = torch.cat([centre, scale.mean(1, keepdim=True)], dim=1)
    flat = ids.flatten(1).long()
    look = _gather(numbers, flat)
    x0, y0, reach = _gather(place, flat).unbind(-1)
    axis = (torch.arange(size, device=ids.device) + 0.5) / size
    u = (axis.repeat(size) - x0) / reach
    v = (axis.repeat_interleave(size) - y0) / reach
    colour = _coloured(look, u, v, reach, texture)
    light = 1 + texture * 0.6 * ((look[..., 10] - 0.5) * u + (look[..., 11] - 0.5) * v).clamp(-1, 1)
    ball = (look[..., 12] < 0.3) * 0.4 * texture * (u.square() + v.square()).clamp(max=1)
    colour = colour * (light - ball)[..., None]
    image = colour.view(batch, size, size, 3).permute(0, 3, 1, 2)
    image = image * _shadows(ids, texture, generator)
    return _photographed(image, texture, generator)


def _gather(table: Tensor, flat: Tensor) -> Tensor:
    """Rows of [B, slots, C] at [B, pixels], [B, pixels, C]."""
    picture = torch.arange(len(table), device=flat.device)[:, None]
    return table[picture, flat]


def _coloured(look: Tensor, u: Tensor, v: Tensor, reach: Tensor, texture: float) -> Tensor:
    """The colour of each pixel, 0..255, [B, pixels, 3]: two colours and the pattern between them, or a photograph."""
    first = look[..., :3]
    second = (first + texture * (2 * look[..., 3:6] - 1)).clamp(0, 1)
    turn = 2 * math.pi * look[..., 6]
    along = u * turn.cos() + v * turn.sin() + look[..., 7]
    across = v * turn.cos() - u * turn.sin() + look[..., 8]
    pace = 1 + 7 * look[..., 9] ** 2
    hard = 1 + 8 * look[..., 13]
    stripes = torch.sin(math.pi * pace * along)
    checks = stripes * torch.sin(math.pi * pace * across)
    points = torch.stack([2 * _mirrored(along * pace / 4) - 1, 2 * _mirrored(across * pace / 4) - 1], dim=-1)
    clouds = F.grid_sample(_cloud(u.device).expand(len(u), -1, -1, -1), points[:, None], align_corners=False)[:, 0, 0]
    kind = (look[..., 14] * _KINDS).floor()
    patterns = (
        torch.zeros_like(u),
        (0.5 + 0.5 * along).clamp(0, 1),
        0.5 + 0.5 * torch.tanh(hard * stripes),
        0.5 + 0.5 * torch.tanh(hard * checks),
        clouds.clamp(0, 1),
    )
    mix = torch.zeros_like(u)
    for index, pattern in enumerate(patterns):
        mix = torch.where(kind == index, pattern, mix)
    colour = 255 * torch.lerp(first, second, mix[..., None])
    return torch.lerp(colour, _photograph_at(look, along * reach, across * reach), _share(look, texture)[..., None])


def _share(look: Tensor, texture: float) -> Tensor:
    """How much of a surface is a photograph: mostly nothing."""
    return ((look[..., 15] < 0.35 * texture) * (0.3 + 0.7 * look[..., 16])).clamp(max=1)


def _photograph_at(look: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """A piece of a photograph at a scale of its own, its colours shifted, [B, pixels, 3]."""
    atlas = _photographs(along.device)
    zoom = 0.5 + 2.5 * look[..., 17]
    margin = 1 / _TILE
    x = margin + (1 - 2 * margin) * _mirrored(zoom * along + 2 * look[..., 18])
    y = _mirrored(zoom * across + 2 * look[..., 19])
    chosen = (look[..., 7] * len(_PHOTOGRAPHS)).floor()
    points = torch.stack([2 * (chosen + x) / len(_PHOTOGRAPHS) - 1, 2 * y - 1], dim=-1)
    seen = F.grid_sample(atlas.expand(len(points), -1, -1, -1), points[:, None], align_corners=False)[:, :, 0]
    return seen.transpose(1, 2) * (0.6 + 0.8 * look[..., 3:6])


def _shadows(ids: Tensor, texture: float, generator: torch.Generator) -> Tensor:
    """Light left at each pixel, [B, 1, S, S]: what lies higher darkens what lies lower beside it."""
    batch, size, _ = ids.shape
    drawn = torch.rand(batch + 2, generator=generator, device=ids.device)
    dx, dy = (round(size * 0.06 * (float(n) - 0.5)) for n in drawn[:2])
    higher = ids.roll((dy, dx), (1, 2))
    group, other = (ids + 2) // 3, (higher + 2) // 3
    shade = (other > group).float()[:, None]
    soft = max(1, size // 128) * 2 + 1
    shade = F.avg_pool2d(shade, soft, 1, soft // 2)
    strength = (drawn[2:] - 0.4).clamp(min=0) * texture
    # only what lies under something is darkened, not the object itself
    return 1 - strength[:, None, None, None] * shade * (other >= group)[:, None]


def _photographed(image: Tensor, texture: float, generator: torch.Generator) -> Tensor:
    """Exposure, a soft lens, noise, and eight bits."""
    batch = len(image)
    drawn = torch.rand(batch, 6, generator=generator, device=image.device)
    grey = image.mean(1, keepdim=True)
    # most pictures are less colourful than random colours
    image = torch.lerp(image, grey, texture * 0.9 * drawn[:, 5, None, None, None])
    gain = 1 + texture * 0.5 * (drawn[:, 0] - 0.5)
    tint = 1 + texture * 0.2 * (drawn[:, 2:5] - 0.5)
    image = image * (gain[:, None] * tint)[..., None, None] + texture * 40 * (drawn[:, 1, None, None, None] - 0.5)
    sigma = 0.35 + 0.75 * float(torch.rand(1, generator=generator, device=image.device))
    kernel = torch.exp(-0.5 * (torch.arange(-2, 3, device=image.device) / sigma).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 5)
    image = F.conv2d(F.pad(image, (2, 2, 0, 0), mode="replicate"), kernel, groups=3)
    image = F.conv2d(F.pad(image, (0, 0, 2, 2), mode="replicate"), kernel.transpose(2, 3), groups=3)
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    strength = 10 * texture * torch.rand(batch, 1, 1, 1, generator=generator, device=image.device) ** 2
    return (image + strength * noise).clamp(0, 255).round()
