"""Each rule on a file that trips it, and on its nearest one that does not."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from samexport.errors import ExportFailed
from samexport.exporter.to_tflite import convert as to_tflite
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.bundle import Artifact
from samexport.runtimes.formats.tflite_lint import lint
from samexport.runtimes.formats.tflite_traps import TRAPS
from samexport.runtimes.parity.lint import lint_rows
from samexport.runtimes.verdicts import Verdict
from tests.tflite_models import ADD, SOFTMAX, floats, ints, write_graph

RESHAPE = schema.ReshapeOptionsT()
CONNECTED = schema.FullyConnectedOptionsT()
HALF = floats(7, 8).astype(np.float16)


def read_twice(*shape):
    tensors = [("x", shape), ("y", shape), ("a", shape), ("b", shape)]
    return tensors, [("ABS", ["x"], "y", None), ("ABS", ["y"], "a", None), ("NEG", ["y"], "b", None)], ["a", "b"]


def softmax_after(constant, *, shaped=False):
    tensors = [("x", (2, 3, 5, 8)), ("c", constant), ("s", (2, 3, 5, 8)), ("y", (2, 3, 5, 8))]
    if not shaped:
        return tensors, [("ADD", ["x", "c"], "s", ADD), ("SOFTMAX", ["s"], "y", SOFTMAX)], ["y"]
    tensors += [("sizes", ints(2, 15, 8)), ("r", (2, 15, 8)), ("z", (2, 15, 8))]
    operators = [("ADD", ["x", "c"], "s", ADD), ("RESHAPE", ["s", "sizes"], "r", RESHAPE)]
    return tensors, [*operators, ("SOFTMAX", ["r"], "z", SOFTMAX)], ["z"]


def output_of(first):
    tensors = [("x", (1, 2, 3, 8)), ("y", (1, 2, 3, 8)), ("z", (1, 2, 3, 8))]
    return tensors, [("ABS", ["x"], "y", None), ("NEG", ["y" if first else "x"], "z", None)], ["y", "z"]


def passed_on(kind):
    tensors = [("x", (1, 2, 3, 8)), ("sizes", ints(1, 6, 1, 8)), ("y", (1, 6, 1, 8)), ("z", (1, 2, 3, 8))]
    operators = [("NEG", ["x"], "z", None)]
    if kind == "shape":
        operators.append(("RESHAPE", ["x", "sizes"], "y", RESHAPE))
    return tensors, operators, ["z", {"itself": "x", "shape": "y", "result": "z"}[kind]]


def half_for(kind):
    tensors = [("x", (5, 8)), ("half", HALF), ("w", (7, 8)), ("y", (5, 7) if kind == "FULLY_CONNECTED" else (7, 8))]
    last = {
        "FULLY_CONNECTED": ("FULLY_CONNECTED", ["x", "w"], "y", CONNECTED),
        "ADD": ("ADD", ["w", "x7"], "y", ADD),
    }[kind]
    tensors += [("x7", (7, 8))] if kind == "ADD" else []
    return tensors, [("DEQUANTIZE", ["half"], "w", None), last], ["y"]


CASES = [
    ("shared rank 3", read_twice(1, 5, 8), "y"),
    ("shared rank 3", read_twice(1, 1, 5, 8), None),
    ("shared rank 3", read_twice(5, 8), None),
    ("softmax of a constant", softmax_after(floats(3, 1, 8)), "y"),
    ("softmax of a constant", softmax_after(floats(8), shaped=True), "z"),
    ("softmax of a constant", softmax_after(floats(2, 3, 5, 8)), None),
    ("output read again", output_of(True), "y"),
    ("output read again", output_of(False), None),
    ("input passed on", passed_on("itself"), "x"),
    ("input passed on", passed_on("shape"), "y"),
    ("input passed on", passed_on("result"), None),
    ("float16 elsewhere", half_for("ADD"), "w"),
    ("float16 elsewhere", half_for("FULLY_CONNECTED"), None),
]


@pytest.mark.parametrize(("trap", "graph", "tensor"), CASES)
def test_each_trap_is_found_where_it_is_alone(trap, graph, tensor, tmp_path):
    found = lint(write_graph(tmp_path / "x.tflite", *graph))
    kept = found.traps if TRAPS[trap].refused else found.warnings
    assert [(each.tensor, TRAPS[trap].seen in each.reason) for each in kept] == ([(tensor, True)] if tensor else [])
    assert (found.warnings if TRAPS[trap].refused else found.traps) == ()


def artifact(target):
    return Artifact("g", "x.tflite", "tflite", "fp32", "0" * 64, 1, None, 1, options={"target": target})


@pytest.mark.parametrize(
    ("graph", "verdict"),
    [
        (output_of(True), Verdict.FAIL),
        (softmax_after(floats(8)), Verdict.SKIPPED),
        (output_of(False), Verdict.PASS),
    ],
)
def test_files_for_a_gpu_have_a_row_of_traps_and_others_have_none(graph, verdict, tmp_path):
    path = write_graph(tmp_path / "x.tflite", *graph)
    *delegates, traps = lint_rows(artifact("gpu"), path)
    assert (traps.verdict, len(delegates)) == (verdict, 2)
    assert traps.output == f"{int(verdict is not Verdict.PASS)} of {lint(path).total} may be wrong on some phones' GPUs"
    assert bool(traps.reason) == (verdict is not Verdict.PASS)
    assert len(lint_rows(artifact("cpu"), path)) == 2


def test_of_many_findings_the_first_are_named(tmp_path):
    tensors = [("x", (2,)), *((f"y{i}", (2,)) for i in range(12))]
    operators = [("CEIL", ["x"], f"y{i}", None) for i in range(12)]
    row, _ = lint_rows(artifact("cpu"), write_graph(tmp_path / "x.tflite", tensors, operators, ["y0"]))
    assert row.output.startswith("12 of 12 leave GPU")
    assert row.reason.split("; ")[9:] == [row.reason.split("; ")[9], "and 2 more"]


def test_an_export_for_a_gpu_ends_at_a_trap(tmp_path, monkeypatch):
    def write(graph, module, path, options):
        write_graph(path, *output_of(True))

    monkeypatch.setattr(to_tflite, "_write", write)
    tensor = TensorSpec("x", (1, 2), "any")
    graph = GraphSpec("toy", "any", (tensor,), (TensorSpec("y", (1, 2), "any"),))
    module = type("Module", (), {"state_dict": dict})()
    with pytest.raises(
        ExportFailed, match=r"^toy: 1 places may be wrong on some phones' GPUs, first main operator 0 ABS"
    ):
        to_tflite.convert(graph, module, tmp_path / "x.tflite", TfliteOptions(target="gpu"))
    assert to_tflite.convert(graph, module, tmp_path / "y.tflite").traps
