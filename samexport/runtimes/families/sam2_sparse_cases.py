"""What is compared of Efficient-SAM2's graphs, beside SAM 2's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.models.families.sam2 import ABSENT_ROW, MEMORY_ENCODER, MEMORY_WIDTH
from samexport.models.families.sam2_sparse import (
    ENCODER_ROUTED,
    ENCODER_STEM,
    ENCODER_TAIL,
    MASK_DECODER_SALIENT,
    MEMORY_ATTENTION_PRUNED,
)
from samexport.runtimes.adapters.entry_points import window_rooms
from samexport.runtimes.parity.golden import Case, Made, Reference

Inputs = dict[str, NDArray[Any] | Made]

_OBJECTS = (1, 3)
# (objects N, whole memories F, tokens of each of so many old ones): before any is pruned, and when all are
_KEPT = ((1, 2, 1, 1), (2, 1, 12, 5))
# as of SAM 2's own memories: with their whole spread, drawn ones are sharper than real ones
_CALM = 0.25


def sparse_cases(reference: Reference, features: Mapping[str, Made], dense: Sequence[Case]) -> list[Case]:
    """Memory attention on kept tokens; where they are, the encoder's three parts and the decoder that is watched.

    Args:
        reference: what computes.
        features: like those of the picture, by name.
        dense: SAM 2's own cases, whose memories say how drawn ones are spread.
    """
    cases: list[Case] = []
    memory = next(case.expected["memory"] for case in dense if case.graphs == (MEMORY_ENCODER,))
    spread = _short(memory.mean()), _short(memory.std() * _CALM)
    for sizes in _KEPT:
        inputs = {"vision": features["vision"], **_remembered(reference, features["vision"], spread, *sizes)}
        name = "{} with {} and {} of {}".format(*sizes)
        cases.append(reference.case(name, (MEMORY_ATTENTION_PRUNED,), inputs))
    if ENCODER_STEM not in reference.graphs:
        return cases
    embedding = features["image_embed"]
    fine: Inputs = {name: features[name] for name in ("feat_s0", "feat_s1")}
    for count in _OBJECTS:
        embed = Made("normal", seed=9, shape=(count, *embedding.shape[1:]), high=embedding.high)
        cases.append(reference.case(f"{count} objects", (MASK_DECODER_SALIENT,), {**fine, "image_embed": embed}))
    return [*cases, *_windows(reference, int(embedding.shape[-1]))]


def _windows(reference: Reference, grid: int) -> list[Case]:
    stem = reference.case("windows", (ENCODER_STEM,), {"image": Made("picture")})
    cases, windows = [stem], stem.expected["windows"]
    count, tokens, width = windows.shape
    spread = _short(windows.mean()), _short(windows.std())
    for chosen in (1, 2, window_rooms(reference.spec.graph(ENCODER_ROUTED))[-1]):
        inputs: Inputs = {
            "chosen": _drawn(20 + chosen, (chosen, tokens, width), spread),
            # the last windows are those that reach beyond the map
            "inside": _inside(grid, math.isqrt(count), math.isqrt(tokens))[-chosen:],
        }
        cases.append(reference.case(f"{chosen} of {count}", (ENCODER_ROUTED,), inputs))
    merged = _drawn(30, (count, tokens, width), spread)
    return [*cases, reference.case("merged", (ENCODER_TAIL,), {"merged": merged})]


def _inside(grid: int, across: int, window: int) -> NDArray[np.float32]:
    on_map = (np.arange(across * window) < grid).astype(np.float32)
    cut = (on_map[:, None] * on_map).reshape(across, window, across, window).swapaxes(1, 2)
    return cut.reshape(across**2, window**2)


def _remembered(
    reference: Reference, vision: Made, spread: tuple[float, float], objects: int, whole: int, kept: int, old: int
) -> Inputs:
    """The newest memory, ``whole`` others, ``kept`` tokens each of ``old`` ones; the second object has one less."""
    width, cells = vision.shape[1], vision.shape[-1] ** 2
    layers = int(reference.spec.graph(MEMORY_ATTENTION_PRUNED).outputs[1].shape[1])
    picked = np.array([reference.rng.permutation(cells)[:kept] for _ in range(objects * layers * old)])
    row = np.tile(np.repeat(np.arange(old, 0, -1), kept).astype(np.float32), (objects, 1))
    row[1:, -1] = ABSENT_ROW
    return {
        "newest": _drawn(12, (objects, cells, MEMORY_WIDTH), spread),
        "memory": _drawn(10, (objects, whole, cells, MEMORY_WIDTH), spread),
        "memory_row": np.tile(np.array([6, *range(5, 0, -1)][:whole], np.float32), (objects, 1)),
        "kept": _drawn(13, (objects, layers, old * kept, MEMORY_WIDTH), spread),
        "kept_cell": picked.reshape(objects, layers, old * kept),
        "kept_row": row,
        "pointers": Made("normal", seed=11, shape=(objects, 3, width)),
        "pointer_age": np.tile(np.array([0.2, 0.0667, 0.1333], np.float32), (objects, 1)),
        "pointer_present": np.ones((objects, 3), np.float32),
    }


def _drawn(seed: int, shape: tuple[int, ...], spread: tuple[float, float]) -> Made:
    return Made("normal", seed=seed, shape=shape, low=spread[0], high=spread[1])


def _short(number: np.floating) -> float:
    return float(f"{number:.3g}")
