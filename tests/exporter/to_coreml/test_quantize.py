"""CoreML packages with smaller weights; coremltools' own decompression says what the interpreter must make of them."""

import shutil

import numpy as np
import pytest

from samexport.errors import ConfigError
from samexport.exporter.recipes import RECIPES
from samexport.exporter.to_coreml import quantize
from samexport.quiet import silent
from samexport.runtimes.adapters.mil import MilRuntime
from samexport.runtimes.formats.mlpackage import read_package
from samexport.runtimes.parity.compare import signal_to_noise


@pytest.fixture(scope="module")
def picture(coreml_bundle):
    rng = np.random.default_rng(3)
    spec = coreml_bundle.graph("encoder").inputs[0]
    return {spec.name: rng.uniform(0, 255, spec.shape).astype(np.float32)}


def embedding(path, graph, picture):
    with MilRuntime(path, graph, threads=1, precision="fp32") as runtime:
        return runtime.run(picture)["image_embeddings"]


@pytest.mark.parametrize(
    ("recipe", "kind", "size", "snr"),
    [
        ("weight_only_wi8_afp16", "constexpr_affine_dequantize", 0.35, 20),
        ("palettized_w6", "constexpr_lut_to_dense", 0.3, 10),
        ("palettized_w4", "constexpr_lut_to_dense", 0.22, 2),
    ],
)
def test_weights_are_small_and_are_put_together_as_coremltools_does(
    coreml_bundle, picture, tmp_path, recipe, kind, size, snr
):
    graph, artifact = coreml_bundle.graph("encoder"), coreml_bundle.artifact("encoder")
    parent, target = coreml_bundle.folder / artifact.path, tmp_path / "made.mlpackage"
    quantize.write(parent, target, graph, RECIPES[recipe], None, ())
    found = quantize.count(parent, target, graph, {})
    kinds = [o.kind for o in read_package(target).functions["main"].operations if o.kind.startswith("constexpr")]
    assert set(kinds) == {kind}
    assert len(kinds) == found.quantized_weights == len(quantize.layers(parent, graph, RECIPES[recipe]))
    assert found.size_ratio < size
    coremltools = pytest.importorskip("coremltools")
    optimize = pytest.importorskip("coremltools.optimize.coreml")
    with silent(output=True):
        model = coremltools.models.MLModel(str(target), skip_model_load=True)
        optimize.decompress_weights(model).save(str(tmp_path / "dense.mlpackage"))
    mine = embedding(target, graph, picture)
    theirs = embedding(tmp_path / "dense.mlpackage", graph, picture)
    assert signal_to_noise(theirs, mine) > 100
    assert snr < signal_to_noise(embedding(parent, graph, picture), mine) < 60


def test_texts_stay_and_a_layer_can_be_left_out(coreml_bundle, tmp_path):
    graph, artifact = coreml_bundle.graph("encoder"), coreml_bundle.artifact("encoder")
    parent, target = coreml_bundle.folder / artifact.path, tmp_path / "made.mlpackage"
    recipe = RECIPES["weight_only_wi8_afp16"]
    layers = quantize.layers(parent, graph, recipe)
    quantize.write(parent, target, graph, recipe, None, {layers[1].name})
    assert quantize.count(parent, target, graph, {}).quantized_weights == len(layers) - 1
    assert read_package(target).metadata == read_package(parent).metadata
    again = tmp_path / "again.mlpackage"
    quantize.write(parent, again, graph, recipe, None, {layers[1].name})
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in (target, again)]
    assert files[0] == files[1]
    assert all((target / name).read_bytes() == (again / name).read_bytes() for name in files[0])


def test_several_packages_are_refused(coreml_bundle, tmp_path):
    folder = tmp_path / "decoder.mlpackages"
    shutil.copytree(coreml_bundle.folder / coreml_bundle.artifact("decoder").path, folder / "decoder.one.mlpackage")
    with pytest.raises(ConfigError, match="several packages"):
        quantize.layers(folder, coreml_bundle.graph("decoder"), RECIPES["palettized_w6"])
