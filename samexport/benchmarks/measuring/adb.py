"""TFLite files timed on an Android phone with LiteRT's ``benchmark_model`` over adb.

adb joins the words of a command for the phone's shell, so everything that goes there is quoted once, in ``_on_phone``.

Two programs have that name: TensorFlow Lite's, which reports microseconds in one line, and LiteRT 2's, which reports
a block in milliseconds. Both feed random inputs, so a row from here has times and no parity verdict of its own.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samexport.benchmarks.plan import Plan, recipe_of
from samexport.benchmarks.results.rows import BenchRow, Job, Measurement, Parity, Status
from samexport.errors import ConfigError, MissingDependency
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.entry_points import of_file
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
    model = _on_phone(name, "getprop", "ro.product.model").strip()
    release = _on_phone(name, "getprop", "ro.build.version.release").strip()
    return Phone(name, f"{model}, Android {release}")


def _on_phone(serial: str, *words: str) -> str:
    """Run a command in the phone's shell, whatever characters its words have."""
    return _adb(["-s", serial], "shell", shlex.join(words))


def _adb(options: Sequence[str], *words: str, timeout: float = 600) -> str:
    command = ["adb", *options, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"`{shlex.join(command)}` did not end within {timeout:g} s") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"`{shlex.join(command)}` cannot be run: {reason(error)}") from error
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise ConfigError(f"`{shlex.join(command)}` failed: {lines[-1] if lines else 'no message'}")
    return done.stdout + done.stderr


def check_accelerators(names: Sequence[str]) -> None:
    """ConfigError for a name that is none."""
    if unknown := set(names) - set(ACCELERATORS):
        raise ConfigError(f"no accelerator is called {sorted(unknown)[0]!r}; known: {', '.join(ACCELERATORS)}")


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
        check_accelerators(self.accelerators)


def jobs_on_phone(bundles: Sequence[Bundle], run: PhoneRun, plan: Plan) -> list[tuple[Job, Bundle, str]]:
    """Each TFLite file and signature on each accelerator, with its bundle and the signature's name.

    Raises:
        ConfigError: no bundle has a TFLite file.
    """
    jobs = []
    for bundle in bundles:
        for artifact in (a for a in bundle.manifest.artifacts if a.file_format == "tflite"):
            precision, options = recipe_of(artifact)
            source = plan.source(bundle, artifact.graph)
            for signature, prompts in signatures(bundle.folder / artifact.path, bundle.graph(artifact.graph)):
                for accelerator in run.accelerators:
                    job = Job(
                        str(bundle.folder), artifact.graph, artifact.path, "export", precision,
                        f"litert-{accelerator}", run.threads, prompts, options=options, source=source,
                    )  # fmt: skip
                    jobs.append((job, bundle, signature))
    if not jobs:
        raise ConfigError("a phone runs TFLite files, and there is none; `samexport tflite` makes them")
    return jobs


def run_on_phone(jobs: Sequence[tuple[Job, Bundle, str]], run: PhoneRun) -> Iterator[BenchRow]:
    """A row for each job as soon as it is there; one that fails becomes a FAILED row. Nothing stays on the phone."""
    serial, there = run.phone.serial, ""
    pushed: set[str] = set()
    try:
        for job, bundle, signature in jobs:
            path = (bundle.folder / job.file).absolute()
            size = next(a.size for a in bundle.manifest.artifacts if a.path == job.file)
            nothing = Measurement(_NOT_COMPARED)
            row = BenchRow(job, run.phone.name, Status.DONE, nothing, size_mb=size / 1e6)
            try:
                if not pushed:
                    _on_phone(serial, "mkdir", "-p", FOLDER)
                    pushed.add(_push(serial, run.program.absolute(), "benchmark_model"))
                    _on_phone(serial, "chmod", "755", f"{FOLDER}/benchmark_model")
                if str(path) != there:
                    pushed.add(_push(serial, path, path.name))
                    there = str(path)
                measured = _measure(job, run, path.name, signature)
            except (ConfigError, ValueError) as error:
                yield replace(row, status=Status.FAILED, reason=str(error))
                continue
            yield replace(row, measured=measured)
    finally:
        for name in sorted(pushed):
            with contextlib.suppress(ConfigError):
                _on_phone(serial, "rm", "-f", name)


def _push(serial: str, path: Path, name: str) -> str:
    target = f"{FOLDER}/{name}"
    _adb(["-s", serial], "push", str(path), target)
    return target


def signatures(path: Path, graph: GraphSpec) -> list[tuple[str, int]]:
    """Names of a TFLite file's signatures, each with its number of prompts (0 where it takes none).

    Raises:
        MissingDependency: the schema of TFLite files is not installed.
        BundleError: this is no TFLite file.
    """
    counted = graph.axis("prompts") is not None
    return [(b.name, b.prompts if counted else 0) for b in of_file(path.name, graph, tflite.signatures(path))]


def arguments(run: PhoneRun, file: str, signature: str, accelerator: str) -> list[str]:
    """The command on the phone. Unknown flags are only warned about, so that one list serves both programs."""
    flags = [f"--graph={FOLDER}/{file}", f"--num_threads={run.threads}", f"--num_runs={run.runs}", "--warmup_runs=3"]
    flags += [f"--signature_to_run_for={signature}"] if signature else []
    flags += [f"--use_{accelerator}=true"] if accelerator != "cpu" else ["--use_xnnpack=true"]
    return [f"{FOLDER}/benchmark_model", *flags]


def _measure(job: Job, run: PhoneRun, file: str, signature: str) -> Measurement:
    accelerator = job.runtime.removeprefix("litert-")
    found = parse(_on_phone(run.phone.serial, *arguments(run, file, signature, accelerator)))
    return Measurement(
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
