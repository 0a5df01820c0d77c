"""What is compared of SAM 2: the picture, prompts of all kinds, and memories of objects with different histories.

Features are drawn with the mean and the spread of those of the picture, so a bundle needs not store them: those of a
frame are 20 MB at 1024 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.models.families.sam2 import (
    IMAGE_ENCODER,
    MASK_DECODER,
    MASK_DECODER_TRACKED,
    MASK_DECODER_WITH_MASK,
    MEMORY_ATTENTION,
    MEMORY_ENCODER,
    MEMORY_WIDTH,
)
from samexport.models.families.sam2_sparse import MEMORY_ATTENTION_PRUNED
from samexport.runtimes.base import Tensors
from samexport.runtimes.families.sam2_sparse_cases import sparse_cases
from samexport.runtimes.families.sam_cases import random_masks, random_prompts
from samexport.runtimes.parity.golden import Case, Made, Reference

Inputs = dict[str, NDArray[Any] | Made]

# (prompts N, points K) around what the exporter traces, N = 3, K = 2
_PROMPTS = ((1, 2), (3, 2), (7, 5), (17, 2))
_WITH_MASK = ((1, 2), (4, 3))
_TRACKED = (1, 3)
# (objects N, memories F, pointers R): the second frame; any from the sixteenth on; two prompted frames
_HISTORIES = ((1, 1, 1), (2, 3, 4), (1, 7, 16), (1, 8, 17))
# Neighbours in a drawn map differ as much as any two cells. With the whole spread of real memories attention is then so
# sharp that the reference in float32 is 2e-4 of the range away from float64; with real memories it is 4e-6.
_CALM = 0.25
_FEATURES = ("image_embed", "feat_s0", "feat_s1", "vision")


def make_cases(reference: Reference) -> list[Case]:
    """The encoder on the picture, all that follows it on features like the picture's."""
    picture = reference.case("picture", (IMAGE_ENCODER,), {"image": Made("picture")})
    features = {name: _like(picture.expected[name], seed) for seed, name in enumerate(_FEATURES, 1)}
    cases = [picture, *_picture_cases(reference, features)]
    if MEMORY_ATTENTION in reference.graphs:
        cases += _video_cases(reference, features)
    if MEMORY_ATTENTION_PRUNED in reference.graphs:
        cases += sparse_cases(reference, features, cases)
    return cases


def _like(values: NDArray[np.float32], seed: int, count: int = 1) -> Made:
    """Numbers that are spread as ``values``, for ``count`` objects."""
    shape = (count, *values.shape[1:])
    return Made("normal", seed=seed, shape=shape, low=_short(values.mean()), high=_short(values.std()))


def _short(number: np.floating) -> float:
    return float(f"{number:.3g}")


def _picture_cases(reference: Reference, features: Mapping[str, Made]) -> list[Case]:
    rng, frame, cases = reference.rng, reference.spec.frame, []
    seen = {name: features[name] for name in ("image_embed", "feat_s0", "feat_s1")}
    for count, points in _PROMPTS:
        inputs: Inputs = {**seen, **random_prompts(rng, frame, count, points)}
        cases.append(reference.case(f"{count}x{points}", (MASK_DECODER,), inputs))
    for count, points in _WITH_MASK:
        inputs = {**seen, **random_prompts(rng, frame, count, points), **random_masks(rng, frame, count)}
        cases.append(reference.case(f"{count}x{points} with mask", (MASK_DECODER_WITH_MASK,), inputs))
    click: Inputs = {"image": Made("picture"), **random_prompts(rng, frame, 1, 2)}
    cases.append(reference.case("picture and box", (IMAGE_ENCODER, MASK_DECODER), click))
    return cases


def _video_cases(reference: Reference, features: Mapping[str, Made]) -> list[Case]:
    rng, cases = reference.rng, []
    vision, shape = {"vision": features["vision"]}, features["image_embed"].shape[1:]
    fine = {name: features[name] for name in ("feat_s0", "feat_s1")}
    for count in _TRACKED:
        embed = Made("normal", seed=9, shape=(count, *shape), high=features["image_embed"].high)
        inputs: Inputs = {**fine, "image_embed": embed}
        cases.append(reference.case(_objects(count), (MASK_DECODER_TRACKED,), inputs))
    for count in (1, 4):
        inputs = {**vision, **_masks(reference, count)}
        cases.append(reference.case(_objects(count), (MEMORY_ENCODER,), inputs))
    memory = cases[-1].expected["memory"]
    spread = _short(memory.mean()), _short(memory.std() * _CALM)
    for count, memories, pointers in _HISTORIES:
        cells, width = shape[1] * shape[2], shape[0]
        inputs = {
            **vision,
            "memory": Made("normal", 10, shape=(count, memories, cells, MEMORY_WIDTH), low=spread[0], high=spread[1]),
            "pointers": Made("normal", seed=11, shape=(count, pointers, width)),
            **_slots(rng, count, memories, pointers),
        }
        cases.append(reference.case(f"{count} with {memories} and {pointers}", (MEMORY_ATTENTION,), inputs))
    return cases


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"


def _masks(reference: Reference, count: int) -> Tensors:
    """One of each kind in turn: from a prompt or tracked, present or absent."""
    mask = random_masks(reference.rng, reference.spec.frame, count)["mask_input"]
    number = np.arange(count)
    return {
        "mask_logits": mask,
        "binary": (number % 2).astype(np.float32),
        "object_present": (number % 4 < 2).astype(np.float32),
    }


def _slots(rng: np.random.Generator, count: int, memories: int, pointers: int) -> Tensors:
    """A frame with a prompt, then those before this one; the second object has known one frame less."""
    row = np.tile(np.array([6, *range(memories - 2, -1, -1)], np.float32), (count, 1))
    age = np.tile(np.array([pointers, *range(1, pointers)], np.float32), (count, 1)) / 15
    present = np.ones((count, pointers), np.float32)
    if count > 1:
        row[1:, -1], present[1:, -1] = -1, 0
    return {"memory_row": row, "pointer_age": age.round(4).clip(-1, 1), "pointer_present": present}
