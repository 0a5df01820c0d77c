import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samexport.errors import ConfigError
from samexport.models.catalog import find_model
from samexport.runtimes.adapters.entry_points import Bucket, choose, entry_points, pad_prompts, plan, run_in_buckets

GRAPH = find_model("test.tinyvit64").graph("decoder_with_mask")
BUCKETS = plan((1, 4, 16))


def _inputs(prompts, points, absent=0, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 4, (prompts, points)).astype(np.float32)
    labels[:, points - absent :] = -2
    return {
        "image_embeddings": random.random((1, 64, 4, 4), np.float32),
        "point_coords": random.random((prompts, points, 2), np.float32),
        "point_labels": labels,
        "mask_input": random.random((prompts, 1, 16, 16), np.float32),
        "has_mask_input": random.integers(0, 2, prompts).astype(np.float32),
    }


def _decode(inputs):
    """A decoder whose answer for a prompt depends on everything but absent slots."""
    present = inputs["point_labels"] != -2
    terms = np.where(present, inputs["point_coords"] @ [1, 3] + 10 * inputs["point_labels"] + 7, 0).sum(axis=1)
    terms = terms + inputs["mask_input"].sum(axis=(1, 2, 3)) * inputs["has_mask_input"]
    terms = terms + inputs["image_embeddings"].sum()
    ramp = np.arange(4 * 16 * 16).reshape(4, 16, 16)
    return {
        "low_res_masks": (terms[:, None, None, None] * ramp).astype(np.float32),
        "iou_predictions": np.stack([terms] * 4, axis=1).astype(np.float32),
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3), st.integers(0, 99))
def test_any_number_of_prompts_gives_what_one_unpadded_call_gives(prompts, points, absent, seed):
    inputs = _inputs(prompts, points, min(absent, points), seed)
    calls = []

    def call(bucket, part):
        assert part["point_labels"].shape == (bucket.prompts, bucket.points)
        assert part["mask_input"].shape == (bucket.prompts, 1, 16, 16)
        calls.append(bucket.prompts)
        return _decode(part)

    outputs = run_in_buckets(GRAPH, inputs, BUCKETS, call)
    for name, expected in _decode(inputs).items():
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-3)
    assert sum(calls) >= prompts


@pytest.mark.parametrize(
    ("prompts", "points", "expected"),
    [(1, 1, 1), (1, 8, 1), (2, 2, 4), (4, 2, 4), (5, 2, 16), (16, 1, 16), (99, 2, 16), (5, 3, 1)],
)
def test_the_smallest_bucket_that_fits_is_chosen_and_the_largest_beyond(prompts, points, expected):
    assert choose(BUCKETS, prompts, points).prompts == expected


def test_prompts_beyond_the_largest_bucket_are_split_and_the_rest_takes_the_smallest_fit():
    calls = []
    run_in_buckets(GRAPH, _inputs(37, 2), BUCKETS, lambda b, part: calls.append(b.name) or _decode(part))
    assert calls == ["decode_16", "decode_16", "decode_16"]
    calls.clear()
    run_in_buckets(GRAPH, _inputs(33, 2), BUCKETS, lambda b, part: calls.append(b.name) or _decode(part))
    assert calls == ["decode_16", "decode_16", "decode_1"]


def test_slots_that_no_prompt_uses_do_not_force_a_roomier_bucket():
    calls = []
    inputs = _inputs(4, 6, absent=4)
    run_in_buckets(GRAPH, inputs, BUCKETS, lambda b, part: calls.append(b.name) or _decode(part))
    assert calls == ["decode_4"]


def test_a_flexible_bucket_gets_the_prompts_as_they_are_up_to_its_bounds():
    shapes = []
    flexible = (Bucket("main", 8, 4, flexible=True),)
    inputs = _inputs(11, 4, absent=1)
    outputs = run_in_buckets(
        GRAPH, inputs, flexible, lambda _, part: shapes.append(part["point_labels"].shape) or _decode(part)
    )
    assert shapes == [(8, 4), (3, 4)]
    np.testing.assert_allclose(outputs["iou_predictions"], _decode(inputs)["iou_predictions"], rtol=1e-5)


def test_filled_slots_are_absent_and_filled_prompts_have_only_absent_slots():
    padded = pad_prompts(GRAPH, _inputs(2, 1), Bucket("decode_3", 3, 2))
    assert (padded["point_labels"][:2, 1] == -2).all()
    assert (padded["point_labels"][2] == -2).all()
    assert padded["has_mask_input"][2] == 0
    assert padded["image_embeddings"].shape == (1, 64, 4, 4)


def test_more_points_than_any_bucket_takes_are_refused_with_the_limit():
    with pytest.raises(ConfigError, match="at most 8 points a prompt, got 9"):
        run_in_buckets(GRAPH, _inputs(1, 9), BUCKETS, lambda _, part: _decode(part))


def test_no_prompt_is_refused():
    inputs = {name: value[:0] if name != "image_embeddings" else value for name, value in _inputs(1, 1).items()}
    with pytest.raises(ConfigError, match="no prompt"):
        run_in_buckets(GRAPH, inputs, BUCKETS, lambda _, part: _decode(part))


def test_the_plan_gives_the_smallest_bucket_room_for_eight_points():
    assert [(b.name, b.prompts, b.points) for b in plan((1, 4, 16))] == [
        ("decode_1", 1, 8),
        ("decode_4", 4, 2),
        ("decode_16", 16, 2),
    ]
    assert [b.points for b in plan((1, 4), (3,))] == [3, 3]
    assert [b.points for b in plan((1, 4), (3, 5))] == [3, 5]


MEMORY = find_model("test.hiera64").graph("memory_attention")


@pytest.mark.parametrize(
    ("memories", "pointers", "expected"),
    [
        (1, 1, "memories_1"),
        (1, 2, "memories_7"),
        (7, 16, "memories_7"),
        (7, 17, "memories_10"),
        (10, 19, "memories_10"),
    ],
)
def test_an_object_goes_to_the_smallest_entry_point_with_room_for_its_memories(memories, pointers, expected):
    rooms = entry_points(MEMORY, plan((1, 4)))
    assert choose(rooms, 1, 1, (("memories", memories), ("pointers", pointers))).name == expected


def test_objects_are_read_one_by_one_and_missing_memories_are_marked():
    rooms, calls = entry_points(MEMORY, plan((1, 4))), []
    sizes = {"N": 2, "F": 3, "R": 4}
    inputs = {t.name: np.ones(t.resolved(sizes), np.float32) for t in MEMORY.inputs}

    def call(bucket, part):
        calls.append(
            (bucket.name, part["memory"].shape[:2], part["memory_row"].tolist(), part["pointer_present"].sum())
        )
        return {"image_embed": part["vision"]}

    assert run_in_buckets(MEMORY, inputs, rooms, call)["image_embed"].shape[0] == 2
    assert calls == [("memories_7", (1, 7), [[1, 1, 1, -1, -1, -1, -1]], 4)] * 2


def test_more_memories_than_any_entry_point_takes_are_refused():
    with pytest.raises(ConfigError, match="at most 10 memories of an object"):
        choose(entry_points(MEMORY, ()), 1, 1, (("memories", 11), ("pointers", 20)))


def test_entry_points_of_graphs_without_memories_are_those_that_were_planned():
    assert entry_points(GRAPH, BUCKETS) == BUCKETS


@pytest.mark.parametrize(("prompts", "points"), [((), ()), ((0,), ()), ((2, 2), ()), ((1, 2, 3), (1, 2)), ((1,), (0,))])
def test_a_plan_that_makes_no_sense_is_refused(prompts, points):
    with pytest.raises(ConfigError):
        plan(prompts, points)
