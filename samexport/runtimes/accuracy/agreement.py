"""Whether a bundle gives the masks that another one gives: mask IoU by kind of prompt. The gate of quantized files.

Embeddings say little: a TinyViT whose embedding kept a cosine of 0.99 was published with a mask IoU of 0.53. So both
bundles answer the same prompts, and the masks are compared that a user would see. No annotations are needed: the
reference's own masks say where objects are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.runtimes.bundle import Bundle, ModeScores
from samexport.runtimes.host.masks import intersection_over_union
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.segment import Segmentation, Segmenter

MODES = ("click", "clicks", "box", "box+click", "mask+click")
GRID = 4
"""Clicks along each side of a picture."""

_OBJECTS = 8
# shares of the picture: what is smaller or larger is noise, or background
_SMALLEST, _LARGEST = 0.002, 0.8
# two answers that overlap more are one object
_SAME = 0.7
_WITH_MASK = "decoder_with_mask"


@dataclass(frozen=True, eq=False)
class Answer:
    """A mask of the picture's size, packed to bits, how many pixels it has, and which of the model's masks it is."""

    bits: NDArray[np.uint8]
    area: int
    chosen: int


@dataclass(frozen=True, eq=False)
class Asked:
    """One picture, the prompts of each mode and what the reference answered."""

    picture: NDArray[np.uint8]
    prompts: Mapping[str, Sequence[Prompt]]
    answers: Mapping[str, Sequence[Answer]]


@dataclass(frozen=True)
class Limits:
    """What is close enough: the mean IoU and the 5th percentile of every mode.

    The percentile may fall five times as far: 0.01 asks for a mean of 0.99 and a percentile of 0.95.
    """

    max_drop: float = 0.01

    @property
    def mean(self) -> float:
        """The least mean."""
        return 1 - self.max_drop

    @property
    def p5(self) -> float:
        """The least 5th percentile."""
        return 1 - 5 * self.max_drop

    def problem(self, scores: ModeScores) -> str:
        """Why a mode fails; empty if it passes. NaN fails."""
        if not scores.mean >= self.mean:
            return f"{scores.mode}: mean mask IoU {scores.mean:.4f} is below {self.mean:g}"
        if not scores.p5 >= self.p5:
            return f"{scores.mode}: p5 of mask IoU {scores.p5:.4f} is below {self.p5:g}"
        return ""


def ask(
    reference: Bundle, pictures: Iterable[NDArray[np.uint8]], *, runtime: str | None = None, threads: int | None = None
) -> Iterator[Asked]:
    """Prompts for each picture, and the answers of ``reference``.

    Clicks stand on a grid. The objects that they find are then asked for in the other ways: by two clicks inside and
    one outside (where the model knows such), by their box, by box and click, and by their own logits with a click.
    """
    with Segmenter(reference, runtime=runtime, threads=threads) as segmenter:
        for picture in pictures:
            segmenter.set_image(picture)
            clicks = grid_clicks(picture)
            found = segmenter.predict(clicks)
            with_mask, background = _WITH_MASK in reference.graph_names, segmenter.session.background
            prompts = {"click": clicks, **_prompts(clicks, found, with_mask, background)}
            answers = {"click": [_packed(answer) for answer in found]}
            answers |= {mode: [_packed(a) for a in segmenter.answers(asked)] for mode, asked in prompts.items()
                        if mode != "click"}  # fmt: skip
            yield Asked(picture, prompts, answers)


def judge(
    candidate: Bundle, asked: Iterable[Asked], *, runtime: str | None = None, threads: int | None = None
) -> tuple[ModeScores, ...]:
    """How far the answers of ``candidate`` agree with the reference's, by mode.

    Raises:
        ConfigError: there was nothing to compare.
        ParityFailed: a file answers NaN or breaks its contract.
    """
    ious: dict[str, list[float]] = {}
    same: dict[str, list[bool]] = {}
    with Segmenter(candidate, runtime=runtime, threads=threads) as segmenter:
        for one in asked:
            segmenter.set_image(one.picture)
            for mode, prompts in one.prompts.items():
                for answer, wanted in zip(segmenter.answers(prompts), one.answers[mode], strict=True):
                    ious.setdefault(mode, []).append(_iou(answer.masks[0], wanted))
                    same.setdefault(mode, []).append(answer.chosen == wanted.chosen)
    if not ious:
        raise ConfigError("there is no picture to compare masks on")
    return tuple(_scores(mode, ious[mode], same[mode]) for mode in MODES if mode in ious)


def grid_clicks(picture: NDArray[np.uint8]) -> list[Prompt]:
    """One click in the middle of each cell of a grid."""
    height, width = picture.shape[:2]
    places = (np.arange(GRID) + 0.5) / GRID
    return [Prompt.make([x * width, y * height]) for y in places for x in places]


def _prompts(
    clicks: Sequence[Prompt], found: Sequence[Segmentation], with_mask: bool, background: bool
) -> dict[str, list[Prompt]]:
    """The other modes' prompts for the objects that clicks found, the surest first."""
    prompts: dict[str, list[Prompt]] = {mode: [] for mode in MODES[1:]}
    kept: list[NDArray[np.bool_]] = []
    for number in sorted(range(len(found)), key=lambda i: -float(found[i].scores[0])):
        mask, click = found[number].masks[0], clicks[number]
        share = np.count_nonzero(mask) / mask.size
        if not _SMALLEST <= share <= _LARGEST or len(kept) == _OBJECTS:
            continue
        if any(intersection_over_union(mask, other) > _SAME for other in kept):
            continue
        kept.append(mask)
        ys, xs = np.nonzero(mask)
        box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        # in reading order the pixel in the middle is one of the mask, whatever its form
        middle = [int(xs[len(xs) // 2]), int(ys[len(ys) // 2])]
        outside = np.argwhere(~mask)
        negative = outside[len(outside) // 3][::-1]
        several = [click.points[0], middle, *([negative] if background else [])]
        prompts["clicks"].append(Prompt.make(np.array(several), [1, 1, 0][: len(several)]))
        prompts["box"].append(Prompt.make(box=box))
        prompts["box+click"].append(Prompt.make([middle], box=box))
        if with_mask:
            prompts["mask+click"].append(Prompt.make([middle], mask_input=found[number].low_res_masks[0]))
    return {mode: asked for mode, asked in prompts.items() if asked}


def _packed(answer: Segmentation) -> Answer:
    mask = answer.masks[0]
    return Answer(np.packbits(mask), int(np.count_nonzero(mask)), answer.chosen)


def _iou(mask: NDArray[np.bool_], wanted: Answer) -> float:
    other = np.unpackbits(wanted.bits, count=mask.size).astype(np.bool_).reshape(mask.shape)
    return float(intersection_over_union(mask, other))


def _scores(mode: str, ious: Sequence[float], same: Sequence[bool]) -> ModeScores:
    values = np.array(ious)
    rounded = (round(float(v), 5) for v in (values.mean(), np.quantile(values, 0.05), values.min(), np.mean(same)))
    return ModeScores(mode, len(ious), *rounded)
