import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from samexport.errors import BundleError, ConfigError, ExportFailed, MissingDependency, ParityFailed
from samexport.exporter.to_coreml import convert as to_coreml
from samexport.exporter.to_coreml.convert import KEPT, CoreMLOptions, convert
from samexport.exporter.to_coreml.package import PackageTexts
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.families.sam import POINTS, PROMPTS
from samexport.models.loading import load_model
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.entry_points import Bucket
from samexport.runtimes.adapters.mil import MilRuntime
from samexport.runtimes.adapters.packages import buckets_of
from samexport.runtimes.formats.mlpackage import read_package
from tests.single_thread import one_thread as one_thread

pytest.importorskip("coremltools")


TEXTS = PackageTexts("samexport", "Apache-2.0", "0.1.0", {"dev.samexport.model": "toy.toy"})
TOY = GraphSpec(
    "toy",
    "a decoder of one layer",
    (
        TensorSpec("image_embeddings", (1, 64), "what the encoder saw"),
        TensorSpec("point_coords", ("N", "K", 2), "x, y in pixels", 0, 63),
        TensorSpec("point_labels", ("N", "K"), "-2 absent", -2, 3, fill=-2),
    ),
    (TensorSpec("low_res_masks", ("N", 512), "logits"),),
    (PROMPTS, POINTS),
)


class Toy(nn.Module):
    """Sines of the points that are there, summed, times the image, through a layer whose size can be seen."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.frequencies = nn.Parameter(torch.randn(2, 64, generator=generator))
        self.layer = nn.Parameter(torch.randn(64, 512, generator=generator) / 8)

    def forward(self, image_embeddings, point_coords, point_labels):
        there = torch.relu(point_labels + 2).clamp(0, 1)[..., None]
        tokens = torch.sin(point_coords @ self.frequencies) * there
        return (tokens.sum(1) * image_embeddings) @ self.layer


class Refused(nn.Module):
    def forward(self, image_embeddings, point_coords, point_labels):
        return torch.special.bessel_j0(point_labels).sum(1, keepdim=True).expand(-1, 512)


def toy_inputs(prompts, points, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image_embeddings": torch.randn(1, 64, generator=generator).numpy(),
        "point_coords": (torch.rand(prompts, points, 2, generator=generator) * 63).numpy(),
        "point_labels": torch.randint(-2, 4, (prompts, points), generator=generator).float().numpy(),
    }


def signal_to_noise(actual, expected):
    expected = expected.astype(np.float64)
    return 10 * np.log10(np.sum(expected**2) / np.sum((expected - actual) ** 2))


def run_module(module, graph, inputs):
    with torch.inference_mode():
        result = module(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
    values = result if isinstance(result, tuple) else (result,)
    return {name: value.numpy() for name, value in zip(graph.output_names, values, strict=True)}


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    out = tmp_path_factory.mktemp("flexible") / "toy.mlpackage"
    assert convert(TOY, Toy(), out, CoreMLOptions(maximum_prompts=8, maximum_points=5), TEXTS) == out
    return out


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    out = tmp_path_factory.mktemp("joined") / "toy.mlpackage"
    options = CoreMLOptions(deployment_target="iOS18", prompt_buckets=(1, 4, 16))
    assert convert(TOY, Toy(), out, options, TEXTS) == out
    return out


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    out = tmp_path_factory.mktemp("apart") / "toy.mlpackage"
    options = CoreMLOptions(deployment_target="iOS17", prompt_buckets=(1, 4), points=(3,))
    folder = convert(TOY, Toy(), out, options, TEXTS)
    assert [p.name for p in out.parent.iterdir()] == ["toy.mlpackages"] == [folder.name]
    return folder


def size(package):
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


# The graphs of a model


@pytest.fixture(scope="module")
def tiny():
    spec = find_model("test.tinyvit64")
    return load_model(spec, random_seed=7)[0], spec


def inputs_of(graph, prompts, points, seed=0):
    random = np.random.default_rng(seed)
    sizes = {"N": prompts, "K": points}
    draw = {
        "image": lambda shape: random.integers(0, 256, shape),
        "point_coords": lambda shape: random.random(shape) * 63,
        "point_labels": lambda shape: random.integers(-2, 4, shape),
        "has_mask_input": lambda shape: random.integers(0, 2, shape),
    }
    shapes = {t.name: [sizes.get(d, d) for d in t.shape] for t in graph.inputs}
    return {n: draw.get(n, random.standard_normal)(s).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize(
    ("name", "options", "prompts"),
    [
        ("encoder", CoreMLOptions(image_input=True, deployment_target="iOS17"), ()),
        ("decoder", CoreMLOptions(), ((1, 1), (3, 2), (7, 5))),
        ("decoder_with_mask", CoreMLOptions(recipe="fp32", prompt_buckets=(2,)), ((1, 1), (5, 4))),
        ("decoder_prologue", CoreMLOptions(), ()),
        (
            "decoder_step",
            CoreMLOptions(deployment_target="iOS18", prompt_buckets=(1, 3)),
            ((1, 8), (3, 2), (8, 2)),
        ),
    ],
)
def test_a_package_computes_what_pytorch_computes(tiny, tmp_path, name, options, prompts):
    sam, spec = tiny
    graph, module = build_graph(sam, spec, name)
    package = convert(graph, module, tmp_path / "out.mlpackage", options, TEXTS)
    plain = name in ("encoder", "decoder", "decoder_with_mask")
    reference = build_graph(sam, spec, name, plain=plain)[1]
    for count, points in prompts or ((1, 1),):
        inputs = inputs_of(graph, count, points)
        expected = run_module(reference, graph, inputs)
        for precision, least in (("fp32", 45), ("fp16", 40), ("fp16_accumulate", 30)):
            actual = MilRuntime(package, graph, precision=precision).run(inputs)
            least = 100 if options.recipe == "fp32" else least
            for output in graph.output_names:
                assert signal_to_noise(actual[output], expected[output]) > least


def test_the_vit_encoder_converts_too(tmp_path):
    spec = find_model("test.vit64")
    sam, _ = load_model(spec, random_seed=7)
    graph, module = build_graph(sam, spec, "encoder")
    package = convert(graph, module, tmp_path / "encoder.mlpackage", CoreMLOptions(), TEXTS)
    inputs = inputs_of(graph, 1, 1)
    expected = run_module(build_graph(sam, spec, "encoder", plain=True)[1], graph, inputs)
    actual = MilRuntime(package, graph).run(inputs)
    assert signal_to_noise(actual["image_embeddings"], expected["image_embeddings"]) > 40
    ranks = {len(v.shape) for o in read_package(package).functions["main"].operations for v in o.outputs}
    assert max(ranks) == 4


# Entry points


@pytest.mark.parametrize(("prompts", "points"), [(1, 1), (1, 5), (2, 3), (8, 2), (19, 5)])
def test_a_flexible_package_takes_any_number_within_its_bounds_and_more_prompts_in_chunks(flexible, prompts, points):
    inputs = toy_inputs(prompts, points)
    expected = run_module(Toy(), TOY, inputs)["low_res_masks"]
    assert signal_to_noise(MilRuntime(flexible, TOY).run(inputs)["low_res_masks"], expected) > 50


def test_a_flexible_package_says_its_bounds_and_refuses_more_points(flexible):
    bounds = read_package(flexible).functions["main"].bounds
    assert bounds["point_coords"] == ((1, 8), (1, 5), (2, 2))
    assert bounds["point_labels"] == ((1, 8), (1, 5))
    with pytest.raises(ConfigError, match="at most 5 points"):
        MilRuntime(flexible, TOY).run(toy_inputs(1, 6) | {"point_labels": np.ones((1, 6), np.float32)})


@pytest.mark.parametrize(("prompts", "points"), [(1, 8), (2, 2), (4, 2), (5, 1), (16, 2), (37, 2), (3, 6)])
def test_fixed_entry_points_give_what_an_unpadded_call_gives(joined, prompts, points):
    inputs = toy_inputs(prompts, points)
    expected = run_module(Toy(), TOY, inputs)["low_res_masks"]
    assert signal_to_noise(MilRuntime(joined, TOY).run(inputs)["low_res_masks"], expected) > 50


def test_functions_of_one_package_share_the_weights(joined, tmp_path):
    package = read_package(joined)
    assert [(b.name, b.prompts, b.points, b.flexible) for b in buckets_of(package, TOY)] == [
        ("decode_1", 1, 8, False),
        ("decode_4", 4, 2, False),
        ("decode_16", 16, 2, False),
    ]
    assert package.default == "decode_1"
    options = CoreMLOptions(deployment_target="iOS18", prompt_buckets=(16,))
    single = convert(TOY, Toy(), tmp_path / "single.mlpackage", options, TEXTS)
    weights = Path("Data/com.apple.CoreML/weights/weight.bin")
    assert (single / weights).stat().st_size > 64 * 512 * 2
    assert (joined / weights).stat().st_size < 1.05 * (single / weights).stat().st_size


def test_older_systems_get_a_folder_with_a_package_for_each_entry_point(apart):
    files = ["toy.decode_1.mlpackage", "toy.decode_4.mlpackage"]
    assert sorted(p.name for p in apart.iterdir()) == files
    package = read_package(apart)
    assert buckets_of(package, TOY) == (Bucket("decode_1", 1, 3), Bucket("decode_4", 4, 3))
    assert [package.files[name].name for name in package.functions] == files
    inputs = toy_inputs(6, 3)
    expected = run_module(Toy(), TOY, inputs)["low_res_masks"]
    with MilRuntime(apart, TOY) as runtime:
        assert signal_to_noise(runtime.run(inputs)["low_res_masks"], expected) > 50
    # each is a package of its own with that one size
    alone = read_package(apart / files[1])
    assert list(alone.functions) == ["main"]
    assert [(b.prompts, b.points) for b in buckets_of(alone, TOY)] == [(4, 3)]


def test_a_folder_of_packages_that_cannot_be_one_decoder_is_refused(joined, tmp_path):
    folder = tmp_path / "toy.mlpackages"
    folder.mkdir()
    with pytest.raises(BundleError, match=r"holds no \.mlpackage"):
        read_package(folder)
    shutil.copytree(joined, folder / "toy.decode_1.mlpackage")
    with pytest.raises(BundleError, match="several functions"):
        read_package(folder)


# Precision


def declared(package, kinds):
    operations = read_package(package).functions["main"].operations
    return {
        o.kind: {v.dtype for p in operations if p.kind == o.kind for v in p.outputs}
        for o in operations
        if o.kind in kinds
    }


def test_everything_is_half_precision_but_the_path_from_pixels_to_their_sine(flexible):
    found = declared(flexible, {"sin", "mul", "reduce_sum", "linear", "matmul", "relu"})
    assert found["sin"] == {"float32"}
    assert found["mul"] == found["reduce_sum"] == found["relu"] == {"float16"}
    # the product with the frequencies and the layer
    assert found.get("linear", set()) | found.get("matmul", set()) == {"float32", "float16"}


def test_positions_are_exact_although_the_rest_is_half_precision(flexible):
    inputs = toy_inputs(1, 1)
    inputs["point_labels"][:] = 1
    inputs["point_coords"][:] = 60.004
    moved = {**inputs, "point_coords": np.full_like(inputs["point_coords"], 60.012)}
    # in half precision both are 60.0
    assert np.float16(60.004) == np.float16(60.012)
    runtime = MilRuntime(flexible, TOY)
    change = runtime.run(moved)["low_res_masks"] - runtime.run(inputs)["low_res_masks"]
    expected = run_module(Toy(), TOY, moved)["low_res_masks"] - run_module(Toy(), TOY, inputs)["low_res_masks"]
    assert signal_to_noise(change, expected) > 15


def test_fp32_on_request_has_no_half_anywhere(tmp_path):
    package = convert(TOY, Toy(), tmp_path / "toy.mlpackage", CoreMLOptions(recipe="fp32"), TEXTS)
    function = read_package(package).functions["main"]
    assert {v.dtype for o in function.operations for v in o.outputs} <= {"float32", "int32", "bool"}
    assert {c.dtype for c in function.constants.values() if isinstance(c, np.ndarray)}.isdisjoint(
        {np.dtype(np.float16)}
    )


# What Xcode shows


def description(package):
    from coremltools.proto import Model_pb2

    data = (package / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    return Model_pb2.Model.FromString(data).description


def test_a_package_tells_author_licence_version_and_manifest(flexible, joined):
    for package in (flexible, joined):
        metadata = description(package).metadata
        assert (metadata.author, metadata.license, metadata.versionString) == (
            "samexport",
            "Apache-2.0",
            "0.1.0",
        )
        assert metadata.shortDescription == "toy: a decoder of one layer"
        assert dict(metadata.userDefined) == {"dev.samexport.model": "toy.toy"}


def test_every_tensor_is_named_typed_and_explained(flexible, joined):
    from coremltools.proto import FeatureTypes_pb2

    float32 = FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    parts = [description(flexible), *description(joined).functions]
    assert len(parts) == 4
    for part in parts:
        assert [i.name for i in part.input] == list(TOY.input_names)
        assert [o.name for o in part.output] == list(TOY.output_names)
        assert {f.type.multiArrayType.dataType for f in (*part.input, *part.output)} == {float32}
        texts = {f.name: f.shortDescription for f in (*part.input, *part.output)}
        assert texts["point_coords"] == "N x K x 2: x, y in pixels; values 0 to 63"
        assert texts["low_res_masks"] == "N x 512: logits"


def test_a_flexible_package_is_fast_at_one_prompt_of_two_points(flexible):
    """Some compute units run a flexible input at its default size only."""
    assert [list(i.type.multiArrayType.shape) for i in description(flexible).input] == [
        [1, 64],
        [1, 2, 2],
        [1, 2],
    ]


class Mean(nn.Module):
    def forward(self, image):
        return (image - 100).mean((2, 3))


PICTURE = GraphSpec(
    "encoder",
    "",
    (TensorSpec("image", (1, 3, 8, 8), "RGB", 0, 255),),
    (TensorSpec("image_embeddings", (1, 3), ""),),
)


def test_an_image_input_is_an_rgb_picture_without_scale_or_bias(tmp_path):
    package = convert(PICTURE, Mean(), tmp_path / "p.mlpackage", CoreMLOptions(image_input=True), TEXTS)
    from coremltools.proto import FeatureTypes_pb2

    image = description(package).input[0].type.imageType
    assert (image.width, image.height, image.colorSpace) == (8, 8, FeatureTypes_pb2.ImageFeatureType.RGB)
    assert read_package(package).image_inputs == {"image"}
    # the app hands over whole numbers: 100.4 arrives as 100
    runtime = MilRuntime(package, PICTURE)
    found = runtime.run({"image": np.full((1, 3, 8, 8), 100.4, np.float32)})["image_embeddings"]
    np.testing.assert_array_equal(found, np.zeros((1, 3)))
    kinds = [o.kind for o in read_package(package).functions["main"].operations]
    assert kinds.count("mul") == 0
    assert kinds.count("sub") + kinds.count("add") == 1


# Bytes


def digest(package):
    from hashlib import sha256

    files = sorted(f for f in package.rglob("*") if f.is_file())
    return {str(f.relative_to(package)): sha256(f.read_bytes()).hexdigest() for f in files}


AGAIN = """
import sys
from pathlib import Path
from tests.exporter.to_coreml.test_convert import *
options = CoreMLOptions(maximum_prompts=8, maximum_points=5)
convert(PICTURE, Mean(), Path(sys.argv[1]) / "first.mlpackage", CoreMLOptions(), TEXTS)
convert(TOY, Toy(), Path(sys.argv[1]) / "other name.mlpackage", options, TEXTS)
options = CoreMLOptions(deployment_target="iOS18", prompt_buckets=(1, 4, 16))
convert(TOY, Toy(), Path(sys.argv[1]) / "joined.mlpackage", options, TEXTS)
options = CoreMLOptions(deployment_target="iOS17", prompt_buckets=(1, 4), points=(3,))
convert(TOY, Toy(), Path(sys.argv[1]) / "toy.mlpackage", options, TEXTS)
"""


def test_two_processes_write_the_same_bytes(flexible, joined, apart, tmp_path):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", AGAIN, str(tmp_path)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert digest(tmp_path / "other name.mlpackage") == digest(flexible)
    assert digest(tmp_path / "joined.mlpackage") == digest(joined)
    assert digest(tmp_path / "toy.mlpackages") == digest(apart)
    assert list(digest(flexible)) == [
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
    ]


def test_a_package_carries_no_trace_of_the_machine(flexible, joined):
    for package in (flexible, joined):
        content = b"".join(f.read_bytes() for f in package.rglob("*") if f.is_file())
        for word in (
            b"site-packages",
            b"test_to_coreml",
            b"/tmp",
            os.path.expanduser("~/").encode(),
            str(date.today()).encode(),
        ):
            assert word not in content


def test_coremltools_can_read_the_package_back(joined):
    import coremltools

    model = coremltools.models.MLModel(str(joined), skip_model_load=True)
    assert set(model.get_spec().mlProgram.functions) == {"decode_1", "decode_4", "decode_16"}


def test_nothing_is_printed(tmp_path, capfd):
    convert(PICTURE, Mean(), tmp_path / "p.mlpackage", CoreMLOptions(), TEXTS)
    assert capfd.readouterr() == ("", "")


# Refusals


def test_what_is_in_the_way_is_neither_deleted_nor_changed(tmp_path):
    victim = tmp_path / "toy.mlpackage"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="new path"):
        convert(TOY, Toy(), victim, CoreMLOptions(), TEXTS)
    assert (victim / "thesis.txt").read_text() == "mine"
    separate = tmp_path / "other.mlpackages"
    separate.mkdir()
    with pytest.raises(ConfigError, match=r"other\.mlpackages"):
        convert(TOY, Toy(), tmp_path / "other.mlpackage", CoreMLOptions(prompt_buckets=(1, 4)), TEXTS)
    separate.rmdir()
    with pytest.raises(ConfigError, match=r"\.mlpackage"):
        convert(TOY, Toy(), tmp_path / "toy", CoreMLOptions(), TEXTS)
    assert [p.name for p in tmp_path.iterdir()] == ["toy.mlpackage"]


def test_a_graph_that_coremltools_refuses_is_an_export_failure_that_leaves_nothing(tmp_path):
    with pytest.raises(ExportFailed, match=r"toy .*bessel") as caught:
        convert(TOY, Refused(), tmp_path / "toy.mlpackage", CoreMLOptions(prompt_buckets=(2,)), TEXTS)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Deep(nn.Module):
    def forward(self, image):
        return image.reshape(1, 3, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 5, 4, 6).sum((2, 3, 4, 5, 6))


def test_a_tensor_above_rank_5_is_refused(tmp_path):
    with pytest.raises(ExportFailed, match=r"rank|cannot be converted"):
        convert(PICTURE, Deep(), tmp_path / "p.mlpackage", CoreMLOptions(), TEXTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "int8"},
        {"deployment_target": "iOS15"},
        {"prompt_buckets": (4, 4)},
        {"prompt_buckets": (1, 4), "points": (2, 2, 2)},
        {"points": (2,)},
        {"maximum_points": 1},
    ],
)
def test_options_that_cannot_be_used_are_refused(options):
    with pytest.raises(ConfigError):
        CoreMLOptions(**options)


def test_versions_that_do_not_work_together_are_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.4.1")
    with pytest.raises(ConfigError, match=r"numpy<2\.4"):
        convert(TOY, Toy(), tmp_path / "toy.mlpackage", CoreMLOptions(), TEXTS)


def test_a_missing_coremltools_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingDependency, match=r"CoreML export needs coremltools: pip install "):
        to_coreml.convert(TOY, Toy(), tmp_path / "toy.mlpackage", CoreMLOptions(), TEXTS)


class Mlp(torch.nn.Module):
    """Weights far inside half precision; between them two channels are ``scale`` times larger than the others."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.requires_grad_(False)
        self.first.weight[:2] *= scale
        self.second.weight[:, :2] /= scale

    def forward(self, x):
        return self.second(torch.nn.functional.gelu(self.first(x)))


MLP = GraphSpec("mlp", "", (TensorSpec("x", (3, 8), ""),), (TensorSpec("y", (3, 8), ""),))


def test_what_overflows_half_precision_on_the_examples_stays_in_single_precision(tmp_path):
    module, texts = Mlp(2.0**15), PackageTexts("", "", "")
    x = torch.linspace(-4, 4, 24).reshape(3, 8)
    expected = module(x).numpy()
    blind = convert(MLP, module, tmp_path / "blind.mlpackage", CoreMLOptions(), texts)
    with MilRuntime(blind, MLP) as runtime, pytest.raises(ParityFailed, match="first operation that does is linear"):
        runtime.run({"x": x.numpy()})
    seeing = convert(MLP, module, tmp_path / "seeing.mlpackage", CoreMLOptions(), texts, [{"x": x.numpy()}])
    with MilRuntime(seeing, MLP) as runtime:
        np.testing.assert_allclose(runtime.run({"x": x.numpy()})["y"], expected, atol=2e-3 * np.ptp(expected))
    assert read_package(seeing).metadata[KEPT] == "gelu, linear_0"
    assert KEPT not in read_package(blind).metadata


def test_what_fits_half_precision_is_converted_once(tmp_path):
    x = np.ones((3, 8), np.float32)
    written = convert(MLP, Mlp(1.0), tmp_path / "x.mlpackage", CoreMLOptions(), PackageTexts("", "", ""), [{"x": x}])
    package = read_package(written)
    assert KEPT not in package.metadata
    types = {v.dtype for o in package.functions["main"].operations if o.kind == "linear" for v in o.outputs}
    assert types == {"float16"}


class Attending(torch.nn.Module):
    """Three tokens attend to 2000, then a LayerNorm of large numbers."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.keys = torch.nn.Parameter(torch.randn(2000, 8, generator=generator) * 0.2)
        self.values = torch.nn.Parameter(torch.randn(2000, 8, generator=generator) + torch.linspace(-1, 1, 8))
        self.norm = torch.nn.LayerNorm(8)
        self.requires_grad_(False)

    def forward(self, x):
        return self.norm((x @ self.keys.T).softmax(-1) @ (self.values + x[:1]) * 200)


def test_long_sums_and_the_squares_of_large_numbers_stay_in_single_precision(tmp_path, monkeypatch):
    module, x = Attending(), torch.linspace(-1, 1, 24).reshape(3, 8)
    texts, inputs = PackageTexts("", "", ""), {"x": x.numpy()}

    def worst(name):
        path = convert(MLP, module, tmp_path / f"{name}.mlpackage", CoreMLOptions(), texts, [inputs])
        with MilRuntime(path, MLP, precision="fp16_accumulate") as runtime:
            package = read_package(path)
            types = {o.kind: o.outputs[0].dtype for o in package.functions["main"].operations}
            return signal_to_noise(module(x).numpy(), runtime.run(inputs)["y"]), types, package.metadata.get(KEPT)

    snr, types, kept = worst("kept")
    assert snr > 45
    assert {types[kind] for kind in ("softmax", "matmul", "layer_norm")} == {"float32"}
    assert types["linear"] == "float16"
    assert kept == "layer_norm"
    monkeypatch.setattr("samexport.exporter.to_coreml.convert._MANY_TERMS", 10**6)
    assert worst("short")[0] < 45


class Neck(nn.Module):
    """A LayerNorm over channels, its output large or not, then a convolution of 2304 terms a sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.conv = nn.LayerNorm(256), nn.Conv2d(256, 4, 3, padding=1)
        self.requires_grad_(False)
        self.conv.weight += 0.01

    def forward(self, x):
        return self.conv(self.norm(x).permute(0, 3, 1, 2))


FIELD = GraphSpec("field", "", (TensorSpec("x", (1, 6, 6, 256), ""),), (TensorSpec("y", (1, 4, 6, 6), ""),))


def test_a_long_convolution_behind_a_layer_norm_in_single_precision_is_too(tmp_path):
    module, drawn = Neck(), torch.rand(1, 6, 6, 256, generator=torch.Generator().manual_seed(1))
    types = {}
    for name, scale in (("large", 100.0), ("small", 1.0)):
        inputs = {"x": (drawn * scale).numpy()}
        path = convert(FIELD, module, tmp_path / f"{name}.mlpackage", CoreMLOptions(), TEXTS, [inputs])
        operations = read_package(path).functions["main"].operations
        types[name] = {o.kind: o.outputs[0].dtype for o in operations if o.kind in ("layer_norm", "conv")}
    assert types == {
        "large": {"layer_norm": "float32", "conv": "float32"},
        "small": {"layer_norm": "float16", "conv": "float16"},
    }
