import platform
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from samexport.errors import BundleError, ConfigError
from samexport.exporter.to_coreml.convert import CoreMLOptions, convert
from samexport.exporter.to_coreml.package import PackageTexts
from samexport.models.families.sam import ABSENT, POINTS, PROMPTS
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.coreml import CoreMLRuntime

pytest.importorskip("coremltools")

TEXTS = PackageTexts("samexport", "Apache-2.0", "0.1.0")
DECODER = GraphSpec(
    "decoder",
    "",
    (TensorSpec("point_coords", ("N", "K", 2), ""), TensorSpec("point_labels", ("N", "K"), "", fill=ABSENT)),
    (TensorSpec("iou_predictions", ("N", 2), ""),),
    (PROMPTS, POINTS),
)
ENCODER = GraphSpec(
    "encoder", "", (TensorSpec("image", (1, 3, 8, 8), ""),), (TensorSpec("image_embeddings", (1, 3), ""),)
)


class Sums(nn.Module):
    def forward(self, point_coords, point_labels):
        return (point_coords * torch.relu(point_labels)[..., None]).sum(1)


class Mean(nn.Module):
    def forward(self, image):
        return image.mean((2, 3))


@pytest.fixture
def package(tmp_path):
    options = CoreMLOptions(deployment_target="iOS18", prompt_buckets=(1, 3))
    return convert(DECODER, Sums(), tmp_path / "decoder.mlpackage", options, TEXTS)


@pytest.fixture
def packages(tmp_path):
    options = CoreMLOptions(deployment_target="iOS16", prompt_buckets=(1, 3))
    return convert(DECODER, Sums(), tmp_path / "decoder.mlpackage", options, TEXTS)


@pytest.fixture
def picture_package(tmp_path):
    return convert(ENCODER, Mean(), tmp_path / "encoder.mlpackage", CoreMLOptions(image_input=True), TEXTS)


@pytest.fixture
def macos(monkeypatch):
    """The part of coremltools that only works on a Mac, as documented: returns what was loaded and predicted."""
    import coremltools

    seen = types.SimpleNamespace(loaded=[], files=[], predicted=[])

    class Model:
        def __init__(self, path, compute_units, function_name="main"):
            seen.loaded.append((function_name, compute_units.name))
            seen.files.append(Path(path).name)

        def predict(self, features):
            seen.predicted.append(features)
            if "image" in features:
                pixels = np.asarray(features["image"], np.float64)
                return {"image_embeddings": pixels.mean((0, 1))[None]}
            tensors = (torch.from_numpy(features[name]) for name in DECODER.input_names)
            return {"iou_predictions": Sums()(*tensors).double().numpy()}

    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    return seen


def test_off_macos_the_error_names_the_runtime_that_works_everywhere(package, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(ConfigError, match="mil"):
        CoreMLRuntime(package, DECODER)


def test_each_entry_point_is_loaded_once_by_its_name_and_gets_its_exact_shape(package, macos):
    random = np.random.default_rng(0)
    inputs = {
        "point_coords": random.random((4, 2, 2), np.float32),
        "point_labels": np.ones((4, 2), np.float32),
    }
    with CoreMLRuntime(package, DECODER, compute_units="CPU_ONLY") as runtime:
        for _ in range(2):
            outputs = runtime.run(inputs)
            np.testing.assert_allclose(outputs["iou_predictions"], inputs["point_coords"].sum(1), rtol=1e-6)
    assert outputs["iou_predictions"].dtype == np.float32
    assert macos.loaded == [("decode_3", "CPU_ONLY"), ("decode_1", "CPU_ONLY")]
    assert [f["point_labels"].shape for f in macos.predicted[:2]] == [(3, 2), (1, 8)]


def test_before_ios_18_each_entry_point_is_the_one_function_of_its_own_file(packages, macos):
    inputs = {"point_coords": np.ones((4, 2, 2), np.float32), "point_labels": np.ones((4, 2), np.float32)}
    found = CoreMLRuntime(packages, DECODER).run(inputs)["iou_predictions"]
    np.testing.assert_allclose(found, inputs["point_coords"].sum(1))
    assert macos.files == ["decoder.decode_3.mlpackage", "decoder.decode_1.mlpackage"]
    assert macos.loaded == [("main", "ALL")] * 2


def test_an_image_input_gets_a_picture(picture_package, macos):
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, 8, 8)).astype(np.float32)
    found = CoreMLRuntime(picture_package, ENCODER).run({"image": image})["image_embeddings"]
    assert macos.loaded == [("main", "ALL")]
    assert macos.predicted[0]["image"].mode == "RGB"
    np.testing.assert_allclose(found, np.rint(image).mean((2, 3)), rtol=1e-6)


def test_a_package_of_another_graph_is_refused(package, macos):
    with pytest.raises(BundleError, match="point_coords"):
        CoreMLRuntime(package, ENCODER)
