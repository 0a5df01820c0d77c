"""The masks that a whole task found, and whether they are those of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from samexport.runtimes.host.masks import Rle, decode_rle
from samexport.runtimes.parity.compare import Tier, compare_masks
from samexport.runtimes.verdicts import Check, Row, Verdict

# of the picture's longer side: a detector's boxes differ a little, the points of a grid lie much farther apart
_NEAR = 0.005
# predicted IoU and stability that are nearly a filter's threshold, and NMS of near ties, go either way
_NEAR_TIES = 0.01


@dataclass(frozen=True)
class FoundMask:
    """A mask and what it answers: ``prompt`` numbers in pixels of the picture, ``counts`` COCO's run lengths."""

    prompt: tuple[float, ...]
    counts: str


@dataclass(frozen=True)
class Reference:
    """What PyTorch makes of a task.

    Attributes:
        masks: in any order.
        thresholds: of predicted IoU and stability, where the task has filters; the timed work takes them too.
        sureness: IoU that rounding leaves of an exact mask, by the name of the tier; see ``tasks.sureness``.
    """

    masks: tuple[FoundMask, ...]
    thresholds: tuple[float, float] | None
    sureness: dict[str, float]

    def write(self, path: Path) -> None:
        """For another process."""
        path.write_bytes(msgspec.json.encode(self))


def read_reference(path: Path) -> Reference:
    """The inverse of ``Reference.write``."""
    return msgspec.json.decode(path.read_bytes(), type=Reference)


def compare_found(
    check: Check, expected: Sequence[FoundMask], actual: Sequence[FoundMask], image_hw: tuple[int, int],
    limits: Tier, sureness: float = 1.0,
) -> Row:  # fmt: skip
    """Judge masks by pairs that answer the same prompt, whatever their order.

    Pixels may differ as ``compare_masks`` allows, or as far as ``sureness`` says that rounding reaches. One mask in a
    hundred may have no partner (in a tier for lower precision as many as its ``iou_quantile``).
    """
    if not expected and not actual:
        return Row(check, "masks", Verdict.SKIPPED, "neither PyTorch nor the bundle found a mask")
    free = list(range(len(actual)))
    reach = _NEAR * max(image_hw)
    ious: list[float] = []
    for wanted in expected:
        near = [i for i in free if _distance(wanted, actual[i]) <= reach]
        iou, partner = _best(check, wanted, [actual[i] for i in near], image_hw, limits, sureness)
        ious += [iou] if near else []
        if partner is not None:
            free.remove(near[partner])
    missing = len(expected) - (len(actual) - len(free))
    allowed = int(max(limits.iou_quantile, _NEAR_TIES) * max(len(expected), len(actual)))
    lowest = min(ious, default=None)
    if missing <= allowed and len(free) <= allowed:
        return Row(check, "masks", Verdict.PASS, mask_iou=lowest)
    reason = (
        f"{missing} of PyTorch's {len(expected)} masks are not among the {len(actual)} found, and {len(free)} of those"
        f" are not PyTorch's; {allowed} may differ"
    )
    return Row(check, "masks", Verdict.FAIL, reason, mask_iou=lowest)


def _distance(one: FoundMask, other: FoundMask) -> float:
    if len(one.prompt) != len(other.prompt):
        return float("inf")
    return max((abs(a - b) for a, b in zip(one.prompt, other.prompt, strict=True)), default=0.0)


def _best(
    check: Check, wanted: FoundMask, near: Sequence[FoundMask], image_hw: tuple[int, int], limits: Tier, sureness: float
) -> tuple[float, int | None]:
    """The highest IoU, and the index of the mask that has it if it is close enough."""
    from pycocotools import mask as coco

    if not near:
        return 0.0, None
    rles = [_rle(found, image_hw) for found in near]
    ious = coco.iou(rles, [_rle(wanted, image_hw)], [0])[:, 0]
    best = int(np.argmax(ious))
    if ious[best] >= limits.mask_iou * sureness:
        return float(ious[best]), best
    # small masks and empty ones, at the cost of unpacking them
    one, other = (decode_rle(rle)[None] for rle in (_rle(wanted, image_hw), rles[best]))
    row = compare_masks(check, "masks", one, other, limits)
    return row.mask_iou or 0.0, best if row.verdict is Verdict.PASS else None


def _rle(found: FoundMask, image_hw: tuple[int, int]) -> Rle:
    return {"size": list(image_hw), "counts": found.counts.encode()}
