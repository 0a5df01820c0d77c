"""Compare what two runtimes computed: tiers of tolerance, one row an output, one verdict. Numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.models.spec import GraphSpec, TensorSpec

Array = NDArray[Any]


class Verdict(StrEnum):
    """The only three results of a check; SKIPPED is never counted as PASS."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True)
class Tier:
    """How close is close enough.

    ``max_error`` and ``score_error`` are fractions of the reference's range; ``mask_iou`` bounds the
    ``iou_quantile`` over masks of the IoU of thresholded masks, pixels whose reference logit is within ``band``
    (a fraction of the range) of the threshold left out and counted apart.
    """

    name: str
    max_error: float
    snr_db: float
    mask_iou: float
    iou_quantile: float
    band: float


TIERS = {
    "fp32": Tier("fp32", max_error=1e-4, snr_db=90, mask_iou=0.9999, iou_quantile=0, band=1e-5),
    "fp16": Tier("fp16", max_error=0.05, snr_db=40, mask_iou=0.995, iou_quantile=0.05, band=5e-3),
}


@dataclass(frozen=True)
class Row:
    """One output of one case. Errors are absolute; ``value_range`` is max - min of the reference.

    ``runtime`` says what computed it: the name of the runtime, a colon, its placement.
    """

    case: str
    output: str
    verdict: Verdict
    reason: str = ""
    max_error: float | None = None
    mean_error: float | None = None
    value_range: float | None = None
    snr_db: float | None = None
    mask_iou: float | None = None
    boundary_flips: int | None = None
    runtime: str = ""

    def __str__(self) -> str:
        """Case, output and what is wrong, in one line."""
        return f"{self.case}, {self.output}: {self.reason or self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, numbers rounded to four digits so that noise of the last bits is not a difference."""
        data = asdict(self)
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in data.items()}


@dataclass(frozen=True)
class ParityReport:
    """Rows and their joint verdict: FAIL if any row fails, SKIPPED if nothing was checked, else PASS."""

    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the rows."""
        verdicts = {r.verdict for r in self.rows}
        if Verdict.FAIL in verdicts:
            return Verdict.FAIL
        return Verdict.PASS if Verdict.PASS in verdicts else Verdict.SKIPPED

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that failed."""
        return tuple(r for r in self.rows if r.verdict is Verdict.FAIL)


def tier(precision: str) -> Tier:
    """The tier of a precision; ConfigError for an unknown one."""
    if precision not in TIERS:
        raise ConfigError(f"no tolerance tier for precision {precision!r}; known: {', '.join(TIERS)}")
    return TIERS[precision]


def signal_to_noise(expected: Array, actual: Array) -> float:
    """20 log10(|expected| / |expected - actual|) in dB over the whole tensor; infinite if equal."""
    noise = float(np.linalg.norm((expected.astype(np.float64) - actual).ravel()))
    signal = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    if noise == 0:
        return float("inf")
    return 20 * float(np.log10(signal / noise)) if signal else float("-inf")


def compare_output(case: str, spec: TensorSpec, expected: Array, actual: Array, limits: Tier) -> Row:
    """Judge one output against the reference.

    Args:
        case: name for the row.
        spec: its ``role`` adds mask and ranking checks.
        expected: the reference.
        actual: same shape, or the check fails.
        limits: the tolerances.
    """
    if expected.shape != actual.shape:
        return _fail(case, spec, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    bad = int(np.count_nonzero(~np.isfinite(actual)))
    if bad:
        where = np.argwhere(~np.isfinite(actual))[0].tolist()
        return _fail(case, spec, f"{bad} NaN or infinite values, the first at {where}")
    error = np.abs(expected.astype(np.float64) - actual)
    span = float(expected.max() - expected.min()) or 1.0
    snr = signal_to_noise(expected, actual)
    reasons = []
    if error.max() > limits.max_error * span:
        worst = np.unravel_index(int(error.argmax()), error.shape)
        place = [int(i) for i in worst]
        reasons.append(f"differs by {error.max():.3g} at {place}, {limits.max_error * span:.3g} is allowed")
    if snr < limits.snr_db:
        reasons.append(f"SNR {snr:.1f} dB is below {limits.snr_db:g}")
    iou, flips = None, None
    if spec.role == "mask_logits":
        iou, flips = _mask_iou(expected, actual, limits, span)
        if iou < limits.mask_iou:
            reasons.append(f"mask IoU {iou:.5f} is below {limits.mask_iou}")
    if spec.role == "mask_scores" and (wrong := _other_ranking(expected, actual, limits, span)):
        reasons.append(f"another mask has the best score in prompts {wrong[:5]}")
    return Row(
        case, spec.name, Verdict.FAIL if reasons else Verdict.PASS, "; ".join(reasons),
        float(error.max()), float(error.mean()), span, snr, iou, flips,
    )  # fmt: skip


def compare_boxes(
    case: str, graph: GraphSpec, expected: Mapping[str, Array], actual: Mapping[str, Array], limits: Tier
) -> list[Row]:
    """Judge boxes [K, 4] that come by falling score with their scores [K]: a row for each.

    Rank by rank the scores must agree within the tolerance, and every box of the reference must be there once,
    with its score; boxes of nearly the same score may change places. A box whose score is that of the last
    rank, within the tolerance, may have lost its place to another one.
    """
    by_role = {spec.role: spec for spec in graph.outputs}
    boxes, scores = by_role["ranked_boxes"], by_role["ranked_scores"]
    if not {boxes.name, scores.name} <= set(actual):
        return []  # check_names has said so
    rows = [compare_output(case, scores, expected[scores.name], actual[scores.name], limits)]
    if rows[0].verdict is Verdict.PASS and np.diff(actual[scores.name]).max(initial=0) > 0:
        rows = [_fail(case, scores, "the scores do not fall from rank to rank")]
    if expected[boxes.name].shape != actual[boxes.name].shape or not np.isfinite(actual[boxes.name]).all():
        return [compare_output(case, boxes, expected[boxes.name], actual[boxes.name], limits), *rows]
    if rows[0].verdict is not Verdict.PASS:
        return [_fail(case, boxes, "not compared, because the scores differ"), *rows]
    span = float(np.ptp(expected[scores.name])) or 1.0
    tolerance = 4 * limits.band * span
    match = _match(expected[boxes.name], expected[scores.name], actual[boxes.name], actual[scores.name], tolerance)
    last = expected[scores.name][-1]
    optional = expected[scores.name] - last <= tolerance
    reach = limits.max_error * (float(np.ptp(expected[boxes.name])) or 1.0)
    found = actual[boxes.name][match]
    replaced = optional & (np.abs(expected[boxes.name] - found).max(1) > reach)
    found[replaced] = expected[boxes.name][replaced]
    return [
        replace(compare_output(case, boxes, expected[boxes.name], found, limits), boundary_flips=int(replaced.sum())),
        *rows,
    ]


def _match(boxes: Array, scores: Array, other_boxes: Array, other_scores: Array, tolerance: float) -> NDArray[np.intp]:
    """For each of K boxes the index of its partner among the others, one to one.

    Partners have scores within ``tolerance``; what agrees best is paired first. A box without one keeps its rank,
    or takes any place that is left.
    """
    low = np.searchsorted(-other_scores, -scores - tolerance, side="left")
    high = np.searchsorted(-other_scores, -scores + tolerance, side="right")
    pairs = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
    wanted = np.repeat(np.arange(len(scores)), high - low)
    distance = np.abs(boxes[wanted] - other_boxes[pairs]).max(1)
    match = np.full(len(scores), -1, np.intp)
    free = np.ones(len(scores), np.bool_)
    for pair in np.argsort(distance, kind="stable"):
        if match[wanted[pair]] < 0 and free[pairs[pair]]:
            match[wanted[pair]], free[pairs[pair]] = pairs[pair], False
    match[match < 0] = np.flatnonzero(free)
    return match


def compare_masks(case: str, name: str, expected: Array, actual: Array, limits: Tier) -> Row:
    """Judge boolean masks [..., H, W] by their IoU alone (boundary pixels cannot be told apart here)."""
    if expected.shape != actual.shape:
        shapes = f"{list(actual.shape)}, expected {list(expected.shape)}"
        return Row(case, name, Verdict.FAIL, f"shape {shapes}")
    iou = float(np.quantile(intersection_over_union(expected, actual), limits.iou_quantile))
    flips = int(np.count_nonzero(expected ^ actual))
    # a flipped pixel of a small mask weighs more than the tolerance; up to one in 10,000 is rounding
    ok = iou >= limits.mask_iou or flips <= expected.size * (1 - limits.mask_iou)
    reason = "" if ok else f"mask IoU {iou:.5f} is below {limits.mask_iou}, {flips} pixels differ"
    return Row(case, name, Verdict.PASS if ok else Verdict.FAIL, reason, mask_iou=iou, boundary_flips=flips)


def intersection_over_union(first: Array, second: Array) -> Array:
    """IoU of boolean masks over the last two axes; 1 where both are empty."""
    both = np.count_nonzero(first & second, axis=(-2, -1))
    either = np.count_nonzero(first | second, axis=(-2, -1))
    ratio: Array = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    return ratio


def check_names(case: str, expected: Iterable[str], actual: Iterable[str]) -> list[Row]:
    """A failed row if an output is missing or one too many."""
    wanted, found = set(expected), set(actual)
    if wanted == found:
        return []
    return [Row(case, "outputs", Verdict.FAIL, f"got {sorted(found)}, expected {sorted(wanted)}")]


def _mask_iou(expected: Array, actual: Array, limits: Tier, span: float) -> tuple[float, int]:
    clear = np.abs(expected) > limits.band * span
    reference, found = expected > 0, actual > 0
    values = intersection_over_union(reference & clear, found & clear)
    return float(np.quantile(values, limits.iou_quantile)), int(np.count_nonzero((reference ^ found) & ~clear))


def _other_ranking(expected: Array, actual: Array, limits: Tier, span: float) -> list[int]:
    """Prompts whose best mask differs, ties within the tolerance allowed."""
    best = np.take_along_axis(expected, actual.argmax(-1)[..., None], -1)[..., 0]
    return [int(i) for i in np.flatnonzero(expected.max(-1) - best > 2 * limits.max_error * span)]


def _fail(case: str, spec: TensorSpec, reason: str) -> Row:
    return Row(case, spec.name, Verdict.FAIL, reason)
