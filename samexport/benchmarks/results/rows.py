"""What a benchmark writes: a row for each thing measured, a pair for each comparison, the machine. Plain data.

The types are also the schema of ``results.json``: what they do not allow is refused when a file is read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from samexport.errors import ConfigError, FileError
from samexport.files import read_json, reason, to_json
from samexport.runtimes.verdicts import Verdict

SCHEMA_VERSION = 2
PHOTOGRAPH = (4032, 3024)
"""Width and height of a phone's 12-megapixel photograph."""

# NaN and infinity are outside of every range
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Form = Literal["export", "plain"]


Kind = TypeVar("Kind")


class Status(StrEnum):
    """DONE: measured. FAILED: a crash, a time-out or an error. SKIPPED: cannot be measured here."""

    DONE = "DONE"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Source:
    """The bundle that a job is of, as result files tell it from others.

    Attributes:
        label: its name for people, different for every bundle of a run.
        model: name in the catalogue.
        weights: their sha256, or their seed.
    """

    label: str = ""
    model: str = ""
    weights: str = ""


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
        options: how the file was made besides the precision, such as "target=gpu".
        source: more of the bundle.
    """

    bundle: str
    graph: str
    file: str
    form: Form
    precision: str
    runtime: str
    threads: Annotated[int, Meta(ge=1, le=1 << 16)]
    prompts: Count = 0
    batch: Count = 0
    checkpoints: tuple[str, ...] = ()
    photograph: tuple[Count, Count] = (0, 0)
    options: str = ""
    source: Source = Source()

    @property
    def work(self) -> tuple[object, ...]:
        """What makes two jobs the same work in two result files, wherever the bundle is and whatever its name."""
        return (
            self.source.model, self.source.weights, self.graph, self.form, self.precision, self.options, self.runtime,
            self.prompts, self.batch, self.threads, self.photograph,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """One line for people."""
        prompts = f" N={self.prompts}" if self.prompts else ""
        batch = f" by {self.batch}" if 0 < self.batch < self.prompts else ""
        form = " plain" if self.form == "plain" else ""
        picture = f" in {self.photograph[0]}x{self.photograph[1]}" if self.photograph[0] else ""
        label = f"{self.source.label}: " if self.source.label else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{label}{self.graph}{form}{prompts}{batch}{picture}, {self.kind}, {self.runtime}, {threads}"

    @property
    def kind(self) -> str:
        """Precision and options of the file."""
        return f"{self.precision} {self.options}".rstrip()


@dataclass(frozen=True)
class Parity:
    """The verdict of the golden cases, run in the measuring process itself, and the worst numbers in them.

    ``max_error`` is a fraction of the reference's range.
    """

    verdict: Verdict
    reason: str = ""
    max_error: Amount | None = None
    snr_db: Number | None = None
    mask_iou: Amount | None = None


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
    load_ms: Amount | None = None
    first_ms: Amount | None = None
    p50_ms: Amount | None = None
    p90_ms: Amount | None = None
    min_ms: Amount | None = None
    runs: Count = 0
    peak_mb: Amount | None = None
    idle_mb: Amount | None = None
    other_cores: Amount | None = None
    stages: dict[str, Amount] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchRow:
    """One row: the job, how it went, what was measured, and what that means for this machine.

    ``gmac`` counts the multiply-accumulates of the graph as it is built; ``peak_share`` is ``gmac_per_s`` by the
    measured rate of matrix products in the runtime's arithmetic.
    """

    job: Job
    device: str
    status: Status
    measured: Measurement
    reason: str = ""
    size_mb: Amount | None = None
    gmac: Amount | None = None
    gmac_per_s: Amount | None = None
    peak_share: Amount | None = None
    loaded: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What makes a row the same row in two result files."""
        return (*self.job.work, self.device)

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
    ratio: Amount | None = None
    low: Amount | None = None
    high: Amount | None = None
    best: Amount | None = None
    cpu: Amount | None = None
    first_p50_ms: Amount | None = None
    second_p50_ms: Amount | None = None
    turns: Count = 0
    other_cores: Amount | None = None
    first_parity: Parity = field(default_factory=lambda: Parity(Verdict.SKIPPED, "not run"))
    second_parity: Parity = field(default_factory=lambda: Parity(Verdict.SKIPPED, "not run"))


@dataclass(frozen=True)
class OperatorTime:
    """Milliseconds that a call spends in all nodes of one operator type, the share of the call, how many there are."""

    operator: str
    ms: Amount
    share: Amount
    nodes: Count


@dataclass(frozen=True)
class Profile:
    """Where the time of a job goes, longest first; ``reason`` says why there is nothing."""

    job: Job
    operators: tuple[OperatorTime, ...]
    reason: str = ""


@dataclass(frozen=True)
class Environment:
    """The machine and the moment; empty where it does not say."""

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: Count
    logical_cores: Count
    governor: str
    memory_gb: Amount
    load_average: tuple[Amount, Amount, Amount]
    system: str
    python: str
    libraries: dict[str, str]
    gpu: str
    git_commit: str


@dataclass(frozen=True)
class Results:
    """A result file. ``roofline`` is as its module makes it; ``notes`` say what nobody asked for and was left out."""

    created: str
    command: str
    environment: Environment
    roofline: dict[str, Amount]
    rows: tuple[BenchRow, ...]
    pairs: tuple[Pair, ...] = ()
    profiles: tuple[Profile, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Text of ``results.json``."""
        return to_json({"schema_version": SCHEMA_VERSION, **asdict(self)})


def read_results(path: Path) -> Results:
    """Read a ``results.json``; ConfigError if it cannot be read, or is one of another version, or none."""
    try:
        data = read_json(path)
    except FileError as error:
        raise ConfigError(f"{path} is not a result file of samexport bench ({error})") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} is not a result file of version {SCHEMA_VERSION} (schema_version {version!r}); measure again"
        )
    try:
        return from_plain(data, Results)
    except ValueError as error:
        raise ConfigError(f"{path} is not a result file of samexport bench ({reason(error)})") from error


def from_plain(data: Any, kind: type[Kind]) -> Kind:
    """The inverse of ``dataclasses.asdict``, checked in types and ranges; ValueError where the data is not that."""
    try:
        return msgspec.convert(data, kind)
    except (msgspec.MsgspecError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(reason(error)) from error


CSV_COLUMNS = (
    "device", "status", "reason", "size_mb", "gmac", "gmac_per_s", "peak_share", "loaded", "ms_per_prompt",
    *(f.name for f in fields(Source)), *(f.name for f in fields(Job) if f.name not in ("checkpoints", "source")),
    *(f.name for f in fields(Measurement) if f.name != "parity"),
    *(f.name for f in fields(Parity) if f.name != "reason"), "parity_reason",
)  # fmt: skip


def flat(row: BenchRow) -> dict[str, Any]:
    """A row as one level of names, those of :data:`CSV_COLUMNS`."""
    data = asdict(row)
    job, measured = data.pop("job"), data.pop("measured")
    parity = measured.pop("parity")
    parity["parity_reason"] = parity.pop("reason")
    data |= {**job.pop("source"), **job, **measured, **parity, "ms_per_prompt": row.ms_per_prompt}
    return {name: data[name] for name in CSV_COLUMNS}
