"""--image-size: other frames for the same weights."""

from pkgutil import resolve_name

import numpy as np
import pytest
import torch

from samexport.errors import ConfigError
from samexport.exporter.pipeline import ExportOptions
from samexport.models.build import build_graph
from samexport.models.catalog import find_family, find_model
from samexport.models.loading import load_model
from tests.families.toy import FAMILY as TOY
from tests.models.graphs.test_decoder import assert_equal_within
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures


def test_the_graphs_have_the_size_and_the_model_is_the_same():
    model, small = find_model("hiera_t"), find_model("hiera_t", 512)
    assert small.name == model.name
    assert small.frame.size == 512
    assert small.graph("image_encoder").inputs[0].shape == (1, 3, 512, 512)
    assert small.graph("memory_attention").inputs[1].shape == ("N", "F", 32 * 32, 64)
    assert find_model("tinyvit", 384).graph("decoder_with_mask").inputs[-2].shape == ("N", 1, 96, 96)
    assert find_model("tinyvit", 1024) is find_model("tinyvit")


def test_efficient_vit_brings_pictures_of_other_sizes_to_the_same_grid():
    own, other, full = (find_model("efficientvit_l0", size) for size in (512, 768, 1024))
    assert (other.frame.size, other.frame.grid, other.frame.low_res, other.frame.prompts) == (768, 64, 256, 1024)
    assert full.frame == find_model("efficientvit_xl0").frame
    for graph in ("decoder", "decoder_with_mask"):
        assert own.graph(graph).inputs == other.graph(graph).inputs == full.graph(graph).inputs


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hiera_t", 96),
        ("hq_tinyvit", 512),
        ("efficientvit_l0", 768),
        ("tinyvit", 512),
        ("edge_sam", 512),
        ("sam2_hiera_b+", 768),
    ],
)
def test_the_weights_are_those_of_the_models_own_size(name, size):
    own, other = find_model(name), find_model(name, size)
    build = resolve_name(find_family(own.family).network)
    shapes = ({key: tuple(value.shape) for key, value in build(spec).state_dict().items()} for spec in (own, other))
    assert next(shapes) == next(shapes)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b", 512, r"sam\.vit_b takes pictures of 1024 pixels: its weights hold their positions"),
        ("hiera_t", 500, "--image-size is a multiple of 32 from 64 to 2048, not 500"),
        ("tinyvit", 4096, "--image-size is a multiple of 32"),
        ("efficientvit_l0", 640, "--image-size is a multiple of 256 from 256 to 2048, not 640"),
        ("efficientvit_l0", 0, "--image-size is a multiple of 256"),
    ],
)
def test_other_sizes_are_refused_with_the_reason(name, size, message):
    with pytest.raises(ConfigError, match=message):
        find_model(name, size)


def test_a_family_that_has_one_size_says_so(monkeypatch):
    from samexport.models import catalog

    monkeypatch.setitem(catalog.FAMILIES, "toy", TOY)
    monkeypatch.setitem(catalog._BY_NAME, "toy.blob", TOY.models[0])
    with pytest.raises(ConfigError, match=r"toy\.blob takes pictures of 48 pixels alone"):
        find_model("toy.blob", 64)


def test_the_folder_names_the_size():
    def named(size):
        options = ExportOptions("hiera_b+", random_seed=1, image_size=size)
        return str(options.folder(options.spec))

    assert named(None) == named(1024) == "sam2-hiera_b+-onnx-fp32-random"
    assert named(512) == "sam2-hiera_b+-512-onnx-fp32-random"


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("test.tinyvit64", "encoder"),
        ("test.tinyvit64", "decoder"),
        ("test.edge64", "encoder"),
        ("test.repvit64", "encoder"),
        ("test.efficientvit64", "encoder"),
        ("test.hq64", "encoder"),
        ("test.hq64", "decoder"),
        ("test.hiera64", "image_encoder"),
    ],
)
def test_forms_equal_the_architecture_at_another_size(name, graph):
    spec = find_model(name, 96)
    network, _ = load_model(spec, random_seed=3)
    rng = np.random.default_rng(0)
    inputs = []
    for tensor in spec.graph(graph).inputs:
        drawn = rng.uniform(tensor.low or 0, tensor.high or 1, tensor.resolved({"N": 2, "K": 3})).astype(np.float32)
        inputs.append(torch.from_numpy(drawn.round()))
    found, plain = (build_graph(network, spec, graph, plain=way)[1](*inputs) for way in (False, True))
    pairs = (found, plain) if isinstance(found, tuple) else ([found], [plain])
    assert_equal_within(*pairs)
