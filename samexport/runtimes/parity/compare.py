"""Compare what two runtimes computed: tiers of tolerance, one row an output, one verdict. Numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.host.masks import intersection_over_union as intersection_over_union
from samexport.runtimes.verdicts import Check, Row, Verdict

Array = NDArray[Any]


@dataclass(frozen=True)
class Tier:
    """How close is close enough.

    ``max_error`` and ``score_error`` are fractions of the reference's range; ``mask_iou`` bounds the
    ``iou_quantile`` over masks of the IoU of thresholded masks, pixels whose reference logit is within ``band``
    (a fraction of the range) of the threshold left out and counted apart. Of masks at a picture's size the fraction
    ``max_flips`` of the pixels may differ, if all of these lie on the border of the reference or within ``band``.
    """

    name: str
    max_error: float
    snr_db: float
    mask_iou: float
    iou_quantile: float
    band: float
    max_flips: float


TIERS = {
    "fp32": Tier("fp32", max_error=1e-4, snr_db=90, mask_iou=0.9999, iou_quantile=0, band=1e-5, max_flips=1e-4),
    "fp16": Tier("fp16", max_error=0.05, snr_db=40, mask_iou=0.995, iou_quantile=0.05, band=5e-3, max_flips=5e-3),
    # three bits of mantissa fewer than float16: errors are 8 times, 18 dB, larger
    "bf16": Tier("bf16", max_error=0.1, snr_db=22, mask_iou=0.96, iou_quantile=0.05, band=8e-3, max_flips=0.04),
}

QUANTIZED = Tier("quantized", max_error=0.5, snr_db=8, mask_iou=0.1, iou_quantile=0.05, band=0.05, max_flips=0.2)
"""Of every recipe in integers: refuses a file that computes something else. How good it is, its masks say."""

_IN_INTEGERS = (
    "dynamic_wi8_afp32", "static_wi8_ai8", "static_wi8_ai16", "weight_only_wi8_afp32", "weight_only_wi8_afp16",
    "palettized_w6", "palettized_w4", "mixed", "mixed_dynamic",
)  # fmt: skip
TIERS |= dict.fromkeys((QUANTIZED.name, *_IN_INTEGERS), QUANTIZED)

# GPUs approximate exp, sin and cos; the errors are fractions of the reference's range
GPU_TIER = Tier("gpu", max_error=1e-3, snr_db=60, mask_iou=0.999, iou_quantile=0, band=1e-3, max_flips=1e-3)

# a video: memories are kept in bfloat16, so the last bit of fp32 can become one of 1/256
LOOP_TIER = Tier("loop", max_error=0.01, snr_db=40, mask_iou=0.98, iou_quantile=0, band=5e-3, max_flips=5e-3)
# what half precision costs a frame is remembered by the next ones, so a clip is further away than each graph
HALF_LOOP = Tier("half loop", max_error=0.1, snr_db=25, mask_iou=0.9, iou_quantile=0, band=5e-3, max_flips=5e-3)
_LOOPS = {"fp32": LOOP_TIER, "fp16": HALF_LOOP}


def tier(*recipes: str) -> Tier:
    """The loosest tier of the recipes that took part; ConfigError for an unknown one."""
    for recipe in recipes:
        if recipe not in TIERS:
            raise ConfigError(f"no tolerance for recipe {recipe!r}; known: {', '.join(TIERS)}")
    return max((TIERS[recipe] for recipe in recipes), key=lambda limits: limits.max_error)


def loop_tier(*recipes: str) -> Tier:
    """The same of a clip, where each frame reads what the ones before it left."""
    limits = tier(*recipes)
    return _LOOPS.get(limits.name, limits)


def signal_to_noise(expected: Array, actual: Array) -> float:
    """20 log10(|expected| / |expected - actual|) in dB over the whole tensor; infinite if equal."""
    noise = float(np.linalg.norm((expected.astype(np.float64) - actual).ravel()))
    signal = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    if noise == 0:
        return float("inf")
    return 20 * float(np.log10(signal / noise)) if signal else float("-inf")


def compare_output(
    check: Check, spec: TensorSpec, expected: Array, actual: Array, limits: Tier, span: float | None = None
) -> Row:
    """Judge one output against the reference.

    Args:
        check: what is compared, for the row.
        spec: its ``role`` adds mask and ranking checks.
        expected: the reference.
        actual: same shape, or the check fails.
        limits: the tolerances.
        span: max - min of the output where ``expected`` is a part of it.
    """
    if expected.shape != actual.shape:
        return _fail(check, spec, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    for values, whose in ((actual, ""), (expected, " in the reference")):
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            where = np.argwhere(~np.isfinite(values))[0].tolist()
            return _fail(check, spec, f"{bad} NaN or infinite values{whose}, the first at {where}")
    if not expected.size:
        return _fail(check, spec, f"empty, shape {list(expected.shape)}: nothing was compared")
    error = np.abs(expected.astype(np.float64) - actual)
    span = span or float(expected.max() - expected.min()) or 1.0
    snr = signal_to_noise(expected, actual)
    reasons = []
    # each limit is written so that NaN fails it
    if not error.max() <= limits.max_error * span:
        worst = np.unravel_index(int(error.argmax()), error.shape)
        place = [int(i) for i in worst]
        reasons.append(f"differs by {error.max():.3g} at {place}, {limits.max_error * span:.3g} is allowed")
    if not snr >= limits.snr_db:
        reasons.append(f"SNR {snr:.1f} dB is below {limits.snr_db:g}")
    iou, flips = None, None
    if spec.role == "mask_logits":
        iou, flips = _mask_iou(expected, actual, limits, span)
        if not iou >= limits.mask_iou:
            reasons.append(f"mask IoU {iou:.5f} is below {limits.mask_iou}")
    if spec.role == "mask_scores" and (wrong := _other_ranking(expected, actual, limits, span)):
        reasons.append(f"another mask has the best score in prompts {wrong[:5]}")
    return Row(
        check, spec.name, Verdict.FAIL if reasons else Verdict.PASS, "; ".join(reasons),
        float(error.max()), float(error.mean()), span, snr if np.isfinite(snr) else None, iou, flips,
    )  # fmt: skip


def compare_boxes(
    check: Check, graph: GraphSpec, expected: Mapping[str, Array], actual: Mapping[str, Array], limits: Tier
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
    rows = [compare_output(check, scores, expected[scores.name], actual[scores.name], limits)]
    if rows[0].verdict is Verdict.PASS and np.diff(actual[scores.name]).max(initial=0) > 0:
        rows = [_fail(check, scores, "the scores do not fall from rank to rank")]
    if expected[boxes.name].shape != actual[boxes.name].shape or not np.isfinite(actual[boxes.name]).all():
        return [compare_output(check, boxes, expected[boxes.name], actual[boxes.name], limits), *rows]
    if rows[0].verdict is not Verdict.PASS:
        return [_fail(check, boxes, "not compared, because the scores differ"), *rows]
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
        replace(compare_output(check, boxes, expected[boxes.name], found, limits), boundary_flips=int(replaced.sum())),
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


def compare_masks(
    check: Check, name: str, expected: Array, actual: Array, limits: Tier, unsure: Array | None = None
) -> Row:
    """Judge boolean masks [M, H, W], each for itself: by its IoU, or by where its pixels differ.

    A flipped pixel of a small mask weighs more than any tolerance. So a mask also passes if what differs lies on
    the border of the reference, or where ``unsure`` [M, H, W] says that the reference's logits are within ``band`` of
    the threshold, and is at most ``max_flips`` of the picture: rounding moves a border, it does not lose an object.
    """
    if expected.shape != actual.shape:
        shapes = f"{list(actual.shape)}, expected {list(expected.shape)}"
        return Row(check, name, Verdict.FAIL, f"shape {shapes}")
    if not expected.size:
        return Row(check, name, Verdict.FAIL, f"empty, shape {list(expected.shape)}: nothing was compared")
    ious = intersection_over_union(expected, actual)
    flips = expected ^ actual
    reasons = [
        f"mask {i}: IoU {ious[i]:.5f} is below {limits.mask_iou}, {np.count_nonzero(flips[i])} pixels differ"
        for i in range(len(expected))
        if not (
            ious[i] >= limits.mask_iou
            or _rounding(expected[i], flips[i], limits, False if unsure is None else unsure[i])
        )
    ]
    verdict = Verdict.FAIL if reasons else Verdict.PASS
    differing = int(np.count_nonzero(flips))
    return Row(check, name, verdict, "; ".join(reasons[:3]), mask_iou=float(ious.min()), boundary_flips=differing)


def _rounding(mask: Array, flips: Array, limits: Tier, unsure: Array | bool) -> bool:
    """Whether the pixels that differ lie on the border of ``mask`` [H, W] or are ``unsure``, and are few."""
    padded = np.pad(mask, 1, mode="edge")
    height, width = mask.shape
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    border = np.logical_or.reduce(around) & ~np.logical_and.reduce(around)
    return bool((flips <= (border | unsure)).all() and np.count_nonzero(flips) <= limits.max_flips * mask.size)


def check_names(check: Check, expected: Iterable[str], actual: Iterable[str]) -> list[Row]:
    """A failed row if an output is missing or one too many."""
    wanted, found = set(expected), set(actual)
    if wanted == found:
        return []
    return [Row(check, "outputs", Verdict.FAIL, f"got {sorted(found)}, expected {sorted(wanted)}")]


def _mask_iou(expected: Array, actual: Array, limits: Tier, span: float) -> tuple[float, int]:
    clear = np.abs(expected) > limits.band * span
    reference, found = expected > 0, actual > 0
    values = intersection_over_union(reference & clear, found & clear)
    return float(np.quantile(values, limits.iou_quantile)), int(np.count_nonzero((reference ^ found) & ~clear))


def _other_ranking(expected: Array, actual: Array, limits: Tier, span: float) -> list[int]:
    """Prompts whose best mask differs, ties within the tolerance allowed."""
    best = np.take_along_axis(expected, actual.argmax(-1)[..., None], -1)[..., 0]
    return [int(i) for i in np.flatnonzero(expected.max(-1) - best > 2 * limits.max_error * span)]


def _fail(check: Check, spec: TensorSpec, reason: str) -> Row:
    return Row(check, spec.name, Verdict.FAIL, reason)
