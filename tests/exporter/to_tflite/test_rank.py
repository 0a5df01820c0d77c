"""Files for a GPU have no computed tensor of three dimensions that is read twice, and compute what they did."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from samexport.exporter.to_tflite.passes import improve
from samexport.runtimes.formats.tflite import constant_bytes, read_model, shape_of, write_model
from samexport.runtimes.formats.tflite_lint import lint
from tests.tflite_models import ADD, MATMUL, PAD, SOFTMAX, floats, ints, pads, reducer, write_graph


def joined(axis):
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    return options


def connected(*, keep):
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = keep
    return options


def along(axis):
    options = schema.GatherOptionsT()
    options.axis = axis
    return options


RESHAPE, CUT = schema.ReshapeOptionsT(), schema.SliceOptionsT()
# the operation under test, its constants, what it makes of [3, 5, 8]
STEPS = {
    "elementwise": ("ADD", [floats(3, 1, 8)], (3, 5, 8), ADD),
    "softmax": ("SOFTMAX", [], (3, 5, 8), SOFTMAX),
    "transpose": ("TRANSPOSE", [ints(1, 0, 2)], (5, 3, 8), schema.TransposeOptionsT()),
    "slice": ("SLICE", [ints(0, 1, 2), ints(3, 4, 5)], (3, 4, 5), CUT),
    "mean": ("MEAN", [ints(-1)], (3, 5, 1), reducer(keep=True)),
    "mean without its axis": ("MEAN", [ints(1)], (3, 8), reducer(keep=False)),
    "maximum": ("REDUCE_MAX", [ints(0)], (1, 5, 8), reducer(keep=True)),
    "pad": ("PAD", [pads(3, 2, 4)], (3, 5, 12), PAD),
    "product with a matrix each": ("BATCH_MATMUL", [floats(3, 8, 7)], (3, 5, 7), MATMUL),
    "product with a matrix": ("BATCH_MATMUL", [floats(8, 7)], (3, 5, 7), MATMUL),
    "layer": ("FULLY_CONNECTED", [floats(7, 8)], (3, 5, 7), connected(keep=True)),
    "layer of a matrix": ("FULLY_CONNECTED", [floats(7, 8)], (15, 7), connected(keep=False)),
    "reshape to three": ("RESHAPE", [ints(5, 3, 8)], (5, 3, 8), RESHAPE),
    "reshape to four": ("RESHAPE", [ints(3, 5, 2, 4)], (3, 5, 2, 4), RESHAPE),
    "what takes no fourth": ("GATHER", [ints(2, 0)], (3, 2, 8), along(1)),
}


KEEP_THREE = ("what takes no fourth", "mean without its axis")


def run(path, x):
    return Interpreter(str(path)).get_signature_runner("main")(x=x)


def for_gpu(path):
    model = read_model(path)
    improve(model, gpu=True)
    better = path.with_name("better.tflite")
    write_model(model, better)
    return better


@pytest.mark.parametrize("step", STEPS)
def test_each_operation_computes_the_same_on_four_dimensions(step, tmp_path):
    kind, constants, shape, options = STEPS[step]
    names = [f"c{i}" for i in range(len(constants))]
    tensors = [("x", (3, 5, 8)), ("y", (3, 5, 8)), *zip(names, constants, strict=True), ("z", shape), ("a", shape)]
    tensors += [("b", shape), ("w", (3, 5, 8))]
    operators = [("ABS", ["x"], "y", None), (kind, ["y", *names], "z", options), ("NEG", ["z"], "a", None)]
    # input, operand and result are each read twice
    operators += [("ABS", ["z"], "b", None), ("ADD", ["x", "y"], "w", ADD)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["a", "b", "w"])
    assert lint(path).traps
    better = for_gpu(path)
    before, after = run(path, floats(3, 5, 8)), run(better, floats(3, 5, 8))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert lint(better).traps == ()
    subgraph = read_model(better).subgraphs[0]
    ends = {int(t) for t in (*subgraph.inputs, *subgraph.outputs)}
    inner = [
        t for i, t in enumerate(subgraph.tensors) if i not in ends and constant_bytes(read_model(better), t) is None
    ]
    assert (3 in {len(shape_of(t)) for t in inner}) == (step in KEEP_THREE)


@pytest.mark.parametrize("axis", [1, -1])
def test_two_joined_tensors_are_joined_along_the_same_axis(axis, tmp_path):
    shape = (3, 10, 8) if axis == 1 else (3, 5, 16)
    tensors = [("x", (3, 5, 8)), ("y", (3, 5, 8)), ("z", shape)]
    operators = [("ABS", ["x"], "y", None), ("CONCATENATION", ["x", "y"], "z", joined(axis))]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["z"])
    better = for_gpu(path)
    np.testing.assert_array_equal(run(better, floats(3, 5, 8))["z"], run(path, floats(3, 5, 8))["z"])
    assert lint(better).traps == ()


def test_an_output_that_is_read_again_is_no_longer(tmp_path):
    tensors = [("x", (3, 5, 8)), ("y", (3, 5, 8)), ("z", (3, 5, 8)), ("w", (3, 5, 8))]
    operators = [("ABS", ["x"], "y", None), ("NEG", ["y"], "z", None), ("ADD", ["y", "z"], "w", ADD)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["y", "w"])
    assert lint(path).traps
    better = for_gpu(path)
    assert lint(better).traps == ()
    for name, value in run(path, floats(3, 5, 8)).items():
        np.testing.assert_array_equal(run(better, floats(3, 5, 8))[name], value)
