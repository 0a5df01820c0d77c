import contextlib
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samexport.errors import PromptError
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap, resized_size
from samexport.runtimes.host.prompts import Prompt, as_prompts, clip_boxes, fit_box
from samexport.runtimes.host.sam_prompts import check_tensors, count_tokens, has_box, pack, select_mask

GOLDEN = Path(__file__).parents[2] / "golden"
FRAME = Preprocess(1024)
TINY = Preprocess(64)
CLICK = Prompt.make([(5, 5)], [1])


def _golden(name):
    return [pytest.param(case, id=case["case"]) for case in json.loads((GOLDEN / name).read_text())]


# Prompt


def test_make_keeps_what_was_given():
    prompt = Prompt.make([(1, 2.5)], [True], box=(0, 1, 2, 3), mask_input=np.ones((16, 16), np.float16))
    np.testing.assert_array_equal(prompt.points, [[1, 2.5]])
    np.testing.assert_array_equal(prompt.labels, [1])
    np.testing.assert_array_equal(prompt.box, [0, 1, 2, 3])
    assert prompt.points.dtype == prompt.box.dtype == np.float64
    assert prompt.labels.dtype == np.int64
    assert prompt.mask_input.dtype == np.float32


def test_make_takes_what_is_at_hand():
    for prompt in (Prompt.make([3, 4]), Prompt.make([(3, 4)]), Prompt.make((3, 4), 1), Prompt.make([[3, 4]], [True])):
        np.testing.assert_array_equal(prompt.points, [[3, 4]])
        np.testing.assert_array_equal(prompt.labels, [1])
    np.testing.assert_array_equal(Prompt.make([(1, 2), (3, 4)]).labels, [1, 1])
    mask = np.arange(256, dtype=np.float32).reshape(1, 16, 16)
    for shape in ((16, 16), (1, 16, 16), (1, 1, 16, 16)):
        np.testing.assert_array_equal(Prompt.make(mask_input=mask.reshape(shape)).mask_input, mask[0])


def test_a_prompt_does_not_change_with_the_callers_array():
    points = np.array([(1.0, 2.0)])
    prompt = Prompt.make(points, [1])
    points[:] = np.nan
    np.testing.assert_array_equal(prompt.points, [[1, 2]])
    with pytest.raises(FrozenInstanceError):
        prompt.box = None


BAD = {
    "nothing": ({}, "needs a point, a box or a mask"),
    "nan_point": ({"points": [(np.nan, 0)], "labels": [1]}, "points must be finite"),
    "infinite_point": ({"points": [(0, np.inf)], "labels": [1]}, "points must be finite"),
    "flat_points": ({"points": [1, 2, 3, 4], "labels": [1, 1]}, r"points are \[P, 2\]"),
    "three_numbers": ({"points": [(1, 2, 3)], "labels": [1]}, r"points are \[P, 2\]"),
    "ragged": ({"points": [(1, 2), (3,)], "labels": [1, 1]}, "array of numbers"),
    "text": ({"points": [("a", "b")], "labels": [1]}, "array of numbers"),
    "label_2": ({"points": [(1, 2)], "labels": [2]}, r"got \[2"),
    "label_padding": ({"points": [(1, 2)], "labels": [-1]}, r"got \[-1"),
    "label_half": ({"points": [(1, 2)], "labels": [0.5]}, r"got \[0\.5\]"),
    "label_nan": ({"points": [(1, 2)], "labels": [np.nan]}, r"got \[nan\]"),
    "too_few_labels": ({"points": [(1, 2), (3, 4)], "labels": [1]}, "2 points need as many labels"),
    "empty_labels": ({"points": [(1, 2)], "labels": []}, "1 points need as many labels"),
    "numbers_as_text": ({"points": [("1", "2")]}, "array of numbers"),
    "complex": ({"points": [(1j, 2)]}, "array of numbers"),
    "truth_values": ({"points": [(True, False)]}, "array of numbers"),
    "huge": ({"points": [(10**400, 2)]}, "array of numbers"),
    "too_many": ({"points": np.zeros((1001, 2))}, "at most"),
    "endless": ({"points": np.broadcast_to(np.float32(0), (1 << 50, 2))}, "at most"),
    "labels_alone": ({"labels": [1]}, "0 points need as many labels"),
    "box_text": ({"box": "1234"}, "array of numbers"),
    "box_three": ({"box": (1, 2, 3)}, r"x0, y0, x1, y1, got an array \[3\]"),
    "box_nan": ({"box": (1, 2, 3, np.nan)}, "box must be finite"),
    "box_empty": ({"box": (1, 2, 1, 5)}, "is empty"),
    "box_swapped": ({"box": (1, 5, 3, 2)}, "is empty"),
    "mask_nan": ({"mask_input": np.full((16, 16), np.nan)}, "mask_input must be finite"),
    "mask_float32_overflow": ({"mask_input": np.full((16, 16), 1e300)}, "mask_input must be finite"),
    "mask_not_square": ({"mask_input": np.zeros((16, 15))}, "mask_input is square"),
    "mask_flat": ({"mask_input": np.zeros(256)}, "mask_input is square"),
    "mask_with_last_channel": ({"mask_input": np.zeros((16, 16, 1))}, "mask_input is square"),
    "mask_of_several": ({"mask_input": np.zeros((3, 16, 16))}, r"holds 3 masks; give one of them, low_res_masks\[i\]"),
    "mask_of_none": ({"mask_input": np.zeros((0, 16, 16))}, "holds 0 masks"),
    "mask_complex": ({"mask_input": np.zeros((16, 16), complex)}, "array of numbers"),
    "mask_of_truth_values": ({"mask_input": np.zeros((16, 16), bool)}, "array of numbers"),
    "mask_endless": ({"mask_input": np.broadcast_to(np.float32(0), (1 << 40, 1 << 20))}, "at most"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_prompt_is_one_line_that_says_what_is_wrong(case):
    arguments, message = BAD[case]
    with pytest.raises(PromptError, match=message) as caught:
        Prompt.make(**arguments)
    assert "\n" not in str(caught.value)


def test_the_fields_are_checked_without_make_too():
    with pytest.raises(PromptError, match="finite"):
        Prompt(points=np.full((1, 2), np.nan), labels=np.ones(1, np.int64))
    with pytest.raises(PromptError, match="labels are"):
        Prompt(points=np.zeros((1, 2)), labels=np.full(1, 3))
    with pytest.raises(PromptError, match=r"Prompt\.make takes lists"):
        Prompt(points=[[1, 2]], labels=np.ones(1, np.int64))
    with pytest.raises(PromptError, match="array of numbers"):
        Prompt(points=np.full((1, 2), None), labels=np.ones(1, np.int64))


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
)
_NESTED = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=20)
_DTYPES = st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8", "U3", "S2", "O", "M8[s]", "m8[s]"])
_ARRAYS = st.builds(np.zeros, st.lists(st.integers(0, 4), max_size=4).map(tuple), _DTYPES)
_ANYTHING = st.one_of(_NESTED, _ARRAYS, st.just(object()), st.dictionaries(st.text(max_size=2), st.integers()))


@pytest.mark.filterwarnings("error")
@given(_ANYTHING, _ANYTHING, _ANYTHING, _ANYTHING)
def test_whatever_is_given_makes_a_prompt_or_a_prompt_error(points, labels, box, mask):
    with contextlib.suppress(PromptError):
        prompt = Prompt.make(points, labels, box, mask)
        pack([prompt], FrameMap((10, 10), TINY))
    for single in ({"points": points}, {"points": [[1, 1]], "labels": labels}, {"box": box}, {"mask_input": mask}):
        with contextlib.suppress(PromptError):
            Prompt.make(**single)


# pack


@pytest.mark.parametrize("case", _golden("prompts.json"))
def test_pack_gives_the_coordinates_the_official_predictor_feeds(case):
    boxes = case["boxes"] or [None]
    prompts = [Prompt.make(case["points"], case["labels"], box=box) for box in boxes]
    packed = pack(prompts, FrameMap(tuple(case["image_hw"]), FRAME))
    for index, box in enumerate(boxes):
        coords = [*case["points_1024"], *np.reshape(case["boxes_1024"][index : index + 1], (-1, 2))]
        labels = [*case["labels"], *((2, 3) if box else (-1,))]
        coords += [] if box else [(0, 0)]
        np.testing.assert_array_equal(packed["point_coords"][index], np.array(coords, np.float32))
        np.testing.assert_array_equal(packed["point_labels"][index], labels)


def test_prompts_with_different_slots_share_a_batch():
    mask = np.arange(256, dtype=np.float32).reshape(16, 16)
    prompts = [
        Prompt.make([(10, 20), (30, 40)], [1, 0]),
        Prompt.make(box=(0, 0, 128, 64)),
        Prompt.make([(10, 20), (30, 40)], [0, 1], box=(2, 4, 6, 8)),
        Prompt.make(mask_input=mask),
    ]
    packed = pack(prompts, FrameMap((64, 128), TINY))
    assert {name: (array.shape, array.dtype) for name, array in packed.items()} == {
        "point_coords": ((4, 4, 2), np.float32),
        "point_labels": ((4, 4), np.float32),
        "mask_input": ((4, 1, 16, 16), np.float32),
        "has_mask_input": ((4,), np.float32),
    }
    np.testing.assert_array_equal(
        packed["point_labels"], [[1, 0, -1, -2], [2, 3, -2, -2], [0, 1, 2, 3], [-2, -2, -2, -2]]
    )
    np.testing.assert_array_equal(
        packed["point_coords"],
        [
            [(5, 10), (15, 20), (0, 0), (0, 0)],
            [(0, 0), (64, 32), (0, 0), (0, 0)],
            [(5, 10), (15, 20), (1, 2), (3, 4)],
            [(0, 0), (0, 0), (0, 0), (0, 0)],
        ],
    )
    np.testing.assert_array_equal(packed["has_mask_input"], [0, 0, 0, 1])
    np.testing.assert_array_equal(packed["mask_input"][3, 0], mask)
    assert not packed["mask_input"][:3].any()
    np.testing.assert_array_equal(count_tokens(packed["point_labels"]), [3, 2, 4, 0])


def test_a_mask_alone_has_one_absent_slot():
    packed = pack([Prompt.make(mask_input=np.zeros((16, 16)))], FrameMap((64, 64), TINY))
    np.testing.assert_array_equal(packed["point_labels"], [[-2]])
    np.testing.assert_array_equal(packed["point_coords"], [[(0, 0)]])


def test_without_masks_there_are_no_mask_tensors():
    assert set(pack([CLICK], FrameMap((10, 10), FRAME))) == {"point_coords", "point_labels"}


def test_no_prompt_is_refused():
    with pytest.raises(PromptError, match="no prompt"):
        pack([], FrameMap((10, 10), FRAME))


def test_a_mask_of_another_model_is_refused():
    prompts = [CLICK, Prompt.make(mask_input=np.zeros((16, 16)))]
    with pytest.raises(PromptError, match=r"prompt 1: mask_input must be \[256, 256\]"):
        pack(prompts, FrameMap((10, 10), FRAME))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (Prompt.make([(5, 5), (20.5, 3)], [1, 1]), r"\(20\.5, 3\)"),
        (Prompt.make([(5, 10.01)], [1]), r"\(5, 10\.01\)"),
        (Prompt.make([(-0.01, 5)], [1]), r"\(-0\.01, 5\)"),
        (Prompt.make([(5, -0.01)], [1]), r"\(5, -0\.01\)"),
        (Prompt.make(box=(0, 0, 21, 10)), r"\(21, 10\)"),
        (Prompt.make(box=(-1, 0, 5, 5)), r"\(-1, 0\)"),
    ],
)
def test_a_coordinate_outside_the_image_is_named(prompt, named):
    with pytest.raises(PromptError, match=rf"prompt 1: {named} is outside the image, 20 wide and 10 high"):
        pack([CLICK, prompt], FrameMap((10, 20), FRAME))


def test_the_edges_of_the_image_are_inside():
    packed = pack([Prompt.make([(20, 10), (0, 0)], [1, 0], box=(0, 0, 20, 10))], FrameMap((10, 20), FRAME))
    np.testing.assert_array_equal(packed["point_coords"][0, 0], (1024, 512))


@st.composite
def _prompts_and_size(draw):
    height, width = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    point = st.tuples(st.floats(0, width), st.floats(0, height))

    def prompt():
        points = draw(st.lists(point, max_size=5))
        labels = draw(st.lists(st.integers(0, 1), min_size=len(points), max_size=len(points)))
        box = (0.25 * width, 0, width, 0.5 * height) if draw(st.booleans()) or not points else None
        mask = np.full((16, 16), draw(st.floats(-32, 32))) if draw(st.booleans()) else None
        return Prompt.make(points, labels, box=box, mask_input=mask)

    return [prompt() for _ in range(draw(st.integers(1, 4)))], (height, width)


@given(_prompts_and_size())
def test_a_batch_is_each_prompt_alone_then_absent_slots(prompts_and_size):
    prompts, image_hw = prompts_and_size
    packed = pack(prompts, FrameMap(image_hw, TINY))
    check_tensors(packed["point_coords"], packed["point_labels"])
    new_height, new_width = resized_size(*image_hw, TINY.size)
    for index, prompt in enumerate(prompts):
        alone = pack([prompt], FrameMap(image_hw, TINY))
        slots = alone["point_labels"].shape[1]
        assert slots == len(prompt.points) + (1 if prompt.box is None else 2)
        np.testing.assert_array_equal(packed["point_coords"][index, :slots], alone["point_coords"][0])
        np.testing.assert_array_equal(packed["point_labels"][index, :slots], alone["point_labels"][0])
        assert (packed["point_labels"][index, slots:] == -2).all()
        assert not packed["point_coords"][index, slots:].any()
        assert count_tokens(packed["point_labels"])[index] == slots
        for (x, y), packed_point in zip(prompt.points.tolist(), alone["point_coords"][0], strict=False):
            expected = (x * (new_width / image_hw[1]), y * (new_height / image_hw[0]))
            np.testing.assert_array_equal(packed_point, np.array(expected, np.float32))
        if "mask_input" in packed:
            assert packed["has_mask_input"][index] == (prompt.mask_input is not None)


# fit_box, clip_boxes


def test_boxes_are_cut_off_at_the_edges_and_those_without_area_are_left_out():
    given_boxes = [
        [-0.4, 10, 100, 100],
        [10, 10, 10, 50],
        [500, 10, 640.3, 427.2],
        [700, 1, 800, 9],
        [20, 20, 30, 40],
    ]
    boxes, kept = clip_boxes(np.array(given_boxes), (427, 640))
    np.testing.assert_array_equal(kept, [0, 2, 4])
    np.testing.assert_array_equal(boxes, [[0, 10, 100, 100], [500, 10, 640, 427], [20, 20, 30, 40]])
    assert clip_boxes(np.zeros((0, 4)), (5, 5))[0].shape == (0, 4)
    for bad in (np.zeros(4), np.zeros((2, 3)), np.full((1, 4), np.nan), np.full((1, 4), None)):
        with pytest.raises(PromptError):
            clip_boxes(bad, (5, 5))


def test_fitting_a_prompt_changes_its_box_alone():
    prompt = fit_box(Prompt.make([(3, 3)], [0], box=(-1, 2, 30, 9.5)), (10, 20))
    np.testing.assert_array_equal(prompt.box, [0, 2, 20, 9.5])
    np.testing.assert_array_equal(prompt.labels, [0])
    pack([prompt], FrameMap((10, 20), FRAME))
    assert fit_box(CLICK, (10, 20)) is CLICK
    with pytest.raises(PromptError, match="outside the image, 20 wide and 10 high"):
        fit_box(Prompt.make(box=(20, 0, 30, 5)), (10, 20))


@given(st.lists(st.tuples(*[st.floats(-1e9, 1e9)] * 4), max_size=5), st.integers(1, 99), st.integers(1, 99))
def test_a_clipped_box_is_a_valid_prompt(boxes, height, width):
    inside, kept = clip_boxes(np.array(boxes, np.float64).reshape(-1, 4), (height, width))
    for box, index in zip(inside, kept, strict=True):
        pack([Prompt.make(box=box)], FrameMap((height, width), TINY))
        x0, y0, x1, y1 = boxes[index]
        np.testing.assert_array_equal(box, [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)])


# select_mask


@pytest.mark.parametrize("case", _golden("select_mask.json"))
def test_select_mask_chooses_what_the_official_onnx_model_chooses(case):
    labels = np.array([case["point_labels"]])
    scores = np.array(case["iou_predictions"], np.float32)
    assert select_mask(scores, int(count_tokens(labels)[0])) == case["chosen"]
    with_absent = np.concatenate([labels, [[-2, -2, -2]]], axis=1)
    assert select_mask(scores, int(count_tokens(with_absent)[0])) == case["chosen"]


@given(st.lists(st.floats(-1, 2, width=32), min_size=4, max_size=4), st.integers(0, 8))
def test_select_mask_is_the_argmax_of_the_official_reweighting(scores, num_tokens):
    reweighted = np.array(scores) + (num_tokens - 2.5) * np.array([1000, 0, 0, 0])
    assert select_mask(np.array(scores), num_tokens) == np.argmax(reweighted)


@pytest.mark.parametrize(
    ("mask_outputs", "num_tokens", "expected"),
    [((1, 2, 3), 2, 2), ((1, 2, 3), 5, 2), ((0,), 2, 0), ((0,), 5, 0), ((0, 1, 3), 2, 3), ((0, 1, 3), 3, 0)],
)
def test_select_mask_never_leaves_the_masks_the_model_was_trained_for(mask_outputs, num_tokens, expected):
    assert select_mask(np.array([0.99, 0.1, 0.9, 0.5]), num_tokens, mask_outputs) == expected


@given(st.lists(st.floats(-1, 2, width=32), min_size=4, max_size=4), st.integers(2, 8))
def test_a_box_is_clear_as_for_the_official_predictor(scores, num_tokens):
    assert select_mask(np.array(scores), num_tokens, boxed=True) == 0
    assert select_mask(np.array(scores), num_tokens, (1, 2, 3), boxed=True) == 1 + int(np.argmax(scores[1:]))


def test_a_box_is_seen_in_the_packed_labels():
    prompts = [CLICK, Prompt.make(box=(0, 0, 5, 5)), Prompt.make([(1, 1)], [0], box=(0, 0, 5, 5))]
    np.testing.assert_array_equal(
        has_box(pack(prompts, FrameMap((10, 10), FRAME))["point_labels"]), [False, True, True]
    )


# check_tensors


def test_every_label_of_the_contract_is_allowed():
    check_tensors(np.zeros((1, 6, 2), np.float32), np.array([[-2, -1, 0, 1, 2, 3]], np.float32))


@pytest.mark.parametrize(
    ("coords", "labels", "message"),
    [
        (np.zeros((1, 2, 2)), np.zeros((1, 3)), "point_coords is"),
        (np.zeros((2, 1, 2)), np.zeros((1, 1)), "point_coords is"),
        (np.zeros((1, 2, 3)), np.zeros((1, 2)), "point_coords is"),
        (np.zeros((2, 2)), np.zeros(2), "point_coords is"),
        (np.zeros((0, 2, 2)), np.zeros((0, 2)), "at least 1"),
        (np.zeros((2, 0, 2)), np.zeros((2, 0)), "at least 1"),
        (np.full((1, 1, 2), np.nan), np.zeros((1, 1)), "finite"),
        (np.full((1, 1, 2), -np.inf), np.zeros((1, 1)), "finite"),
        (np.zeros((1, 1, 2)), np.full((1, 1), 4), "whole numbers"),
        (np.zeros((1, 1, 2)), np.full((1, 1), -3), "whole numbers"),
        (np.zeros((1, 1, 2)), np.full((1, 1), 0.5), "whole numbers"),
        (np.zeros((1, 1, 2)), np.full((1, 1), np.nan), "whole numbers"),
    ],
)
def test_tensors_a_decoder_would_misread_are_refused(coords, labels, message):
    with pytest.raises(PromptError, match=message):
        check_tensors(coords, labels)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "this is None"),
        (np.array(3), "this is an object of type ndarray"),
        ([None], "number 0 is None"),
        ([CLICK, 3], "number 1 is 3"),
        (np.zeros((2, 2)), "number 0 is an object of type ndarray"),
        ("click", "number 0 is 'c'"),
    ],
)
def test_what_is_no_prompt_is_answered_with_how_one_is_made(given, what):
    with pytest.raises(PromptError) as caught:
        as_prompts(given)
    assert str(caught.value) == f"prompts are made with Prompt.make(...), one as Prompt.make([320, 200]); {what}"


def test_prompts_come_from_anything_iterable():
    assert as_prompts(prompt for prompt in [CLICK, CLICK]) == [CLICK, CLICK]
    assert as_prompts({"first": CLICK}.values()) == [CLICK]
