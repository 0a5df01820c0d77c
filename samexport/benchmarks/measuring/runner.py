"""From jobs to rows: each in a process of its own, and what the numbers mean on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from samexport.benchmarks.contenders.known import find, why_not
from samexport.benchmarks.measuring.environment import LOADED
from samexport.benchmarks.measuring.measure import Effort, Request
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
    from_plain,
)  # fmt: skip
from samexport.files import sha256
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.parity.golden_files import FOLDER as GOLDEN
from samexport.runtimes.verdicts import Verdict

Ask = Callable[[Request], dict[str, Any]]


def ask_process(request: Request) -> dict[str, Any]:
    """Run the measuring process; {"error": why} where it crashes or hangs."""
    with tempfile.TemporaryDirectory(prefix="samexport-bench-") as folder:
        answer, errors = Path(folder) / "answer.json", Path(folder) / "stderr"
        command = [sys.executable, "-m", "samexport.benchmarks.measuring.measure", str(answer)]
        threads = str(request.jobs[0].threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TMPDIR": folder}
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stream,
                env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                process.communicate(json.dumps(asdict(request)).encode(), timeout=request.effort.timeout)
            except subprocess.TimeoutExpired:
                return {"error": f"did not end within {request.effort.timeout:g} s"}
            finally:
                _stop(process)
        if process.returncode == 0 and answer.exists():
            return _read(answer)
        return {"error": _why(process.returncode, errors.read_text(encoding="utf-8", errors="replace"))}


def _read(answer: Path) -> dict[str, Any]:
    try:
        found = json.loads(answer.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"error": "the measuring process did not answer in JSON"}


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


class References:
    """What PyTorch makes of tasks, each made once for all formats, runtimes and threads, in files of ``folder``."""

    def __init__(self, folder: Path, ask: Ask = ask_process) -> None:
        self._folder, self._ask = folder, ask
        self._made: dict[tuple[object, ...], tuple[str, str]] = {}

    def of(self, job: Job, effort: Effort) -> tuple[str, str]:
        """The file for a task's job, empty where there is none, and why there is none."""
        picture = sha256(Path(job.bundle) / GOLDEN / "picture.png")
        key = job.source.model, job.source.weights, job.graph, job.photograph, picture
        if key not in self._made:
            path = self._folder / f"{len(self._made)}.json"
            answer = self._ask(Request("reference", (job,), effort, str(path)))
            problem = answer.get("error", "")
            self._made[key] = ("" if problem else str(path), problem)
        return self._made[key]


@dataclass(frozen=True)
class Machine:
    """What rates are put in proportion with: ``roofline`` as its module makes it, ``gmac`` of a graph by its job."""

    roofline: dict[str, float] = field(default_factory=dict)
    gmac: dict[Job, float] = field(default_factory=dict)


def run_jobs(
    jobs: Sequence[Job],
    effort: Effort,
    machine: Machine,
    ask: Ask = ask_process,
    references: References | None = None,
) -> Iterator[BenchRow]:
    """A row for each job, as soon as it is there; tasks need references to be compared with."""
    for job in jobs:
        row = new_row(job)
        if reason := why_not(find(job.runtime)):
            yield replace(row, status=Status.SKIPPED, reason=reason)
            continue
        file, problem = ("", "") if is_graph(job) or references is None else references.of(job, effort)
        answer = ask(Request("row", (job,), _effort(job, effort), file))
        try:
            if "error" in answer:
                raise ValueError(answer["error"])
            measured = from_plain(answer, Measurement)
        except ValueError as error:
            yield replace(row, status=Status.FAILED, reason=str(error))
            continue
        if problem:
            measured = replace(
                measured, parity=replace(measured.parity, reason=f"not compared with PyTorch: {problem}")
            )
        yield _with_rates(replace(row, measured=measured), machine)


def _effort(job: Job, effort: Effort) -> Effort:
    """Tasks of many seconds get by with fewer runs; the table shows how many."""
    if is_graph(job):
        return effort
    if TASKS[job.graph].slow:
        return replace(effort, max_runs=0)
    return replace(effort, min_runs=min(effort.min_runs, 5))


def new_row(job: Job, status: Status = Status.DONE, reason: str = "") -> BenchRow:
    """A row without numbers."""
    bundle = open_bundle(Path(job.bundle))
    sizes = [a.size / 1e6 for a in bundle.manifest.artifacts if a.path == job.file]
    nothing = Measurement(Parity(Verdict.SKIPPED, "not run"))
    return BenchRow(job, find(job.runtime).device, status, nothing, reason, size_mb=sizes[0] if sizes else None)


def _with_rates(row: BenchRow, machine: Machine) -> BenchRow:
    """Add work, rate, share of the peak, and the mark of a machine that had other things to do."""
    job, measured = row.job, row.measured
    work = machine.gmac.get(job)
    rate = 1e3 * work / measured.p50_ms if work and measured.p50_ms else None
    arithmetic = find(job.runtime).computes(job.precision)
    # processors of this kind convert fp16 files to fp32 to compute
    peak = machine.roofline.get(f"cuda {arithmetic}" if row.device == "cuda" else arithmetic.replace("fp16", "fp32"))
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
        if reason := why_not(find(first.runtime)) or why_not(find(second.runtime)):
            yield Pair(first, second, Status.SKIPPED, reason)
            continue
        answer = ask(Request("pair", (first, second), effort))
        try:
            if "error" in answer:
                raise ValueError(answer["error"])
            yield replace(from_plain(answer, Pair), first=first, second=second)
        except ValueError as error:
            yield Pair(first, second, Status.FAILED, str(error))


def run_profiles(jobs: Sequence[Job], effort: Effort, ask: Ask = ask_process) -> Iterator[Profile]:
    """Where the time goes, for each job of ONNX Runtime."""
    for job in jobs:
        answer = ask(Request("profile", (job,), effort))
        try:
            if "error" in answer:
                raise ValueError(answer["error"])
            yield replace(from_plain(answer, Profile), job=job)
        except ValueError as error:
            yield Profile(job, (), str(error))


def probe_machine(jobs: Sequence[Job], threads: int, ask: Ask = ask_process, timeout: float = 300) -> Machine:
    """The roofline and the work of the graphs, each found in a process of its own; empty where that fails."""
    graphs = [job for job in jobs if is_graph(job)]
    answer = ask(Request("work", tuple(graphs), Effort(timeout=timeout))) if graphs else {}
    try:
        counts = from_plain(answer.get("gmac", []), list[float | None])
    except ValueError:
        counts = []
    found = zip(graphs, counts, strict=False)
    return Machine(_roofline(threads, timeout), {job: count for job, count in found if count is not None})


def _roofline(threads: int, timeout: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="samexport-bench-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "samexport.benchmarks.measuring.roofline", str(answer), str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TMPDIR": folder}
        try:
            subprocess.run(command, env=environment, capture_output=True, timeout=timeout, check=True)
            return from_plain(_read(answer), dict[str, float])
        except (OSError, ValueError, subprocess.SubprocessError):
            return {}
