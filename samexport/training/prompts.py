"""Prompts for drawn scenes: which object is meant, clicks, boxes, and the click that corrects a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samexport.training.scenes import Scenes

PAD, OUTSIDE, INSIDE, CORNER_0, CORNER_1 = -1.0, 0.0, 1.0, 2.0, 3.0
"""Labels of points, as SAM's prompt encoder knows them."""


@dataclass(frozen=True)
class Targets:
    """What is asked for.

    Attributes:
        masks: bool [B, P, S, S].
        soft: share of each low-resolution cell that the mask fills, float32 [B, P, S / 4, S / 4].
    """

    masks: Tensor
    soft: Tensor


@dataclass(frozen=True)
class Points:
    """Prompts as the prompt encoder takes them: ``coords`` [M, K, 2] in pixels (x, y), ``labels`` [M, K]."""

    coords: Tensor
    labels: Tensor

    def with_point(self, coords: Tensor, label: Tensor) -> Points:
        """One more point each, [M, 2] and [M], before the padding point if there is one, as SAM puts them."""
        last = self.labels[:, -1:]
        padded = last == PAD
        ends = torch.where(padded, label[:, None], last), torch.where(padded, last, label[:, None])
        where = torch.where(padded[..., None], coords[:, None], self.coords[:, -1:])
        then = torch.where(padded[..., None], self.coords[:, -1:], coords[:, None])
        return Points(
            torch.cat([self.coords[:, :-1], where, then], dim=1), torch.cat([self.labels[:, :-1], *ends], dim=1)
        )


def choose_targets(scenes: Scenes, prompts: int, generator: torch.Generator) -> Targets:
    """``prompts`` objects of each picture, drawn from those of which enough is seen.

    The background is chosen rarely. A picture without any object large enough gives its background.
    """
    weights = scenes.seen().float()
    weights[:, 0] = 0.15
    chosen = torch.multinomial(weights, prompts, replacement=True, generator=generator)
    masks = scenes.masks(chosen)
    soft = torch.nn.functional.avg_pool2d(masks.float(), 4)
    return Targets(masks, soft)


def _random_pixel(allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of the allowed pixels of each map, x and y as [M, 2], and whether there was one, from bool [M, H, W]."""
    drawn = torch.rand(allowed.shape, generator=generator, device=allowed.device) * allowed
    best, index = drawn.flatten(1).max(1)
    width = allowed.shape[-1]
    return torch.stack([index % width, index // width], dim=1).float(), best > 0


def first_clicks(masks: Tensor, generator: torch.Generator) -> Points:
    """A click anywhere on each mask, and the padding point; ``masks`` is bool [M, S, S]."""
    place, _ = _random_pixel(masks, generator)
    padding = torch.zeros_like(place)
    labels = torch.tensor([INSIDE, PAD], device=masks.device).expand(len(masks), 2)
    return Points(torch.stack([place, padding], dim=1), labels)


def boxes(masks: Tensor, generator: torch.Generator | None, jitter: float = 0.1) -> Points:
    """The box around each mask, its corners shifted by about a tenth of its sides, at most 20 of 1024 pixels.

    ``masks`` is bool [M, S, S]; without a generator the boxes are exact.
    """
    size = masks.shape[-1]
    columns, rows = masks.any(1), masks.any(2)
    axis = torch.arange(size, device=masks.device)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(line, axis, size).amin(1), torch.where(line, axis, -1).amax(1)

    (x0, x1), (y0, y1) = ends(columns), ends(rows)
    corners = torch.stack([x0, y0, x1, y1], dim=1).float()
    if generator is not None:
        sides = torch.stack([x1 - x0, y1 - y0], dim=1).float().repeat(1, 2)
        noise = torch.randn(corners.shape, generator=generator, device=masks.device) * jitter * sides
        most = 20 * size / 1024
        corners = corners + noise.clamp(-most, most)
    corners = corners.clamp(0, size - 1)
    labels = torch.tensor([CORNER_0, CORNER_1], device=masks.device).expand(len(masks), 2)
    return Points(corners.view(-1, 2, 2), labels)


def first_prompts(masks: Tensor, generator: torch.Generator) -> tuple[Points, Tensor]:
    """A click or a box for each mask, and which are boxes, bool [M]; ``masks`` is bool [M, S, S]."""
    clicks, corners = first_clicks(masks, generator), boxes(masks, generator)
    is_box = torch.rand(len(masks), generator=generator, device=masks.device) < 0.5
    coords = torch.where(is_box[:, None, None], corners.coords, clicks.coords)
    return Points(coords, torch.where(is_box[:, None], corners.labels, clicks.labels)), is_box


def corrections(found: Tensor, soft: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A click where a mask is wrong, or inside it if it is right.

    Args:
        found: logits [M, L, L] of the mask.
        soft: what it should be, share of each cell [M, L, L].
        generator: of the random numbers.

    Returns:
        coordinates [M, 2] in pixels of the frame (a cell is 4 pixels), and labels [M].
    """
    wanted = soft > 0.5
    wrong = (found > 0) != wanted
    at, any_wrong = _random_pixel(wrong, generator)
    inner, _ = _random_pixel(wanted, generator)
    cell = torch.where(any_wrong[:, None], at, inner)
    x, y = cell.long().unbind(1)
    label = torch.where(wanted[torch.arange(len(wanted), device=x.device), y, x], INSIDE, OUTSIDE)
    return 4 * cell + 1.5, label
