"""From jobs to rows: each in a process of its own, and what the numbers mean on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from samexport.benchmarks.contenders.baselines import gmac
from samexport.benchmarks.contenders.known import find, why_not
from samexport.benchmarks.measuring.environment import LOADED
from samexport.benchmarks.measuring.measure import Effort
from samexport.benchmarks.measuring.subject import POINTS
from samexport.benchmarks.measuring.tasks import TASKS
from samexport.benchmarks.plan import is_graph
from samexport.benchmarks.results.rows import (
    BenchRow,
    Job,
    Measurement,
    Pair,
    Parity,
    Profile,
    Status,
    measurement_from_json,
    parity_from_json,
    profile_from_json,
)  # fmt: skip
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.verdicts import Verdict

Ask = Callable[[str, Sequence[Job], Effort], dict[str, Any]]


def ask_process(kind: str, jobs: Sequence[Job], effort: Effort) -> dict[str, Any]:
    """Run the measuring process for a "row", a "pair" or a "profile"; {"error": why} where it crashes or hangs."""
    request = json.dumps({"kind": kind, "jobs": [asdict(j) for j in jobs], "effort": asdict(effort)})
    with tempfile.TemporaryDirectory(prefix="samexport-bench-") as folder:
        answer, errors = Path(folder) / "answer.json", Path(folder) / "stderr"
        command = [sys.executable, "-m", "samexport.benchmarks.measuring.measure", str(answer)]
        threads = str(jobs[0].threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TMPDIR": folder}
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stream,
                env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                process.communicate(request.encode(), timeout=effort.timeout)
            except subprocess.TimeoutExpired:
                return {"error": f"did not end within {effort.timeout:g} s"}
            finally:
                _stop(process)
        if process.returncode == 0 and answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return found
        return {"error": _why(process.returncode, errors.read_text(encoding="utf-8", errors="replace"))}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started, if it still runs."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _why(code: int, stderr: str) -> str:
    if code < 0:
        return f"crashed with {signal.Signals(-code).name}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return f"ended with code {code}: {lines[-1][:200] if lines else 'no message'}"


def run_jobs(
    jobs: Sequence[Job], effort: Effort, roofline: dict[str, float], ask: Ask = ask_process
) -> Iterator[BenchRow]:
    """A row for each job, as soon as it is there."""
    for job in jobs:
        row = _new_row(job)
        if reason := why_not(find(job.runtime)):
            yield replace(row, status=Status.SKIPPED, reason=reason)
            continue
        answer = ask("row", [job], _effort(job, effort))
        if "error" in answer:
            yield replace(row, status=Status.FAILED, reason=answer["error"])
            continue
        yield _with_rates(replace(row, measured=measurement_from_json(answer)), roofline)


def _effort(job: Job, effort: Effort) -> Effort:
    """Tasks of many seconds get by with fewer runs; the table shows how many."""
    if is_graph(job):
        return effort
    if TASKS[job.graph].slow:
        return replace(effort, max_runs=0)
    return replace(effort, min_runs=min(effort.min_runs, 5))


def _new_row(job: Job) -> BenchRow:
    bundle = open_bundle(Path(job.bundle))
    sizes = [a.size / 1e6 for a in bundle.manifest.artifacts if a.path == job.file]
    nothing = Measurement(Parity(Verdict.SKIPPED, "not run"))
    device = find(job.runtime).device
    return BenchRow(job, bundle.manifest.model, device, Status.DONE, nothing, size_mb=sizes[0] if sizes else None)


def _with_rates(row: BenchRow, roofline: dict[str, float]) -> BenchRow:
    """Add work, rate, share of the peak, and the mark of a machine that had other things to do."""
    job, measured = row.job, row.measured
    work = gmac(row.model, job.graph, job.form, job.prompts, POINTS) if is_graph(job) else None
    rate = 1e3 * work / measured.p50_ms if work and measured.p50_ms else None
    arithmetic = find(job.runtime).computes(job.precision)
    # processors of this kind convert fp16 files to fp32 to compute
    peak = roofline.get(f"cuda {arithmetic}" if row.device == "cuda" else arithmetic.replace("fp16", "fp32"))
    return replace(
        row,
        gmac=work,
        gmac_per_s=rate,
        peak_share=rate / peak if rate and peak else None,
        loaded=(measured.other_cores or 0) > LOADED,
    )


def run_pairs(pairs: Sequence[tuple[Job, Job]], effort: Effort, ask: Ask = ask_process) -> Iterator[Pair]:
    """Compare two and two in turns, each pair in a process of its own."""
    for first, second in pairs:
        answer = ask("pair", [first, second], effort)
        if "error" in answer:
            yield Pair(first, second, Status.FAILED, answer["error"])
            continue
        nested = {name: parity_from_json(answer[name]) for name in ("first_parity", "second_parity")}
        yield Pair(**{**answer, **nested, "first": first, "second": second, "status": Status.DONE})


def run_profiles(jobs: Sequence[Job], effort: Effort, ask: Ask = ask_process) -> Iterator[Profile]:
    """Where the time goes, for each job of ONNX Runtime; a profile that fails is left out."""
    for job in jobs:
        answer = ask("profile", [job], effort)
        if "error" not in answer:
            yield profile_from_json(answer)


def probe_machine(threads: int, timeout: float = 120) -> dict[str, float]:
    """The roofline, measured in a process of its own; empty where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "samexport.benchmarks.measuring.roofline", str(answer), str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        try:
            subprocess.run(command, env=environment, capture_output=True, timeout=timeout, check=True)
            found: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError, subprocess.SubprocessError):
            return {}
        return found
