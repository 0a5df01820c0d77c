"""Prompts as the tensors that SAM 2's decoders take. Numpy only.

Facts follow SAM 2's ``SAM2ImagePredictor`` and ``PromptEncoder`` (facebookresearch/sam2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.models.families.sam import ABSENT
from samexport.runtimes.host import sam_prompts
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, PADDING

CLAMP = 32.0
"""Logits of a mask prompt lie within it, either side of 0."""


def slots(prompt: Prompt) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Coordinates [S, 2] in the picture and labels [S]: the corners of the box, the points, one padding point.

    Unlike the first SAM's a box has the padding point too. Of a mask alone there is nothing.
    """
    if prompt.box is None and not len(prompt.points):
        return np.zeros((0, 2)), np.zeros(0, np.float32)
    corners = np.zeros((0, 2)) if prompt.box is None else prompt.box.reshape(2, 2)
    labels = [] if prompt.box is None else [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    coords = np.concatenate([corners, prompt.points, np.zeros((1, 2))])
    return coords, np.array([*labels, *prompt.labels, PADDING], np.float32)


def pack(prompts: Sequence[Prompt], place: FrameMap) -> sam_prompts.Tensors:
    """As :func:`samexport.runtimes.host.sam_prompts.pack`, with :func:`slots`; earlier masks are clamped."""
    packed = sam_prompts.pack(prompts, place, slots)
    if "mask_input" in packed:
        packed["mask_input"] = np.clip(packed["mask_input"], -CLAMP, CLAMP)
    return packed


def count_points(point_labels: NDArray[Any]) -> NDArray[np.int64]:
    """Points and corners [N] in the slots of each prompt [N, K], neither padding nor absent."""
    counts: NDArray[np.int64] = np.count_nonzero((point_labels != PADDING) & (point_labels != ABSENT), axis=-1)
    return counts
