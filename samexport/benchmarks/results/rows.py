"""What a benchmark writes: a row for each thing measured, a pair for each comparison, the machine. Plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from samexport.errors import ConfigError
from samexport.runtimes.verdicts import Verdict

SCHEMA_VERSION = 1
PHOTOGRAPH = (4032, 3024)
"""Width and height of a phone's 12-megapixel photograph."""


class Status(StrEnum):
    """DONE: measured. FAILED: a crash, a time-out or an error. SKIPPED: cannot be measured here."""

    DONE = "DONE"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Job:
    """What one row measures; this is what goes to the measuring process.

    Attributes:
        bundle: folder.
        graph: a graph of the bundle, or a task of ``tasks.TASKS``.
        file: the graph's file inside the bundle; empty for tasks, and for PyTorch, which has none.
        form: "export", or "plain" for the untouched architecture (the baseline).
        precision: of the file.
        runtime: a name of ``runtimes.KNOWN``.
        prompts: N; 0 for a graph without prompts.
        batch: prompts in one call; 0 for all of them. 1 is what exporters do that trace a single prompt.
        checkpoints: weights for PyTorch, where the bundle's are not random.
        photograph: width and height of a task's picture; (0, 0) for a graph.
    """

    bundle: str
    graph: str
    file: str
    form: str
    precision: str
    runtime: str
    threads: int
    prompts: int = 0
    batch: int = 0
    checkpoints: tuple[str, ...] = ()
    photograph: tuple[int, int] = (0, 0)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """The inverse of ``dataclasses.asdict``."""
        width, height = data["photograph"]
        return cls(**{**data, "checkpoints": tuple(data["checkpoints"]), "photograph": (width, height)})

    @property
    def name(self) -> str:
        """One line for people."""
        prompts = f" N={self.prompts}" if self.prompts else ""
        batch = f" by {self.batch}" if 0 < self.batch < self.prompts else ""
        form = " plain" if self.form == "plain" else ""
        picture = f" in {self.photograph[0]}x{self.photograph[1]}" if self.photograph[0] else ""
        return f"{self.graph}{form}{prompts}{batch}{picture}, {self.precision}, {self.runtime}, {self.threads} threads"


@dataclass(frozen=True)
class Parity:
    """The verdict of the golden cases, run in the measuring process itself, and the worst numbers in them.

    ``max_error`` is a fraction of the reference's range.
    """

    verdict: Verdict
    reason: str = ""
    max_error: float | None = None
    snr_db: float | None = None
    mask_iou: float | None = None


@dataclass(frozen=True)
class Measurement:
    """What the measuring process reports; milliseconds and megabytes (1e6 bytes).

    Attributes:
        parity: no measurement without.
        placement: where it ran.
        load_ms: from the file to a session that is ready, in a fresh process; importing the library not counted.
        first_ms: the first call.
        p50_ms, p90_ms, min_ms, runs: of the calls after the warm-up; None where time means nothing.
        peak_mb: highest resident memory of the process, the interpreter and the outputs included.
        idle_mb: the same before the file was opened.
        other_cores: processor cores that other programs kept busy meanwhile, on average.
        stages: milliseconds of a task's stages in the last run.
    """

    parity: Parity
    placement: str = ""
    load_ms: float | None = None
    first_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    min_ms: float | None = None
    runs: int = 0
    peak_mb: float | None = None
    idle_mb: float | None = None
    other_cores: float | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchRow:
    """One row: the job, how it went, what was measured, and what that means for this machine.

    ``gmac`` counts the multiply-accumulates of the graph as it is built; ``peak_share`` is ``gmac_per_s`` by the
    measured rate of matrix products in the runtime's arithmetic.
    """

    job: Job
    model: str
    device: str
    status: Status
    measured: Measurement
    reason: str = ""
    size_mb: float | None = None
    gmac: float | None = None
    gmac_per_s: float | None = None
    peak_share: float | None = None
    loaded: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a row the same row in two result files."""
        j = self.job
        return (
            self.model, j.graph, j.form, j.precision, j.runtime, self.device, j.prompts, j.batch, j.threads,
            j.photograph,
        )  # fmt: skip

    @property
    def ms_per_prompt(self) -> float | None:
        """Median by the number of prompts."""
        p50 = self.measured.p50_ms
        return p50 / self.job.prompts if p50 is not None and self.job.prompts else None


@dataclass(frozen=True)
class Pair:
    """A against B, called in turns in one process, so that a noisy machine hits both.

    ``ratio`` is the median of A's time by B's of the same turn, ``low`` and ``high`` the quartiles;
    ``best`` compares the fastest runs, ``cpu`` the processor time of all threads, which other programs disturb less.
    """

    first: Job
    second: Job
    status: Status
    reason: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    cpu: float | None = None
    first_p50_ms: float | None = None
    second_p50_ms: float | None = None
    turns: int = 0
    other_cores: float | None = None
    first_parity: Parity = field(default_factory=lambda: Parity(Verdict.SKIPPED, "not run"))
    second_parity: Parity = field(default_factory=lambda: Parity(Verdict.SKIPPED, "not run"))


@dataclass(frozen=True)
class OperatorTime:
    """Milliseconds that a call spends in all nodes of one operator type, the share of the call, how many there are."""

    operator: str
    ms: float
    share: float
    nodes: int


@dataclass(frozen=True)
class Profile:
    """Where the time of a job goes, longest first."""

    job: Job
    operators: tuple[OperatorTime, ...]


@dataclass(frozen=True)
class Results:
    """A result file. ``environment`` and ``roofline`` are as their modules make them."""

    created: str
    command: str
    environment: dict[str, Any]
    roofline: dict[str, float]
    rows: tuple[BenchRow, ...]
    pairs: tuple[Pair, ...] = ()
    profiles: tuple[Profile, ...] = ()

    def to_json(self) -> str:
        """Text of ``results.json``."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """The inverse; KeyError, TypeError or ValueError where the text is not a result file."""
        data = json.loads(text)
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {data['schema_version']}, this samexport reads {SCHEMA_VERSION}")
        return cls(
            created=data["created"],
            command=data["command"],
            environment=data["environment"],
            roofline=data["roofline"],
            rows=tuple(_row(r) for r in data["rows"]),
            pairs=tuple(_pair(p) for p in data["pairs"]),
            profiles=tuple(profile_from_json(p) for p in data["profiles"]),
        )


def parity_from_json(data: dict[str, Any]) -> Parity:
    """The inverse of ``dataclasses.asdict``."""
    return Parity(**{**data, "verdict": Verdict(data["verdict"])})


def measurement_from_json(data: dict[str, Any]) -> Measurement:
    """The inverse of ``dataclasses.asdict``."""
    return Measurement(**{**data, "parity": parity_from_json(data["parity"])})


def profile_from_json(data: dict[str, Any]) -> Profile:
    """The inverse of ``dataclasses.asdict``."""
    return Profile(Job.from_json(data["job"]), tuple(OperatorTime(**o) for o in data["operators"]))


def _row(data: dict[str, Any]) -> BenchRow:
    nested = {
        "job": Job.from_json(data["job"]),
        "status": Status(data["status"]),
        "measured": measurement_from_json(data["measured"]),
    }
    return BenchRow(**{**data, **nested})


def _pair(data: dict[str, Any]) -> Pair:
    nested = {
        "first": Job.from_json(data["first"]),
        "second": Job.from_json(data["second"]),
        "status": Status(data["status"]),
        "first_parity": parity_from_json(data["first_parity"]),
        "second_parity": parity_from_json(data["second_parity"]),
    }
    return Pair(**{**data, **nested})


def read_results(path: Path) -> Results:
    """Read a ``results.json``; ConfigError if it is none."""
    try:
        return Results.from_json(path.read_text(encoding="utf-8"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ConfigError(f"{path} is not a result file of samexport bench ({reason})") from error


CSV_COLUMNS = (
    "model", "device", "status", "reason", "size_mb", "gmac", "gmac_per_s", "peak_share", "loaded", "ms_per_prompt",
    *(f.name for f in fields(Job) if f.name != "checkpoints"),
    *(f.name for f in fields(Measurement) if f.name != "parity"),
    *(f.name for f in fields(Parity) if f.name != "reason"), "parity_reason",
)  # fmt: skip


def flat(row: BenchRow) -> dict[str, Any]:
    """A row as one level of names, those of :data:`CSV_COLUMNS`."""
    data = asdict(row)
    job, measured = data.pop("job"), data.pop("measured")
    parity = measured.pop("parity")
    parity["parity_reason"] = parity.pop("reason")
    data |= {**job, **measured, **parity, "ms_per_prompt": row.ms_per_prompt}
    return {name: data[name] for name in CSV_COLUMNS}
