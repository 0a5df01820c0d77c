import dataclasses
import json

import msgspec
import pytest

from samexport.models.catalog import MODELS, find_model
from samexport.models.families.sam import POINTS, PROMPTS
from samexport.models.spec import Axis, GraphSpec, Preprocess, TensorSpec, axis_sizes

COORDS = TensorSpec("point_coords", ("N", "K", 2), "x, y")
LABELS = TensorSpec("point_labels", ("N", "K"), "labels")
MASKS = TensorSpec("low_res_masks", ("N", 4, 16, 16), "logits", role="mask_logits")
GRAPH = GraphSpec("decoder", "points to masks", (COORDS, LABELS), (MASKS,), (PROMPTS, POINTS))


@pytest.mark.parametrize("name", ["", "image embeddings", "1st", "image-embeddings"])
def test_tensor_name_must_be_an_identifier(name):
    with pytest.raises(ValueError, match="not an identifier"):
        TensorSpec(name, (1,), "")


@pytest.mark.parametrize("shape", [(0,), (1, -1), ("N", 0)])
def test_fixed_sizes_must_be_positive(shape):
    with pytest.raises(ValueError, match="positive"):
        TensorSpec("image", shape, "")


def test_tensor_names_of_a_graph_must_differ_across_inputs_and_outputs():
    with pytest.raises(ValueError, match="repeat"):
        GraphSpec("decoder", "", (COORDS,), (COORDS,))


def test_names_and_axes_keep_their_order():
    assert GRAPH.input_names == ("point_coords", "point_labels")
    assert GRAPH.output_names == ("low_res_masks",)
    assert GRAPH.named_sizes == ("N", "K")
    assert GraphSpec("encoder", "", (TensorSpec("image", (1, 3), ""),), ()).axes == ()


def test_axes_are_those_in_the_shapes_one_for_each_role():
    assert GRAPH.axis("prompts") == PROMPTS
    assert GRAPH.axis("memories") is None
    assert GRAPH.sizes({"points": 5}, default="traced") == {"N": PROMPTS.traced, "K": 5}
    assert GRAPH.sizes(default="usual") == {"N": 1, "K": 2}
    assert MASKS.resolved({"N": 7}) == (7, 4, 16, 16)
    for axes in ((PROMPTS,), (PROMPTS, POINTS, Axis("M", "memories", 3, 9)), (PROMPTS, Axis("K", "prompts", 2, 2))):
        with pytest.raises(ValueError, match="axes"):
            GraphSpec("decoder", "", (COORDS, LABELS), (MASKS,), axes)


@pytest.mark.parametrize("model", MODELS)
def test_every_graph_and_frame_survives_json(model):
    spec = find_model(model)
    for graph in spec.graphs:
        assert msgspec.json.decode(json.dumps(graph.to_json()), type=GraphSpec) == graph
    assert msgspec.json.decode(json.dumps(dataclasses.asdict(spec.frame)), type=Preprocess) == spec.frame


def test_frame_counts_cells_of_16_and_mask_pixels_of_4_image_pixels():
    assert (Preprocess(1024).grid, Preprocess(1024).low_res) == (64, 256)
    assert (Preprocess(64).grid, Preprocess(64).low_res) == (4, 16)


@pytest.mark.parametrize("record", [COORDS, GRAPH, Preprocess(64), find_model("tinyvit")])
def test_records_cannot_be_changed_and_can_be_keys(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, "other")
    assert {record: 1}[dataclasses.replace(record)] == 1


def test_axis_sizes_are_read_from_shapes():
    shapes = {"point_coords": (7, 5, 2), "point_labels": [7, 5], "low_res_masks": (7, 4, 16, 16)}
    assert axis_sizes((*GRAPH.inputs, *GRAPH.outputs), shapes) == {"N": 7, "K": 5}
    assert axis_sizes((), {}) == {}


@pytest.mark.parametrize(
    ("shapes", "culprit"),
    [
        ({"point_coords": (7, 5, 2), "point_labels": (7, 4)}, "point_labels"),  # K twice
        ({"point_coords": (7, 5, 3), "point_labels": (7, 5)}, "point_coords"),  # fixed size
        ({"point_coords": (7, 5), "point_labels": (7, 5)}, "point_coords"),  # rank too low
        ({"point_coords": (7, 5, 2), "point_labels": (7, 5, 1)}, "point_labels"),  # rank too high
        ({"point_coords": (), "point_labels": (7, 5)}, "point_coords"),  # a scalar
    ],
)
def test_shape_that_does_not_fit_is_named(shapes, culprit):
    with pytest.raises(ValueError, match=culprit):
        axis_sizes(GRAPH.inputs, shapes)


def test_unknown_graph_of_a_model_is_a_key_error():
    with pytest.raises(KeyError):
        find_model("tinyvit").graph("decoder_plain")


def test_a_range_does_not_end_below_its_beginning():
    with pytest.raises(ValueError, match="tensor image: high 0 is below low 255"):
        TensorSpec("image", (1,), "", low=255, high=0)
    with pytest.raises(ValueError, match="axis N: high 3 is below low 4"):
        Axis("N", "prompts", traced=4, usual=4, low=4, high=3)
    assert TensorSpec("zero", (1,), "", low=0, high=0).high == 0


def test_a_wrong_shape_is_told_with_the_axes_that_are_known():
    with pytest.raises(ValueError, match=r"^image has shape \(1, 5\), expected \(1, 3\)$"):
        axis_sizes([TensorSpec("image", (1, 3), "")], {"image": (1, 5)})
    with pytest.raises(ValueError, match=r"^point_labels has shape \(3, 9\), .* with {'N': 3, 'K': 2}$"):
        axis_sizes([COORDS, LABELS], {"point_coords": (3, 2, 2), "point_labels": (3, 9)})
