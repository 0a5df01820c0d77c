"""Weights with planted trouble: single precision does not see it, integers do, the gate tells, and what helps helps."""

import shutil
from copy import deepcopy
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from samexport.exporter.quantize.calibration import Pictures
from samexport.exporter.quantize.job import GateFailed, Job, Request, quantize_files
from samexport.exporter.recipes import RECIPES, Recipe
from samexport.exporter.to_onnx import quantize as onnx_files
from samexport.exporter.to_onnx.convert import OnnxOptions, convert
from samexport.exporter.to_onnx.even import even_channels, powers_of_two
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.parity.compare import signal_to_noise
from samexport.runtimes.parity.golden_files import FOLDER, PICTURE
from samexport.runtimes.registry import open_runtime
from tests.exporter.quantize.planted import KINDS, plant
from tests.models.golden import random_sam

MODEL = "test.tinyvit64"
GRAPH = find_model(MODEL).graph("encoder")
DYNAMIC = structs.replace(RECIPES["dynamic_wi8_afp32"], passes=())
EVEN = structs.replace(DYNAMIC, passes=("even_channels",))
WEIGHTS = Recipe("linear", "int8", "float32", ("onnx",), "fp32", operations={"onnx": ("Gemm", "MatMul")})


@cache
def untouched():
    return random_sam(MODEL)


def encoder(strength, kinds, *, plain=False):
    sam = deepcopy(untouched())
    plant(sam.image_encoder, strength, kinds)
    return build_graph(sam, find_model(MODEL), "encoder", plain=plain)[1]


@pytest.fixture(scope="module")
def image():
    return {"image": np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """The encoder's file with heavy-tailed channels of a strength."""
    folder = tmp_path_factory.mktemp("planted")

    @cache
    def make(strength):
        path = folder / f"{strength}.onnx"
        convert(GRAPH, encoder(strength, ("channels",)), path, OnnxOptions())
        return path

    return make


def run(path, image):
    with open_runtime(path, GRAPH, "onnx", threads=1) as runtime:
        return runtime.run(image)["image_embeddings"]


def quantized(path, recipe, image, target):
    """The signal-to-noise ratio of the quantized file."""
    onnx_files.write(path, target, GRAPH, recipe, None, ())
    return signal_to_noise(run(path, image), run(target, image))


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_computes_the_same(kind, image):
    given = torch.from_numpy(image["image"])
    plain = [encoder(strength, (kind,), plain=True)(given).numpy() for strength in (1, 64)]
    form = [encoder(strength, (kind,))(given).numpy() for strength in (1, 64)]
    np.testing.assert_array_equal(*form)
    if kind == "keys":
        # the plain form adds the same large number to every logit, the export form leaves it out
        assert 90 < signal_to_noise(*plain) < 120
    else:
        np.testing.assert_array_equal(*plain)


def test_integers_lose_more_the_stronger_it_is_and_even_channels_undoes_it(file_of, image, tmp_path):
    lost = [quantized(file_of(strength), DYNAMIC, image, tmp_path / f"{strength}.onnx") for strength in (1, 16, 64)]
    assert lost[0] > lost[1] + 5 > lost[2] + 10
    even = [quantized(file_of(strength), EVEN, image, tmp_path / f"even{strength}.onnx") for strength in (1, 64)]
    assert even[0] == even[1] > lost[0] - 0.5


def test_even_channels_keeps_single_precision_bit_for_bit(file_of, image, tmp_path):
    model = onnx.load(file_of(64))
    before = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    # all but the two of the neck, which a convolution reads
    assert even_channels(model) == 8
    assert sum(not np.array_equal(before[w.name], numpy_helper.to_array(w)) for w in model.graph.initializer) >= 16
    onnx.save(model, tmp_path / "even.onnx")
    np.testing.assert_array_equal(run(file_of(64), image), run(tmp_path / "even.onnx", image))


def test_channels_that_something_else_reads_stay(tmp_path):
    rng = np.random.default_rng(0)
    stored = {"gain": rng.uniform(1, 64, 8), "bias": rng.normal(size=8), "product": rng.normal(size=(8, 4))}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "bias"], ["normal"]),
        helper.make_node("MatMul", ["normal", "product"], ["y"]),
    ]

    def scaled(*more, outputs=("y",), columns=8):
        given = stored | {"product": stored["product"][:columns]}
        graph = helper.make_graph(
            [*nodes, *more],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value.astype(np.float32), name) for name, value in given.items()],
        )
        return even_channels(helper.make_model(graph))

    assert scaled() == 1
    assert scaled(outputs=("y", "normal")) == 0
    assert scaled(helper.make_node("Relu", ["normal"], ["z"])) == 0
    assert scaled(helper.make_node("MatMul", ["x", "product"], ["z"])) == 0
    assert scaled(columns=4) == 0


def test_scales_worked_out_by_hand():
    np.testing.assert_array_equal(
        powers_of_two(np.float32([16, 1, 64, 0, 5]), np.float32([1, 16, 1, 3, 0])), [4, 0.25, 8, 1, 1]
    )


@pytest.fixture
def job_of(tiny_bundle, file_of, tmp_path):
    def make(recipe):
        folder = shutil.copytree(tiny_bundle.folder, tmp_path / recipe.name, dirs_exist_ok=True)
        shutil.copyfile(file_of(64), folder / "encoder.onnx")
        pictures = Pictures((folder / FOLDER / PICTURE,))
        return Job(Bundle(folder, tiny_bundle.manifest), Request(recipe, pictures, max_drop=0.1, threads=1))

    return make


def test_the_gate_refuses_and_leaving_layers_or_even_channels_passes_it(job_of):
    with pytest.raises(GateFailed) as failed:
        quantize_files(job_of(WEIGHTS))
    assert min(scores.mean for scores in failed.value.gate.modes) < 0.9
    # of recipes without scales from pictures
    assert "the recipe mixed_dynamic leaves" in str(failed.value)
    (searched,), _ = quantize_files(job_of(structs.replace(WEIGHTS, search=True)))
    assert 0 < len(searched.quantized.kept) < searched.quantized.quantized_weights
    (even,), _ = quantize_files(job_of(structs.replace(WEIGHTS, passes=("even_channels",))))
    assert not even.quantized.kept
