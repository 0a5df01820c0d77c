"""SAM and all that share its decoder: graphs, models, and how they go together. Every name is written here, once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from samexport.models.families.base import Family
from samexport.models.spec import Axis, CheckpointSource, GraphSpec, ModelSpec, Preprocess, TensorSpec

LABELS = "1 inside, 0 outside, 2 and 3 box corners, -1 SAM's padding point, -2 absent slot"


PROMPTS = Axis("N", "prompts", traced=3, usual=1)
POINTS = Axis("K", "points", traced=2, usual=2)
ABSENT = -2
"""Label of a slot without a point: exactly neutral, so prompts with different numbers of points share a batch."""


@dataclass(frozen=True)
class SamSize:
    """What tells one model's network from another's.

    Attributes:
        image_encoder: dotted path of a function without arguments that builds the encoder.
        encoder_graph: dotted path of its export form, a class that takes the encoder and the frame.
        embed_dim: channels of the embedding.
        decoder_mlp_dim: width of the MLPs in the mask decoder.
    """

    image_encoder: str
    encoder_graph: str
    embed_dim: int = 256
    decoder_mlp_dim: int = 2048


def sam_graphs(frame: Preprocess, embed_dim: int = 256) -> tuple[GraphSpec, ...]:
    """The graphs of every model that shares SAM's decoder (SAM, MobileSAM, TinySAM, ...).

    Axes: N prompts, K points a prompt. ``decoder_prologue`` and ``decoder_step`` together are ``decoder``;
    the former depends on the image alone.
    """
    size, grid, low = frame.size, frame.grid, frame.low_res
    axes = (PROMPTS, POINTS)
    cells, half = grid * grid, embed_dim // 2
    image = TensorSpec(
        "image",
        (1, 3, size, size),
        f"RGB, long side {size}, padded right and bottom with the pixel mean",
        0,
        255,
    )
    embeddings = TensorSpec("image_embeddings", (1, embed_dim, grid, grid), "what the encoder saw, once per image")
    coords = TensorSpec("point_coords", ("N", "K", 2), f"x, y in pixels of the {size} frame", 0, size - 1)
    labels = TensorSpec("point_labels", ("N", "K"), LABELS, ABSENT, 3, fill=ABSENT)
    masks = TensorSpec(
        "low_res_masks",
        ("N", 4, low, low),
        "logits, mask where > 0; index 0 answers a clear prompt, 1..3 an ambiguous one",
        role="mask_logits",
    )
    scores = TensorSpec("iou_predictions", ("N", 4), "predicted IoU of each mask; may exceed 1", role="mask_scores")
    mask_prompt = (
        TensorSpec("mask_input", ("N", 1, low, low), "logits of an earlier low_res_masks", -32, 32),
        TensorSpec("has_mask_input", ("N",), "1 where mask_input is to be used, else 0", 0, 1),
    )
    first = "of the decoder's first block, heads x width by cells"
    shared = (
        TensorSpec("image_tokens", (cells, embed_dim), "embedding plus the no-mask embedding, cells row-major"),
        TensorSpec("image_keys", (half, cells), f"keys {first}"),
        TensorSpec("image_values", (half, cells), f"values {first}"),
        TensorSpec("image_queries", (half, cells), f"scaled queries {first}"),
    )
    return (
        GraphSpec("encoder", "image to embedding; normalisation is inside", (image,), (embeddings,)),
        GraphSpec("decoder", "points and boxes to masks", (embeddings, coords, labels), (masks, scores), axes),
        GraphSpec(
            "decoder_with_mask",
            "points, boxes and an earlier mask to masks",
            (embeddings, coords, labels, *mask_prompt),
            (masks, scores),
            axes,
        ),
        GraphSpec(
            "decoder_prologue",
            "the part of the decoder that depends on the image alone",
            (embeddings,),
            shared,
        ),
        GraphSpec(
            "decoder_step",
            "the part of the decoder for each prompt",
            (*shared, coords, labels),
            (masks, scores),
            axes,
        ),
    )


def with_axes(graph: GraphSpec) -> GraphSpec:
    """A graph of a manifest that was written before graphs said what their axes are; N and K meant the same then."""
    if graph.axes or set(graph.named_sizes) != {PROMPTS.name, POINTS.name}:
        return graph
    inputs = tuple(replace(t, fill=ABSENT) if t.name == "point_labels" else t for t in graph.inputs)
    return replace(graph, inputs=inputs, axes=(PROMPTS, POINTS))


def _graph_names(features: Collection[str]) -> tuple[str, ...]:
    decoder = ("decoder_prologue", "decoder_step") if "split-decoder" in features else ("decoder",)
    return ("encoder", *decoder, "decoder_with_mask")


_ARCH = "samexport.models.architectures"
_GRAPHS = "samexport.models.graphs"
# TinyViT's classifier
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_FULL = Preprocess(1024)
_TINY = Preprocess(64)


def _sam_vit(size: str, word: str, parameters: int, filename: str, sha256: str) -> ModelSpec:
    return ModelSpec(
        name=f"sam.vit_{size}",
        summary=f"Segment Anything with its ViT-{size.upper()} encoder",
        size=SamSize(f"{_ARCH}.sam_vit:vit_{size}", f"{_GRAPHS}.sam_vit:SamViTEncoder"),
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=parameters,
        licence="Apache-2.0",
        source=CheckpointSource(filename, f"https://dl.fbaipublicfiles.com/segment_anything/{filename}", sha256),
        aliases=(f"sam_vit_{size}", f"sam_{size}", f"vit{size}", f"sam_{word}", f"facebook/sam-vit-{word}"),
    )


_MODELS = (
    ModelSpec(
        name="mobilesam.tinyvit",
        summary="MobileSAM: TinyViT-5M encoder, SAM ViT-H's decoder",
        size=SamSize(f"{_ARCH}.tiny_vit:tiny_vit_5m", f"{_GRAPHS}.tiny_vit:TinyViTEncoder"),
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=9_808_452,
        licence="Apache-2.0",
        source=CheckpointSource(
            "mobile_sam.pt",
            "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        aliases=("vit_t", "sam_vit_t", "vitt", "mobilesam", "mobile_sam", "tiny_vit", "sam_t"),
        unread=_CLASSIFIER,
        demo=("demo.0.safetensors", "demo.1.safetensors"),
    ),
    ModelSpec(
        name="tinysam.tinysam",
        summary="TinySAM: the same network as MobileSAM, distilled further",
        size=SamSize(f"{_ARCH}.tiny_vit:tiny_vit_5m", f"{_GRAPHS}.tiny_vit:TinyViTEncoder"),
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=9_808_452,
        licence="Apache-2.0",
        source=CheckpointSource(
            "tinysam_42.3.pth",
            "https://github.com/xinghaochen/TinySAM/releases/download/3.0/tinysam_42.3.pth",
            None,
        ),
        mask_outputs=(1, 2, 3),
        aliases=("tiny_sam",),
        unread=_CLASSIFIER,
    ),
    _sam_vit(
        "b",
        "base",
        93_735_472,
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam_vit(
        "l",
        "large",
        312_342_832,
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam_vit(
        "h",
        "huge",
        641_090_608,
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    ModelSpec(
        name="test.tinyvit64",
        summary="a 64-pixel TinyViT for tests; there are no trained weights",
        unread=_CLASSIFIER,
        size=SamSize(f"{_ARCH}.tiny_vit:tiny_vit_test", f"{_GRAPHS}.tiny_vit:TinyViTEncoder", 64, 128),
        frame=_TINY,
        graphs=sam_graphs(_TINY, embed_dim=64),
        parameters=0,
        licence="Apache-2.0",
        hidden=True,
    ),
    ModelSpec(
        name="test.vit64",
        summary="a 64-pixel SAM ViT for tests; there are no trained weights",
        size=SamSize(f"{_ARCH}.sam_vit:vit_test", f"{_GRAPHS}.sam_vit:SamViTEncoder", 64, 128),
        frame=_TINY,
        graphs=sam_graphs(_TINY, embed_dim=64),
        parameters=0,
        licence="Apache-2.0",
        hidden=True,
    ),
)

FAMILY = Family(
    name="sam",
    models=_MODELS,
    graphs=_graph_names,
    features=("split-decoder", "small"),
    network=f"{_ARCH}.sam:empty_sam",
    forms=f"{_GRAPHS}.sam:EXPORT",
    plain=f"{_GRAPHS}.sam:PLAIN",
    equal={"decoder_step": "decoder"},
    session="samexport.runtimes.families.sam:SamSession",
    cases="samexport.runtimes.families.sam_cases:make_cases",
    encoder_parts=("image_encoder.",),
    dialects=("samexport.models.weights.layouts:transformers",),
    card="samexport.exporter.deliver.sam_card:about",
    extras={"coreml": "samexport.exporter.deliver.sam_swift:files"},
    consumers="samexport.exporter.deliver.sam_consumers:PROFILES",
)
