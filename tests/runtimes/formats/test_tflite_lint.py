import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator

from samexport.quiet import silent
from samexport.runtimes.formats.tflite import read_model, write_model
from samexport.runtimes.formats.tflite_lint import broadcasts_on_gpu, gpu_shape, lint
from tests.tflite_models import ADD, SINGLE, floats, ints, write_graph


@pytest.mark.parametrize("single", SINGLE, ids=lambda s: s.name)
def test_each_operation_is_judged_as_the_accelerator_judges_it(single, tmp_path):
    found = lint(single.write(tmp_path / "x.tflite")).of("gpu")
    assert bool(found) == (single.on_gpu != "runs")
    assert all(f.wrong_result == (single.on_gpu == "wrong") for f in found)


def test_a_finding_names_entry_point_operation_and_tensor(tmp_path):
    tensors = [("x", (1, 4)), ("y", (1, 4)), ("sizes", ints(3, 4)), ("repeated", (3, 4))]
    operators = [("ABS", ["x"], "y", None), ("BROADCAST_TO", ["y", "sizes"], "repeated", None)]
    found = lint(write_graph(tmp_path / "x.tflite", tensors, operators, ["repeated"]))
    assert [str(f) for f in found.findings] == [
        "main operator 1 BROADCAST_TO (repeated): GPU delegates do not know this operation"
    ]
    assert found.operations == {"main": {"ABS": 1, "BROADCAST_TO": 1}}
    assert found.max_rank == 2


def test_too_many_dimensions_are_named(tmp_path):
    tensors = [("x", (1, 2, 2, 2, 4)), ("c", floats(4)), ("y", (1, 2, 2, 2, 4))]
    found = lint(write_graph(tmp_path / "x.tflite", tensors, [("ADD", ["x", "c"], "y", ADD)], ["y"]))
    assert found.max_rank == 5
    assert any("x has 5 dimensions" in f.reason for f in found.of("gpu"))


def test_dynamic_shapes_and_64_bit_integers_are_named(tmp_path):
    tensors = [("x", (1, 4)), ("pads", np.zeros((2, 2), np.int64)), ("y", (1, 4))]
    path = write_graph(tmp_path / "x.tflite", tensors, [("PAD", ["x", "pads"], "y", None)], ["y"])
    model = read_model(path)
    model.subgraphs[0].tensors[0].shapeSignature = ints(-1, 4)
    write_model(model, path.with_name("dynamic.tflite"))
    reasons = [f.reason for f in lint(path.with_name("dynamic.tflite")).findings]
    assert "x has a dynamic shape" in reasons
    assert "pads is neither float32 nor a constant int32" in reasons


def test_custom_operations_are_named_by_their_own_name(tmp_path):
    path = write_graph(tmp_path / "x.tflite", [("x", (4,)), ("y", (4,))], [("ABS", ["x"], "y", None)], ["y"])
    model = read_model(path)
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"FlexErf"
    write_model(model, path.with_name("custom.tflite"))
    assert [f.kind for f in lint(path.with_name("custom.tflite")).of("gpu")] == ["FlexErf"]


def fully_on_xnnpack(path):
    with silent(output=True):
        return CompiledModel.from_file(str(path), hardware_accel=HardwareAccelerator.CPU).is_fully_accelerated()


@pytest.mark.parametrize("computed", [False, True])
def test_a_product_with_computed_weights_is_what_xnnpack_leaves(computed, tmp_path):
    weights = (7, 8) if computed else floats(7, 8)
    tensors = [("x", (5, 8)), ("weights", weights), ("y", (5, 7))]
    operators = [("FULLY_CONNECTED", ["x", "weights"], "y", schema.FullyConnectedOptionsT())]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["y"])
    assert bool(lint(path).of("xnnpack")) == computed
    assert fully_on_xnnpack(path) == (not computed)


@pytest.mark.parametrize("count", [5, 6])
def test_xnnpack_joins_five_tensors_and_leaves_six(count, tmp_path):
    names = [f"x{i}" for i in range(count)]
    tensors = [*((name, (1, 2)) for name in names), ("y", (1, 2 * count))]
    options = schema.ConcatenationOptionsT()
    options.axis = 1
    path = write_graph(tmp_path / "x.tflite", tensors, [("CONCATENATION", names, "y", options)], ["y"])
    assert bool(lint(path).of("xnnpack")) == (count > 5)
    assert fully_on_xnnpack(path) == (count <= 5)


def test_shapes_are_held_as_batch_height_width_channels():
    assert [gpu_shape(s) for s in ((), (8,), (5, 8), (3, 5, 8), (2, 3, 5, 8))] == [
        (1, 1, 1, 1), (1, 1, 1, 8), (5, 1, 1, 8), (3, 1, 5, 8), (2, 3, 5, 8),
    ]  # fmt: skip


def test_a_scalar_broadcasts_everywhere():
    assert broadcasts_on_gpu([(9, 16, 8), ()], [False, True], (9, 16, 8))
