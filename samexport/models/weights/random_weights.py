"""Seeded random weights that any machine reproduces bit for bit, scaled so that activations stay realistic.

Every tensor has its own generator, seeded with its name. So a value depends on the seed, the key, the shape
and ``_RULES``, and never on the order of the keys or on which other keys there are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], NDArray[np.float64]]


def _normal(std: float, mean: float = 0.0) -> Draw:
    return lambda rng, shape: mean + std * rng.standard_normal(shape)


def _linear(gain: float, fan_in: Callable[[Shape], int] = lambda shape: math.prod(shape[1:])) -> Draw:
    """Normal with a std of gain / sqrt(fan_in), so that a layer scales its input by about ``gain``."""
    return lambda rng, shape: rng.standard_normal(shape) * (gain / math.sqrt(fan_in(shape)))


def _around_one(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    return rng.uniform(0.5, 1.5, shape)


def _zeros(_: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    return np.zeros(shape)


def _count(_: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    return np.arange(math.prod(shape), dtype=np.float64).reshape(shape)


def _box_bins(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    """Bias of the detector's distance bins, four sides in a row: near distances are likelier."""
    return 0.1 * rng.standard_normal(shape) - 0.3 * (np.arange(shape[0]) % (shape[0] // 4))


_RULES: tuple[tuple[str, int | None, Draw], ...] = (
    # end of the key, number of dimensions (None: any), value; the first match counts
    (r"(^|\.)num_batches_tracked", None, _zeros),
    (r"(^|\.)running_mean", None, _normal(0.1)),
    (r"(^|\.)(running_var|gamma)", None, _around_one),
    (r"dfl\.conv\.weight", None, _count),
    (r"(^|\.)attention_biases", None, _normal(0.5)),
    (r"(^|\.)positional_encoding_gaussian_matrix", None, _normal(1.0)),
    (r"(^|\.)rel_pos_[hw]", None, _normal(0.1)),
    (r"(^|\.)pos_embed(_window|ding)?", None, _normal(0.2)),
    (r"(_tokens?|_embed|(^|\.)point_embeddings\.\d+)\.weight", 2, _normal(1.0)),
    (r"(^|\.)(?!weight$|bias$)[^.]+", None, _normal(0.5)),
    (r"model\.22\.cv2\.\d+\.2\.bias", None, _box_bins),
    # predicted IoU between 0.3 and 1.2, and more background than foreground
    (r"iou_prediction_head\.layers\.2\.bias", None, _normal(0.1, 0.8)),
    (r"sam_mask_decoder\.output_hypernetworks_mlps\.\d+\.layers\.2\.bias", None, _normal(0.1, -0.2)),
    (r"output_hypernetworks_mlps\.\d+\.layers\.2\.bias", None, _normal(0.1, -0.5)),
    (r"(^|\.)bias", None, _normal(0.1)),
    (r"(^|\.)weight", 1, _around_one),
    # attention: logits with a std of a few units
    (r"\.(q_proj|k_proj|qkv)\.weight", None, _linear(1.5)),
    # TinyViT: layers that end in a residual sum, without an activation after them
    (r"(local_conv|conv3)\.c\.weight", None, _linear(0.8)),
    (r"\.mlp\.fc2\.weight", None, _linear(1.0)),
    (r"iou_prediction_head\.layers\.2\.weight", None, _linear(0.15)),
    (r"output_hypernetworks_mlps\.\d+\.layers\.2\.weight", None, _linear(3.0)),
    # SAM 2: embedding with a std of 1 to 3
    (r"image_encoder\.neck\.convs\.\d+\.conv\.weight", None, _linear(0.25)),
    # detector: residual branches, units, peaked distances, scores all over (0, 1)
    (r"model\.\d+\.m\.\d+\.cv2\.conv\.weight", None, _linear(0.6)),
    (r"model\.(\d+|22\..*)\.conv\.weight", None, _linear(1.6)),
    (r"model\.22\.cv2\.\d+\.2\.weight", None, _linear(0.5)),
    (r"model\.22\.cv3\.\d+\.2\.weight", None, _linear(0.3)),
    # transposed convolutions with kernel = stride: an output sees one pixel of each input channel
    (r"upscaling.*\.weight", 4, _linear(1.4, lambda shape: shape[0])),
    (r"", None, _linear(1.4)),
)
_COMPILED = tuple((re.compile(f"(?:{pattern})$"), rank, draw) for pattern, rank, draw in _RULES)


def _rule(key: str, rank: int) -> Draw:
    return next(draw for pattern, ranks, draw in _COMPILED if ranks in (None, rank) and pattern.search(key))


def random_state_dict(
    tensors: Mapping[str, tuple[Shape, str]], seed: int, gains: Sequence[tuple[str, float]] = ()
) -> dict[str, NDArray[Any]]:
    """A value for each tensor, given as {key: (shape, NumPy dtype name)} with its official state-dict key.

    Drawn in float64, then cast. The rule is the one of the project's golden vectors, which hold the outputs of
    the official code with these weights at seed 7; it also covers the keys of SAM 2 and of the detector.
    ``gains`` are regular expressions of weights with two or more dimensions whose gain is another one, the first
    match counts: residual branches without a normalisation behind them would grow beyond all bounds.
    """
    state: dict[str, NDArray[Any]] = {}
    for key, (shape, dtype) in tensors.items():
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        draw = _rule(key, len(shape))
        if len(shape) > 1 and key.endswith("weight"):
            draw = next((_linear(gain) for pattern, gain in gains if re.search(pattern, key)), draw)
        state[key] = np.asarray(draw(rng, tuple(shape))).astype(dtype)
    return state
