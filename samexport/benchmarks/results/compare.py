"""Two result files: what became slower, larger or wrong, or is missing. The gate for CI."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from samexport.benchmarks.contenders.known import KNOWN
from samexport.benchmarks.results.rows import BenchRow, Pair, Results, Status
from samexport.errors import ConfigError
from samexport.runtimes.verdicts import Verdict

TOLERANCE = 0.1
_RANK = {Verdict.PASS: 0, Verdict.SKIPPED: 1, Verdict.FAIL: 2}
_SAME_MACHINE = ("cpu", "cores", "gpu")
_GONE = "is not there any more"

Item = TypeVar("Item", BenchRow, Pair)


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
    """Compare row by row and pair by pair.

    A time regresses if both the median and the fastest run are slower by more than ``tolerance``: noise seldom moves
    both. Ratios of calls in turns regress if they grow by more than it, the peak of memory likewise. A row that was
    measured and now is not, or whose parity verdict became worse, always regresses; so does one that ``new`` alone
    has if it was not measured or its verdict is FAIL. Other rows that only ``new`` has are left out.

    Raises:
        ConfigError: the files are of different machines (unless ``other_machine``), share no row, or one of them
            cannot be compared (a row that is there twice, a measured one without a median); ``tolerance`` is no number.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"a tolerance of {tolerance} cannot be; give a number such as {TOLERANCE}")
    different = [k for k in _SAME_MACHINE if getattr(old.environment, k) != getattr(new.environment, k)]
    if different and not other_machine:
        values = f"{getattr(old.environment, different[0])} and {getattr(new.environment, different[0])}"
        raise ConfigError(f"results of different machines ({different[0]}: {values}) say nothing about a change")
    for results, name in ((old, "the old file"), (new, "the new file")):
        _check(results, name)
    rows, more_rows = _matched(old.rows, new.rows, lambda r: r.key, lambda r: r.job.source.label)
    pairs, more_pairs = _matched(old.pairs, new.pairs, _pair_key, _pair_label)
    changes = [
        _compare_rows(one, other, tolerance)
        for one, other in rows
        if one.status is Status.DONE or (other and _wrong_row(other))
    ]
    changes += [
        _compare_pairs(one, other, tolerance)
        for one, other in pairs
        if one.status is Status.DONE or (other and _wrong_pair(other))
    ]
    if not changes or all(c.regression == _GONE for c in changes):
        raise ConfigError("the two files have no row in common; measure the same bundles with the same options")
    changes += [Change(row.job.name, None, None, None, wrong) for row in more_rows if (wrong := _wrong_row(row))]
    return changes + [Change(_pair_name(p), None, None, None, wrong) for p in more_pairs if (wrong := _wrong_pair(p))]


def _check(results: Results, name: str) -> None:
    for what, keys in (
        ("row", [(r.job.name, r.key, r.job.source.label) for r in results.rows]),
        ("pair", [(_pair_name(p), _pair_key(p), _pair_label(p)) for p in results.pairs]),
    ):
        repeated = [key for key, count in Counter(keys).items() if count > 1]
        if repeated:
            raise ConfigError(f"{name} has the {what} {repeated[0][0]} twice; measure again")
    for row in results.rows:
        timed = row.job.runtime not in KNOWN or KNOWN[row.job.runtime].timed
        if row.status is Status.DONE and timed and not _positive(row.measured.p50_ms):
            raise ConfigError(f"{name} has no median of {row.job.name}; measure again")
    for pair in results.pairs:
        if pair.status is Status.DONE and not _positive(pair.ratio):
            raise ConfigError(f"{name} has no ratio of {_pair_name(pair)}; measure again")


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _matched(
    old: Sequence[Item], new: Sequence[Item], key: Callable[[Item], Hashable], label: Callable[[Item], Hashable]
) -> tuple[list[tuple[Item, Item | None]], list[Item]]:
    """Each old item with the new one that is the same work, or None; and the new ones that are left.

    A bundle's label counts only where a file has several bundles that differ in nothing else, so that the same
    bundle may have another name.
    """
    several = {k for items in (old, new) for k, count in Counter(map(key, items)).items() if count > 1}

    def full(item: Item) -> Hashable:
        return key(item), label(item) if key(item) in several else None

    left = {full(item): item for item in new}
    return [(item, left.pop(full(item), None)) for item in old], list(left.values())


def _compare_rows(old: BenchRow, new: BenchRow | None, tolerance: float) -> Change:
    name = old.job.name
    if new is None:
        return Change(name, None, None, None, _GONE)
    if new.job.source.label != old.job.source.label:
        name += f" (now {new.job.source.label})"
    if new.status is not Status.DONE or old.status is not Status.DONE:
        return Change(name, None, None, None, _wrong_row(new))
    a, b = old.measured, new.measured
    p50, fastest, memory = _ratio(b.p50_ms, a.p50_ms), _ratio(b.min_ms, a.min_ms), _ratio(b.peak_mb, a.peak_mb)
    reasons = []
    if _RANK[b.parity.verdict] > _RANK[a.parity.verdict]:
        reasons.append(f"parity {a.parity.verdict.value} became {b.parity.verdict.value}: {b.parity.reason}")
    slower = min((r for r in (p50, fastest) if r is not None), default=None)
    if slower is not None and not slower <= 1 + tolerance:
        reasons.append(f"{slower - 1:.0%} slower")
    if memory is not None and not memory <= 1 + tolerance:
        reasons.append(f"{memory - 1:.0%} more memory")
    return Change(name, p50, fastest, memory, "; ".join(reasons))


def _compare_pairs(old: Pair, new: Pair | None, tolerance: float) -> Change:
    name = _pair_name(old)
    if new is None:
        return Change(name, None, None, None, _GONE)
    if new.status is not Status.DONE or old.status is not Status.DONE:
        return Change(name, None, None, None, _wrong_pair(new))
    ratio, best = _ratio(new.ratio, old.ratio), _ratio(new.best, old.best)
    reasons = [f"ratio {ratio - 1:.0%} worse"] if ratio is not None and not ratio <= 1 + tolerance else []
    for one, other in ((old.first_parity, new.first_parity), (old.second_parity, new.second_parity)):
        if _RANK[other.verdict] > _RANK[one.verdict]:
            reasons.append(f"parity {one.verdict.value} became {other.verdict.value}: {other.reason}")
    return Change(name, ratio, best, None, "; ".join(reasons))


def _wrong_row(row: BenchRow) -> str:
    """Why a row alone is not as it should be."""
    if row.status is not Status.DONE:
        return f"{row.status.value}: {row.reason}"
    parity = row.measured.parity
    return f"parity FAIL: {parity.reason}" if parity.verdict is Verdict.FAIL else ""


def _wrong_pair(pair: Pair) -> str:
    if pair.status is not Status.DONE:
        return f"{pair.status.value}: {pair.reason}"
    wrong = [p.reason for p in (pair.first_parity, pair.second_parity) if p.verdict is Verdict.FAIL]
    return f"parity FAIL: {'; '.join(wrong)}" if wrong else ""


def _pair_key(pair: Pair) -> tuple[object, ...]:
    return pair.first.work, pair.second.work


def _pair_label(pair: Pair) -> tuple[str, str]:
    return pair.first.source.label, pair.second.source.label


def _pair_name(pair: Pair) -> str:
    return f"{pair.first.name} against {pair.second.name}"


def _ratio(new: float | None, old: float | None) -> float | None:
    return new / old if new is not None and old else None


def change_cells(change: Change) -> tuple[str, ...]:
    """One change as text for :data:`COMPARE_COLUMNS`."""
    ratios = ["" if r is None else f"{r:.2f}" for r in (change.p50, change.fastest, change.peak_mb)]
    return change.name, *ratios, change.regression
