"""HQ-SAM's family: SAM with a decoder of its own, which reads features of the encoder besides the embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from samexport.models.families.base import Family
from samexport.models.families.sam import SamSize, frame_at, graph_names, sam_graphs
from samexport.models.spec import CheckpointSource, GraphSpec, ModelSpec, Preprocess, TensorSpec

_ARCH = "samexport.models.architectures"
_GRAPHS = "samexport.models.graphs"


def _graphs(frame: Preprocess, width: int) -> tuple[GraphSpec, ...]:
    shape = (1, width // 8, 4 * frame.grid, 4 * frame.grid)
    return sam_graphs(
        frame, width, (TensorSpec("hq_features", shape, "for the masks of high quality, once per image"),)
    )


def _model(name: str, summary: str, encoder: str, graph: str, size: dict[str, Any], **others: Any) -> ModelSpec:
    frame = others.pop("frame", Preprocess(1024))
    sizes = SamSize(f"{_ARCH}.{encoder}", f"{_GRAPHS}.{graph}", **size)
    return ModelSpec(
        name=name, summary=summary, size=sizes, frame=frame, graphs=_graphs(frame, sizes.embed_dim), family="sam_hq",
        **others,
    )  # fmt: skip


def _official(filename: str) -> CheckpointSource:
    return CheckpointSource(filename, f"https://huggingface.co/lkeab/hq-sam/resolve/main/{filename}", None)


_LICENCE = "Apache-2.0 (code; nothing is said of the weights)"
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_MODELS = (
    _model(
        "hqsam.hq_tinyvit",
        "Light HQ-SAM: MobileSAM with a mask of high quality",
        "tiny_vit:tiny_vit_5m",
        "tiny_vit:TinyViTEncoder",
        {"early": 160, "any_size": True},
        parameters=10_578_604 - 321_640,
        licence=_LICENCE,
        source=_official("sam_hq_vit_tiny.pth"),
        aliases=("hq_sam_tiny", "hq_vit_tiny", "light_hqsam", "light_hq_sam", "sam_hq_tiny"),
        unread=_CLASSIFIER,
    ),
    _model(
        "hqsam.hq_vit_b",
        "HQ-SAM: SAM ViT-B with a mask of high quality",
        "sam_vit:vit_b",
        "sam_vit:SamViTEncoder",
        {"early": 768},
        parameters=94_806_576,
        licence=_LICENCE,
        source=_official("sam_hq_vit_b.pth"),
        aliases=("hq_sam_b", "sam_hq_b"),
    ),
    _model(
        "test.hq64",
        "hq64, for tests; there are no trained weights",
        "tiny_vit:tiny_vit_test",
        "tiny_vit:TinyViTEncoder",
        {"embed_dim": 64, "decoder_mlp_dim": 128, "early": 32, "any_size": True},
        frame=Preprocess(64),
        parameters=0,
        licence="Apache-2.0",
        unread=_CLASSIFIER,
        hidden=True,
    ),
)


def _at_size(spec: ModelSpec, size: int) -> ModelSpec:
    frame, numbers = frame_at(spec, size), spec.size
    return replace(spec, frame=frame, graphs=_graphs(frame, numbers.embed_dim))


FAMILY = Family(
    name="sam_hq",
    models=_MODELS,
    graphs=graph_names,
    features=("split-decoder", "small"),
    network=f"{_ARCH}.sam_hq:empty_hq_sam",
    forms=f"{_GRAPHS}.sam_hq:EXPORT",
    plain=f"{_GRAPHS}.sam_hq:PLAIN",
    equal={"decoder_step": "decoder"},
    at_size=_at_size,
    session="samexport.runtimes.families.sam:SamSession",
    cases="samexport.runtimes.families.sam_cases:make_cases",
    encoder_parts=("image_encoder.",),
    card="samexport.exporter.deliver.sam_card:about",
)
