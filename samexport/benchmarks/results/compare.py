"""Two result files: what became slower, larger or wrong. The gate for CI."""

from __future__ import annotations

from dataclasses import dataclass

from samexport.benchmarks.results.rows import BenchRow, Pair, Results, Status
from samexport.errors import ConfigError
from samexport.runtimes.verdicts import Verdict

TOLERANCE = 0.1
_RANK = {Verdict.PASS: 0, Verdict.SKIPPED: 1, Verdict.FAIL: 2}
_SAME_MACHINE = ("cpu", "cores", "gpu")


@dataclass(frozen=True)
class Change:
    """One row of the comparison; ratios are new by old, None where one of them has no number."""

    name: str
    p50: float | None
    fastest: float | None
    peak_mb: float | None
    regression: str = ""


COMPARE_COLUMNS = ("what", "p50 new / old", "fastest new / old", "memory new / old", "regression")


def compare(old: Results, new: Results, tolerance: float = TOLERANCE, *, other_machine: bool = False) -> list[Change]:
    """Compare row by row and pair by pair; rows that only ``new`` has are left out.

    A time regresses if both the median and the fastest run are slower by more than ``tolerance``: noise seldom moves
    both. Ratios of calls in turns regress if they grow by more than it, the peak of memory likewise. A row that was
    measured and now is not, or whose parity verdict became worse, always regresses.

    Raises:
        ConfigError: the files are of different machines (unless ``other_machine``), or share no row.
    """
    different = [k for k in _SAME_MACHINE if old.environment.get(k) != new.environment.get(k)]
    if different and not other_machine:
        values = f"{old.environment.get(different[0])} and {new.environment.get(different[0])}"
        raise ConfigError(f"results of different machines ({different[0]}: {values}) say nothing about a change")
    found = {row.key: row for row in new.rows}
    changes = [_compare_rows(row, found.get(row.key), tolerance) for row in old.rows if row.status is Status.DONE]
    pairs = {_pair_key(pair): pair for pair in new.pairs}
    changes += [
        _compare_pairs(pair, pairs.get(_pair_key(pair)), tolerance) for pair in old.pairs if pair.status is Status.DONE
    ]
    if not changes or all(c.regression == _GONE for c in changes):
        raise ConfigError("the two files have no row in common; measure the same bundles with the same options")
    return changes


_GONE = "is not there any more"


def _compare_rows(old: BenchRow, new: BenchRow | None, tolerance: float) -> Change:
    name = old.job.name
    if new is None:
        return Change(name, None, None, None, _GONE)
    if new.status is not Status.DONE:
        return Change(name, None, None, None, f"{new.status.value}: {new.reason}")
    a, b = old.measured, new.measured
    p50, fastest, memory = _ratio(b.p50_ms, a.p50_ms), _ratio(b.min_ms, a.min_ms), _ratio(b.peak_mb, a.peak_mb)
    reasons = []
    if _RANK[b.parity.verdict] > _RANK[a.parity.verdict]:
        reasons.append(f"parity {a.parity.verdict.value} became {b.parity.verdict.value}: {b.parity.reason}")
    if p50 is not None and fastest is not None and min(p50, fastest) > 1 + tolerance:
        reasons.append(f"{min(p50, fastest) - 1:.0%} slower")
    if memory is not None and memory > 1 + tolerance:
        reasons.append(f"{memory - 1:.0%} more memory")
    return Change(name, p50, fastest, memory, "; ".join(reasons))


def _compare_pairs(old: Pair, new: Pair | None, tolerance: float) -> Change:
    name = f"{old.first.name} against {old.second.name}"
    if new is None:
        return Change(name, None, None, None, _GONE)
    ratio, best = _ratio(new.ratio, old.ratio), _ratio(new.best, old.best)
    if ratio is None:
        return Change(name, None, None, None, f"{new.status.value}: {new.reason}")
    return Change(name, ratio, best, None, f"ratio {ratio - 1:.0%} worse" if ratio > 1 + tolerance else "")


def _pair_key(pair: Pair) -> tuple[object, ...]:
    return tuple(
        (j.graph, j.form, j.precision, j.runtime, j.prompts, j.batch, j.threads) for j in (pair.first, pair.second)
    )


def _ratio(new: float | None, old: float | None) -> float | None:
    return new / old if new is not None and old else None


def change_cells(change: Change) -> tuple[str, ...]:
    """One change as text for :data:`COMPARE_COLUMNS`."""
    ratios = ["" if r is None else f"{r:.2f}" for r in (change.p50, change.fastest, change.peak_mb)]
    return change.name, *ratios, change.regression
