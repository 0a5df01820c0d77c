import builtins
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from samexport.benchmarks import command, plan
from samexport.benchmarks.command import FILES, BenchRequest, run_bench
from samexport.benchmarks.measuring import runner
from samexport.benchmarks.results.compare import compare
from samexport.benchmarks.results.plots import PLOT_FILES
from samexport.benchmarks.results.rows import Status, read_results
from samexport.benchmarks.results.tables import failure_lines, problem_lines
from samexport.errors import BundleError, ConfigError, FileError, MissingDependency
from samexport.installation import install_hint
from samexport.runtimes.verdicts import Verdict


def no_baselines(bundle, folder):
    raise AssertionError("not asked for")


pytestmark = pytest.mark.usefixtures("no_probe")


def request_of(bundle, out, **changes):
    options = {"runtimes": ("onnxruntime",), "prompts": (2,), "repeat": 3, "seconds": 0.1} | changes
    return BenchRequest((bundle.folder,), out, **options)


def test_bundles_are_measured_and_written_in_every_form(tiny_bundle, plain_bundle, tmp_path, capsys):
    graphs = ("encoder", "decoder")
    options = {"graphs": graphs, "rivals": ("plain", "single"), "tasks": ("next click",)}
    request = request_of(tiny_bundle, tmp_path / "out", **options)
    results = run_bench(request, lambda bundle, folder: plain_bundle)
    assert {r.status for r in results.rows} == {Status.DONE}
    assert {r.measured.parity.verdict for r in results.rows} == {Verdict.PASS}
    assert [r.job.graph for r in results.rows] == [*graphs, "next click"]
    assert [(p.first.graph, p.second.batch) for p in results.pairs] == [("encoder", 0), ("decoder", 0), ("decoder", 1)]
    assert all((request.out / name).stat().st_size > 500 for name in FILES)
    assert read_results(request.out / "results.json") == results
    said = capsys.readouterr()
    assert said.out == ""
    assert "[1/6] tiny: encoder" in said.err
    assert "left" in said.err


def test_existing_results_are_not_overwritten_unless_forced(tiny_bundle, tmp_path):
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        run_bench(request_of(tiny_bundle, tmp_path, graphs=("encoder",)), no_baselines)
    assert (tmp_path / "results.md").read_text() == "mine"
    run_bench(request_of(tiny_bundle, tmp_path, graphs=("encoder",), force=True), no_baselines)
    assert (tmp_path / "results.md").read_text() != "mine"


def stopped(monkeypatch, at, error):
    """Let the measuring process number ``at`` raise ``error``."""
    real, jobs, calls = runner.ask_process, runner.run_jobs, []

    def ask(request):
        calls.append(request)
        if len(calls) == at:
            raise error
        return real(request)

    monkeypatch.setattr(runner, "run_jobs", lambda j, e, m, references: jobs(j, e, m, ask, references))
    return calls


def test_what_was_measured_is_written_even_if_the_user_stops(tiny_bundle, tmp_path, monkeypatch):
    stopped(monkeypatch, 2, KeyboardInterrupt())
    shown = []
    with pytest.raises(KeyboardInterrupt):
        run_bench(request_of(tiny_bundle, tmp_path), no_baselines, shown.append)
    assert [r.job.graph for r in read_results(tmp_path / "results.json").rows] == ["encoder"]
    assert [r.job.graph for r in shown[0].rows] == ["encoder"]
    assert all((tmp_path / name).exists() for name in FILES)


def test_each_row_is_on_the_disk_before_the_next_is_measured(tiny_bundle, tmp_path, monkeypatch):
    """As after a crash of the machine: nothing that runs at the end has run."""
    seen = []
    real = runner.ask_process

    def ask(request):
        path = tmp_path / "results.json"
        seen.append(len(read_results(path).rows) if path.exists() else 0)
        return real(request)

    jobs = runner.run_jobs
    monkeypatch.setattr(runner, "run_jobs", lambda j, e, m, references: jobs(j, e, m, ask, references))
    run_bench(request_of(tiny_bundle, tmp_path), no_baselines)
    assert seen == [0, 1, 2]


def test_results_that_cannot_be_written_are_shown_all_the_same(tiny_bundle, tmp_path, monkeypatch):
    out, shown = tmp_path / "out", []
    real = command.write_text

    def full(path, text, **options):
        if len(json.loads(text)["rows"]) == 2:
            raise FileError(f"{path} cannot be written: the disk is full; nothing was left there")
        real(path, text, **options)

    monkeypatch.setattr(command, "write_text", full)
    with pytest.raises(FileError, match="disk is full"):
        run_bench(request_of(tiny_bundle, out), no_baselines, shown.append)
    assert len(shown[0].rows) == 2
    assert len(read_results(out / "results.json").rows) == 1


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_measurement(tiny_bundle, tmp_path, monkeypatch):
    calls = stopped(monkeypatch, 1, AssertionError("measured"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "latency.png").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "results.csv").mkdir()
    for out, force in (("file", False), ("file/x", False), ("taken", False), ("folder", True), ("a" * 300, False)):
        with pytest.raises((FileError, ConfigError)) as caught:
            run_bench(request_of(tiny_bundle, tmp_path / out, force=force), no_baselines)
        assert "\n" not in str(caught.value)
    assert calls == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "taken"]


def test_plots_of_earlier_results_do_not_stay_beside_new_ones(tiny_bundle, tmp_path):
    for name in PLOT_FILES:
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "mine.png").write_bytes(b"mine")
    run_bench(request_of(tiny_bundle, tmp_path, graphs=("encoder",), force=True), no_baselines)
    assert {p.name for p in tmp_path.glob("*.png")} == {"latency.png", "accuracy.png", "mine.png"}
    assert b"old" not in {p.read_bytes() for p in tmp_path.glob("*.png")}


def test_nothing_stays_in_the_folder_for_temporary_files(tiny_bundle, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    rivals, runtimes = ("onnxruntime-saved",), ("onnxruntime", "onnxruntime-saved")
    request = request_of(tiny_bundle, tmp_path / "out", graphs=("encoder",), rivals=rivals, runtimes=runtimes)
    results = run_bench(replace(request, profile=True), no_baselines)
    assert {r.status for r in results.rows} == {Status.DONE}
    assert list(temporary.iterdir()) == []


def test_an_unknown_model_fails_before_anything_is_measured(own_bundle, tmp_path, monkeypatch):
    calls = stopped(monkeypatch, 1, AssertionError("measured"))
    manifest = own_bundle.folder / "bundle.json"
    for name in ("sam9.huge", "../outside", "/outside"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": name}))
        with pytest.raises((ConfigError, BundleError)):
            run_bench(request_of(own_bundle, tmp_path / "out", rivals=("plain",)), no_baselines)
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_two_bundles_of_one_name_are_told_apart_and_compared_in_turns(own_bundle, tmp_path):
    other = Path(shutil.copytree(own_bundle.folder, tmp_path / "x" / "bundle"))
    request = request_of(own_bundle, tmp_path / "out", graphs=("encoder",))
    request = replace(request, bundles=(own_bundle.folder, other), rivals=(str(other),))
    results = run_bench(request, no_baselines)
    labels = [r.job.source.label for r in results.rows]
    assert len(set(labels)) == 2
    assert labels[1] == "x/bundle"
    assert [(p.first.source.label, p.second.source.label) for p in results.pairs] == [tuple(labels)]
    assert compare(results, results)[0].regression == ""


def test_a_bundle_with_a_detector_is_measured_as_a_whole(sampler_bundle, tmp_path):
    tasks = ("everything: 300 boxes of the detector",)
    graphs = ("encoder", "prompt_sampler")
    request = request_of(sampler_bundle, tmp_path / "out", graphs=graphs, tasks=tasks, photograph=(60, 40))
    results = run_bench(replace(request, runtimes=("onnxruntime", "pytorch")), no_baselines)
    assert {r.status for r in results.rows} == {Status.DONE}
    assert {r.measured.parity.verdict for r in results.rows} == {Verdict.PASS}
    by_graph = [(r.job.graph, r.job.runtime) for r in results.rows]
    assert ("prompt_sampler", "onnxruntime") in by_graph
    assert ("prompt_sampler", "pytorch") in by_graph
    assert by_graph[-1] == (tasks[0], "onnxruntime")


def test_what_was_asked_for_and_cannot_be_is_a_row(tiny_bundle, tmp_path):
    request = request_of(tiny_bundle, tmp_path / "out", graphs=("encoder",), runtimes=("onnxruntime", "litert"))
    results = run_bench(request, no_baselines)
    skipped = [r for r in results.rows if r.status is Status.SKIPPED]
    assert [(r.job.runtime, r.reason) for r in skipped] == [("litert", "it reads tflite files, the bundles have onnx")]


def test_a_default_run_without_the_checkpoint_leaves_pytorch_out_and_says_so(own_bundle, tmp_path, monkeypatch):
    manifest = own_bundle.folder / "bundle.json"
    weights = {"kind": "checkpoint", "source": "mine.pt", "sha256": "1" * 64, "seed": None}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights": weights}))
    monkeypatch.setattr(plan, "why_not", lambda c: "" if c.name in ("onnxruntime", "pytorch") else "not here")
    out = tmp_path / "out"
    results = run_bench(request_of(own_bundle, out, graphs=("encoder",), runtimes=()), no_baselines)
    assert [r.job.runtime for r in results.rows] == ["onnxruntime"]
    assert failure_lines(results) == []
    (line,) = problem_lines(results)
    assert line == "bundle: PyTorch leaves out encoder: the weights are mine.pt; give them with --checkpoint"
    assert line in (out / "results.md").read_text()
    assert read_results(out / "results.json").notes == (line,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerators": ("foo",)}, "no accelerator is called 'foo'"),
        ({"accelerators": ("gpu",)}, "give --benchmark-model too"),
        ({"serial": "X"}, "give --benchmark-model too"),
        ({"rivals": ("litert",)}, "nothing to compare with 'litert'"),
        ({"rivals": ("openvino",), "runtimes": ("pytorch",)}, "nothing to compare with 'openvino'"),
        ({"profile": True, "runtimes": ("pytorch",)}, "--profile is of ONNX files"),
    ],
)
def test_options_without_an_effect_are_refused_before_anything_is_measured(tiny_bundle, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_bench(request_of(tiny_bundle, tmp_path / "out", **changes), no_baselines)
    assert not (tmp_path / "out").exists()


def test_names_beyond_ascii_are_written_whatever_the_locale(own_bundle, tmp_path):
    bundle = own_bundle.folder.rename(tmp_path / "Gerät")
    code = (
        "import sys; from pathlib import Path; from samexport.benchmarks.command import *; "
        "from samexport.benchmarks.measuring import runner; runner.probe_machine = lambda *_: runner.Machine(); "
        "run_bench(BenchRequest((Path(sys.argv[1]),), Path(sys.argv[2]), ('onnxruntime',), ('encoder',), repeat=1, "
        "seconds=0), None)"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(bundle), str(tmp_path / "out")], env=os.environ | plain, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    text = (tmp_path / "out" / "results.json").read_bytes().decode("utf-8")
    assert json.loads(text)["rows"][0]["job"]["source"]["label"].endswith("t")
    for name in FILES:
        (tmp_path / "out" / name).read_bytes()


def test_without_psutil_the_error_names_the_extra(tiny_bundle, tmp_path, monkeypatch):
    import importlib

    real = importlib.import_module

    def refuse(name, *arguments):
        if name == "psutil":
            raise ModuleNotFoundError("No module named 'psutil'", name="psutil")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingDependency, match=re.escape(install_hint("bench"))):
        run_bench(request_of(tiny_bundle, tmp_path), no_baselines)


def test_results_are_written_without_matplotlib_too(tiny_bundle, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    run_bench(request_of(tiny_bundle, tmp_path, graphs=("encoder",)), no_baselines)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    assert install_hint("bench") in capsys.readouterr().err


def test_folders_that_are_no_bundle_and_options_without_a_job_are_refused(tiny_bundle, tmp_path):
    with pytest.raises(BundleError):
        run_bench(BenchRequest((Path(tmp_path),), tmp_path / "out"), no_baselines)
    with pytest.raises(ConfigError, match="nothing to measure: it reads tflite files, the bundles have onnx"):
        run_bench(request_of(tiny_bundle, tmp_path / "out", runtimes=("litert",)), no_baselines)
    assert not (tmp_path / "out").exists()
