import builtins
from pathlib import Path

import pytest

from samexport.benchmarks.command import FILES, BenchRequest, run_bench
from samexport.benchmarks.measuring import runner
from samexport.benchmarks.results.rows import Status, read_results
from samexport.errors import BundleError, ConfigError, MissingDependency
from samexport.runtimes.verdicts import Verdict


def no_baselines(bundle, folder):
    raise AssertionError("not asked for")


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    monkeypatch.setattr(runner, "probe_machine", lambda threads: {"fp32": 100.0, "copy_gb_per_s": 9.0})


def request_of(bundle, out, **changes):
    options = {"runtimes": ("onnxruntime",), "prompts": (2,), "repeat": 3, "seconds": 0.1} | changes
    return BenchRequest((bundle.folder,), out, **options)


def test_bundles_are_measured_and_written_in_every_form(tiny_bundle, plain_bundle, tmp_path, capsys):
    request = request_of(tiny_bundle, tmp_path / "out", rivals=("plain", "single"), tasks=("next click",))
    results = run_bench(request, lambda bundle, folder: plain_bundle)
    assert {r.status for r in results.rows} == {Status.DONE}
    assert {r.measured.parity.verdict for r in results.rows} == {Verdict.PASS}
    assert [r.job.graph for r in results.rows] == ["encoder", "decoder", "decoder_with_mask", "next click"]
    assert [(p.first.graph, p.second.batch) for p in results.pairs] == [
        ("encoder", 0), ("decoder", 0), ("decoder_with_mask", 0), ("decoder", 1), ("decoder_with_mask", 1),
    ]  # fmt: skip
    assert all((request.out / name).stat().st_size > 500 for name in FILES)
    assert read_results(request.out / "results.json") == results
    said = capsys.readouterr()
    assert said.out == ""
    assert "[1/9] encoder" in said.err
    assert "left" in said.err


def test_existing_results_are_not_overwritten_unless_forced(tiny_bundle, tmp_path):
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        run_bench(request_of(tiny_bundle, tmp_path, graphs=("encoder",)), no_baselines)
    assert (tmp_path / "results.md").read_text() == "mine"
    run_bench(request_of(tiny_bundle, tmp_path, graphs=("encoder",), force=True), no_baselines)
    assert (tmp_path / "results.md").read_text() != "mine"


def test_what_was_measured_is_written_even_if_the_user_stops(tiny_bundle, tmp_path, monkeypatch):
    real, calls = runner.ask_process, []

    def stop_at_the_second(kind, jobs, effort):
        calls.append(jobs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(kind, jobs, effort)

    jobs = runner.run_jobs
    monkeypatch.setattr(runner, "run_jobs", lambda j, e, r: jobs(j, e, r, stop_at_the_second))
    with pytest.raises(KeyboardInterrupt):
        run_bench(request_of(tiny_bundle, tmp_path), no_baselines)
    assert [r.job.graph for r in read_results(tmp_path / "results.json").rows] == ["encoder"]


def test_without_psutil_the_error_names_the_extra(tiny_bundle, tmp_path, monkeypatch):
    import importlib

    real = importlib.import_module

    def refuse(name, *arguments):
        if name == "psutil":
            raise ModuleNotFoundError("No module named 'psutil'", name="psutil")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingDependency, match=r"samexport\[bench\]"):
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
    assert "samexport[bench]" in capsys.readouterr().err


def test_folders_that_are_no_bundle_and_options_without_a_job_are_refused(tiny_bundle, tmp_path):
    with pytest.raises(BundleError):
        run_bench(BenchRequest((Path(tmp_path),), tmp_path / "out"), no_baselines)
    with pytest.raises(ConfigError, match="nothing to measure"):
        run_bench(request_of(tiny_bundle, tmp_path / "out", runtimes=("litert",)), no_baselines)
    assert not (tmp_path / "out").exists()
