import json
import re
import subprocess
import sys
import time
from xml.etree import ElementTree

from samexport import __version__
from samexport.cli import export as export_commands
from samexport.runtimes.adapters import litert_gpu
from samexport.runtimes.parity import gpu as verify_gpu
from samexport.runtimes.parity.compare import Row, Verdict
from samexport.runtimes.parity.verify import verify_bundle
from tests.command_line import one_line_error


def test_export_ends_with_a_table_and_says_random(run, tmp_path, converted):
    code, out, err = run("onnx", "--encoder", "test.tinyvit64", "--weights", "random", "--out", tmp_path / "b")
    assert code == 0
    for word in ("encoder.onnx", "decoder_with_mask.onnx", "opset", "PASS", "RANDOM"):
        assert word in out
    assert "exporting decoder" in err
    code, _, err = run("onnx", "--encoder", "test.tinyvit64", "--weights", "random", "--out", tmp_path / "b")
    assert (code, "--force" in one_line_error(err)) == (2, True)


def test_verify_writes_reports_by_ending(run, tiny_bundle, tmp_path):
    for ending in ("json", "xml", "md"):
        code, out, _ = run("verify", tiny_bundle.folder, "--report", tmp_path / f"report.{ending}")
        assert code == 0
        assert "checks PASS" in out
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["verdict"] == "PASS"
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert int(suite.get("tests")) == len(data["rows"]) == len(suite.findall("testcase"))
    assert suite.get("failures") == "0"
    assert (tmp_path / "report.md").read_text().count("| PASS |") == len(data["rows"])
    code, _, err = run("verify", tiny_bundle.folder, "--report", tmp_path / "report.txt")
    assert (code, ".json, .xml, .md" in one_line_error(err)) == (2, True)


def test_verify_on_a_gpu_is_for_tflite_and_needs_one(run, tiny_bundle, tflite_bundle, monkeypatch):
    code, _, err = run("verify", tiny_bundle.folder, "--gpu")
    assert (code, "--gpu checks TFLite bundles, tiny is onnx" in one_line_error(err)) == (2, True)
    monkeypatch.setattr(litert_gpu.ctypes.util, "find_library", lambda name: None)
    code, out, err = run("verify", tflite_bundle.folder, "--gpu")
    assert (code, out) == (2, "")
    assert "apt-get install libvulkan1 chromium" in one_line_error(err)
    findings = {f["name"]: f for f in json.loads(run("doctor", "--json")[1])}
    assert findings["verify --gpu (tflite)"]["ok"] is False
    assert "apt-get install libvulkan1 chromium" in findings["verify --gpu (tflite)"]["remedy"]


def test_what_was_not_checked_on_the_gpu_is_printed_and_not_counted(run, tflite_bundle, monkeypatch):
    monkeypatch.setattr(verify_gpu, "why_unavailable", lambda: "")
    monkeypatch.setattr(verify_gpu, "compare_with_cpu", lambda path, graph, cases: (Row("on GPU", "y", Verdict.PASS),))
    plain = int(re.search(r"(\d+) checks PASS", run("verify", tflite_bundle.folder)[1])[1])
    code, out, _ = run("verify", tflite_bundle.folder, "--gpu")
    assert code == 0
    assert f"{plain + 3} checks PASS" in out
    assert "SKIPPED  on GPU, fp16, OpenCL and Metal, phones: the check computes in float32" in out


def test_verify_against_another_bundle_adds_rows(run, tflite_bundle, tiny_bundle, half_bundle):
    code, out, _ = run("verify", tflite_bundle.folder, "--against", tiny_bundle.folder)
    assert (code, "encoder picture (against tiny)" in out) == (0, True)
    code, _, err = run("verify", tflite_bundle.folder, "--against", half_bundle.folder)
    assert (code, "different models" in one_line_error(err)) == (2, True)


def test_the_table_of_a_tflite_export_shows_the_linter(tflite_bundle, tiny_bundle, capsys):
    for bundle, shown in ((tflite_bundle, True), (tiny_bundle, False)):
        export_commands._print_bundle(bundle, verify_bundle(bundle))
        out = capsys.readouterr().out
        assert ("linter" in out, "leave GPU, rank 4; 0 of" in out) == (shown, shown)


def test_a_second_converter_without_its_python_ends_with_exit_code_2(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SAMEXPORT_ONNX2TF_PYTHON", raising=False)
    arguments = ("--encoder", "test.tinyvit64", "--weights", "random", "--out", tmp_path / "b")
    code, _, err = run("tflite", *arguments, "--converter", "onnx2tf")
    assert (code, "--python" in one_line_error(err)) == (2, True)
    code, _, err = run("tflite", *arguments, "--converter", "onnx2tf", "--python", sys.executable + ".absent")
    assert (code, "does not run" in one_line_error(err)) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_verify_fails_with_exit_code_1_and_says_where(run, own_bundle, tmp_path):
    (own_bundle.folder / "decoder.onnx").write_bytes(b"junk")
    code, _, err = run("verify", own_bundle.folder, "--report", tmp_path / "report.xml")
    assert code == 1
    assert "FAIL  files, decoder.onnx" in err
    one_line_error(err)
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) >= 6


def test_a_folder_that_is_no_bundle_ends_with_exit_code_2(run, tmp_path, photo):
    for command in (("verify", tmp_path), ("segment", tmp_path, photo, "--point", "1,1")):
        code, _, err = run(*command)
        assert (code, "is not a bundle" in one_line_error(err)) == (2, True)


def test_an_unknown_option_value_ends_with_exit_code_2(run):
    assert run("onnx", "--encoder", "tinyvit", "--weights", "some")[0] == 2
    assert run("onnx", "--encoder", "tinyvit", "--seed", "-1")[0] == 2
    assert run("onnx")[0] == 2


def test_interrupting_ends_with_exit_code_130(run, tiny_bundle, monkeypatch):
    from samexport.runtimes.parity import verify

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "verify_bundle", stop)
    code, _, err = run("verify", tiny_bundle.folder)
    assert (code, "Traceback" in err) == (130, False)


def test_list_shows_the_models_as_table_and_json(run):
    code, out, _ = run("list")
    assert code == 0
    for word in ("tinyvit", "vit_h", "tinysam", "9.8 M", "Apache-2.0"):
        assert word in out
    assert "test.tinyvit64" not in out
    names = {m["name"] for m in json.loads(run("list", "--json", "--all")[1])}
    assert {"mobilesam.tinyvit", "sam.vit_l", "test.vit64"} <= names


def test_doctor_names_runtimes_and_remedies(run, monkeypatch):
    code, out, _ = run("doctor")
    assert (code, "onnxruntime" in out) == (0, True)
    import importlib.metadata

    version = importlib.metadata.version

    def without_onnxruntime(name):
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_onnxruntime)
    findings = {f["name"]: f for f in json.loads(run("doctor", "--json")[1])}
    assert findings["runtime: onnxruntime (onnx)"]["ok"] is False
    assert findings["runtime: onnxruntime (onnx)"]["remedy"].startswith("pip install")


def test_version(run):
    assert run("--version")[:2] == (0, f"{__version__}\n")


STARTUP = """
import sys
sys.argv = ["samexport", "--help"]
from samexport.cli.main import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "rich.table"} & set(sys.modules)
print("HEAVY", sorted(heavy - {"rich.table"}))
"""


def test_help_imports_neither_torch_nor_onnx_nor_numpy():
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", STARTUP], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert run.stdout.strip().splitlines()[-1] == "HEAVY []", run.stdout + run.stderr
    # it takes 0.2 s; an import of torch would take more than this even on an idle machine
    assert seconds < 5
