"""Quantized bundles of ONNX files: what is in them, what the gate sees, what mixed leaves alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samexport.errors import BundleError, ConfigError, ExportFailed
from samexport.exporter.quantize.bundle import copy_files, quantize_bundle
from samexport.exporter.quantize.calibration import Pictures, fed, pictures_of
from samexport.exporter.quantize.headroom import times
from samexport.exporter.quantize.job import GateFailed, Job, Request, quantize_files
from samexport.exporter.recipes import RECIPES, Recipe, read_recipe
from samexport.exporter.to_onnx import quantize as onnx_files
from samexport.exporter.to_onnx.places import as_places
from samexport.files import sha256
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.accuracy.agreement import MODES, Limits, ask, judge
from samexport.runtimes.adapters.onnx_ranges import Peak
from samexport.runtimes.bundle import Bundle, ModeScores
from samexport.runtimes.host.frames import to_frame
from samexport.runtimes.host.image import read_image
from samexport.runtimes.parity.golden_files import FOLDER, PICTURE
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.registry import open_runtime
from samexport.runtimes.verdicts import Verdict

# masks of random weights fall apart at the first rounding, so most tests judge structure alone
ANYTHING = 0.99
LINEAR = Recipe("linear", "int8", "float32", ("onnx",), "fp32", operations={"onnx": ("Gemm", "MatMul")})


def request(bundle: Bundle, recipe: Recipe | str, **options) -> Request:
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    pictures = Pictures((bundle.folder / FOLDER / PICTURE,))
    return Request(chosen, pictures, **{"max_drop": ANYTHING, "threads": 1, **options})


def integers(path: Path) -> list[str]:
    kinds = {TensorProto.INT8, TensorProto.UINT8}
    return [w.name for w in onnx.load(path).graph.initializer if w.data_type in kinds and len(w.dims) > 1]


@pytest.mark.parametrize(
    ("recipe", "compute", "kinds"),
    [
        ("static_wi8_ai8", 0.8, {"QuantizeLinear", "DequantizeLinear"}),
        ("dynamic_wi8_afp32", 0.4, {"DynamicQuantizeLinear", "MatMulInteger"}),
        ("weight_only_wi8_afp32", 0, {"DequantizeLinear"}),
        ("mixed_dynamic", 0.4, {"DynamicQuantizeLinear", "MatMulInteger"}),
    ],
)
def test_a_recipe_puts_integers_into_the_encoder_alone(tiny_bundle, tmp_path, recipe, compute, kinds):
    made, report = quantize_bundle(tiny_bundle, request(tiny_bundle, recipe), tmp_path / "made")
    encoder, before = made.artifact("encoder"), tiny_bundle.artifact("encoder")
    path = made.folder / encoder.path
    assert encoder.path == f"encoder.{recipe}.onnx"
    assert not (made.folder / "encoder.onnx").exists()
    assert kinds <= {node.op_type for node in onnx.load(path).graph.node}
    assert encoder.quantized is not None
    assert encoder.quantized.quantized_weights == len(integers(path)) > 10
    assert encoder.quantized.integer_macs >= compute
    assert encoder.quantized.integer_macs == 0 or compute
    assert encoder.quantized.pairs > 0
    assert encoder.parent == before.sha256
    assert encoder.size == path.stat().st_size < 0.75 * before.size
    assert (encoder.calibration is not None) == RECIPES[recipe].calibrated
    for name in ("decoder", "decoder_with_mask"):
        assert made.artifact(name) == tiny_bundle.artifact(name)
    assert report.proves
    assert verify_bundle(made, threads=1).verdict is Verdict.PASS
    assert "## Quantized" in (made.folder / "README.md").read_text()


def test_a_recipe_names_what_it_changes_before_and_the_function_stays(tiny_bundle, tmp_path):
    parent, graph = tiny_bundle.folder / "encoder.onnx", tiny_bundle.graph("encoder")
    # one small layer is quantized, so what differs else is the pass
    first = onnx_files.layers(parent, graph, LINEAR)[0].name
    kept = {layer.name for layer in onnx_files.layers(parent, graph, LINEAR)} - {first}
    image = {"image": np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)}
    embeddings = {}
    for passes in ((), ("tanh_gelu",)):
        target = tmp_path / f"made{len(passes)}.onnx"
        recipe = structs.replace(LINEAR, compute="int8", passes=passes)
        onnx_files.write(parent, target, graph, recipe, None, kept)
        gelus = [node for node in onnx.load(target).graph.node if node.op_type == "Gelu"]
        assert len(gelus) > 10
        assert {a.s for node in gelus for a in node.attribute} == ({b"tanh"} if passes else {b"none"})
        with open_runtime(target, graph, "onnx", threads=1) as runtime:
            embeddings[passes] = runtime.run(image)["image_embeddings"]
    exact, near = embeddings.values()
    assert 0 < np.abs(exact - near).max() < 2e-3 * np.ptp(exact)


def test_constants_of_repeated_columns_become_tables_and_the_same_numbers(tmp_path):
    generator = np.random.default_rng(3)
    table, place = generator.normal(size=(5, 40)).astype(np.float32), generator.integers(0, 40, (64, 64))
    other = generator.normal(size=(5, 64, 64)).astype(np.float32)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Add", ["x", "one"], ["a"]),
                helper.make_node("Add", ["a", "two"], ["b"]),
                helper.make_node("Add", ["b", "other"], ["y"]),
            ],
            "toy",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (5, 64, 64))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (5, 64, 64))],
            [
                numpy_helper.from_array(value, name)
                for name, value in (("one", table[:, place]), ("two", 2 * table[:, place]), ("other", other))
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    x = {"x": generator.normal(size=(5, 64, 64)).astype(np.float32)}
    before = ReferenceEvaluator(model).run(None, x)
    size = model.ByteSize()
    as_places(model)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, x), before)
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather", "Add", "Add", "Add"]
    # both share where the columns are
    assert model.ByteSize() < size - 2 * 5 * 64 * 64 * 4 + 64 * 64 * 4 + 4000


def test_gemms_alone_are_quantized_while_running(tiny_bundle, tmp_path):
    # ONNX Runtime makes products of them first
    recipe = Recipe("gemms", "int8", "int8", ("onnx",), "fp32", operations={"onnx": ("Gemm",)})
    parent, graph, target = tiny_bundle.folder / "decoder.onnx", tiny_bundle.graph("decoder"), tmp_path / "made.onnx"
    onnx_files.write(parent, target, graph, recipe, None, ())
    found = onnx_files.count(parent, target, graph, {})
    assert found.quantized_weights == len(onnx_files.layers(parent, graph, recipe)) == 5
    assert {"MatMulInteger", "MatMul"} <= {node.op_type for node in onnx.load(target).graph.node}


def test_a_bundle_is_not_quantized_onto_itself_and_nothing_to_quantize_is_told_at_once(own_bundle, tmp_path):
    before = own_bundle.artifact("encoder").sha256
    with pytest.raises(ConfigError, match="is the bundle that is quantized; --out names another folder"):
        quantize_bundle(own_bundle, request(own_bundle, "static_wi8_ai8"), own_bundle.folder, force=True)
    assert sha256(own_bundle.folder / "encoder.onnx") == before
    nothing = Recipe("nothing", "int8", "int8", ("onnx",), "fp32", calibrated=True, operations={"onnx": ("Gem",)})
    with pytest.raises(ExportFailed, match="encoder has nothing that nothing quantizes"):
        quantize_bundle(own_bundle, request(own_bundle, nothing), tmp_path / "made")


def test_the_same_pictures_give_the_same_bytes(tiny_bundle, tmp_path):
    asked = request(tiny_bundle, "static_wi8_ai8")
    first, second = (quantize_bundle(tiny_bundle, asked, tmp_path / name)[0] for name in ("first", "second"))
    assert first.manifest == second.manifest
    gate, files = first.manifest.gate, first.manifest.files
    assert gate is not None
    assert gate.pictures == (files[f"{FOLDER}/{PICTURE}"],)


def test_another_graph_is_quantized_if_it_is_named(tiny_bundle, tmp_path):
    made, _ = quantize_bundle(
        tiny_bundle,
        request(tiny_bundle, "weight_only_wi8_afp32", graphs=("decoder", "decoder_with_mask")),
        tmp_path / "made",
    )
    assert [a.recipe for a in made.manifest.artifacts] == ["fp32", *2 * ["weight_only_wi8_afp32"]]


def test_sam_2_and_the_detector_pass_the_same_gate(sam2_bundle, sampler_bundle, tmp_path):
    for bundle, graphs in ((sam2_bundle, {"image_encoder"}), (sampler_bundle, {"encoder", "prompt_sampler"})):
        folder = tmp_path / bundle.folder.name
        copy_files(bundle, folder)
        job = Job(replace(bundle, folder=folder), request(bundle, "static_wi8_ai8"))
        artifacts, gate = quantize_files(job)
        assert {artifact.graph for artifact in artifacts} == graphs
        assert all(artifact.quantized.integer_macs > 0.5 for artifact in artifacts)
        assert {"click", "box"} <= {scores.mode for scores in gate.modes}


def test_what_feeds_a_graph_is_our_own_preprocessing(tiny_bundle):
    picture = read_image(tiny_bundle.folder / FOLDER / PICTURE)
    (asked,) = ask(tiny_bundle, [picture], threads=1)
    (encoder,) = fed(tiny_bundle, "encoder", [asked], 1)
    assert np.array_equal(encoder["image"], to_frame(picture, tiny_bundle.manifest.frame))
    decoder = list(fed(tiny_bundle, "decoder", [asked], 1))
    with tiny_bundle.open("encoder", threads=1) as runtime:
        embedding = runtime.run(encoder)["image_embeddings"]
    assert all(np.array_equal(inputs["image_embeddings"], embedding) for inputs in decoder)
    assert decoder[0]["point_labels"].shape == (16, 2)
    assert {"mask_input"} <= set(next(fed(tiny_bundle, "decoder_with_mask", [asked], 1)))


def test_a_bundle_agrees_with_itself(tiny_bundle):
    asked = list(ask(tiny_bundle, [read_image(tiny_bundle.folder / FOLDER / PICTURE)], threads=1))
    found = judge(tiny_bundle, asked, threads=1)
    assert [scores.mode for scores in found] == list(MODES)
    assert {(s.mean, s.p5, s.worst, s.same_best) for s in found} == {(1.0, 1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    ("mean", "p5", "reason"),
    [(0.985, 0.96, "mean"), (0.995, 0.94, "p5"), (0.991, 0.951, ""), (float("nan"), 1, "mean")],
)
def test_the_gate_looks_at_mean_and_percentile(mean, p5, reason):
    problem = Limits(0.01).problem(ModeScores("click", 9, mean, p5, 0, 1))
    assert reason in problem
    assert bool(problem) == bool(reason)


def _collapse(values):
    values[:] = 0


def _wrong_scale(values):
    values[:] = np.clip(values.astype(int) * 2, -127, 127)


def _clip(values):
    values[:] = np.clip(values, -6, 6)


def _zero_head(values):
    values[: len(values) // 2] = 0


@pytest.fixture(params=[_collapse, _wrong_scale, _clip, _zero_head])
def planted(request, monkeypatch, tiny_bundle):
    """A quantizer that damages the queries, keys and values of the first attention; the layer's label."""
    write = onnx_files.write
    weight = "matmul_weight"

    def damaging(parent, target, *rest):
        write(parent, target, *rest)
        model = onnx.load(target)
        for stored in model.graph.initializer:
            if stored.name == f"{weight}_quantized":
                values = numpy_helper.to_array(stored).copy()
                request.param(values)
                stored.CopyFrom(numpy_helper.from_array(values, stored.name))
        target.write_bytes(model.SerializeToString())

    monkeypatch.setattr(onnx_files, "write", damaging)
    found = onnx_files.layers(tiny_bundle.folder / "encoder.onnx", tiny_bundle.graph("encoder"), LINEAR)
    model = onnx.load(tiny_bundle.folder / "encoder.onnx")
    name = next(node.name for node in model.graph.node if weight in node.input)
    return next(layer.label for layer in found if layer.name == name)


def test_a_planted_fault_is_caught_and_mixed_leaves_that_layer_alone(planted, tiny_bundle, tmp_path):
    with pytest.raises(GateFailed) as failed:
        quantize_bundle(tiny_bundle, request(tiny_bundle, LINEAR, max_drop=0.1), tmp_path / "made")
    assert any(scores.mean < 0.9 or scores.p5 < 0.5 for scores in failed.value.gate.modes)
    assert not (tmp_path / "made").exists()
    searching = Recipe("careful", "int8", "float32", ("onnx",), "fp32", search=True, operations=LINEAR.operations)
    made, _ = quantize_bundle(tiny_bundle, request(tiny_bundle, searching, max_drop=0.1), tmp_path / "made")
    quantized = made.artifact("encoder").quantized
    assert quantized is not None
    assert list(quantized.kept) == [planted]
    assert "dB" in quantized.kept[planted]


def test_without_a_fault_linear_layers_pass(tiny_bundle, tmp_path):
    quantize_bundle(tiny_bundle, request(tiny_bundle, LINEAR, max_drop=0.1), tmp_path / "made")


def test_a_gate_that_nothing_meets_is_told(tiny_bundle, tmp_path):
    few = Recipe("few", "int8", "float32", ("onnx",), "fp32", search=True, operations={"onnx": ("MatMul", "Conv")})
    with pytest.raises(GateFailed, match="layers left as they were; nothing was written"):
        quantize_bundle(tiny_bundle, request(tiny_bundle, few, max_drop=0.0), tmp_path / "made")


def test_where_the_only_layer_fails_nothing_is_left_to_search(tiny_bundle, tmp_path):
    only = Recipe("only", "int8", "float32", ("onnx",), "fp32", search=True, operations={"onnx": ("MatMul",)})
    with pytest.raises(GateFailed, match="no other layer"):
        quantize_bundle(tiny_bundle, request(tiny_bundle, only, max_drop=0.0), tmp_path / "made")


def test_the_share_of_integer_multiplications_is_counted_in_the_file(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"conv": rng.normal(size=(8, 4, 1, 1)), "product": rng.normal(size=(8, 6))}
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["wide"], "conv_node"),
        helper.make_node("Transpose", ["wide"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["last", "product"], ["out"], "product_node"),
    ]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 5, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    parent, target = tmp_path / "small.onnx", tmp_path / "made.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), parent)
    image = TensorSpec("image", (1, 4, 5, 5), "", low=-3, high=3)
    graph = GraphSpec("small", "", (image,), (TensorSpec("out", (1, 5, 5, 6), ""),))
    recipe = RECIPES["static_wi8_ai8"]
    inputs = [{"image": rng.normal(size=(1, 4, 5, 5)).astype(np.float32)}]
    ranges = onnx_files.calibrate(parent, graph, recipe, inputs)
    macs = {layer.name: layer.macs for layer in onnx_files.layers(parent, graph, recipe)}
    assert macs == {"conv_node": 800, "product_node": 1200}
    onnx_files.write(parent, target, graph, recipe, ranges, {"conv_node"})
    found = onnx_files.count(parent, target, graph, {})
    assert (found.integer_macs, found.quantized_weights) == (0.6, 1)
    onnx_files.write(parent, target, graph, recipe, ranges, {"conv_node", "product_node"})
    assert onnx_files.count(parent, target, graph, {}).quantized_weights == 0


def test_channels_have_scales_of_their_own():
    values = np.array([[1.0, 1000.0, 0.0], [-0.4, 400.0, 0.0]])
    integers, scales = onnx_files.per_channel(values, 1)
    assert integers.tolist() == [[127, 127, 0], [-51, 51, 0]]
    assert scales == pytest.approx([1 / 127, 1000 / 127, 1])


def test_a_sum_of_squares_allows_the_root_of_its_growth():
    assert times(Peak("Add a", "a", 65504 / 4)) == 4
    assert times(Peak("squares in LayerNormalization a", "a", 65504 / 4)) == 2
    assert times(Peak("Add a", "a", 0)) == float("inf")


def test_a_file_without_integers_is_no_quantized_file(tiny_bundle, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_files, "write", lambda parent, target, *_: target.write_bytes(parent.read_bytes()))
    with pytest.raises(ExportFailed, match="nothing was quantized"):
        quantize_bundle(tiny_bundle, request(tiny_bundle, "static_wi8_ai8"), tmp_path / "made")


def test_a_file_that_answers_nan_fails_the_gate(tiny_bundle, monkeypatch, tmp_path):
    write = onnx_files.write

    def breaking(parent, target, *rest):
        write(parent, target, *rest)
        model = onnx.load(target)
        scale = next(w for w in model.graph.initializer if w.name.endswith("weight_scale") and w.dims)
        scale.CopyFrom(numpy_helper.from_array(np.full(list(scale.dims), np.nan, np.float32), scale.name))
        target.write_bytes(model.SerializeToString())

    monkeypatch.setattr(onnx_files, "write", breaking)
    with pytest.raises(Exception, match=r"do not work.*NaN") as failed:
        quantize_bundle(tiny_bundle, request(tiny_bundle, "weight_only_wi8_afp32"), tmp_path / "made")
    assert failed.value.exit_code == 1


def test_requests_that_cannot_be_met_are_refused_before_any_work(tiny_bundle, half_bundle, own_bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"made from fp32 files; encoder.fp16.onnx is fp16"):
        quantize_bundle(half_bundle, request(half_bundle, "static_wi8_ai8"), tmp_path / "made")
    with pytest.raises(ConfigError, match=r"palettized_w6 is for coreml files"):
        quantize_bundle(tiny_bundle, request(tiny_bundle, "palettized_w6"), tmp_path / "made")
    with pytest.raises(BundleError, match=r"has no nothing|no graph 'nothing'"):
        quantize_bundle(tiny_bundle, request(tiny_bundle, "static_wi8_ai8", graphs=("nothing",)), tmp_path / "made")
    (own_bundle.folder / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder.onnx has another sha256"):
        quantize_bundle(own_bundle, request(own_bundle, "static_wi8_ai8"), tmp_path / "made")


def test_pictures_come_from_a_folder_or_from_what_is_installed(tiny_bundle, tmp_path):
    for name in ("b.png", "a.jpg", "c.txt", "d.JPEG"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in pictures_of(tmp_path, tiny_bundle.folder).files] == ["a.jpg", "b.png", "d.JPEG"]
    assert len(pictures_of(tmp_path, tiny_bundle.folder, 2).files) == 2
    assert not pictures_of(None, tiny_bundle.folder).own
    with pytest.raises(ConfigError, match="no folder"):
        pictures_of(tmp_path / "a.jpg", tiny_bundle.folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no pictures"):
        pictures_of(tmp_path / "empty", tiny_bundle.folder)


def test_a_recipe_of_the_user_is_a_file(tmp_path):
    path = tmp_path / "mine.json"
    content = {"name": "mine", "weights": "int8", "compute": "int8", "formats": ["onnx"], "parent": "fp32"}
    path.write_text(json.dumps(content))
    assert read_recipe(str(path), "onnx").name == "mine"
    for wrong, message in (
        ({"name": "fp32"}, "name fp32 is taken"),
        ({"parent": "mixed"}, "parent is fp32 or fp16"),
        ({"formats": ["tflite"]}, "is for tflite files"),
        ({"weights": "int7"}, "no recipe .*int7"),
        ({"colour": "red"}, "no recipe .*colour"),
        ({"operations": {"onnx": []}}, "operations of onnx names none; known: Conv, "),
        ({"operations": {"onnx": ["MatMul", "Convv"]}}, "operations of onnx: Convv cannot be quantized; known: Conv, "),
        ({"formats": ["onnx", "coreml"], "operations": {"coreml": ["conv"]}}, "coreml: conv .* known: none, so leave"),
    ):
        path.write_text(json.dumps(content | wrong))
        with pytest.raises(ConfigError, match=message):
            read_recipe(str(path), "onnx")
