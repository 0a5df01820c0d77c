"""The second converter: finding an interpreter, making its environment, layouts, entry points; with a stand-in."""

import stat
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from samexport.errors import ConfigError, ExportFailed, MissingDependency
from samexport.exporter.to_tflite import onnx2tf_process as onnx2tf
from samexport.exporter.to_tflite.convert import TfliteOptions, convert
from samexport.exporter.to_tflite.merge import keep_layout, merge
from samexport.exporter.to_tflite.onnx2tf_process import VERSION, environment, find_python
from samexport.exporter.to_tflite.passes import improve
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.litert import LiteRtRuntime
from samexport.runtimes.formats.tflite import read_model, write_model
from tests.tflite_models import ADD, floats, read_metadata, write_graph

# Plays Python 3.12, its venv, pip and onnx2tf: notes how it is called, and copies a prepared file as the result.
STAND_IN = """#!/bin/sh
folder="{folder}"
echo "$@" >> "$folder/calls"
case "$*" in
  *version_info*) echo "$(cat "$folder/version")";;
  *"-m venv"*) for made in "$@"; do :; done; mkdir -p "$made/bin"; cp "$0" "$made/bin/python";;
  *"-m pip"*) cat "$folder/pip" 2>/dev/null && exit 1; exit 0;;
  *"-m onnx2tf"*)
    cat "$folder/refusal" 2>/dev/null && exit 1
    shift 3
    source=$2; out=$4
    sha256sum "$source" >> "$folder/sources"
    echo junk > "$source"
    mkdir "$out"
    cp "$folder/result.tflite" "$out/${{source%.onnx}}_float32.tflite";;
esac
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    python = folder / "python3.12"
    python.write_text(STAND_IN.format(folder=folder))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (folder / "version").write_text("3.12")
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(onnx2tf.PYTHON_VARIABLE, raising=False)
    return python


def calls(python: Path) -> str:
    file = python.parent / "calls"
    return file.read_text() if file.exists() else ""


def test_the_interpreter_is_the_one_asked_for_then_the_variable_s_then_one_on_path(stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert find_python(stand_in) == stand_in
    monkeypatch.setenv(onnx2tf.PYTHON_VARIABLE, str(stand_in))
    assert find_python() == stand_in
    monkeypatch.delenv(onnx2tf.PYTHON_VARIABLE)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    assert find_python() == stand_in


def test_an_interpreter_that_only_uv_knows_is_found(stand_in, monkeypatch, tmp_path):
    (tmp_path / "uv").write_text(f"#!/bin/sh\ntest \"$*\" = 'python find 3.12' && echo {stand_in}\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_python() == stand_in


def test_commands_on_path_that_do_not_run_are_no_interpreters(tmp_path, monkeypatch):
    for name in ("python3.12", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\necho not installed >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv(onnx2tf.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingDependency, match=r"needs Python 3\.12 or 3\.13 and none was found; .*--python"):
        find_python()
    # before weights are read
    with pytest.raises(MissingDependency, match="none was found"):
        TfliteOptions(converter="onnx2tf")


@pytest.mark.parametrize(("version", "what"), [("3.11", r"is Python 3\.11"), (None, "does not run")])
def test_another_interpreter_than_onnx2tf_needs_is_refused(stand_in, version, what):
    python = stand_in.parent / "absent" if version is None else stand_in
    (stand_in.parent / "version").write_text(version or "")
    with pytest.raises(ConfigError, match=rf"{python.name} {what}; onnx2tf needs Python 3\.12 or 3\.13"):
        find_python(python)


def test_the_environment_is_made_once_pinned_and_of_wheels_only(stand_in):
    made = environment(stand_in)
    assert made.parent.parent.name == f"onnx2tf-{VERSION}-python3.12"
    assert environment(stand_in) == made
    assert calls(stand_in).count("-m venv") == 1
    assert f"install --quiet onnx2tf=={VERSION} --only-binary=:all:" in calls(stand_in)
    assert [p.name for p in made.parents[2].iterdir()] == [made.parent.parent.name]


def test_an_environment_that_cannot_be_made_is_one_line_and_leaves_nothing(stand_in, tmp_path):
    (stand_in.parent / "pip").write_text("Collecting\nERROR: No matching distribution found for onnx2tf\n")
    with pytest.raises(MissingDependency, match="cannot be made: ERROR: No matching distribution") as raised:
        environment(stand_in)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_installation_that_takes_too_long_is_ended(stand_in, monkeypatch):
    monkeypatch.setattr(onnx2tf, "_INSTALL_SECONDS", 0.001)
    with pytest.raises(MissingDependency, match="was not made in"):
        environment(stand_in)


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


def toy(*shape, out=None) -> GraphSpec:
    return GraphSpec("toy", "any", (TensorSpec("x", shape, "any"),), (TensorSpec("y", out or shape, "any"),))


def single(path, shape, constant=None, out="y"):
    if constant is None:
        return write_graph(path, [("x", shape), (out, shape)], [("ABS", ["x"], out, None)], [out])
    tensors = [("x", shape), ("c", constant), (out, shape)]
    return write_graph(path, tensors, [("ADD", ["x", "c"], out, ADD)], [out])


def test_conversion_hands_over_a_private_onnx_file_and_keeps_every_input_s_layout(stand_in, tmp_path):
    single(stand_in.parent / "result.tflite", (1, 3, 4, 5))
    graph, path = toy(1, 3, 4, 5), tmp_path / "y.tflite"
    options = TfliteOptions(converter="onnx2tf", python=stand_in)
    found = convert(graph, Absolute(), path, options, {"model": "toy"})
    assert found.operations == {"toy": {"ABS": 1}}
    assert read_metadata(path) == {"model": "toy"}
    assert "-I -m onnx2tf -i toy.onnx -o toy -kat x -osd -n" in calls(stand_in)
    assert len((stand_in.parent / "sources").read_text().splitlines()) == 1
    with LiteRtRuntime(path, graph) as runtime:
        x = floats(1, 3, 4, 5)
        np.testing.assert_array_equal(runtime.run({"x": x})["y"], abs(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "stand-in", "y.tflite"]


def test_a_converter_that_refuses_is_one_line(stand_in, tmp_path):
    (stand_in.parent / "refusal").write_text("progress\nNotImplementedError: Mystery\n")
    options = TfliteOptions(converter="onnx2tf", python=stand_in)
    with pytest.raises(ExportFailed, match=r"^onnx2tf cannot convert toy: NotImplementedError: Mystery$"):
        convert(toy(1, 3), Absolute(), tmp_path / "y.tflite", options)


def test_a_converter_that_writes_nothing_is_refused(stand_in, tmp_path):
    options = TfliteOptions(converter="onnx2tf", python=stand_in)
    with pytest.raises(ExportFailed, match=r"^onnx2tf cannot convert toy: "):
        convert(toy(1, 3), Absolute(), tmp_path / "y.tflite", options)


def test_an_unknown_converter_is_refused():
    with pytest.raises(ConfigError, match="--converter is litert-torch or onnx2tf, not 'tf'"):
        TfliteOptions(converter="tf")


def test_entry_points_of_several_files_run_in_one_and_share_their_constants(tmp_path):
    shared = floats(1, 1, 512)
    sizes = {"decode_1": (1, 4, 512), "decode_4": (4, 4, 512)}
    parts = {name: read_model(single(tmp_path / f"{name}.tflite", shape, shared)) for name, shape in sizes.items()}
    model = merge(parts)
    improve(model)
    write_model(model, tmp_path / "all.tflite")
    interpreter = Interpreter(str(tmp_path / "all.tflite"))
    assert list(interpreter.get_signature_list()) == ["decode_1", "decode_4"]
    for name, shape in sizes.items():
        x = floats(*shape)
        np.testing.assert_array_equal(interpreter.get_signature_runner(name)(x=x)["y"], x + shared)
    stored = [len(b.data) for b in read_model(tmp_path / "all.tflite").buffers if b.data is not None]
    assert stored.count(shared.nbytes) == 1


def test_an_output_with_channels_last_is_turned(tmp_path):
    model = merge({"toy": read_model(single(tmp_path / "x.tflite", (1, 4, 5, 3)))})
    # as onnx2tf does: [1, 3, 4, 5] of the contract comes as [1, 4, 5, 3]
    graph = GraphSpec("toy", "any", (TensorSpec("x", (1, 4, 5, 3), "any"),), (TensorSpec("y", (1, 3, 4, 5), "any"),))
    keep_layout(model, graph, "toy")
    write_model(model, tmp_path / "y.tflite")
    x = floats(1, 4, 5, 3)
    with LiteRtRuntime(tmp_path / "y.tflite", graph) as runtime:
        np.testing.assert_array_equal(runtime.run({"x": x})["y"], abs(x).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (toy(1, 3, 4, 5), r"gave x the shape \(1, 4, 5, 3\), not \(1, 3, 4, 5\)"),
        (toy(1, 4, 5, 3, out=(1, 5, 4, 3)), r"gave y the shape"),
        (GraphSpec("toy", "any", (TensorSpec("z", (1, 4, 5, 3), "any"),), ()), r"inputs \['x'\], not \['z'\]"),
    ],
)
def test_other_tensors_than_the_contract_s_are_refused(graph, message, tmp_path):
    model = merge({"toy": read_model(single(tmp_path / "x.tflite", (1, 4, 5, 3)))})
    with pytest.raises(ExportFailed, match=message):
        keep_layout(model, graph, "toy")


def test_marks_of_dynamic_sizes_go(tmp_path):
    model = merge({"toy": read_model(single(tmp_path / "x.tflite", (1, 4)))})
    model.subgraphs[0].tensors[1].shapeSignature = np.array([-1, 4], np.int32)
    keep_layout(model, toy(1, 4), "toy")
    assert all(tensor.shapeSignature is None for tensor in model.subgraphs[0].tensors)
