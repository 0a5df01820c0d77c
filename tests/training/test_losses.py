"""Losses worked out by hand."""

import math

import pytest
import torch

from samexport.training.losses import losses, mask_ious, mask_losses


def test_focal_and_dice_of_undecided_pixels():
    """One of three belongs to the mask, and each has a chance of one half."""
    logits, soft = torch.zeros(1, 1, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]])
    focal = (math.log(2) * 0.25 * 0.25 + 2 * math.log(2) * 0.25 * 0.75) / 3
    dice = 1 - (2 * 0.5 + 1) / (1.5 + 1 + 1)
    assert mask_losses(logits, soft).item() == pytest.approx(20 * focal + dice)


def test_focal_and_dice_of_a_half_filled_cell():
    """A chance of 0.8 where half of the cell belongs to the mask."""
    logits, soft = torch.full((1, 1, 1, 1), math.log(4)), torch.full((1, 1, 1), 0.5)
    cross = -0.5 * math.log(0.8) - 0.5 * math.log(0.2)
    focal = cross * 0.3**2 * 0.5
    dice = 1 - (2 * 0.4 + 1) / (0.8 + 0.5 + 1)
    assert mask_losses(logits, soft).item() == pytest.approx(20 * focal + dice, rel=1e-5)


def test_what_is_right_and_sure_costs_nothing():
    soft = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert mask_losses((soft[:, None] - 0.5) * 80, soft).item() == pytest.approx(0, abs=1e-6)


def test_iou_of_hand_made_masks():
    soft = torch.tensor([[[1.0, 1.0, 0.6, 0.4]], [[0.0, 0.0, 0.0, 0.0]]])
    found = torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]])
    logits = found[None, :, None].expand(2, 2, 1, 4)
    # three of four wanted or found, of which two are both; then nothing found; then one found too many
    assert mask_ious(logits, soft).tolist() == [[0.5, 0.0], [0.0, 1.0]]


def test_of_three_masks_only_the_cheapest_is_taught_and_the_first_always():
    soft = torch.zeros(1, 4, 4)
    soft[0, 1:3, 1:3] = 1.0
    logits = torch.zeros(1, 4, 4, 4)
    logits[0, 2] = (soft[0] - 0.5) * 2
    logits.requires_grad_(True)
    scores = torch.tensor([[0.5, 0.0, 1.0, 0.0]])
    found = losses(logits, scores, soft)
    each = mask_losses(logits, soft)[0]
    assert found.mask.item() == pytest.approx((each[0] + each[2]).item())
    assert found.score.item() == pytest.approx(0.5**2 / 4)
    assert found.total.item() == pytest.approx(found.mask.item() + found.score.item())
    assert (found.single.item(), found.best.item()) == (0.0, 1.0)
    found.total.backward()
    taught = logits.grad.abs().sum((0, 2, 3)) > 0
    assert taught.tolist() == [True, False, True, False]
