import inspect

import pytest
import torch

from samexport.models.build import build_graph
from samexport.models.catalog import MODELS, find_model
from samexport.models.families.sam import sam_graphs
from samexport.models.spec import Preprocess, axis_sizes
from tests.models import golden

GRAPHS = ("encoder", "decoder", "decoder_with_mask", "decoder_prologue", "decoder_step")
PLAIN = GRAPHS[:3]
# what apps are written against, in full
NATIVE = {
    "encoder": ({"image": (1, 3, 1024, 1024)}, {"image_embeddings": (1, 256, 64, 64)}),
    "decoder": (
        {"image_embeddings": (1, 256, 64, 64), "point_coords": ("N", "K", 2), "point_labels": ("N", "K")},
        {"low_res_masks": ("N", 4, 256, 256), "iou_predictions": ("N", 4)},
    ),
    "decoder_with_mask": (
        {
            "image_embeddings": (1, 256, 64, 64),
            "point_coords": ("N", "K", 2),
            "point_labels": ("N", "K"),
            "mask_input": ("N", 1, 256, 256),
            "has_mask_input": ("N",),
        },
        {"low_res_masks": ("N", 4, 256, 256), "iou_predictions": ("N", 4)},
    ),
}


def shapes(tensors):
    return {tensor.name: tensor.shape for tensor in tensors}


@pytest.fixture(scope="module", params=["test.tinyvit64", "test.vit64"])
def tiny(request):
    return find_model(request.param), golden.random_sam(request.param)


def example(tensor, sizes):
    """A tensor that fits the spec."""
    shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
    return torch.ones(shape, dtype=getattr(torch, tensor.dtype))


@pytest.mark.parametrize("graph", NATIVE)
def test_names_order_and_shapes_are_the_published_ones(graph):
    spec = find_model("tinyvit").graph(graph)
    inputs, outputs = NATIVE[graph]
    assert list(shapes(spec.inputs).items()) == list(inputs.items())
    assert list(shapes(spec.outputs).items()) == list(outputs.items())
    assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} == {"float32"}


def test_value_ranges_are_the_published_ones():
    spec = find_model("tinyvit").graph("decoder_with_mask")
    ranges = {tensor.name: (tensor.low, tensor.high) for tensor in spec.inputs}
    assert ranges["point_coords"] == (0, 1023)
    assert ranges["point_labels"] == (-2, 3)
    assert ranges["has_mask_input"] == (0, 1)
    image = find_model("tinyvit").graph("encoder").inputs[0]
    assert (image.low, image.high) == (0, 255)


def test_masks_and_scores_say_what_they_are():
    for graph in ("decoder", "decoder_with_mask", "decoder_step"):
        roles = [tensor.role for tensor in find_model("tinyvit").graph(graph).outputs]
        assert roles == ["mask_logits", "mask_scores"]


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.family in ("sam", "sam_hq")])
def test_every_model_has_every_graph(name):
    assert tuple(graph.name for graph in MODELS[name].graphs) == GRAPHS


def test_models_that_share_a_decoder_share_its_contract():
    assert len({MODELS[name].graphs for name in ("mobilesam.tinyvit", "sam.vit_b", "sam.vit_h")}) == 1


def test_prologue_gives_what_the_step_takes():
    prologue, step = (find_model("tinyvit").graph(name) for name in ("decoder_prologue", "decoder_step"))
    assert step.inputs[: len(prologue.outputs)] == prologue.outputs
    assert step.inputs[len(prologue.outputs) :] == find_model("tinyvit").graph("decoder").inputs[1:]


@pytest.mark.parametrize("plain", [False, True])
def test_forward_parameters_are_the_graphs_inputs(tiny, plain):
    model, sam = tiny
    for name in PLAIN if plain else GRAPHS:
        spec, module = build_graph(sam, model, name, plain=plain)
        assert tuple(inspect.signature(module.forward).parameters) == spec.input_names


@pytest.mark.parametrize("plain", [False, True])
def test_outputs_have_the_shapes_and_types_of_the_graph(tiny, plain):
    model, sam = tiny
    sizes = {"N": 3, "K": 2}
    for name in PLAIN if plain else GRAPHS:
        spec, module = build_graph(sam, model, name, plain=plain)
        outputs = module(*(example(tensor, sizes) for tensor in spec.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = {tensor.name: tuple(x.shape) for tensor, x in zip(spec.outputs, outputs, strict=True)}
        wanted = {key: value for key, value in sizes.items() if any(key in t.shape for t in spec.outputs)}
        assert axis_sizes(spec.outputs, found) == wanted
        assert all(str(x.dtype) == f"torch.{t.dtype}" for x, t in zip(outputs, spec.outputs, strict=True))


def test_sizes_follow_the_frame_and_the_width():
    graphs = {graph.name: graph for graph in sam_graphs(Preprocess(64), embed_dim=32)}
    assert shapes(graphs["encoder"].outputs) == {"image_embeddings": (1, 32, 4, 4)}
    assert shapes(graphs["decoder_prologue"].outputs) == {
        "image_tokens": (16, 32), "image_keys": (16, 16), "image_values": (16, 16), "image_queries": (16, 16),
    }  # fmt: skip
    assert graphs["decoder"].inputs[1].high == 63
