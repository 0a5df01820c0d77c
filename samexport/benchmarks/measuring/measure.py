"""The measuring process: one job, or a pair of jobs in turns.

``python -m samexport.benchmarks.measuring.measure ANSWER < REQUEST``.

It is a process of its own, so that the peak of memory belongs to one job and a crash costs one row.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from samexport.benchmarks.contenders.known import KNOWN
from samexport.benchmarks.measuring.environment import BusyCores, MemoryPeak
from samexport.benchmarks.measuring.subject import POINTS, GraphSubject, Subject
from samexport.benchmarks.results.rows import Job, Measurement, Pair, Profile, Status
from samexport.errors import SamExportError
from samexport.runtimes.bundle import open_bundle

# between two runtimes that share the cores: the first one's idle threads spin before they sleep, ONNX Runtime's for
# so long that with 10 ms a pair of 14 ms and 30 ms was measured as 33 and 59
_PAUSE = 0.2
_STEADY = 0.01


@dataclass(frozen=True)
class Effort:
    """When to stop calling.

    After ``min_runs`` as soon as the last ten runs moved the median by less than 1 %, at the latest after
    ``max_runs``, or ``seconds`` with ``min_runs`` done. ``timeout`` seconds end the process. ``warm_up`` calls after
    the first one do not count.
    """

    min_runs: int = 20
    max_runs: int = 200
    seconds: float = 20
    timeout: float = 1800
    warm_up: int = 2

    def enough(self, values: list[float], elapsed: float) -> bool:
        """Whether the runs so far will do."""
        if len(values) < self.min_runs:
            return False
        if len(values) >= self.max_runs or elapsed > self.seconds:
            return True
        before, now = np.median(values[:-10] or values), np.median(values)
        return bool(abs(now - before) <= _STEADY * abs(now))


@dataclass(frozen=True)
class Request:
    """What a measuring process is asked for.

    Attributes:
        kind: "row" and "profile" take one job, "pair" two; "reference" writes what PyTorch makes of a task; "work"
            counts the multiply-accumulates of any number of graphs.
        jobs: what is measured.
        effort: when to stop.
        reference: the file of a task's reference, read for a row and written for a reference; empty for none.
    """

    kind: Literal["row", "pair", "profile", "reference", "work"]
    jobs: tuple[Job, ...]
    effort: Effort = Effort()
    reference: str = ""


def measure(job: Job, effort: Effort, reference: Path | None = None) -> Measurement:
    """Measure one job in this process, which should be fresh; a task is compared with the reference."""
    subject = make_subject(job, reference)
    subject.prepare()
    memory = MemoryPeak()
    load = _milliseconds(subject.open)
    try:
        timed = job.runtime not in KNOWN or KNOWN[job.runtime].timed
        with BusyCores() as cores:
            first = _milliseconds(subject.call)
        # of a task that takes a minute the first call must do
        times = [first] if timed else []
        if timed and effort.max_runs:
            with BusyCores() as cores:
                times = _repeat(subject.call, effort)
        peak = memory.peak_mb()
        placement, stages = subject.placement(), subject.stages
        parity = subject.check()
    finally:
        subject.close()
    if not timed:
        return Measurement(parity, placement, peak_mb=peak, idle_mb=memory.idle_mb)
    p50, p90 = (float(np.percentile(times, q)) for q in (50, 90))
    return Measurement(
        parity, placement, load, first, p50, p90, min(times), len(times), peak, memory.idle_mb, cores.others, stages
    )


def measure_pair(first: Job, second: Job, effort: Effort) -> Pair:
    """Call two jobs in turns."""
    subjects = [make_subject(first), make_subject(second)]
    for subject in subjects:
        subject.prepare()
        subject.open()
    try:
        for _ in range(effort.warm_up + 1):
            for subject in subjects:
                subject.call()
        times: list[list[float]] = [[], []]
        used: list[list[float]] = [[], []]
        ratios: list[float] = []
        with BusyCores() as cores:
            start = time.perf_counter()
            while not effort.enough(ratios, time.perf_counter() - start):
                for subject, taken, processor in zip(subjects, times, used, strict=True):
                    time.sleep(_PAUSE)
                    start_of_call = time.process_time()
                    taken.append(_milliseconds(subject.call))
                    processor.append(time.process_time() - start_of_call)
                ratios.append(times[0][-1] / times[1][-1])
        parities = [subject.check() for subject in subjects]
    finally:
        for subject in subjects:
            subject.close()
    low, middle, high = (float(q) for q in np.percentile(ratios, (25, 50, 75)))
    return Pair(
        first, second, Status.DONE, "", middle, low, high, min(times[0]) / min(times[1]),
        float(np.median(np.divide(used[0], used[1]))),
        float(np.median(times[0])), float(np.median(times[1])), len(ratios), cores.others, *parities,
    )  # fmt: skip


def measure_profile(job: Job) -> Profile:
    """Where the time of a graph goes in ONNX Runtime."""
    from samexport.benchmarks.contenders.ort_variants import profile

    subject = GraphSubject(job)
    subject.prepare()
    return Profile(job, tuple(profile(subject.bundle.folder / job.file, subject.inputs, job.threads)))


def make_subject(job: Job, reference: Path | None = None) -> Subject:
    """A graph, or a whole task."""
    from samexport.benchmarks.measuring.tasks import TASKS, TaskSubject

    return TaskSubject(job, reference) if job.graph in TASKS else GraphSubject(job)


def _milliseconds(work: Callable[[], None]) -> float:
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e6


def _repeat(call: Callable[[], None], effort: Effort) -> list[float]:
    for _ in range(effort.warm_up):
        call()
    times: list[float] = []
    start = time.perf_counter()
    while not effort.enough(times, time.perf_counter() - start):
        times.append(_milliseconds(call))
    return times


def _end_with(parent: int) -> None:
    """End this process when the one that asked for the measurement is gone, so that nothing burns on unseen."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _gmac(job: Job) -> float | None:
    from samexport.benchmarks.contenders.baselines import gmac

    size = open_bundle(Path(job.bundle)).manifest.frame.size
    return gmac(job.source.model, job.graph, job.form, job.prompts, POINTS, size)


def answer(request: Request) -> dict[str, Any]:
    """A measurement, a pair or a profile as plain data; {"error": why} where it failed.

    {} for a reference, {"gmac": [...]} in the order of the jobs for work.
    """
    first, reference = request.jobs[0], Path(request.reference) if request.reference else None
    try:
        if request.kind == "reference" and reference is not None:
            from samexport.benchmarks.measuring.reference import write_reference

            write_reference(first, reference)
            return {}
        if request.kind == "work":
            return {"gmac": [_gmac(job) for job in request.jobs]}
        if request.kind == "pair":
            return asdict(measure_pair(first, request.jobs[1], request.effort))
        if request.kind == "profile":
            return asdict(measure_profile(first))
        return asdict(measure(first, request.effort, reference))
    except SamExportError as error:
        return {"error": str(error)}


def main() -> None:
    """Read a request, write its answer as JSON."""
    _end_with(os.getppid())
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    # NaN in an answer is an error here, not in the file of all results
    Path(sys.argv[1]).write_text(json.dumps(answer(request), allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
