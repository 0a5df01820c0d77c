import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from samexport.errors import BundleError, MissingDependency, ParityFailed, RuntimeFailed
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters import litert_gpu
from samexport.runtimes.adapters.litert_gpu import LiteRtGpuRuntime, find_driver, why_unavailable
from samexport.runtimes.parity.gpu import compare_with_cpu
from samexport.runtimes.verdicts import Verdict
from tests.tflite_models import ADD, SINGLE, built, floats, ints, prompts, write_graph

TINY = "test.tinyvit64"
needs_gpu = pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "available")


def graph_of(name, shape, out):
    return GraphSpec(name, "any", (TensorSpec("x", shape, "any"),), (TensorSpec("y", out, "any"),))


def failing(tmp_path):
    tensors = [("x", (1, 4)), ("z", (1, 4)), ("sizes", ints(3, 4)), ("y", (3, 4))]
    operators = [("ABS", ["x"], "z", None), ("BROADCAST_TO", ["z", "sizes"], "y", None)]
    return write_graph(tmp_path / "x.tflite", tensors, operators, ["y"])


@needs_gpu
@pytest.mark.parametrize(("model", "target"), [(TINY, "cpu"), ("test.vit64", "gpu")])
def test_every_operation_of_the_encoder_runs_on_the_gpu_and_is_right(model, target):
    file = built(model, "encoder", target)
    image = np.random.default_rng(3).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)
    rows = compare_with_cpu(file.path, file.graph, {"noise": {"image": image}})
    assert [r.verdict for r in rows] == [Verdict.PASS, Verdict.PASS]
    assert rows[0].output == f"all {file.found.total} operations compile"
    assert rows[1].max_error < 1e-4


@needs_gpu
def test_every_entry_point_of_the_decoder_runs_on_the_gpu_and_is_right():
    file = built(TINY, "decoder")
    cases = {f"{n}x{k}": prompts(file.graph, n, k) for n, k in ((1, 5), (3, 2), (6, 1))}
    rows = compare_with_cpu(file.path, file.graph, cases)
    assert len(rows) == 7
    assert [r for r in rows if r.verdict is not Verdict.PASS] == []


@needs_gpu
def test_an_operation_outside_the_gpu_is_named(tmp_path):
    with pytest.raises(ParityFailed, match=r"does not open x\.tflite: BROADCAST_TO: [^;]+$"):
        LiteRtGpuRuntime(failing(tmp_path), graph_of("toy", (1, 4), (3, 4)))


@needs_gpu
def test_a_wrong_result_fails(tmp_path):
    tensors = [("x", (16, 8)), ("c", floats(16, 8)), ("y", (16, 8))]
    path = write_graph(tmp_path / "x.tflite", tensors, [("ADD", ["x", "c"], "y", ADD)], ["y"])
    rows = compare_with_cpu(path, graph_of("toy", (16, 8), (16, 8)), {"one": {"x": floats(16, 8)}})
    assert [r.verdict for r in rows] == [Verdict.PASS, Verdict.FAIL]


@needs_gpu
def test_the_adapter_is_named_and_a_dead_process_is_an_error(tmp_path):
    tensors = [("x", (4,)), ("y", (4,))]
    path = write_graph(tmp_path / "x.tflite", tensors, [("ABS", ["x"], "y", None)], ["y"])
    with LiteRtGpuRuntime(path, graph_of("toy", (4,), (4,))) as runtime:
        np.testing.assert_allclose(runtime.run({"x": -floats(4)})["y"], abs(floats(4)), rtol=1e-6)
        assert runtime.placement().startswith("GPU (WebGPU), ")
        assert "unknown" not in runtime.placement()
        runtime._process.kill()
        runtime._process.wait()
        with pytest.raises(RuntimeFailed, match="GPU process"):
            runtime.run({"x": floats(4)})


@needs_gpu
def test_a_file_of_another_graph_is_refused(tmp_path):
    path = write_graph(tmp_path / "x.tflite", [("x", (4,)), ("y", (4,))], [("ABS", ["x"], "y", None)], ["y"])
    with pytest.raises(BundleError, match="not those of toy"):
        LiteRtGpuRuntime(path, GraphSpec("toy", "any", (TensorSpec("other", (4,), "any"),), ()))


@needs_gpu
def test_the_linter_judges_each_operation_as_the_accelerator_does(tmp_path):
    for number, single in enumerate(SINGLE):
        single.write(tmp_path / f"{number:02}.tflite")
    # one process for all: starting one takes longer than all operations together
    script = f"""
        import json, sys
        from pathlib import Path
        import numpy as np
        from ai_edge_litert.interpreter import Interpreter
        from samexport.runtimes.parity.gpu import compare_with_cpu
from samexport.runtimes.adapters.litert_gpu import _Worker
        said = []
        for path in sorted(Path({str(tmp_path)!r}).glob("*.tflite")):
            runner = Interpreter(str(path)).get_signature_runner("main")
            rng = np.random.default_rng(1)
            inputs = {{n: rng.standard_normal(d["shape"]).astype(np.float32)
                      for n, d in runner.get_input_details().items()}}
            expected = runner(**inputs)["out"]
            try:
                actual = _Worker(str(path)).run("main", inputs)["out"]
                said.append("runs" if abs(actual - expected).max() < 1e-4 else "wrong")
            except RuntimeError:
                said.append("refused")
        Path({str(tmp_path)!r}, "said.json").write_text(json.dumps(said))
    """
    environment = {"VK_DRIVER_FILES": str(find_driver()), "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
    said = json.loads((tmp_path / "said.json").read_text())
    assert dict(zip([s.name for s in SINGLE], said, strict=True)) == {s.name: s.on_gpu for s in SINGLE}


@pytest.mark.parametrize("missing", ["loader", "driver"])
def test_what_is_missing_is_said_with_the_remedy(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(litert_gpu.ctypes.util, "find_library", lambda name: None if missing == "loader" else "vulkan")
    monkeypatch.setattr(litert_gpu, "find_driver", lambda: None)
    reason = rf"there is no Vulkan {missing}: apt-get install libvulkan1 chromium"
    assert why_unavailable() == reason
    with pytest.raises(MissingDependency, match=reason):
        LiteRtGpuRuntime(failing(tmp_path), graph_of("toy", (1, 4), (3, 4)))


def test_the_environment_chooses_the_driver(monkeypatch):
    monkeypatch.setenv("VK_DRIVER_FILES", "/some/driver.json")
    assert find_driver() == Path("/some/driver.json")


def test_without_a_real_driver_swiftshader_is_taken_if_it_is_there(monkeypatch, tmp_path):
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(variable, raising=False)
    drivers, swiftshader = tmp_path / "icd.d", tmp_path / "swiftshader.json"
    drivers.mkdir()
    (drivers / "lvp_icd.json").touch()
    monkeypatch.setattr(litert_gpu, "_DRIVER_FOLDERS", (drivers,))
    monkeypatch.setattr(litert_gpu, "SWIFTSHADER", swiftshader)
    assert find_driver() is None
    swiftshader.touch()
    assert find_driver() == swiftshader
