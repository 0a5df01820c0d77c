"""EfficientSAM's family: stretched pictures, six points a prompt, no earlier masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samexport.models.families.base import Family
from samexport.models.spec import Axis, CheckpointSource, GraphSpec, ModelSpec, Preprocess, TensorSpec

SLOTS = 6
"""Points of a prompt; absent ones are (-1, -1) with label -1, and take part in the attention."""
ABSENT = -1
LABELS = "1 inside, 2 and 3 box corners, -1 absent"
_PROMPTS = Axis("N", "prompts", traced=3, usual=1)


@dataclass(frozen=True)
class EfficientSamSize:
    """Widths of the encoder, its heads, the embedding and the decoder's MLPs; number of blocks."""

    width: int
    depth: int = 12
    head: int = 64
    embed_dim: int = 256
    hidden: int = 2048


def _graphs(frame: Preprocess, width: int) -> tuple[GraphSpec, ...]:
    size, grid, low = frame.size, frame.grid, frame.low_res
    image = TensorSpec("image", (1, 3, size, size), f"RGB, stretched to {size}x{size}", 0, 255)
    embeddings = TensorSpec("image_embeddings", (1, width, grid, grid), "what the encoder saw, once per image")
    coords = TensorSpec("point_coords", ("N", SLOTS, 2), f"x, y in pixels of the {size} frame", -1, size - 1)
    labels = TensorSpec("point_labels", ("N", SLOTS), LABELS, ABSENT, 3)
    masks = TensorSpec("low_res_masks", ("N", 4, low, low), "logits, mask where >= 0", role="mask_logits")
    scores = TensorSpec("iou_predictions", ("N", 4), "predicted IoU of each mask", role="mask_scores")
    return (
        GraphSpec("encoder", "image to embedding; normalisation is inside", (image,), (embeddings,)),
        GraphSpec("decoder", "points and boxes to masks", (embeddings, coords, labels), (masks, scores), (_PROMPTS,)),
    )


def _model(name: str, summary: str, size: EfficientSamSize, frame: Preprocess, **others: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        summary=summary,
        size=size,
        frame=frame,
        graphs=_graphs(frame, size.embed_dim),
        licence="Apache-2.0",
        family="efficient_sam",
        mask_outputs=(1, 2, 3),
        gains=_GAINS,
        **others,
    )


# vectors of labels with a standard deviation of 1
_GAINS = (
    (r"prompt_encoder\.(invalid_points|point_embeddings|bbox_(top_left|bottom_right)_embeddings)\.weight$", 16.0),
)
_FULL = Preprocess(1024, resize="stretch", filter="bilinear_plain")
_FILES = "https://github.com/yformer/EfficientSAM/raw/main/weights"
_MODELS = (
    _model(
        "efficientsam.efficient_sam_ti",
        "EfficientSAM-Ti: ViT-Tiny encoder, a decoder of its own",
        EfficientSamSize(192),
        _FULL,
        parameters=10_223_204,
        source=CheckpointSource("efficient_sam_vitt.pt", f"{_FILES}/efficient_sam_vitt.pt", None),
        aliases=("efficientsam_ti", "efficient_sam_tiny", "efficient_vit_tiny"),
    ),
    _model(
        "efficientsam.efficient_sam_s",
        "EfficientSAM-S: ViT-Small encoder, a decoder of its own",
        EfficientSamSize(384),
        _FULL,
        parameters=26_413_028,
        source=CheckpointSource("efficient_sam_vits.pt.zip", f"{_FILES}/efficient_sam_vits.pt.zip", None),
        aliases=("efficientsam_s", "efficient_sam_vits", "efficient_sam_small"),
    ),
    _model(
        "test.efficientsam64",
        "efficientsam64, for tests; there are no trained weights",
        EfficientSamSize(32, 2, 16, 64, 128),
        Preprocess(64, resize="stretch", filter="bilinear_plain"),
        parameters=0,
        hidden=True,
    ),
)

FAMILY = Family(
    name="efficient_sam",
    models=_MODELS,
    graphs=lambda _: ("encoder", "decoder"),
    network="samexport.models.architectures.efficient_sam:empty",
    forms="samexport.models.graphs.efficient_sam:EXPORT",
    plain="samexport.models.graphs.efficient_sam:PLAIN",
    session="samexport.runtimes.families.efficient_sam:EfficientSamSession",
    cases="samexport.runtimes.families.efficient_sam:make_cases",
    encoder_parts=("image_encoder.",),
    card="samexport.exporter.deliver.efficient_sam_card:about",
)
