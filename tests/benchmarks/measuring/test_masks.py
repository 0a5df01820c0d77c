import numpy as np
import pytest
from pycocotools import mask as coco

from samexport.benchmarks.measuring.masks import FoundMask, Reference, compare_found, read_reference
from samexport.runtimes.parity.compare import TIERS
from samexport.runtimes.verdicts import Check, Verdict

HW = (200, 300)


def found(prompt, box, flip=0):
    """A rectangle, the first ``flip`` pixels of which are not there."""
    mask = np.zeros(HW, np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    mask[y0, x0 : x0 + flip] = 0
    return FoundMask(prompt, coco.encode(np.asfortranarray(mask))["counts"].decode())


def many(count, **changes):
    return [found((float(10 * i), 5.0), (i, 10, i + 100, 180), **changes) for i in range(count)]


def verdict(expected, actual, tier="fp32", sureness=1.0):
    return compare_found(Check("end_to_end"), expected, actual, HW, TIERS[tier], sureness)


def test_equal_masks_pass_in_any_order():
    row = verdict(many(8), many(8)[::-1])
    assert (row.verdict, row.mask_iou) == (Verdict.PASS, 1.0)


def test_each_mask_has_a_partner_of_its_own():
    one = many(1)
    assert verdict(one, one * 2).verdict is Verdict.FAIL
    assert verdict(one * 2, one).verdict is Verdict.FAIL
    assert verdict(one * 2, one * 2).verdict is Verdict.PASS


def test_a_mask_that_answers_another_prompt_is_another_mask():
    (mask,) = many(1)
    moved = FoundMask((200.0, 5.0), mask.counts)
    row = verdict([mask], [moved])
    assert row.verdict is Verdict.FAIL
    assert "1 of PyTorch's 1 masks are not among the 1 found" in row.reason
    assert verdict([mask], [FoundMask((0.0, 6.0), mask.counts)]).verdict is Verdict.PASS
    # a hundredth of the picture's longer side away
    assert verdict([mask], [FoundMask((3.0, 5.0), mask.counts)]).verdict is Verdict.FAIL
    assert verdict([mask], [FoundMask((0.0,), mask.counts)]).verdict is Verdict.FAIL


def test_one_in_a_hundred_may_be_missing_and_one_too_many():
    for count, verdict_ in ((99, Verdict.FAIL), (100, Verdict.PASS)):
        masks = many(count)
        assert verdict(masks, masks[1:]).verdict is verdict_
        assert verdict(masks[1:], masks).verdict is verdict_
    assert verdict(many(100), many(98)).verdict is Verdict.FAIL


@pytest.mark.parametrize(("flip", "tier", "sureness", "expected"), [
    (1, "fp32", 1.0, Verdict.PASS),  # 1 of 17,000 pixels
    (100, "fp32", 1.0, Verdict.FAIL),
    (100, "fp32", 0.99, Verdict.PASS),  # rounding alone moves one pixel in a hundred
    (80, "fp16", 1.0, Verdict.PASS),
])  # fmt: skip
def test_pixels_may_differ_as_far_as_the_tier_and_the_masks_sureness_say(flip, tier, sureness, expected):
    assert verdict(many(3), many(3, flip=flip), tier, sureness).verdict is expected


def test_an_empty_mask_is_only_like_another_empty_one():
    empty, full = found((0.0,), (0, 0, 0, 0)), found((0.0,), (10, 10, 90, 90))
    assert verdict([empty], [empty]).verdict is Verdict.PASS
    assert verdict([empty], [full]).verdict is Verdict.FAIL
    assert verdict([full], [empty], "fp16").verdict is Verdict.FAIL


def test_no_mask_at_all_is_no_verdict():
    assert verdict([], []).verdict is Verdict.SKIPPED
    assert verdict(many(1), []).verdict is verdict([], many(1)).verdict is Verdict.FAIL


def test_a_reference_survives_the_way_to_another_process(tmp_path):
    made = Reference(tuple(many(2)), (0.5, 0.25), {"fp32": 0.999})
    made.write(tmp_path / "r.json")
    assert read_reference(tmp_path / "r.json") == made
