"""The machine and the moment of a measurement: processor, load, versions, commit, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from samexport.benchmarks.results.rows import Environment
from samexport.runtimes.registry import version

LOADED = 0.1
"""Cores kept busy by other programs above which a row is marked."""
_LIBRARIES = ("samexport", "torch", "onnxruntime", "openvino", "ai-edge-litert", "coremltools", "numpy", "pillow")
# the instructions that decide which kernels run
_FLAGS = re.compile(r"avx\w*|amx\w*|fma|f16c|sse4_2|asimd\w*|sve\w*|i8mm|bf16|dotprod")


def environment() -> Environment:
    """This machine, now."""
    import psutil

    one, five, fifteen = (round(load, 2) for load in psutil.getloadavg())
    return Environment(
        cpu=_cpu_model(),
        cpu_flags=tuple(_cpu_flags()),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 0,
        logical_cores=os.cpu_count() or 0,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        load_average=(one, five, fifteen),
        system=platform.platform(),
        python=platform.python_version(),
        libraries={name: found for name in _LIBRARIES if (found := version(name))},
        gpu=_gpu(),
        git_commit=_git_commit(),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    named = re.search(r"^model name\s*: (.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return named.group(1) if named else platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    listed = re.search(r"^(?:flags|Features)\s*: (.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    words = listed.group(1).split() if listed else []
    return sorted(word for word in words if _FLAGS.fullmatch(word))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _gpu() -> str:
    return _output("nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader")


def _git_commit() -> str:
    """The commit of the package's own working tree, with "-dirty"; empty for an installed package."""
    root = Path(__file__).parents[3]
    return _output("git", "-C", str(root), "describe", "--always", "--dirty") if (root / ".git").exists() else ""


class BusyCores:
    """Counts the processor time that other programs took while the block ran, ``others`` in cores on average.

    Time stolen by a hypervisor counts as theirs.
    """

    others: float = 0.0

    def __enter__(self) -> Self:
        self._start, self._all, self._own = time.perf_counter(), _busy(), _own()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        self.others = max(0.0, (_busy() - self._all) - (_own() - self._own)) / seconds


def _busy() -> float:
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts a guest's time in user and nice as well
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - guests)


def _own() -> float:
    import psutil

    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


class MemoryPeak:
    """The highest resident memory of this process since the object was made, and the memory then, in MB."""

    def __init__(self) -> None:
        import psutil

        self.idle_mb = psutil.Process().memory_info().rss / 1e6
        # "5" resets the peak on Linux; elsewhere the peak of the whole process is reported
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_mb(self) -> float:
        """So far."""
        peak = re.search(r"VmHWM:\s+(\d+) kB", _read("/proc/self/status"))
        if peak:
            return int(peak.group(1)) * 1024 / 1e6
        if sys.platform == "win32":
            import psutil

            return float(psutil.Process().memory_info().peak_wset / 1e6)
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
