"""What a mask costs: focal and dice loss, and the error of the predicted IoU.

Source: Segment Anything (arXiv 2304.02643), section A "Training": 20 x focal + dice, mean square error of the IoU,
and of several masks only the cheapest one is taught.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT = 20.0


@dataclass(frozen=True)
class Losses:
    """Means over the prompts of a batch, scalars; ``iou`` is the mean IoU of ``single`` and ``best`` of the best."""

    total: Tensor
    mask: Tensor
    score: Tensor
    single: Tensor
    best: Tensor


def mask_losses(logits: Tensor, soft: Tensor) -> Tensor:
    """20 x focal + dice of each mask.

    Args:
        logits: [M, T, L, L].
        soft: wanted share of each cell, 0..1, [M, L, L].

    Returns:
        [M, T].
    """
    logits, wanted = logits.float(), soft[:, None].expand_as(logits)
    chance = logits.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    # gamma 2: what is nearly right counts little; alpha 0.25
    focal = cross * (chance - wanted).square() * (0.25 * wanted + 0.75 * (1 - wanted))
    overlap = (chance * wanted).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (chance.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    return FOCAL_WEIGHT * focal.mean((2, 3)) + dice


def mask_ious(logits: Tensor, soft: Tensor) -> Tensor:
    """IoU of the masks ``logits > 0`` [M, T, L, L] with ``soft > 0.5`` [M, L, L]; both empty counts as 1. [M, T]."""
    found, wanted = logits > 0, soft[:, None] > 0.5
    both, either = (found & wanted).sum((2, 3)), (found | wanted).sum((2, 3))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def losses(logits: Tensor, scores: Tensor, soft: Tensor) -> Losses:
    """The loss of four masks for each prompt: mask 0 answers alone, of masks 1..3 the cheapest one is taught.

    Args:
        logits: [M, 4, L, L].
        scores: predicted IoU, [M, 4].
        soft: wanted share of each cell, [M, L, L].
    """
    costs = mask_losses(logits, soft)
    mask = (costs[:, 0] + costs[:, 1:].amin(1)).mean()
    with torch.no_grad():
        ious = mask_ious(logits, soft)
    score = F.mse_loss(scores.float(), ious)
    return Losses(mask + score, mask.detach(), score.detach(), ious[:, 0].mean(), ious[:, 1:].amax(1).mean())
