import numpy as np
import pytest

from samexport.errors import ConfigError
from samexport.models.catalog import MODELS
from samexport.models.families.detector import sampler_graph
from samexport.models.spec import Axis, GraphSpec, TensorSpec
from samexport.runtimes.parity.compare import (
    TIERS,
    check_names,
    compare_boxes,
    compare_masks,
    compare_output,
    intersection_over_union,
    signal_to_noise,
    tier,
)
from samexport.runtimes.parity.golden import Case
from samexport.runtimes.parity.picture import unsure_pixels
from samexport.runtimes.parity.verify import compare_step
from samexport.runtimes.verdicts import Check, ParityReport, Row, Verdict

CHECK = Check("case")
LOGITS = TensorSpec("low_res_masks", ("N", 4, 16, 16), "", role="mask_logits")
SCORES = TensorSpec("iou_predictions", ("N", 4), "", role="mask_scores")


def logits() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 10, (3, 4, 16, 16)).astype(np.float32)


def judge(spec, expected, actual, name="fp32"):
    return compare_output(CHECK, spec, expected, actual, TIERS[name])


def test_signal_to_noise_of_a_hand_worked_case():
    # |signal| = 5, |noise| = 0.05: 20 log10(100) = 40 dB
    assert signal_to_noise(np.array([3.0, 4.0]), np.array([3.0, 4.05])) == pytest.approx(40, abs=1e-6)
    assert signal_to_noise(np.ones(3), np.ones(3)) == np.inf


def test_iou_of_hand_worked_masks_and_of_empty_ones():
    first = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]]], bool)
    second = np.array([[[0, 1, 1, 0]], [[0, 0, 0, 0]]], bool)
    assert intersection_over_union(first, second).tolist() == [1 / 3, 1]


def test_equal_outputs_pass():
    row = judge(LOGITS, logits(), logits())
    assert (row.verdict, row.max_error, row.mask_iou) == (Verdict.PASS, 0, 1)


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_an_error_above_the_tier_fails_and_says_where(name):
    expected, actual = logits(), logits()
    actual[2, 1, 3, 4] += 1.01 * TIERS[name].max_error * (expected.max() - expected.min())
    row = judge(LOGITS, expected, actual, name)
    assert row.verdict is Verdict.FAIL
    assert "[2, 1, 3, 4]" in row.reason


def test_noise_below_the_largest_allowed_error_still_fails_by_its_power():
    expected = logits()
    span = expected.max() - expected.min()
    noise = np.random.default_rng(0).choice([-1, 1], expected.shape) * 0.9e-4 * span
    row = judge(LOGITS, expected, (expected + noise).astype(np.float32))
    assert row.verdict is Verdict.FAIL
    assert "SNR" in row.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_never_passes(bad):
    actual = logits()
    actual[1, 0, 5, 6] = bad
    row = judge(LOGITS, logits(), actual)
    assert row.verdict is Verdict.FAIL
    assert "[1, 0, 5, 6]" in row.reason


def test_nan_does_not_equal_nan():
    both = logits()
    both[0, 0, 0, 0] = np.nan
    assert judge(LOGITS, both, both.copy()).verdict is Verdict.FAIL


def test_another_shape_fails():
    assert "shape" in judge(LOGITS, logits(), logits()[:2]).reason


def test_a_flipped_ranking_fails_even_if_the_masks_agree():
    expected = np.array([[0.1, 0.9, 0.2, 0.3]], np.float32)
    actual = expected + np.array([[0, -0.05, 0, 0.7]], np.float32)
    assert "best score in prompts [0]" in judge(SCORES, expected, actual, "fp16").reason


def test_a_tie_within_the_tolerance_may_go_either_way():
    expected = np.array([[0.5, 0.9, 0.9 - 1e-6, 0.1]], np.float32)
    actual = np.array([[0.5, 0.9 - 1e-6, 0.9, 0.1]], np.float32)
    assert judge(SCORES, expected, actual).verdict is Verdict.PASS


def test_boundary_pixels_are_counted_apart_from_the_iou():
    expected = np.full((1, 4, 16, 16), 10.0, np.float32)
    expected[..., 8:] = -10
    expected[0, 0, 0, 0] = 1e-5
    actual = expected.copy()
    actual[0, 0, 0, 0] = -1e-5
    row = judge(LOGITS, expected, actual)
    assert (row.verdict, row.mask_iou, row.boundary_flips) == (Verdict.PASS, 1, 1)


def test_masks_that_differ_in_one_row_fail():
    expected = np.zeros((2, 20, 20), bool)
    expected[:, 5:15] = True
    actual = expected.copy()
    actual[1, 14] = False
    row = compare_masks(CHECK, "masks", expected, actual, TIERS["fp32"])
    assert (row.verdict, row.boundary_flips) == (Verdict.FAIL, 20)
    assert compare_masks(CHECK, "masks", expected, expected, TIERS["fp32"]).verdict is Verdict.PASS


def test_missing_and_extra_outputs_fail():
    assert check_names(CHECK, ["a", "b"], ["a", "b"]) == []
    assert check_names(CHECK, ["a", "b"], ["a"])[0].verdict is Verdict.FAIL
    assert check_names(CHECK, ["a"], ["a", "b"])[0].verdict is Verdict.FAIL


def test_a_report_is_as_bad_as_its_worst_row_and_skipped_is_not_passed():
    rows = {v: Row(CHECK, "output", v) for v in Verdict}
    assert ParityReport(()).verdict is Verdict.SKIPPED
    assert ParityReport((rows[Verdict.SKIPPED],)).verdict is Verdict.SKIPPED
    assert ParityReport((rows[Verdict.SKIPPED], rows[Verdict.PASS])).verdict is Verdict.PASS
    assert ParityReport(tuple(rows.values())).verdict is Verdict.FAIL


def test_an_unknown_precision_has_no_tier():
    with pytest.raises(ConfigError, match="fp32, fp16"):
        tier("int3")


RANKED = sampler_graph(96, 40, ranked=True)


def ranked() -> dict[str, np.ndarray]:
    """40 boxes in 0..96 by falling score; ranks 10 to 12 are ties, and so are the last three."""
    rng = np.random.default_rng(5)
    scores = np.sort(rng.uniform(0.1, 0.9, 40))[::-1]
    scores[11:13], scores[38:] = scores[10], scores[37]
    return {"boxes": rng.uniform(0, 96, (40, 4)).astype(np.float32), "scores": scores.astype(np.float32)}


def judge_boxes(actual, name="fp32"):
    return compare_boxes(CHECK, RANKED, ranked(), actual, TIERS[name])


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_equal_boxes_pass_and_ties_may_change_places(name):
    for order in ([10, 11, 12], [12, 10, 11], [11, 10, 12]):
        actual = ranked()
        actual["boxes"][[10, 11, 12]] = actual["boxes"][order]
        boxes, scores = judge_boxes(actual, name)
        assert (boxes.verdict, scores.verdict, boxes.max_error) == (Verdict.PASS, Verdict.PASS, 0)


def test_a_tie_at_the_last_rank_may_bring_another_box_and_is_counted():
    actual = ranked()
    actual["boxes"][38] = (1, 2, 3, 4)
    boxes, _ = judge_boxes(actual)
    assert (boxes.verdict, boxes.boundary_flips) == (Verdict.PASS, 1)


def exchange_far_ranks(found):
    found["boxes"][[0, 30]] = found["boxes"][[30, 0]]


def exchange_coordinates(found):
    found["boxes"] = found["boxes"][:, [1, 0, 3, 2]]


def move_one_box(found):
    found["boxes"][20, 2] += 0.05


def repeat_a_box(found):
    found["boxes"][11] = found["boxes"][10]


def move_a_score(found):
    found["scores"][20] += 2e-4


def exchange_ranks_of_both(found):
    for values in found.values():
        values[[5, 6]] = values[[6, 5]]


def put_nan_into_a_box(found):
    found["boxes"][3, 1] = np.nan


def put_nan_into_a_score(found):
    found["scores"][3] = np.nan


def lose_a_rank(found):
    found["boxes"], found["scores"] = found["boxes"][1:], found["scores"][1:]


WRONG = [
    exchange_far_ranks, exchange_coordinates, move_one_box, repeat_a_box, move_a_score, exchange_ranks_of_both,
    put_nan_into_a_box, put_nan_into_a_score, lose_a_rank,
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=[change.__name__ for change in WRONG])
def test_wrong_boxes_fail(change):
    actual = ranked()
    change(actual)
    assert Verdict.FAIL in {row.verdict for row in judge_boxes(actual)}


def test_boxes_without_scores_are_left_to_the_check_of_names():
    assert compare_boxes(CHECK, RANKED, ranked(), {"boxes": ranked()["boxes"]}, TIERS["fp32"]) == []


@pytest.mark.parametrize("spec", [LOGITS, SCORES])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reference_that_is_not_finite_passes_nothing(spec, value):
    expected = logits() if spec is LOGITS else logits()[..., 0, 0]
    actual = expected.copy()
    expected[1, 2] = value
    for found in (actual, -actual, expected.copy()):
        assert judge(spec, expected, found).verdict is Verdict.FAIL


def test_nothing_to_compare_is_a_failure():
    empty = np.zeros((0, 4, 16, 16), np.float32)
    assert judge(LOGITS, empty, empty).verdict is Verdict.FAIL
    assert compare_masks(CHECK, "masks", empty > 0, empty > 0, TIERS["fp32"]).verdict is Verdict.FAIL


@pytest.mark.parametrize("name", TIERS)
def test_no_tier_accepts_a_vanished_object(name):
    # two masks of 427x640, one of them a 35x35 object: 0.2 % of the pixels
    expected = np.zeros((2, 427, 640), bool)
    expected[0, 100:300, 100:500] = True
    expected[1, 40:75, 40:75] = True
    actual = expected.copy()
    actual[1] = False
    row = compare_masks(CHECK, "masks", expected, actual, TIERS[name])
    assert (row.verdict, row.mask_iou) == (Verdict.FAIL, 0)
    assert "mask 1" in row.reason


@pytest.mark.parametrize(("name", "verdict"), [("fp32", Verdict.PASS), ("fp16", Verdict.PASS)])
def test_a_border_that_moves_a_little_is_rounding(name, verdict):
    expected = np.zeros((1, 427, 640), bool)
    expected[0, 40:60, 40:60] = True
    actual = expected.copy()
    actual[0, 40, 40:60] = False  # one row of the object's border: IoU 0.95
    assert compare_masks(CHECK, "masks", expected, actual, TIERS[name]).verdict is verdict
    actual[0, 42, 40:60] = False  # and one inside
    assert compare_masks(CHECK, "masks", expected, actual, TIERS[name]).verdict is Verdict.FAIL


def test_the_loosest_recipe_of_a_chain_judges_it():
    assert tier("fp32", "fp16") is tier("fp16", "fp32") is TIERS["fp16"]


def test_a_part_of_a_case_is_judged_by_the_range_of_the_whole():
    spec = TensorSpec("scores", ("N",), "")
    graph = GraphSpec("step", "", (TensorSpec("points", ("N", 1), ""),), (spec,), (Axis("N", "prompts", 3, 3),))
    whole = Case(
        "3x1", ("step",), {"points": np.zeros((3, 1), np.float32)}, {"scores": np.float32([10.2, 10.2001, 10.9])}
    )
    part = whole.repeated(graph, 2)
    assert part.expected["scores"].tolist() == pytest.approx([10.2, 10.2001])
    assert part.spans == {"scores": pytest.approx(0.7, rel=1e-5)}
    most = TIERS["fp32"].max_error * part.spans["scores"]
    for error, verdict in ((0.9 * most, Verdict.PASS), (1.1 * most, Verdict.FAIL)):
        found = part.expected["scores"] + np.float32([0, error])
        rows = list(compare_step(CHECK, part, [graph], {"scores": found}, ("fp32",), part.spans))
        assert [row.verdict for row in rows] == [verdict]


def test_what_the_logits_leave_open_may_differ_while_it_is_little():
    expected = np.zeros((1, 427, 640), bool)
    expected[0, 40:60, 40:60] = True
    actual, unsure = expected.copy(), np.zeros_like(expected)
    actual[0, 40:44, 40:60] = False  # four rows: IoU 0.8, three of them not on the border
    unsure[0, 41:44, 40:60] = True
    judged = {name: compare_masks(CHECK, "masks", expected, actual, TIERS[name], unsure) for name in ("fp32", "fp16")}
    # 80 pixels of 273,280: more than one of 10,000, fewer than one of 200
    assert {name: row.verdict for name, row in judged.items()} == {"fp32": Verdict.FAIL, "fp16": Verdict.PASS}
    unsure[0, 43, 50] = False
    assert compare_masks(CHECK, "masks", expected, actual, TIERS["fp16"], unsure).verdict is Verdict.FAIL


def test_pixels_are_unsure_where_the_logits_are_near_the_threshold():
    frame = MODELS["test.tinyvit64"].frame
    low = np.full((1, frame.low_res, frame.low_res), 10, np.float32)
    low[0, :, : frame.low_res // 2] = -10
    low[0, 0, 0] = -0.09  # of a range of 20 the band of fp16 is 0.1
    low[0, 9:12, 2:5] = -0.11
    picture = np.zeros((frame.size, frame.size, 3), np.uint8)
    found = unsure_pixels(low, picture, frame, TIERS["fp16"])
    assert found[0, 0, 0]
    # neither beyond the band nor at the steep edge in the middle
    assert not found[0, frame.size // 2 :].any()
    assert not unsure_pixels(low, picture, frame, TIERS["fp32"]).any()
    low[0, 1, 1] = np.inf
    assert unsure_pixels(low, picture, frame, TIERS["fp16"]) is None
    assert unsure_pixels(None, picture, frame, TIERS["fp16"]) is None
