"""TFLite files timed on an Android phone with LiteRT's ``benchmark_model`` over adb.

Two programs have that name: TensorFlow Lite's, which reports microseconds in one line, and LiteRT 2's, which reports
a block in milliseconds. Both feed random inputs, so a row from here has times and no parity verdict of its own.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samexport.benchmarks.results.rows import BenchRow, Job, Measurement, Parity, Status
from samexport.errors import ConfigError, MissingDependency
from samexport.runtimes.adapters.entry_points import LABELS
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.formats import tflite
from samexport.runtimes.verdicts import Verdict

FOLDER = "/data/local/tmp/samexport"
ACCELERATORS = ("cpu", "gpu", "npu")
_NOT_COMPARED = Parity(Verdict.SKIPPED, "benchmark_model feeds random inputs; verify the file on another runtime")
_NUMBER = r"([0-9][0-9.e+]*)"


@dataclass(frozen=True)
class Phone:
    """A device that adb sees; ``name`` is its model and Android version."""

    serial: str
    name: str


@dataclass(frozen=True)
class Timings:
    """What either program prints; milliseconds and MB, None where it prints none."""

    load_ms: float
    first_ms: float
    average_ms: float
    median_ms: float | None
    p95_ms: float | None
    min_ms: float | None
    runs: int
    peak_mb: float | None
    delegated: str


def parse(text: str) -> Timings:
    """Read the output of either program; ValueError where it has no result."""
    delegated = re.search(r"Replacing (\d+) out of (\d+) node\(s\) with delegate \((\w+)\)", text)
    place = f"{delegated[3]}, {delegated[1]} of {delegated[2]} nodes" if delegated else ""
    return _parse_block(text, place) if "BENCHMARK RESULTS" in text else _parse_line(text, place)


def _find(pattern: str, text: str) -> float | None:
    found = re.findall(pattern, text)
    return float(found[-1]) if found else None


def _need(pattern: str, text: str) -> float:
    value = _find(pattern, text)
    if value is None:
        raise ValueError(f"no {pattern.split(':', maxsplit=1)[0]!r} in the output of benchmark_model")
    return value


def _parse_line(text: str, delegated: str) -> Timings:
    """TensorFlow Lite's: a summary line in microseconds, before it the statistics, the warm-up's first."""
    statistics = re.findall(r"^.*\bcount=\d+ .*$", text, re.MULTILINE)
    last = statistics[-1] if statistics else ""
    median, p95, fastest = (_find(rf"\b{name}={_NUMBER}", last) for name in ("median", "p95", "min"))
    return Timings(
        _need(rf"Init: {_NUMBER}", text) / 1e3,
        _need(rf"First inference: {_NUMBER}", text) / 1e3,
        _need(rf"Inference \(avg\): {_NUMBER}", text) / 1e3,
        None if median is None else median / 1e3,
        None if p95 is None else p95 / 1e3,
        None if fastest is None else fastest / 1e3,
        int(_find(r"\bcount=(\d+)", last) or 0),
        _find(rf"[Mm]emory footprint.*overall={_NUMBER}", text),
        delegated,
    )


def _parse_block(text: str, delegated: str) -> Timings:
    """LiteRT 2's: a line for each number, in milliseconds."""
    first = _find(rf"First inference:\s+{_NUMBER} ms", text)
    peak = _find(rf"Peak memory:\s+{_NUMBER} MB", text)
    return Timings(
        _need(rf"Model initialization:\s+{_NUMBER} ms", text),
        first if first is not None else _need(rf"Warmup \(first\):\s+{_NUMBER} ms", text),
        _need(rf"Inference \(avg\):\s+{_NUMBER} ms", text),
        None,
        None,
        _find(rf"Inference \(min\):\s+{_NUMBER} ms", text),
        int(_find(r"Inference \(avg\):.*\((\d+) runs\)", text) or 0),
        peak if peak is not None else _find(rf"Overall footprint:\s+{_NUMBER} MB", text),
        delegated,
    )


def find_phone(serial: str = "") -> Phone:
    """The connected phone, or the one with ``serial``.

    Raises:
        MissingDependency: there is no adb.
        ConfigError: no phone, one that has not agreed to debugging, or several and no serial.
    """
    if shutil.which("adb") is None:
        raise MissingDependency("Android needs adb (Android platform-tools) on the PATH")
    lines = [line.split() for line in _adb([], "devices").splitlines()[1:] if line.strip()]
    chosen = [words for words in lines if serial in ("", words[0])]
    if len(chosen) != 1:
        names = ", ".join(words[0] for words in lines) or "none"
        raise ConfigError(f"adb must see exactly one phone, or --serial must name it; it sees {names}")
    name, state = chosen[0][0], chosen[0][-1]
    if state != "device":
        raise ConfigError(f"the phone {name} is {state}; unlock it and allow USB debugging")
    to_phone = ["-s", name]
    model = _adb(to_phone, "shell", "getprop", "ro.product.model").strip()
    release = _adb(to_phone, "shell", "getprop", "ro.build.version.release").strip()
    return Phone(name, f"{model}, Android {release}")


def _adb(options: Sequence[str], *words: str, timeout: float = 600) -> str:
    command = ["adb", *options, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"`{shlex.join(command)}` did not end within {timeout:g} s") from error
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise ConfigError(f"`{shlex.join(command)}` failed: {lines[-1] if lines else 'no message'}")
    return done.stdout + done.stderr


@dataclass(frozen=True)
class PhoneRun:
    """How to call the file ``program``, which was built for the phone's processor."""

    phone: Phone
    program: Path
    accelerators: tuple[str, ...] = ("cpu",)
    threads: int = 4
    runs: int = 50

    def __post_init__(self) -> None:
        if not self.program.is_file():
            raise ConfigError(f"{self.program} is not a file; give --benchmark-model the program built for the phone")
        if unknown := set(self.accelerators) - set(ACCELERATORS):
            raise ConfigError(f"no accelerator is called {sorted(unknown)[0]!r}; known: {', '.join(ACCELERATORS)}")


def run_on_phone(bundle: Bundle, run: PhoneRun) -> list[BenchRow]:
    """A row for each TFLite file and signature and each accelerator; a failed one becomes a FAILED row."""
    to_phone = ["-s", run.phone.serial]
    _adb(to_phone, "shell", "mkdir", "-p", FOLDER)
    _adb(to_phone, "push", str(run.program), f"{FOLDER}/benchmark_model")
    _adb(to_phone, "shell", "chmod", "755", f"{FOLDER}/benchmark_model")
    rows = []
    for artifact in bundle.manifest.artifacts:
        if artifact.file_format != "tflite":
            continue
        path = bundle.folder / artifact.path
        _adb(to_phone, "push", str(path), f"{FOLDER}/{path.name}")
        for signature, prompts in signatures(path):
            for accelerator in run.accelerators:
                job = Job(
                    str(bundle.folder), artifact.graph, artifact.path, "export", artifact.recipe,
                    f"litert-{accelerator}", run.threads, prompts,
                )  # fmt: skip
                row = BenchRow(
                    job, bundle.manifest.model, run.phone.name, Status.DONE, Measurement(_NOT_COMPARED),
                    size_mb=artifact.size / 1e6,
                )  # fmt: skip
                rows.append(_measure(row, run, signature, accelerator))
        _adb(to_phone, "shell", "rm", "-f", f"{FOLDER}/{path.name}")
    return rows


def signatures(path: Path) -> list[tuple[str, int]]:
    """Names of a TFLite file's signatures, each with its number of prompts (0 for an encoder).

    Raises:
        MissingDependency: the schema of TFLite files is not installed.
        BundleError: this is no TFLite file.
    """
    return [(name, inputs.get(LABELS, (0,))[0]) for name, (inputs, _) in tflite.signatures(path).items()]


def arguments(run: PhoneRun, file: str, signature: str, accelerator: str) -> list[str]:
    """The command on the phone. Unknown flags are only warned about, so that one list serves both programs."""
    flags = [f"--graph={FOLDER}/{file}", f"--num_threads={run.threads}", f"--num_runs={run.runs}", "--warmup_runs=3"]
    flags += [f"--signature_to_run_for={signature}"] if signature else []
    flags += [f"--use_{accelerator}=true"] if accelerator != "cpu" else ["--use_xnnpack=true"]
    return [f"{FOLDER}/benchmark_model", *flags]


def _measure(row: BenchRow, run: PhoneRun, signature: str, accelerator: str) -> BenchRow:
    command = arguments(run, Path(row.job.file).name, signature, accelerator)
    try:
        found = parse(_adb(["-s", run.phone.serial], "shell", shlex.join(command)))
    except (ConfigError, ValueError) as error:
        return replace(row, status=Status.FAILED, reason=str(error))
    measured = Measurement(
        _NOT_COMPARED,
        found.delegated or accelerator,
        found.load_ms,
        found.first_ms,
        found.median_ms if found.median_ms is not None else found.average_ms,
        found.p95_ms,
        found.min_ms,
        found.runs,
        found.peak_mb,
    )
    return replace(row, measured=measured)
