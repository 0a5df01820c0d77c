"""Areas of drawn outlines against the formulas of geometry."""

import math

import pytest
import torch

from samexport.training.shapes import NUMBERS, SHAPES, inside

KINDS = {shape.__name__.strip("_"): index for index, (shape, _) in enumerate(SHAPES)}
SIDE = 600


def outline(kind, **given):
    """Inside or not on a grid over [-1.5, 1.5]; ``n3=0.5`` sets the fourth number, the others are 0."""
    numbers = torch.zeros(1, NUMBERS)
    for name, value in given.items():
        numbers[0, int(name[1:])] = value
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 3 - 1.5
    u, v = axis.expand(SIDE, SIDE)[None], axis[:, None].expand(SIDE, SIDE)[None]
    return inside(torch.tensor([KINDS[kind]]), u, v, numbers)[0]


def area(mask):
    return float(mask.sum()) * (3 / SIDE) ** 2


def superellipse(power):
    return 4 * math.gamma(1 + 1 / power) ** 2 / math.gamma(1 + 2 / power)


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("blob", {}, math.pi * 0.85**2),
        ("superellipse", {}, 2.0),
        ("superellipse", {"n0": 0.25}, math.pi),
        ("superellipse", {"n0": 0.999}, superellipse(2**3.996)),
        ("polygon", {}, 3 * 0.6**2 * math.tan(math.pi / 3)),
        ("polygon", {"n0": 0.99}, 8 * 0.6**2 * math.tan(math.pi / 8)),
        ("star", {}, 4 * 0.35 * math.sin(math.pi / 4)),
        ("star", {"n0": 0.99, "n1": 0.5}, 8 * 0.525 * math.sin(math.pi / 8)),
        ("ring", {"n0": 0.3, "n2": 0.9}, math.pi * (1 - 0.5**2)),
        ("ring", {"n0": 0.3, "n1": 0.0, "n2": 0.0}, 0.4 * math.pi * (1 - 0.5**2)),
        ("stroke", {"n1": 0.5, "n2": 1 / 3, "n3": 0.5, "n4": 2 / 3, "n5": 0.5, "n7": 0.5, "n8": 0.5},
         1.8 * 0.24 + math.pi * 0.12**2),
        ("holed", {"n12": 0.5, "n13": 0.5, "n14": 0.4}, math.pi * (0.85**2 - 0.3**2)),
    ],
)  # fmt: skip
def test_an_outline_has_the_area_of_its_formula(kind, numbers, expected):
    assert area(outline(kind, **numbers)) == pytest.approx(expected, rel=0.01)


def test_a_mug_is_its_body_and_a_handle_right_of_it():
    mug, body = outline("mug", n0=0.25), math.pi * 0.65 * 0.8
    assert body < area(mug) < body + math.pi * (0.5**2 - 0.2**2)
    columns = mug.any(0).nonzero()[:, 0] / SIDE * 3 - 1.5
    assert float(columns.max()) == pytest.approx(0.9, abs=0.02)


def test_letters_differ_and_touch_the_edges_of_their_square():
    letters = [outline("letter", n0=(index + 0.5) / 36) for index in range(36)]
    assert len({bytes(letter.numpy()) for letter in letters}) == 36
    for letter in letters:
        ends = [line.nonzero()[:, 0] / SIDE * 3 - 1.5 for line in (letter.any(0), letter.any(1))]
        assert all(float(end.min()) < -0.9 and float(end.max()) > 0.9 for end in ends)


def test_outlines_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    kinds, numbers = torch.arange(len(SHAPES)), torch.rand(len(SHAPES), NUMBERS)
    u, v = torch.rand(2, len(SHAPES), 20, 20) * 2 - 1
    together = inside(kinds, u, v, numbers)
    for index in range(len(SHAPES)):
        one = slice(index, index + 1)
        assert torch.equal(inside(kinds[one], u[one], v[one], numbers[one]), together[one])
