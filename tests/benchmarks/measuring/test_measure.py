import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from samexport.benchmarks.measuring import measure as measure_module
from samexport.benchmarks.measuring.measure import Effort, Request, answer, measure, measure_pair
from samexport.benchmarks.results.rows import Measurement, Profile, Status, from_plain
from samexport.runtimes.verdicts import Verdict
from tests.benchmarks.measuring.test_subject import job_of
from tests.benchmarks.rows_of import PASS, job

QUICK = Effort(min_runs=5, max_runs=5, seconds=1)


class Sleeper:
    """Takes a known time, and notes what is done with it."""

    stages: ClassVar = {}

    def __init__(self, seconds, log, name=""):
        self.seconds, self.log, self.name = seconds, log, name

    def prepare(self):
        self.log.append(f"prepare{self.name}")

    def open(self):
        self.log.append(f"open{self.name}")

    def call(self):
        self.log.append(f"call{self.name}")
        time.sleep(self.seconds)

    def check(self):
        self.log.append(f"check{self.name}")
        return PASS

    def placement(self):
        return "bed"

    def close(self):
        self.log.append(f"close{self.name}")


def test_a_graph_is_measured_with_times_memory_and_verdict(tiny_bundle):
    found = measure(job_of(tiny_bundle, "decoder", prompts=4), QUICK)
    assert found.parity.verdict is Verdict.PASS
    assert found.runs == 5
    assert 0 < found.min_ms <= found.p50_ms <= found.p90_ms
    assert found.load_ms > 0
    assert found.first_ms > 0
    assert found.peak_mb >= found.idle_mb > 10
    assert found.placement == "CPUExecutionProvider"


def test_the_times_are_those_of_the_calls_after_the_warm_up(monkeypatch):
    log = []
    monkeypatch.setattr(measure_module, "make_subject", lambda job, reference: Sleeper(0.02, log))
    found = measure(job(), QUICK)
    assert 20 <= found.min_ms < 60
    assert log == ["prepare", "open", *["call"] * (1 + 2 + 5), "check", "close"]


def test_a_runtime_that_stands_in_for_a_phone_is_checked_and_not_timed(monkeypatch):
    log = []
    monkeypatch.setattr(measure_module, "make_subject", lambda job, reference: Sleeper(0, log))
    found = measure(job(runtime="mil"), QUICK)
    assert (found.p50_ms, found.load_ms, found.first_ms, found.runs) == (None, None, None, 0)
    assert found.parity.verdict is Verdict.PASS
    assert log.count("call") == 1


def test_a_task_of_a_minute_is_called_once_and_marked_on_a_busy_machine(monkeypatch):
    class Busy:
        others = 0.0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.others = 0.7

    log = []
    monkeypatch.setattr(measure_module, "make_subject", lambda job, reference: Sleeper(0.02, log))
    monkeypatch.setattr(measure_module, "BusyCores", Busy)
    found = measure(job(), replace(QUICK, max_runs=0))
    assert log.count("call") == found.runs == 1
    assert found.p50_ms == found.first_ms >= 20
    assert found.other_cores == 0.7


def test_an_error_of_ours_is_the_answer(tiny_bundle, tmp_path):
    wrong = replace(job_of(tiny_bundle, "encoder"), bundle=str(tmp_path))
    assert "is not a bundle" in answer(Request("row", (wrong,)))["error"]


def test_the_requests_of_a_run_are_answered(tiny_bundle, tmp_path):
    encoder = job_of(tiny_bundle, "encoder")
    assert from_plain(answer(Request("row", (encoder,), QUICK)), Measurement).runs == 5
    assert answer(Request("work", (encoder,)))["gmac"][0] > 0
    profile = from_plain(answer(Request("profile", (encoder,), QUICK)), Profile)
    assert sum(operator.share for operator in profile.operators) == pytest.approx(1)
    task = replace(encoder, graph="one click", file="", prompts=1, photograph=(60, 40))
    assert answer(Request("reference", (task,), QUICK, str(tmp_path / "r.json"))) == {}
    with_reference = answer(Request("row", (task,), QUICK, str(tmp_path / "r.json")))
    assert from_plain(with_reference, Measurement).parity.verdict is Verdict.PASS


def test_a_pair_is_called_in_turns_and_compared_turn_by_turn(monkeypatch):
    log = []
    seconds = {"encoder": 0.03, "decoder": 0.01}
    monkeypatch.setattr(measure_module, "make_subject", lambda j: Sleeper(seconds[j.graph], log, j.graph[0]))
    found = measure_pair(job("encoder"), job("decoder"), QUICK)
    calls = "".join(line[-1] for line in log if line.startswith("call"))
    assert calls == "ed" * (3 + 5)
    assert 2 < found.ratio < 4
    assert found.low <= found.ratio <= found.high
    assert (found.turns, found.status) == (5, Status.DONE)
    assert log[-2:] == ["closee", "closed"]
    assert log.count("checke") == log.count("checkd") == 1


def test_sleep_costs_no_processor_time(monkeypatch):
    class Worker(Sleeper):
        def call(self):
            end = time.process_time() + self.seconds
            while time.process_time() < end:
                np.ones(1000).sum()

    work = {"encoder": 0.02, "decoder": 0.01}
    monkeypatch.setattr(measure_module, "make_subject", lambda j: Worker(work[j.graph], []))
    assert measure_pair(job("encoder"), job("decoder"), QUICK).cpu == pytest.approx(2, rel=0.2)


def test_a_failing_check_still_closes(monkeypatch):
    class Broken(Sleeper):
        def check(self):
            raise RuntimeError("no")

    log = []
    monkeypatch.setattr(measure_module, "make_subject", lambda job, reference: Broken(0, log))
    with pytest.raises(RuntimeError):
        measure(job(), QUICK)
    assert log[-1] == "close"


@pytest.mark.parametrize(
    ("values", "elapsed", "expected"),
    [
        ([1.0] * 19, 1, False),  # too few
        ([1.0] * 19, 999, False),  # too few however long it takes
        ([1.0] * 30, 1, True),  # steady
        ([1.0] * 20 + [2.0] * 10, 1, True),  # ten slow ones do not move the median of 30
        ([1.0] * 10 + [2.0] * 12, 1, False),  # they do with 22
        ([1.0] * 10 + [2.0] * 12, 99, True),  # but the time is up
        (list(range(200)), 1, True),  # the cap
    ],
)
def test_calls_stop_when_the_median_is_steady_or_the_time_is_up(values, elapsed, expected):
    assert Effort(min_runs=20, max_runs=200, seconds=20).enough(values, elapsed) is expected
