import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from samexport.benchmarks.measuring import environment
from samexport.benchmarks.measuring.environment import BusyCores, MemoryPeak
from samexport.benchmarks.results.rows import Environment, from_plain


def test_the_machine_is_recorded_as_plain_data():
    found = json.loads(json.dumps(asdict(environment.environment())))
    assert from_plain(found, Environment) == replace(
        environment.environment(), load_average=tuple(found["load_average"])
    )
    assert found["cpu"]
    assert found["cores"] >= 1
    assert len(found["load_average"]) == 3
    assert found["libraries"]["onnxruntime"]
    assert found["governor"]


def test_processor_time_of_others_is_what_is_not_ours_by_the_time_that_passed(monkeypatch):
    clock = iter([10.0, 12.0])
    busy, own = iter([100.0, 104.0]), iter([50.0, 51.0])
    monkeypatch.setattr(environment.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(environment, "_busy", lambda: next(busy))
    monkeypatch.setattr(environment, "_own", lambda: next(own))
    with BusyCores() as cores:
        pass
    assert cores.others == pytest.approx((4 - 1) / 2)


def test_own_work_is_not_taken_for_that_of_others(monkeypatch):
    monkeypatch.setattr(environment, "_busy", environment._own)
    with BusyCores() as cores:
        sum(range(2_000_000))
    assert cores.others < 0.05


def test_the_peak_of_memory_is_kept_after_the_memory_is_freed():
    # in a process of its own: one that has run other tests may give memory back meanwhile
    code = (
        "import numpy as np; from samexport.benchmarks.measuring.environment import MemoryPeak; before = MemoryPeak();"
        "np.ones(50_000_000, np.uint8); print(before.peak_mb() - before.idle_mb)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 45 < float(found.stdout) < 60


def test_the_peak_starts_anew_with_each_measurement():
    np.ones(200_000_000, np.uint8)
    fresh = MemoryPeak()
    assert fresh.peak_mb() - fresh.idle_mb < 20
