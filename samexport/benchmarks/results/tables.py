"""Results as text: the table of the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence

from samexport.benchmarks.measuring.environment import LOADED
from samexport.benchmarks.measuring.roofline import COPY
from samexport.benchmarks.plan import is_graph
from samexport.benchmarks.results.rows import CSV_COLUMNS, BenchRow, Job, Pair, Parity, Results, Status, flat
from samexport.runtimes.verdicts import Verdict

Cells = tuple[str, ...]


def _number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, no exponent for what a person reads as a number; empty for None."""
    if value is None:
        return ""
    if abs(value) < 1e-3:
        return f"{value:.0e}" if value else "0"
    if digits == 1 and abs(value) < 1:
        return f"{value:.1g}"
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - whole)}f}"


def _times(row: BenchRow) -> str:
    mark = "*" if row.loaded else ""
    return f"{_number(row.measured.p50_ms)}{mark}" if row.measured.p50_ms is not None else ""


def _subject(job: Job) -> str:
    return f"{job.graph} (plain)" if job.form == "plain" else job.graph


def _prompts(job: Job) -> str:
    if not job.prompts:
        return ""
    return f"{job.prompts} by {job.batch}" if 0 < job.batch < job.prompts else str(job.prompts)


def verdict(parity: Parity) -> str:
    """The verdict, with how far off where there is a number: the largest error, of masks the IoU."""
    number = _number(parity.max_error, 1)
    if parity.max_error is None and parity.mask_iou is not None:
        number = f"IoU {parity.mask_iou:.4f}"
    return f"{parity.verdict.value} {number}".rstrip()


def _outcome(row: BenchRow) -> str:
    """The verdict, or why there is none."""
    return verdict(row.measured.parity) if row.status is Status.DONE else f"{row.status.value}: {row.reason}"


def _stages(stages: Mapping[str, float]) -> str:
    """In the order in which they happen."""
    known = [name for name in ("sample", "encode", "decode", "upscale") if name in stages]
    others = [name for name in stages if name not in known]
    return ", ".join(f"{name} {stages[name]:.0f}" for name in (*known, *others))


Column = tuple[str, Callable[[BenchRow], str]]
_COLUMNS: tuple[Column, ...] = (
    ("model", lambda r: r.job.source.model),
    ("bundle", lambda r: r.job.source.label),
    ("graph", lambda r: _subject(r.job)),
    ("prompts", lambda r: _prompts(r.job)),
    ("precision", lambda r: r.job.kind),
    ("runtime", lambda r: r.job.runtime),
    ("device", lambda r: r.device),
    ("threads", lambda r: str(r.job.threads)),
    ("p50 ms", _times),
    ("p90 ms", lambda r: _number(r.measured.p90_ms)),
    ("min ms", lambda r: _number(r.measured.min_ms)),
    ("ms/prompt", lambda r: _number(r.ms_per_prompt)),
    ("load ms", lambda r: _number(r.measured.load_ms)),
    ("first ms", lambda r: _number(r.measured.first_ms)),
    ("peak MB", lambda r: _number(r.measured.peak_mb)),
    ("file MB", lambda r: _number(r.size_mb)),
    ("GMAC/s", lambda r: _number(r.gmac_per_s)),
    ("of peak", lambda r: "" if r.peak_share is None else f"{r.peak_share:.0%}"),
    ("runs", lambda r: str(r.measured.runs or "")),
    ("stages, ms", lambda r: _stages(r.measured.stages)),
    ("picture", lambda r: "x".join(map(str, r.job.photograph)) if r.job.photograph[0] else ""),
    ("parity", _outcome),
)
_NOT_FOR_TASKS = ("file MB", "GMAC/s", "of peak", "precision")
_FOR_TASKS = ("stages, ms", "picture")
_TERMINAL = (
    "model", "bundle", "graph", "prompts", "precision", "runtime", "threads", "p50 ms", "min ms", "ms/prompt",
    "load ms", "peak MB", "parity",
)  # fmt: skip
PAGE_COLUMNS = {"Graphs": (*_TERMINAL, "p90 ms", "of peak"), "Whole tasks": (*_TERMINAL, *_FOR_TASKS)}
# whoever measures one model in one bundle knows which
_ONCE = ("bundle", "precision", "threads", "device", "prompts", "ms/prompt")


def table(rows: Iterable[BenchRow], names: Sequence[str] = _TERMINAL) -> tuple[Cells, list[Cells]]:
    """Column names and cells."""
    chosen = [c for c in _COLUMNS if c[0] in names]
    return tuple(name for name, _ in chosen), [tuple(cell(row) for _, cell in chosen) for row in rows]


def short_table(rows: Sequence[BenchRow], names: Sequence[str] = _TERMINAL) -> tuple[Cells, list[Cells], str]:
    """Names and cells without columns that say the same in every row, and a line with what those say."""
    columns, lines = table(rows, names)
    same = {
        name: cells[0] for name, *cells in zip(columns, *lines, strict=True) if name in _ONCE and len(set(cells)) == 1
    }
    kept = [i for i, name in enumerate(columns) if name not in same]
    told = ", ".join(f"{name} {value}" for name, value in same.items() if value)
    return tuple(columns[i] for i in kept), [tuple(line[i] for i in kept) for line in lines], told


PAIR_COLUMNS = ("A", "B", "A / B", "quartiles", "fastest", "processor", "A ms", "B ms", "turns", "parity A, B")


def pair_cells(pair: Pair) -> Cells:
    """One comparison as text for :data:`PAIR_COLUMNS`; each side says what the other one is not."""
    told = [(_subject(j), _prompts(j), j.kind, j.runtime, f"{j.threads} threads", j.source.label) for j in _jobs(pair)]
    always = 4
    names = [
        " ".join(part for i, part in enumerate(side) if part and (i < always or told[0][i] != told[1][i]))
        for side in told
    ]
    if pair.status is not Status.DONE:
        return (*names, *[""] * 7, f"{pair.status.value}: {pair.reason}")
    mark = "*" if (pair.other_cores or 0) > LOADED else ""
    return (
        *names,
        f"{_number(pair.ratio)}{mark}",
        f"{_number(pair.low)} to {_number(pair.high)}",
        _number(pair.best),
        _number(pair.cpu),
        _number(pair.first_p50_ms),
        _number(pair.second_p50_ms),
        str(pair.turns),
        f"{verdict(pair.first_parity)}, {verdict(pair.second_parity)}",
    )


def has_marks(results: Results) -> bool:
    """Whether a ``*`` stands somewhere, which :data:`LOAD_NOTE` explains."""
    return any(row.loaded for row in results.rows) or any((p.other_cores or 0) > LOADED for p in results.pairs)


def _jobs(pair: Pair) -> tuple[Job, Job]:
    return pair.first, pair.second


def to_csv(results: Results) -> str:
    """Every field of every row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in results.rows)
    return text.getvalue()


def markdown_table(columns: Cells, rows: Iterable[Cells]) -> list[str]:
    """Lines of a Markdown table."""
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return head + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def machine_lines(results: Results) -> list[str]:
    """The machine and what it can do, one fact a line."""
    e = results.environment
    libraries = ", ".join(f"{name} {version}" for name, version in e.libraries.items())
    rates = ", ".join(f"{name} {rate:g}" for name, rate in results.roofline.items() if name != COPY)
    lines = [
        f"{e.cpu}, {e.cores} cores, {e.memory_gb} GB, governor {e.governor}",
        f"{e.system}, Python {e.python}",
        f"instructions: {' '.join(e.cpu_flags)}",
        f"libraries: {libraries}",
        f"load average at the start: {', '.join(str(x) for x in e.load_average)}",
    ]
    if e.gpu:
        lines.insert(1, f"GPU: {e.gpu}")
    if rates:
        lines.append(f"measured peak, GMAC/s of matrix products: {rates}; copy {results.roofline.get(COPY, 0):g} GB/s")
    if e.git_commit:
        lines.append(f"commit {e.git_commit}")
    return lines


LOAD_NOTE = (
    f"* other programs kept more than {LOADED:g} cores busy meanwhile: do not compare such times with others, "
    "only the ratios, which come from calls in turns."
)
NOTES = (
    "p50, p90 and min are of the calls after the warm-up; load is from the file to a session that is ready, in a fresh "
    "process; first is the first call. Each row is measured in a process of its own.",
    "16 by 4 means 16 prompts, 4 in a call. Plain is the untouched architecture, exported straightforwardly; with 1 in "
    "a call it is what an export does that traces a single prompt.",
    "peak MB is the highest resident memory of the whole process, interpreter and outputs included.",
    LOAD_NOTE,
    "Ratios: the median of A's time by B's of the same turn, its quartiles, the ratio of the fastest calls, and "
    "that of processor time.",
    "GMAC counts the multiply-accumulates of the graph as it is built; of peak is their rate by the measured peak of "
    "matrix products in the runtime's arithmetic.",
    "parity is the verdict of the bundle's golden cases in the measured process, with the largest error by the range; "
    "of a whole task it is that of the timed masks against PyTorch's.",
)


def to_markdown(results: Results, plots: Sequence[tuple[str, str]] = ()) -> str:
    """A report; ``plots`` are file names and captions."""
    command = f"- {results.created}: `{results.command}`"
    lines = ["# Benchmark results", "", *(f"- {line}" for line in machine_lines(results)), command, ""]
    if results.pairs:
        lines += ["## Ratios of calls in turns", "", *markdown_table(PAIR_COLUMNS, map(pair_cells, results.pairs)), ""]
    for title, rows in sections(results):
        names = [n for n, _ in _COLUMNS if n not in (_FOR_TASKS if title == "Graphs" else _NOT_FOR_TASKS)]
        lines += [f"## {title}", "", *markdown_table(*table(rows, names)), ""]
    for title, profiled in profile_sections(results):
        lines += [f"## {title}", "", *markdown_table(PROFILE_COLUMNS, profiled), ""]
    placed = placements(results)
    if placed:
        lines += ["## Where it ran", "", *markdown_table(PLACEMENT_COLUMNS, placed), ""]
    if problems := problem_lines(results):
        lines += ["## Not measured, or not right", "", *(f"- {line}" for line in problems), ""]
    for file, caption in plots:
        lines += [f"![{caption}]({file})", ""]
    return "\n".join([*lines, "## How to read this", "", *(f"- {note}" for note in NOTES)]) + "\n"


def sections(results: Results) -> list[tuple[str, list[BenchRow]]]:
    """Graphs and whole tasks, those that are not empty."""
    graphs = [row for row in results.rows if is_graph(row.job)]
    tasks = [row for row in results.rows if not is_graph(row.job)]
    return [(title, rows) for title, rows in (("Graphs", graphs), ("Whole tasks", tasks)) if rows]


PROFILE_COLUMNS = ("operator", "ms", "share", "nodes")
_FEWEST = 0.005


def profile_sections(results: Results) -> list[tuple[str, list[Cells]]]:
    """A title and the operators of each profile, those of half a percent and more."""
    return [
        (
            f"Where the time goes: {p.job.name}",
            [(o.operator, _number(o.ms), f"{o.share:.1%}", str(o.nodes)) for o in p.operators if o.share >= _FEWEST],
        )
        for p in results.profiles
        if p.operators
    ]


PLACEMENT_COLUMNS = ("bundle", "graph", "runtime", "placement")


def placements(results: Results) -> list[Cells]:
    """Cells for :data:`PLACEMENT_COLUMNS`, each once."""
    found = [
        (r.job.source.label, _subject(r.job), r.job.runtime, r.measured.placement)
        for r in results.rows
        if r.measured.placement and is_graph(r.job)
    ]
    return list(dict.fromkeys(found))


def problem_lines(results: Results) -> list[str]:
    """What was left out, not measured or failed, and verdicts that are not PASS."""
    skipped = [
        f"parity SKIPPED {r.job.name}: {r.measured.parity.reason}"
        for r in results.rows
        if r.status is Status.DONE and r.measured.parity.verdict is Verdict.SKIPPED
    ]
    return [*results.notes, *skipped, *failure_lines(results)]


def failure_lines(results: Results) -> list[str]:
    """What was asked for and could not be measured, crashed, took too long, or computes something else."""
    found = []
    for row in results.rows:
        if row.status is not Status.DONE:
            found.append(f"{row.status.value} {row.job.name}: {row.reason}")
        elif row.measured.parity.verdict is Verdict.FAIL:
            found.append(f"parity FAIL {row.job.name}: {row.measured.parity.reason}")
    for pair in results.pairs:
        name = f"{pair.first.name} against {pair.second.name}"
        wrong = [p.reason for p in (pair.first_parity, pair.second_parity) if p.verdict is Verdict.FAIL]
        if pair.status is not Status.DONE:
            found.append(f"{pair.status.value} {name}: {pair.reason}")
        elif wrong:
            found.append(f"parity FAIL {name}: {'; '.join(wrong)}")
    return found + [f"FAILED profile of {p.job.name}: {p.reason}" for p in results.profiles if p.reason]
