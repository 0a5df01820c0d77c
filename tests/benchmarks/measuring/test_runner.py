import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from samexport.benchmarks.contenders.baselines import gmac
from samexport.benchmarks.measuring import runner
from samexport.benchmarks.measuring.measure import Effort, Request
from samexport.benchmarks.measuring.runner import (
    Machine,
    References,
    ask_process,
    probe_machine,
    run_jobs,
    run_pairs,
    run_profiles,
)
from samexport.benchmarks.results.rows import Measurement, Pair, Parity, Source, Status
from samexport.runtimes.verdicts import Verdict
from tests.benchmarks.measuring.test_subject import job_of
from tests.benchmarks.rows_of import PASS, pair

QUICK = Effort(min_runs=3, max_runs=3, seconds=1, timeout=300)


def interpreter(tmp_path, script):
    """A stand-in for the Python that runs the measuring process."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def alive(number):
    """Whether a process still runs a few seconds after it was killed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            time.sleep(0.05)
        return True
    return False


def answer(**changes):
    measured = Measurement(PASS, "CPU", 10.0, 20.0, 50.0, 60.0, 45.0, 25, 300.0, 100.0, 0.01)
    return lambda request: asdict(measured) | changes


def only(job, ask, roofline=None):
    (row,) = run_jobs([job], QUICK, Machine(roofline or {}, {job: 10.0}), ask)
    return row


def asked(job, effort=QUICK):
    return ask_process(Request("row", (job,), effort))


def test_a_job_is_measured_in_another_process(tiny_bundle):
    job = job_of(tiny_bundle, "decoder", prompts=2)
    (row,) = run_jobs([job], QUICK, Machine({"fp32": 1e6}, {job: 0.5}))
    assert (row.status, row.measured.parity.verdict) == (Status.DONE, Verdict.PASS)
    assert row.measured.runs == 3
    assert row.size_mb == pytest.approx(tiny_bundle.artifact("decoder").size / 1e6)
    assert row.gmac_per_s == pytest.approx(1e3 * row.gmac / row.measured.p50_ms)


def test_a_pair_is_measured_in_another_process(tiny_bundle):
    one, two = (job_of(tiny_bundle, "decoder", prompts=n) for n in (8, 1))
    (found,) = run_pairs([(one, two)], QUICK)
    assert (found.status, found.turns) == (Status.DONE, 3)
    assert found.first_parity.verdict is found.second_parity.verdict is Verdict.PASS
    assert found.ratio > 0


def test_a_crash_costs_one_row_and_not_the_table(tiny_bundle, tmp_path, monkeypatch):
    job = job_of(tiny_bundle, "encoder")
    monkeypatch.setattr(runner.sys, "executable", interpreter(tmp_path, "kill -SEGV $$"))
    rows = run_jobs([job, job], QUICK, Machine())
    crashed = next(rows)
    assert (crashed.status, crashed.reason) == (Status.FAILED, "crashed with SIGSEGV")
    assert crashed.measured.parity.verdict is Verdict.SKIPPED
    monkeypatch.undo()
    assert next(rows).status is Status.DONE


def test_a_process_that_hangs_is_ended_with_all_it_started(tmp_path, monkeypatch, tiny_bundle):
    script = f"sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait"
    monkeypatch.setattr(runner.sys, "executable", interpreter(tmp_path, script))
    start = time.monotonic()
    found = asked(job_of(tiny_bundle, "encoder"), Effort(timeout=1))
    assert found == {"error": "did not end within 1 s"}
    assert time.monotonic() - start < 30
    assert not any(alive(int((tmp_path / name).read_text())) for name in ("self", "child"))


def test_the_last_line_of_an_error_is_the_reason(tmp_path, monkeypatch, tiny_bundle):
    script = "echo 'Traceback' >&2; echo 'ValueError: bad' >&2; echo >&2; exit 3"
    monkeypatch.setattr(runner.sys, "executable", interpreter(tmp_path, script))
    assert asked(job_of(tiny_bundle, "encoder")) == {"error": "ended with code 3: ValueError: bad"}


def test_an_end_without_an_answer_is_a_failure(tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.setattr(runner.sys, "executable", interpreter(tmp_path, "exit 0"))
    assert "error" in asked(job_of(tiny_bundle, "encoder"))


@pytest.mark.parametrize(
    "answer", ["", "no JSON", "[1]", '{"parity": {}}', '{"parity": {"verdict": "PASS"}, "p50_ms": NaN}']
)
def test_an_answer_of_another_kind_is_a_failed_row(tmp_path, monkeypatch, tiny_bundle, answer):
    script = f"printf '%s' '{answer}' > \"$3\""
    monkeypatch.setattr(runner.sys, "executable", interpreter(tmp_path, script))
    (row,) = run_jobs([job_of(tiny_bundle, "encoder")], QUICK, Machine())
    assert row.status is Status.FAILED
    assert row.reason


def test_a_damaged_file_becomes_a_failed_row_that_says_why(own_bundle):
    (own_bundle.folder / "encoder.onnx").write_bytes(b"no model")
    (row,) = run_jobs([job_of(own_bundle, "encoder")], QUICK, Machine())
    assert row.status is Status.FAILED
    assert row.reason.startswith("encoder.onnx cannot be opened by ONNX Runtime")


def test_the_process_gets_as_many_threads_as_the_job_says_and_a_folder_that_goes(tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    script = f'echo $OMP_NUM_THREADS $MKL_NUM_THREADS $TMPDIR > {tmp_path}/seen; echo left > "$TMPDIR/left"'
    monkeypatch.setattr(runner.sys, "executable", interpreter(tmp_path, script))
    asked(job_of(tiny_bundle, "encoder", threads=3))
    openmp, mkl, folder = (tmp_path / "seen").read_text().split()
    assert (openmp, mkl) == ("3", "3")
    assert not Path(folder).exists()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_runtime_that_is_not_here_is_skipped_with_the_reason(tiny_bundle, monkeypatch):
    monkeypatch.setattr(runner, "why_not", lambda c: "no driver" if c.name == "pytorch-cuda" else "")
    found = only(job_of(tiny_bundle, "encoder", runtime="pytorch-cuda", file=""), lambda request: 1 / 0)
    assert (found.status, found.reason) == (Status.SKIPPED, "no driver")


def test_rate_and_share_of_the_peak_are_of_the_median(tiny_bundle):
    found = only(job_of(tiny_bundle, "decoder", prompts=4), answer(), {"fp32": 2.0, "bf16": 8.0})
    assert found.gmac_per_s == pytest.approx(found.gmac / 0.050)
    assert found.peak_share == pytest.approx(found.gmac_per_s / 2.0)
    wide = only(
        job_of(tiny_bundle, "decoder", prompts=4, runtime="openvino-bf16"), answer(), {"fp32": 2.0, "bf16": 8.0}
    )
    assert wide.peak_share == pytest.approx(wide.gmac_per_s / 8.0)
    # processors of this kind compute fp16 files in fp32
    half = only(job_of(tiny_bundle, "decoder", prompts=4, precision="fp16"), answer(), {"fp32": 2.0, "bf16": 8.0})
    assert half.peak_share == pytest.approx(half.gmac_per_s / 2.0)


def test_a_row_measured_beside_other_programs_is_marked(tiny_bundle):
    job = job_of(tiny_bundle, "encoder")
    assert only(job, answer(other_cores=0.5)).loaded
    assert not only(job, answer(other_cores=0.01)).loaded


def test_a_row_without_times_has_no_rate(tiny_bundle):
    found = only(job_of(tiny_bundle, "encoder"), answer(p50_ms=None), {"fp32": 2.0})
    assert (found.gmac_per_s, found.peak_share) == (None, None)


def test_tasks_get_by_with_fewer_runs(tiny_bundle):
    runs = []

    def ask(request):
        runs.append((request.effort.min_runs, request.effort.max_runs))
        return answer()(request)

    task = replace(job_of(tiny_bundle, "encoder"), graph="one click", file="", prompts=1)
    slow = replace(task, graph="everything: grid 32x32")
    list(run_jobs([task, slow, job_of(tiny_bundle, "encoder")], Effort(min_runs=20), Machine(), ask))
    assert runs == [(5, 200), (20, 0), (20, 200)]


def test_a_pair_that_fails_is_kept_with_the_reason(tiny_bundle):
    job = job_of(tiny_bundle, "encoder")
    (found,) = run_pairs([(job, job)], QUICK, lambda request: {"error": "crashed"})
    assert found == Pair(job, job, Status.FAILED, "crashed")


def test_a_pair_comes_back_from_its_process_as_it_was(tiny_bundle):
    (found,) = run_pairs([(pair().first, pair().second)], QUICK, lambda request: asdict(pair(0.7)))
    assert found == pair(0.7)


def test_a_pair_with_a_runtime_that_is_not_here_is_skipped_with_the_reason(tiny_bundle, monkeypatch):
    monkeypatch.setattr(runner, "why_not", lambda c: "no driver" if c.name == "pytorch-cuda" else "")
    job = job_of(tiny_bundle, "encoder")
    (found,) = run_pairs([(job, replace(job, runtime="pytorch-cuda", file=""))], QUICK, lambda request: 1 / 0)
    assert (found.status, found.reason) == (Status.SKIPPED, "no driver")


def test_a_profile_that_fails_is_kept_with_the_reason(tiny_bundle):
    (found,) = run_profiles([job_of(tiny_bundle, "encoder")], QUICK, lambda request: {"error": "crashed"})
    assert (found.operators, found.reason) == ((), "crashed")


def task_of(bundle, name="one click", **changes):
    made = replace(job_of(bundle, "encoder"), graph=name, file="", prompts=1, photograph=(60, 40))
    return replace(made, **changes)


def test_a_task_is_compared_with_what_pytorch_makes_of_it_once_for_all_runtimes(tiny_bundle, tmp_path):
    kinds = []

    def ask(request):
        kinds.append((request.kind, request.reference))
        return {} if request.kind == "reference" else answer()(request)

    jobs = [task_of(tiny_bundle), task_of(tiny_bundle, runtime="openvino", threads=2), task_of(tiny_bundle, "64 boxes")]
    list(run_jobs(jobs, QUICK, Machine(), ask, References(tmp_path, ask)))
    one, other = str(tmp_path / "0.json"), str(tmp_path / "1.json")
    assert kinds == [("reference", one), ("row", one), ("row", one), ("reference", other), ("row", other)]


@pytest.mark.parametrize("change", [{"photograph": (40, 60)}, {"source": Source("b", "test.tinyvit64", "seed 8")}])
def test_another_picture_and_other_weights_have_a_reference_of_their_own(tiny_bundle, tmp_path, change):
    made = References(tmp_path, lambda request: {})
    first = made.of(task_of(tiny_bundle), QUICK)
    assert made.of(task_of(tiny_bundle, **change), QUICK) != first
    assert made.of(task_of(tiny_bundle), QUICK) == first


def test_a_task_without_pytorchs_masks_is_measured_and_says_why_it_has_no_verdict(tiny_bundle, tmp_path):
    def ask(request):
        if request.kind == "reference":
            return {"error": "give --checkpoint"}
        assert request.reference == ""
        return answer()(request) | {"parity": asdict(Parity(Verdict.SKIPPED, "none"))}

    (row,) = run_jobs([task_of(tiny_bundle)], QUICK, Machine(), ask, References(tmp_path, ask))
    assert (row.status, row.measured.parity.verdict) == (Status.DONE, Verdict.SKIPPED)
    assert row.measured.parity.reason == "not compared with PyTorch: give --checkpoint"


def test_the_work_of_graphs_is_counted_in_another_process(tiny_bundle, monkeypatch):
    monkeypatch.setattr(runner, "_roofline", lambda threads, timeout: {"fp32": 2.0})
    encoder, decoder = (job_of(tiny_bundle, "encoder"), job_of(tiny_bundle, "decoder", prompts=4))
    found = probe_machine([encoder, task_of(tiny_bundle), decoder], 1)
    assert found.roofline == {"fp32": 2.0}
    assert found.gmac == {
        job: gmac("test.tinyvit64", job.graph, "export", job.prompts, 2) for job in (encoder, decoder)
    }
    assert probe_machine([encoder], 1, lambda request: {"gmac": "many"}).gmac == {}


def test_the_measuring_process_ends_when_the_one_that_asked_is_killed(tiny_bundle, tmp_path):
    endless = Effort(10**9, 10**9, 600, 600)
    request = Request("row", (job_of(tiny_bundle, "encoder"),), endless)
    (tmp_path / "request").write_text(json.dumps(asdict(request)))
    measuring = f"{sys.executable} -m samexport.benchmarks.measuring.measure {tmp_path}/out < {tmp_path}/request"
    parent = subprocess.Popen(["sh", "-c", f"{measuring} & echo $! > {tmp_path}/child; wait"])
    number = int(waited_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip()))
    # it watches once the runtime is open, and not while Python starts
    waited_for(lambda: any("onnxruntime" in m.path for m in psutil.Process(number).memory_maps()))
    parent.kill()
    parent.wait()
    assert not alive(number)


def waited_for(condition, tries=600):
    """What ``condition`` gives once it is true, within a minute."""
    for _ in range(tries):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it never became true")
