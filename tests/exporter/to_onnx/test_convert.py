import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from samexport.errors import ConfigError, ExportFailed, MissingDependency
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx import versions
from samexport.exporter.to_onnx.maximum import name_places
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.families.sam import PROMPTS
from samexport.models.loading import load_model
from samexport.models.spec import GraphSpec, TensorSpec


@pytest.fixture(scope="module")
def tiny():
    spec = find_model("test.tinyvit64")
    return load_model(spec, random_seed=7)[0], spec


def tensors(values):
    """Name -> (element type, dimensions), a dimension being a number or a name."""
    found = {}
    for value in values:
        kind = value.type.tensor_type
        found[value.name] = kind.elem_type, tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    return found


@pytest.mark.parametrize("name", ["encoder", "decoder", "decoder_with_mask"])
def test_a_file_has_the_names_types_and_axes_of_its_spec(tiny_bundle, name):
    graph, model = tiny_bundle.graph(name), onnx.load(tiny_bundle.folder / f"{name}.onnx").graph
    for specs, values in ((graph.inputs, model.input), (graph.outputs, model.output)):
        assert tensors(values) == {t.name: (TensorProto.FLOAT, t.shape) for t in specs}


@pytest.mark.parametrize("name", ["encoder", "decoder", "decoder_with_mask"])
def test_a_file_carries_no_trace_of_the_machine(tiny_bundle, name):
    content = (tiny_bundle.folder / f"{name}.onnx").read_bytes()
    for word in (b"site-packages", b"/samexport/", b'File "', os.path.expanduser("~/").encode()):
        assert word not in content
    kinds = {n.op_type for n in onnx.load_from_string(content).graph.node}
    assert not kinds & {"Identity", "Constant", "Dropout", "BatchNormalization"}


def test_normalisation_of_channels_is_a_layer_normalization_node(tiny_bundle):
    graph = onnx.load(tiny_bundle.folder / "encoder.onnx").graph
    kinds = [n.op_type for n in graph.node]
    # two a block (4 blocks), two in the neck
    assert kinds.count("LayerNormalization") == 10
    assert not set(kinds) & {"ReduceMean", "Sqrt", "Pow"}


def test_the_encoder_has_no_tensor_above_rank_4(tiny_bundle, half_bundle):
    for path in (tiny_bundle.folder / "encoder.onnx", half_bundle.folder / "encoder.fp16.onnx"):
        inferred = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
        ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.value_info}
        assert len(ranks) > 100
        assert max(ranks.values()) <= 4


def test_another_opset_gives_the_same_numbers(tiny, tmp_path):
    (sam, spec), opset = tiny, 18
    graph, module = build_graph(sam, spec, "decoder")
    path = tmp_path / "decoder.onnx"
    to_onnx.convert(graph, module, path, to_onnx.OnnxOptions(opset=opset))
    model = onnx.load(path)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    # a higher version keeps out runtimes that know the opset
    assert model.ir_version == 8
    inputs = [torch.randn(1, 64, 4, 4), torch.rand(5, 3, 2) * 63, torch.ones(5, 3)]
    expected = module(*inputs)
    names = graph.input_names
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    actual = session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})
    np.testing.assert_allclose(actual[0], expected[0].numpy(), atol=1e-5 * np.ptp(actual[0]))


@pytest.mark.parametrize("name", ["encoder", "decoder", "decoder_with_mask"])
def test_onnx_runtime_s_tool_can_tell_every_shape(tiny_bundle, half_bundle, name):
    """What runs before quantization and TensorRT; it stopped at a maximum."""
    half = {"encoder": "encoder", "decoder": "decoder_step", "decoder_with_mask": "decoder_with_mask"}[name]
    for path in (tiny_bundle.folder / f"{name}.onnx", half_bundle.folder / f"{half}.fp16.onnx"):
        found = SymbolicShapeInference.infer_shapes(onnx.load(path), auto_merge=True).graph
        known = {v.name: v.type.tensor_type.shape.dim for v in (*found.value_info, *found.output)}
        made = [output for node in found.node for output in node.output]
        assert set(made) <= set(known)
        assert all(d.dim_value or d.dim_param for dims in known.values() for d in dims)
    spec = {t.name: t.shape for t in tiny_bundle.graph(name).outputs}
    found = SymbolicShapeInference.infer_shapes(onnx.load(tiny_bundle.folder / f"{name}.onnx"), auto_merge=True).graph
    assert {n: shape for n, (_, shape) in tensors(found.output).items()} == spec


def test_a_maximum_named_by_its_place_is_the_same_maximum():
    x = np.random.default_rng(5).standard_normal((3, 4, 5)).astype(np.float32)
    x[0, 1] = x[0, 2]
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x", "axis"], ["y"], "max")],
        "max",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 5])],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    name_places(model)
    assert [node.op_type for node in model.graph.node] == ["ArgMax", "GatherElements"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.max(1, keepdims=True))


def test_an_opset_gets_the_first_version_of_the_format_that_had_it():
    first = {}
    for _, ir, opset, *_ in helper.VERSION_TABLE:
        first.setdefault(opset, ir)
    assert {opset: versions.ir_version(opset) for opset in versions.OPSETS} == {o: first[o] for o in range(18, 24)}


def test_a_newer_opset_never_runs_on_an_older_onnx_runtime():
    oldest = [tuple(map(int, versions.oldest_onnxruntime(opset).split("."))) for opset in sorted(versions.OPSETS)]
    assert oldest == sorted(oldest)


REBUILD = """
import sys, hashlib
from pathlib import Path
from samexport.exporter.pipeline import ExportOptions, export_bundle
bundle, _ = export_bundle(ExportOptions("test.tinyvit64", Path(sys.argv[1]), random_seed=7))
"""


def test_two_runs_give_byte_identical_bundles(tiny_bundle, tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "4", "TZ": "Asia/Tokyo", "HOME": str(tmp_path)}
    out = tmp_path / "again"
    subprocess.run([sys.executable, "-c", REBUILD, out], check=True, env=environment, cwd=tmp_path, capture_output=True)
    files = sorted(p.relative_to(tiny_bundle.folder) for p in tiny_bundle.folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert [f for f in files if (out / f).read_bytes() != (tiny_bundle.folder / f).read_bytes()] == []


def test_half_precision_keeps_what_overflows_in_single_precision(half_bundle):
    graph = onnx.load(half_bundle.folder / "decoder_step.fp16.onnx").graph
    inferred = onnx.shape_inference.infer_shapes(onnx.load(half_bundle.folder / "decoder_step.fp16.onnx")).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    kept = [n for n in graph.node if n.op_type in ("LayerNormalization", "Softmax", "Sin", "Cos", "Exp")]
    assert len(kept) >= 15
    assert {types[n.output[0]] for n in kept} == {TensorProto.FLOAT}
    products = [types[n.output[0]] for n in graph.node if n.op_type in ("MatMul", "Gemm")]
    # all but the product that encodes coordinates
    assert products.count(TensorProto.FLOAT) == 1
    large = [w for w in graph.initializer if np.prod(w.dims) > 1000]
    assert {w.data_type for w in large} == {TensorProto.FLOAT16}


def test_a_module_that_cannot_be_exported_is_one_clear_error(tmp_path):
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    graph = GraphSpec("branches", "", (TensorSpec("x", ("N", 3), ""),), (TensorSpec("y", ("N", 3), ""),), (PROMPTS,))
    with pytest.raises(ExportFailed, match="branches cannot be exported") as caught:
        to_onnx.convert(graph, Branches(), tmp_path / "x.onnx", to_onnx.OnnxOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


def fails(_model):
    raise RuntimeError("optimiser crashed")


def swaps_scores(model):
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    weight = next(w for w in broken.graph.initializer if list(w.dims) == [4] and w.data_type == TensorProto.FLOAT)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 0.1, weight.name))
    return broken


def breaks_order(model):
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node.insert(0, broken.graph.node.pop())
    return broken


def makes_no_number(model):
    broken = swaps_scores(model)
    for weight in broken.graph.initializer:
        if list(weight.dims) == [4] and weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.nan, np.float32), weight.name))
    return broken


REFUSALS = [
    (fails, "RuntimeError: optimiser crashed"),
    (swaps_scores, "it computes another iou_predictions"),
    (makes_no_number, "it computes another iou_predictions"),
    (breaks_order, "ValidationError: Nodes in a graph must be topologically sorted"),
]


@pytest.mark.parametrize(("optimiser", "why"), REFUSALS)
def test_a_graph_that_the_optimiser_breaks_is_kept_as_exported_and_it_is_said_why(
    tiny_bundle, monkeypatch, optimiser, why
):
    exported = onnx.load(tiny_bundle.folder / "decoder.onnx")
    monkeypatch.setattr(to_onnx, "_slim", optimiser)
    kept, refused = to_onnx.optimise(exported, tiny_bundle.graph("decoder"))
    assert kept is exported
    assert refused.startswith(why)


def test_a_graph_that_the_optimiser_keeps_intact_is_taken(tiny_bundle):
    exported = onnx.load(tiny_bundle.folder / "decoder.onnx")
    taken, refused = to_onnx.optimise(exported, tiny_bundle.graph("decoder"))
    assert taken is not exported
    assert refused == ""


def test_a_simplified_graph_is_run_on_sizes_that_were_not_traced_and_are_no_larger_than_needed():
    attention = find_model("hiera_t").graph("memory_attention_pruned")
    sizes, traced = to_onnx.other_sizes(attention), attention.sizes(default="traced")
    assert sizes == {name: size - 1 for name, size in traced.items()}
    decoder = find_model("hiera_t").graph("mask_decoder")
    assert to_onnx.other_sizes(decoder) == {"N": 2, "K": 3}


@pytest.mark.parametrize(("side", "kinds"), [(600, ["MatMul", "Add"]), (200, ["Add"])])
def test_constants_that_make_a_file_much_larger_are_left_to_the_runtime(side, kinds):
    rng = np.random.default_rng(3)
    tables = {"a": rng.standard_normal((side, 4)), "b": rng.standard_normal((4, side))}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["table"], "product"), helper.make_node("Add", ["x", "table"], ["y"])],
        "table",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [side, side])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in tables.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    slimmed = to_onnx._slim(model)
    assert [node.op_type for node in slimmed.graph.node] == kinds
    assert slimmed.ByteSize() < 1_000_000


def test_what_was_written_says_whether_the_optimiser_was_refused(tmp_path, monkeypatch):
    class Twice(torch.nn.Module):
        def forward(self, x):
            return x + x

    graph = GraphSpec("twice", "", (TensorSpec("x", ("N", 3), ""),), (TensorSpec("y", ("N", 3), ""),), (PROMPTS,))
    written = to_onnx.convert(graph, Twice(), tmp_path / "x.onnx", to_onnx.OnnxOptions())
    assert written == to_onnx.OnnxFile(1)
    monkeypatch.setattr(to_onnx, "_slim", fails)
    written = to_onnx.convert(graph, Twice(), tmp_path / "y.onnx", to_onnx.OnnxOptions())
    assert written == to_onnx.OnnxFile(1, "RuntimeError: optimiser crashed")


def test_each_simplifier_keeps_what_the_graph_computes(tiny, tmp_path, monkeypatch):
    sam, spec = tiny
    graph, module = build_graph(sam, spec, "decoder")
    exported = to_onnx._export(graph, module, to_onnx.OnnxOptions().opset).model_proto
    monkeypatch.setattr(
        to_onnx, "_export", lambda *_: SimpleNamespace(model_proto=onnx.ModelProto.FromString(serialised))
    )
    serialised = exported.SerializeToString()
    written = {
        tool: to_onnx.convert(graph, module, tmp_path / f"{tool}.onnx", to_onnx.OnnxOptions(simplify=tool))
        for tool in to_onnx.SIMPLIFIERS
    }
    assert [file.refused for file in written.values()] == ["", "", ""]
    # why onnxslim is the default
    assert written["onnxslim"].nodes < min(written["onnxsim"].nodes, written["none"].nodes)
    rng = np.random.default_rng(0)
    sizes = {"N": 5, "K": 3}
    inputs = {t.name: rng.uniform(t.low or 0, t.high or 1, t.resolved(sizes)).astype("float32") for t in graph.inputs}
    inputs["point_labels"] = rng.integers(-2, 4, (5, 3)).astype("float32")
    found = {}
    for tool in written:
        session = onnxruntime.InferenceSession(tmp_path / f"{tool}.onnx", providers=["CPUExecutionProvider"])
        found[tool] = session.run(list(graph.output_names), inputs)
    for tool in ("onnxslim", "onnxsim"):
        for one, other in zip(found[tool], found["none"], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.ptp(other))


@pytest.mark.parametrize(
    ("simplify", "why"), [(fails, "RuntimeError: optimiser crashed"), (swaps_scores, "another iou")]
)
def test_what_onnxsim_breaks_is_refused(tiny_bundle, monkeypatch, simplify, why):
    exported = onnx.load(tiny_bundle.folder / "decoder.onnx")
    monkeypatch.setattr("onnxsim.simplify", lambda model, **_: (simplify(model), True))
    kept, refused = to_onnx.optimise(exported, tiny_bundle.graph("decoder"), "onnxsim")
    assert (kept is exported, why in refused) == (True, True)
    monkeypatch.setattr("onnxsim.simplify", lambda model, **_: (model, False))
    assert "own check" in to_onnx.optimise(exported, tiny_bundle.graph("decoder"), "onnxsim")[1]


def test_a_simplifier_that_is_not_there_names_the_command(monkeypatch):
    with pytest.raises(ConfigError, match="simplify is one of onnxslim, onnxsim, none"):
        to_onnx.OnnxOptions(simplify="polygraphy")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="simplifying needs onnxsim: pip install"):
        to_onnx.OnnxOptions(simplify="onnxsim")
    assert to_onnx.OnnxOptions(simplify="none").simplify == "none"


def test_a_large_model_keeps_its_weights_in_a_second_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "_PROTOBUF_LIMIT", 1000)
    sam, spec = tiny
    graph, module = build_graph(sam, spec, "encoder")
    path = tmp_path / "encoder.onnx"
    to_onnx.convert(graph, module, path, to_onnx.OnnxOptions())
    assert path.stat().st_size < 500_000 < (tmp_path / "encoder.onnx.data").stat().st_size
    image = torch.rand(1, 3, 64, 64) * 255
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = module(image).numpy()
    np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, atol=1e-5 * np.ptp(expected))
    with pytest.raises(ConfigError, match="only fp32"):
        to_onnx.convert(graph, module, tmp_path / "half.onnx", to_onnx.OnnxOptions("fp16"))
