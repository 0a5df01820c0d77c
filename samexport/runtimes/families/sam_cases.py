"""What is compared of SAM: the picture, and prompts of all kinds around the sizes that exporters see."""

from __future__ import annotations

import numpy as np

from samexport.models.spec import Preprocess
from samexport.runtimes.base import Tensors
from samexport.runtimes.parity.golden import Case, Made, Reference

# (prompts N, points K) around what the exporter traces, N = 3, K = 2
PROMPT_COUNTS = ((1, 1), (1, 2), (3, 2), (7, 5), (64, 1))
MASK_PROMPT_COUNTS = ((1, 2), (4, 3), (3, 2))


def make_cases(reference: Reference) -> list[Case]:
    """The encoder on the picture, and seeded prompts in their declared ranges for what it makes of the picture."""
    rng, frame, graphs = reference.rng, reference.spec.frame, reference.graphs
    cases = [reference.case("picture", ("encoder",), {"image": Made("picture")})]
    embeddings = {name: cases[0].expected[name] for name in reference.spec.graph("encoder").output_names}
    decoder = ("decoder",) if "decoder" in graphs else ("decoder_prologue", "decoder_step")
    if "decoder_prologue" in graphs:
        names = reference.spec.graph("decoder_prologue").input_names
        cases.append(reference.case("picture", ("decoder_prologue",), {name: embeddings[name] for name in names}))
    for count, points in PROMPT_COUNTS:
        inputs = {**embeddings, **random_prompts(rng, frame, count, points)}
        cases.append(reference.case(f"{count}x{points}", decoder, inputs))
    for count, points in MASK_PROMPT_COUNTS if "decoder_with_mask" in graphs else ():
        inputs = {**embeddings, **random_prompts(rng, frame, count, points)}
        inputs |= random_masks(rng, frame, count)
        cases.append(reference.case(f"{count}x{points} with mask", ("decoder_with_mask",), inputs))
    return cases


def random_prompts(rng: np.random.Generator, frame: Preprocess, count: int, points: int) -> Tensors:
    """Valid ``point_coords`` [N, K, 2] and ``point_labels`` [N, K]: clicks, boxes, padding and absent slots."""
    coords = rng.uniform(0, frame.prompts - 1, (count, points, 2)).round(2).astype(np.float32)
    labels = rng.integers(0, 2, (count, points)).astype(np.float32)
    if points >= 2:
        labels[::3, -2:] = (2, 3)
        labels[1::3, -1] = -1
        labels[2::3, -1] = -2
    coords[labels < 0] = 0
    return {"point_coords": coords, "point_labels": labels}


def random_masks(rng: np.random.Generator, frame: Preprocess, count: int) -> Tensors:
    """``mask_input`` [N, 1, L, L]: discs with soft rims, and ``has_mask_input`` [N], every third one 0."""
    side = frame.low_res
    y, x = np.mgrid[0:side, 0:side] / side
    discs = [rng.uniform(0.1, 0.4) - np.hypot(x - cx, y - cy) for cx, cy in rng.uniform(0.2, 0.8, (count, 2))]
    logits = np.clip(np.round(np.stack(discs) * 120), -16, 16).astype(np.float32)
    return {"mask_input": logits[:, None], "has_mask_input": (np.arange(count) % 3 != 2).astype(np.float32)}
