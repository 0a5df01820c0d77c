"""TFLite files in integers: what is in them, which layers are left out, what calibration learns."""

import numpy as np
import pytest

from samexport.errors import ConfigError
from samexport.exporter.quantize.bundle import quantize_bundle
from samexport.exporter.quantize.calibration import Pictures
from samexport.exporter.quantize.job import Request
from samexport.exporter.recipes import RECIPES
from samexport.exporter.to_tflite import quantize
from samexport.runtimes.formats.tflite import operator_names, read_model, shape_of
from samexport.runtimes.parity.compare import signal_to_noise
from samexport.runtimes.parity.golden_files import FOLDER, PICTURE
from samexport.runtimes.registry import open_runtime

INT8, INT16 = 9, 7


def weights(path):
    """Types of the weights of products and convolutions, by kind."""
    model, names = read_model(path), operator_names()
    kinds = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    found = {}
    for operation in model.subgraphs[0].operators:
        kind = kinds[operation.opcodeIndex]
        if kind in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
            tensors = [model.subgraphs[0].tensors[index] for index in operation.inputs[:2]]
            found.setdefault(kind, []).append(tuple(tensor.type for tensor in tensors))
    return found


@pytest.fixture(scope="module")
def picture(tflite_bundle):
    rng = np.random.default_rng(3)
    spec = tflite_bundle.graph("encoder").inputs[0]
    return {spec.name: rng.uniform(0, 255, spec.shape).astype(np.float32)}


@pytest.mark.parametrize(
    ("recipe", "snr", "integer"),
    [
        ("dynamic_wi8_afp32", 20, 0.8),
        ("static_wi8_ai8", 12, 0.9),
        ("static_wi8_ai16", 20, 0.9),
        ("weight_only_wi8_afp32", 20, 0),
    ],
)
def test_a_recipe_stores_int8_and_computes_nearly_the_same(tflite_bundle, picture, tmp_path, recipe, snr, integer):
    graph, parent = tflite_bundle.graph("encoder"), tflite_bundle.folder / "encoder.tflite"
    target, chosen = tmp_path / "encoder.tflite", RECIPES[recipe]
    learnt = quantize.calibrate(parent, graph, chosen, [picture]) if chosen.calibrated else None
    quantize.write(parent, target, graph, chosen, learnt, ())
    found = quantize.count(parent, target, graph, {})
    assert found.integer_macs >= integer
    assert (found.integer_macs == 0) == (integer == 0)
    assert found.size_ratio < 0.4
    if chosen.calibrated:
        assert {pair for pairs in weights(target).values() for pair in pairs} == {
            (INT16 if chosen.compute == "int16" else INT8, INT8)
        }
    outputs = []
    for path in (parent, target):
        with open_runtime(path, graph, "tflite", threads=1) as runtime:
            outputs.append(runtime.run(picture)["image_embeddings"])
    assert snr <= signal_to_noise(*outputs) < 60


def test_a_layer_that_is_left_out_stays_float_alone(tflite_bundle, picture, tmp_path):
    graph, parent = tflite_bundle.graph("encoder"), tflite_bundle.folder / "encoder.tflite"
    chosen, target = RECIPES["static_wi8_ai8"], tmp_path / "encoder.tflite"
    layers = quantize.layers(parent, graph, chosen)
    learnt = quantize.calibrate(parent, graph, chosen, [picture])
    quantize.write(parent, target, graph, chosen, learnt, {layers[3].name})
    types = [pair for pairs in weights(target).values() for pair in pairs]
    assert len(layers) == len(types)
    assert [pair for pair in types if pair != (INT8, INT8)] == [(0, 0)]


def test_operations_that_share_a_weight_are_one_layer(tflite_bundle, tmp_path):
    # the entry points of a decoder share all weights
    graph, parent = tflite_bundle.graph("decoder"), tflite_bundle.folder / "decoder.tflite"
    target, chosen = tmp_path / "decoder.tflite", RECIPES["weight_only_wi8_afp32"]
    layers = quantize.layers(parent, graph, chosen)
    quantize.write(parent, target, graph, chosen, None, ())
    assert quantize.count(parent, target, graph, {}).quantized_weights == len(layers)
    alone = max(layers, key=lambda layer: layer.macs)
    quantize.write(parent, target, graph, chosen, None, {layer.name for layer in layers} - {alone.name})
    assert quantize.count(parent, target, graph, {}).quantized_weights == 1
    types = [tensor.type for subgraph in read_model(target).subgraphs for tensor in subgraph.tensors]
    assert types.count(INT8) == len(read_model(target).subgraphs) == 2


def test_multiplications_are_those_of_the_shapes(tflite_bundle):
    graph, parent = tflite_bundle.graph("encoder"), tflite_bundle.folder / "encoder.tflite"
    layers = quantize.layers(parent, graph, RECIPES["static_wi8_ai8"])
    # the stem: 3 x 3 x 3 for each of 8 channels of 32 x 32 pixels, and a 1 x 1 from 16 to 64 channels at 16 x 16
    assert layers[0].macs == 32 * 32 * 8 * 27
    assert layers[2].macs == 16 * 16 * 64 * 16
    # depthwise
    assert layers[3].macs == 16 * 16 * 64 * 9


def test_scales_come_from_the_extremes_of_all_pictures(tflite_bundle, picture):
    graph, parent = tflite_bundle.graph("encoder"), tflite_bundle.folder / "encoder.tflite"
    chosen = RECIPES["static_wi8_ai8"]
    dark = {"image": picture["image"] / 16}
    both = quantize.calibrate(parent, graph, chosen, iter([picture, dark]))
    alone = [quantize.calibrate(parent, graph, chosen, [each]) for each in (picture, dark)]
    assert both
    for name, found in both.items():
        assert found["max"].tolist() == np.maximum(*(each[name]["max"] for each in alone)).tolist()
        assert found["min"].tolist() == np.minimum(*(each[name]["min"] for each in alone)).tolist()


def test_a_decoder_of_several_sizes_is_not_calibrated(tflite_bundle):
    parent = tflite_bundle.folder / "decoder.tflite"
    with pytest.raises(ConfigError, match="fixed size"):
        quantize.calibrate(parent, tflite_bundle.graph("decoder"), RECIPES["static_wi8_ai8"], [])


def test_a_quantized_bundle_keeps_entry_points_and_metadata(tflite_bundle, tmp_path):
    pictures = Pictures((tflite_bundle.folder / FOLDER / PICTURE,))
    asked = Request(RECIPES["weight_only_wi8_afp32"], pictures, ("encoder", "decoder"), max_drop=0.9, threads=1)
    made, report = quantize_bundle(tflite_bundle, asked, tmp_path / "made")
    assert report.proves
    path = made.folder / made.artifact("decoder").path
    before, after = read_model(tflite_bundle.folder / "decoder.tflite"), read_model(path)
    keys = [[s.signatureKey for s in sorted(m.signatureDefs, key=lambda s: s.signatureKey)] for m in (before, after)]
    assert keys[0] == keys[1]
    assert b"samexport.json" in path.read_bytes()
    assert shape_of(after.subgraphs[0].tensors[after.subgraphs[0].inputs[0]])
