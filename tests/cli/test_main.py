import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from samexport import __version__
from samexport.cli import export as export_commands
from samexport.errors import BundleError, FileError
from samexport.exporter import formats, pipeline
from samexport.exporter.formats import FORMATS
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.models.catalog import find_model
from samexport.runtimes.adapters import litert_gpu
from samexport.runtimes.parity import gpu as verify_gpu
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.verdicts import Check, Row, Verdict
from tests.command_line import one_line_error


def test_export_ends_with_a_table_and_says_random(run, tmp_path, converted):
    code, out, err = run("onnx", "--encoder", "test.tinyvit64", "--weights", "random", "--out", tmp_path / "b")
    assert code == 0
    for word in ("encoder.onnx", "decoder_with_mask.onnx", "opset", "PASS", "RANDOM"):
        assert word in out
    size = sum(p.stat().st_size for p in (tmp_path / "b").rglob("*"))
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'b'}/ (8 files, {size / 1e6:.1f} MB)"
    steps = [line for line in err.splitlines() if line.startswith("[")]
    assert [re.sub(r" +\d+ s$", "", line) for line in steps] == [
        "[1/9] reading weights", "[2/9] running the reference", "[3/9] exporting encoder", "[4/9] exporting decoder",
        "[5/9] exporting decoder_with_mask", "[6/9] checking encoder", "[7/9] checking decoder",
        "[8/9] checking decoder_with_mask", "[9/9] checking from picture to masks",
    ]  # fmt: skip
    code, _, err = run("onnx", "--encoder", "test.tinyvit64", "--weights", "random", "--out", tmp_path / "b")
    assert (code, "--force" in one_line_error(err)) == (2, True)


def test_an_export_says_where_it_writes_and_what_it_wrote_as_json(run, tmp_path, converted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("onnx", "--encoder", "test.tinyvit64", "--weights", "random", "--json")
    told, folder = json.loads(out), tmp_path / "test-tinyvit64-onnx-fp32-random"
    assert code == 0
    assert "exporting test.tinyvit64 to test-tinyvit64-onnx-fp32-random" in err
    assert (told["path"], told["verdict"], told["weights"]["kind"]) == (folder.name, "PASS", "random")
    assert {f["path"]: f["size"] for f in told["files"]} == {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()
    }


def test_export_makes_a_bundle_a_format_from_one_reading_of_the_weights(run, tmp_path, converted, monkeypatch):
    read, load_model = [], pipeline.load_model
    monkeypatch.setattr(pipeline, "load_model", lambda *given: read.append(given) or load_model(*given))
    # TFLite's converter and runtime would take half a minute; here ONNX files stand for both formats
    kind = type("SecondOptions", (OnnxOptions,), {})
    second = replace(FORMATS["onnx"], name="second", options=kind)
    monkeypatch.setattr(formats, "FORMATS", {"second": second, "onnx": FORMATS["onnx"]})
    code, out, err = run(
        "export",
        "test.tinyvit64",
        "--format",
        "second,onnx",
        "--weights",
        "random",
        "--out",
        tmp_path / "all",
        "--json",
    )
    assert code == 0, err
    told = json.loads(out)["bundles"]
    assert (code, len(read), [b["verdict"] for b in told]) == (0, 1, ["PASS", "PASS"])
    names = ["test-tinyvit64-onnx-fp32-random", "test-tinyvit64-second-fp32-random"]
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == names
    golden = [(tmp_path / "all" / name / "golden") for name in names]
    assert {p.name: p.read_bytes() for p in golden[0].iterdir()} == {
        p.name: p.read_bytes() for p in golden[1].iterdir()
    }


@pytest.mark.parametrize("formats", ["", ",", "onnx,ncnn", "ONNX", "onnx tflite"])
def test_export_refuses_a_format_that_it_does_not_know(run, tmp_path, formats):
    code, _, err = run("export", "test.tinyvit64", "--format", formats, "--weights", "random", "--out", tmp_path / "b")
    assert (code, "--format is one or more of onnx,tflite,coreml" in one_line_error(err)) == (2, True)
    assert not (tmp_path / "b").exists()


def test_a_missing_converter_is_told_before_any_work(run, tmp_path, monkeypatch):
    def without(package, version=importlib.metadata.version):
        if package == "litert-torch":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    code, _, err = run("export", "test.tinyvit64", "--format", "onnx,tflite", "--weights", "random", "--out", tmp_path)
    assert code == 2
    assert "tflite files need litert-torch: pip install" in one_line_error(err)
    assert list(tmp_path.iterdir()) == []


def test_an_export_without_torch_names_the_command_that_installs_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run("onnx", "--encoder", "test.tinyvit64", "--weights", "random", "--out", tmp_path / "b")
    assert (code, "exporting needs torch: pip install" in one_line_error(err)) == (2, True)


def test_the_official_weights_are_not_asked_for_without_torch(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "requests", None)
    code, _, err = run("onnx", "--encoder", "tinyvit", "--out", tmp_path / "b")
    assert (code, "exporting needs torch: pip install" in one_line_error(err)) == (2, True)
    assert list(tmp_path.iterdir()) == []


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


@pytest.fixture
def no_checks(monkeypatch):
    """Fail if a check runs."""
    from samexport.runtimes.parity import verify

    monkeypatch.setattr(verify, "verify_bundle", lambda *_, **__: pytest.fail("a check ran"))


def test_a_report_that_cannot_be_written_is_refused_before_any_check(run, tiny_bundle, tmp_path, no_checks):
    verify = ("verify", tiny_bundle.folder, "--report")
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "weights.json").write_text("weights")
    for name, message in (
        ("report.txt", ".json, .xml, .md"),
        ("absent/report.md", "does not exist"),
        ("mine.json", "--force"),
        (tiny_bundle.folder / "report.json", "is inside the bundle"),
    ):
        code, out, err = run(*verify, tmp_path / name)
        assert (code, out, message in one_line_error(err)) == (2, "", True), err
    weights = tmp_path / "weights.json"
    code, _, err = run(*verify, weights, "--force", "--checkpoint", weights)
    assert (code, "is an input" in one_line_error(err)) == (2, True)
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_force_replaces_a_report(run, tiny_bundle, tmp_path):
    (tmp_path / "report.json").write_text("mine")
    code, out, _ = run("verify", tiny_bundle.folder, "--report", tmp_path / "report.json", "--force")
    assert (code, out.splitlines()[-1].startswith(f"wrote {tmp_path / 'report.json'} (")) == (0, True)
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "PASS"


def test_the_table_is_printed_even_if_the_report_cannot_be_written(run, tiny_bundle, tmp_path, monkeypatch):
    from samexport.runtimes.parity import report

    def fail(*_, **__):
        raise FileError("the disk is full")

    monkeypatch.setattr(report, "write_text", fail)
    code, out, err = run("verify", tiny_bundle.folder, "--report", tmp_path / "report.json")
    assert (code, "the disk is full" in one_line_error(err)) == (2, True)
    assert "checks PASS" in out


def test_what_was_found_is_written_if_a_later_check_cannot_go_on(run, tiny_bundle, tmp_path, monkeypatch):
    from samexport.runtimes.parity import against

    def fail(*_, **__):
        raise BundleError("the other bundle is gone")

    monkeypatch.setattr(against, "verify_against", fail)
    arguments = ("verify", tiny_bundle.folder, "--against", tiny_bundle.folder, "--report", tmp_path / "report.json")
    code, out, err = run(*arguments)
    assert (code, "the other bundle is gone" in one_line_error(err)) == (2, True)
    assert "decoder 3x2" in out
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "PASS"


def test_a_failed_check_counts_more_than_one_that_could_not_go_on(run, own_bundle, monkeypatch):
    from samexport.runtimes.parity import against

    def fail(*_, **__):
        raise BundleError("the other bundle is gone")

    monkeypatch.setattr(against, "verify_against", fail)
    (own_bundle.folder / "decoder.onnx").write_bytes(b"junk")
    code, _, err = run("verify", own_bundle.folder, "--against", own_bundle.folder)
    assert (code, "checks failed" in one_line_error(err)) == (1, True)
    assert "FAIL  not finished: the other bundle is gone" in err


def test_verify_prints_rows_as_json(run, tiny_bundle):
    code, out, err = run("verify", tiny_bundle.folder, "--json")
    told = json.loads(out)
    assert (code, told["verdict"], told["bundle"]) == (0, "PASS", str(tiny_bundle.folder))
    assert {r["verdict"] for r in told["rows"]} == {"PASS"}
    assert "[4/4] checking from picture to masks" in err


def test_verify_against_runs_the_judged_bundle_on_the_named_runtime(run, tiny_bundle):
    pytest.importorskip("openvino")
    code, out, _ = run("verify", tiny_bundle.folder, "--against", tiny_bundle.folder, "--runtime", "openvino", "--json")
    rows = [r for r in json.loads(out)["rows"] if r["check"]["against"] == tiny_bundle.folder.name]
    assert (code, {r["check"]["runtime"] for r in rows if r["check"]["kind"] == "case"}) == (0, {"openvino"})
    # where both ran on ONNX Runtime, nothing at all would differ
    assert max(r["max_error"] for r in rows if r["max_error"] is not None) > 0


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
    passed = (Row(Check("gpu", ("decoder",)), "y", Verdict.PASS),)
    monkeypatch.setattr(verify_gpu, "compare_with_cpu", lambda path, graph, cases: passed)
    plain = int(re.search(r"(\d+) checks PASS", run("verify", tflite_bundle.folder)[1])[1])
    code, out, _ = run("verify", tflite_bundle.folder, "--gpu")
    assert code == 0
    assert f"{plain + 3} checks PASS" in out
    assert "SKIPPED  limits on GPU, fp16, OpenCL and Metal, phones: the check computes in float32" in out


def test_verify_against_another_bundle_adds_rows(run, tflite_bundle, tiny_bundle):
    code, out, err = run("verify", tflite_bundle.folder, "--against", tiny_bundle.folder)
    assert (code, "encoder picture (against tiny)" in out) == (0, True)
    assert "checking from picture to masks" in err
    steps = [line.split("]")[0] for line in err.splitlines() if line.startswith("[")]
    assert steps == [f"[{number}/11" for number in range(1, 12)]


def test_bundles_that_cannot_be_compared_are_refused_before_any_check(run, tiny_bundle, half_bundle, no_checks):
    code, _, err = run("verify", tiny_bundle.folder, "--against", half_bundle.folder)
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
    models = json.loads(run("list", "--json", "--all")[1])
    assert all(find_model(alias).name == m["name"] for m in models for alias in m["aliases"])
    names = {m["name"] for m in models}
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


def test_doctor_looks_at_what_the_extras_need(run):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {f["name"] for f in json.loads(run("doctor", "--json")[1])}
    for extra in ("export", "bench", "eval", "train", "ray", "video"):
        needed = {re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"][extra]} - {"samexport"}
        assert {name.split(": ")[1] for name in names if name.startswith(f"{extra}: ")} >= needed


def test_version(run):
    assert run("--version")[:2] == (0, f"{__version__}\n")


STARTUP = """
import sys, time
sys.argv = ["samexport", "--help"]
from samexport.cli.main import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "rich", "filelock"} & set(sys.modules)
print("HEAVY", sorted(heavy))
print(time.process_time())
"""


def test_help_imports_neither_torch_nor_onnx_nor_numpy():
    run = subprocess.run([sys.executable, "-c", STARTUP], capture_output=True, text=True)
    *_, heavy, seconds = run.stdout.strip().splitlines()
    assert heavy == "HEAVY []", run.stdout + run.stderr
    # processor time, which other programs do not lengthen: it is 0.2 s, an import of torch more than this
    assert float(seconds) < 2
