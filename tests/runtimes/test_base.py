import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from samexport.errors import BundleError, ConfigError, ParityFailed, RuntimeFailed, SamExportError
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes import registry
from samexport.runtimes.base import MOST_THREADS, Runtime, check_threads
from samexport.runtimes.registry import RUNTIMES, check_runtime, open_runtime, version

GRAPH = GraphSpec("twice", "", (TensorSpec("x", ("N", 3), ""),), (TensorSpec("y", ("N", 3), ""),))
X = {"x": np.ones((2, 3), np.float32)}


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A file of ``GRAPH``: y = x + x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], "add")],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    path = tmp_path_factory.mktemp("twice") / "twice.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


class Counting(Runtime):
    """Counts how often it is let go."""

    name = "counting"
    released = 0

    def _run(self, inputs):
        return {"y": 2 * inputs["x"]}

    def placement(self):
        return "here"

    def _release(self):
        self.released += 1


def test_closing_twice_releases_once():
    with Counting(GRAPH) as runtime:
        assert runtime.run(X)["y"][0, 0] == 2
        runtime.close()
    assert runtime.released == 1


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_closed_file_says_so(twice, name):
    if name == "openvino":
        pytest.importorskip("openvino")
    runtime = open_runtime(twice, GRAPH, "onnx", runtime=name, threads=1)
    runtime.close()
    runtime.close()
    with pytest.raises(RuntimeFailed, match=r"^twice is closed; open its file again$") as caught:
        runtime.run(X)
    assert not isinstance(caught.value, ParityFailed)
    assert caught.value.exit_code == 1


def test_a_graph_that_does_not_run_is_no_parity_failure(tmp_path):
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [4, 3])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [shape],
    )
    path = tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    with (
        open_runtime(path, GRAPH, "onnx", threads=1) as runtime,
        pytest.raises(RuntimeFailed, match=r"^twice does not run with [^\n]+$"),
    ):
        runtime.run(X)


@pytest.mark.parametrize("count", [1, 2, MOST_THREADS, None])
def test_a_usual_number_of_threads_is_taken(count):
    check_threads(count)


@pytest.mark.parametrize("count", [0, -1, MOST_THREADS + 1, 100000, 99999999999])
def test_too_many_threads_are_refused_with_the_bound_before_anything_is_opened(tmp_path, count):
    with pytest.raises(ConfigError, match=f"^--threads takes 1 to {MOST_THREADS}, not {count}$"):
        open_runtime(tmp_path / "absent.onnx", GRAPH, "onnx", threads=count)


@pytest.mark.parametrize(
    ("name", "formats", "line"),
    [
        ("tflow", ["onnx"], "there is no runtime 'tflow'; known: onnxruntime, openvino, litert, coreml, mil"),
        ("litert", ["onnx"], "litert reads tflite files, not onnx"),
        (
            "openvino-bf16",
            ["onnx"],
            "openvino-bf16 computes in fewer bits than the files hold, so it checks none; take another runtime",
        ),
        ("mil", ["tflite", "onnx"], "mil reads coreml files, not onnx, tflite"),
    ],
)
def test_a_runtime_that_reads_none_of_the_formats_is_refused(name, formats, line):
    with pytest.raises(ConfigError) as caught:
        check_runtime(name, formats)
    assert str(caught.value) == line


def test_a_runtime_that_reads_one_of_the_formats_is_taken():
    for name, formats in (("litert", ["tflite"]), ("openvino", ["onnx", "tflite"]), (None, ["onnx"])):
        check_runtime(name, formats)


def test_a_package_that_is_not_installed_has_no_version():
    assert version("no-such-package") == ""
    assert version("onnx") == onnx.__version__


OPENERS = [
    ("onnxruntime", "onnx", "encoder.onnx"),
    ("openvino", "onnx", "encoder.onnx"),
    ("litert", "tflite", "encoder.tflite"),
    ("mil", "coreml", "encoder.mlpackage"),
]


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


def unreadable(path):
    path.write_bytes(b"")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [pipe, folder, loop, unreadable])
@pytest.mark.parametrize(("name", "file_format", "file"), OPENERS)
def test_what_is_not_a_file_is_one_error_and_no_hang(tmp_path, kind, name, file_format, file):
    if RUNTIMES[name].missing:
        pytest.skip(RUNTIMES[name].missing)
    path = tmp_path / file
    kind(path)
    with pytest.raises(BundleError, match=r"^[^\n]+$"):
        open_runtime(path, GRAPH, file_format, runtime=name, threads=1)


@pytest.mark.timeout(30)
def test_a_pipe_in_place_of_the_weights_is_an_error_too(twice, tmp_path):
    path = shutil.copy(twice, tmp_path / "x.onnx")
    os.mkfifo(tmp_path / "x.onnx.data")
    with pytest.raises(BundleError, match="not a regular file"):
        open_runtime(path, GRAPH, "onnx", threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_name_that_is_not_unicode_is_opened(twice, tmp_path, name):
    if name == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / os.fsdecode(b"caf\xe9") / "x.onnx"
    path.parent.mkdir()
    shutil.copy(twice, path)
    with open_runtime(path, GRAPH, "onnx", runtime=name, threads=1) as runtime:
        np.testing.assert_array_equal(runtime.run(X)["y"], 2)


RUN = """
import sys
from pathlib import Path
import samexport.runtimes.adapters.ort
import numpy as np
from samexport.runtimes.registry import open_runtime
from samexport.models.spec import GraphSpec, TensorSpec
graph = GraphSpec("twice", "", (TensorSpec("x", ("N", 3), ""),), (TensorSpec("y", ("N", 3), ""),))
with open_runtime(Path(sys.argv[1]), graph, "onnx", runtime=sys.argv[2], threads=1) as runtime:
    runtime.run({"x": np.ones((2, 3), np.float32)})
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_no_runtime_leaves_reports_for_its_maker(twice, tmp_path, name):
    if name == "openvino":
        pytest.importorskip("openvino")
    home = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    subprocess.run([sys.executable, "-c", RUN, twice, name], check=True, env={**kept, **home}, cwd=tmp_path)
    assert [str(path) for path in tmp_path.rglob("*")] == []


def test_the_users_own_choice_of_telemetry_stays():
    code = "import samexport, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    said = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True).stdout
        for more in ({"ORT_DISABLE_TELEMETRY": "0"}, {"ORT_DISABLE_TELEMETRY": "1"})
    ]
    assert said == ["0\n", "1\n"]


def test_every_failure_of_a_runtime_is_one_of_ours():
    assert issubclass(RuntimeFailed, SamExportError)
    assert not issubclass(RuntimeFailed, ConfigError)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from samexport.errors import MissingDependency
from samexport.runtimes.bundle import open_bundle
try:
    open_bundle(Path(sys.argv[1])).open("encoder")
except MissingDependency as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="CoreML itself runs there")
def test_interpreting_a_package_without_torch_says_what_to_install(coreml_bundle):
    command = [sys.executable, "-c", WITHOUT_TORCH, coreml_bundle.folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("mil needs torch: pip install ")
    assert said.count("\n") == 1


def test_a_runtime_whose_arithmetic_is_not_installed_is_not_available(monkeypatch):
    monkeypatch.setattr(registry, "version", lambda package: "" if package == "torch" else "1")
    assert RUNTIMES["mil"].missing.startswith("pip install ")
    assert RUNTIMES["litert"].missing == ""
