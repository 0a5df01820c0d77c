"""The measuring process: one job, or a pair of jobs in turns.

``python -m samexport.benchmarks.measuring.measure OUT < REQUEST``.

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
from typing import Any

import numpy as np

from samexport.benchmarks.contenders.known import KNOWN
from samexport.benchmarks.measuring.environment import BusyCores, MemoryPeak
from samexport.benchmarks.measuring.subject import GraphSubject, Subject
from samexport.benchmarks.results.rows import Job, Measurement, Pair, Profile, Status
from samexport.errors import SamExportError

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


def measure(job: Job, effort: Effort) -> Measurement:
    """Measure one job in this process, which should be fresh."""
    subject = make_subject(job)
    subject.prepare()
    memory = MemoryPeak()
    load = _milliseconds(subject.open)
    try:
        first = _milliseconds(subject.call)
        timed = job.runtime not in KNOWN or KNOWN[job.runtime].timed
        with BusyCores() as cores:
            # of a task that takes a minute the first call must do
            times = [first] if effort.max_runs == 0 else _repeat(subject.call, effort) if timed else []
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


def make_subject(job: Job) -> Subject:
    """A graph, or a whole task."""
    from samexport.benchmarks.measuring.tasks import TASKS, TaskSubject

    return TaskSubject(job) if job.graph in TASKS else GraphSubject(job)


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


def main() -> None:
    """Read {"kind", "jobs", "effort"}, write a measurement, a pair, a profile or {"error"} as JSON."""
    _end_with(os.getppid())
    request = json.load(sys.stdin)
    jobs, effort = [Job.from_json(j) for j in request["jobs"]], Effort(**request["effort"])
    kinds: dict[str, Callable[[], Measurement | Pair | Profile]] = {
        "row": lambda: measure(jobs[0], effort),
        "pair": lambda: measure_pair(jobs[0], jobs[1], effort),
        "profile": lambda: measure_profile(jobs[0]),
    }
    try:
        answer: dict[str, Any] = asdict(kinds[request["kind"]]())
    except SamExportError as error:
        answer = {"error": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
