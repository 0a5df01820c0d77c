"""The graphs of SAM and of all that share its decoder. Every name of a tensor is written here, once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from samexport.errors import ConfigError
from samexport.models.spec import Axis, GraphSpec, ModelSpec, Preprocess, TensorSpec

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
        any_size: no weights of the encoder depend on the size of the frame.
        same_grid: the same, and the embedding's grid does not either.
        decoder_eps: of the LayerNorms in the mask decoder's transformer.
        from_shapes: dotted path of a function from the spec and the shapes of a checkpoint's tensors to the network,
            where the widths are the checkpoint's own.
        early: channels of the early map that HQ-SAM's decoder reads.
    """

    image_encoder: str
    encoder_graph: str
    embed_dim: int = 256
    decoder_mlp_dim: int = 2048
    any_size: bool = False
    same_grid: bool = False
    decoder_eps: float = 1e-5
    early: int = 0
    from_shapes: str = ""


def sam_graphs(frame: Preprocess, embed_dim: int = 256, seen: tuple[TensorSpec, ...] = ()) -> tuple[GraphSpec, ...]:
    """The graphs of every model that shares SAM's decoder (SAM, MobileSAM, TinySAM, ...).

    Axes: N prompts, K points a prompt. ``decoder_prologue`` and ``decoder_step`` together are ``decoder``;
    the former depends on the image alone. ``seen`` is what the encoder gives and the decoders take besides the
    embedding.
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
    points = frame.prompts
    coords = TensorSpec("point_coords", ("N", "K", 2), f"x, y in pixels of the {points} frame", 0, points - 1)
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
        GraphSpec("encoder", "image to embedding; normalisation is inside", (image,), (embeddings, *seen)),
        GraphSpec("decoder", "points and boxes to masks", (embeddings, *seen, coords, labels), (masks, scores), axes),
        GraphSpec(
            "decoder_with_mask",
            "points, boxes and an earlier mask to masks",
            (embeddings, *seen, coords, labels, *mask_prompt),
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
            (*shared, *seen, coords, labels),
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


def graph_names(features: Collection[str]) -> tuple[str, ...]:
    """The graphs to export, in the order in which they run; "split-decoder" has the decoder in two halves."""
    decoder = ("decoder_prologue", "decoder_step") if "split-decoder" in features else ("decoder",)
    return ("encoder", *decoder, "decoder_with_mask")


def check_size(size: int, step: int = 32) -> None:
    """ConfigError unless a frame may have this side, a multiple of ``step``."""
    if size % step or not 64 <= size <= 2048:
        raise ConfigError(f"--image-size is a multiple of {step} from {max(64, step)} to 2048, not {size}")


def at_size(spec: ModelSpec, size: int) -> ModelSpec:
    """A model with a frame of another side; errors as :func:`frame_at`."""
    frame, numbers = frame_at(spec, size), spec.size
    return replace(spec, frame=frame, graphs=sam_graphs(frame, numbers.embed_dim))


def frame_at(spec: ModelSpec, size: int) -> Preprocess:
    """The frame with another side; ConfigError for a model whose weights hold positions, or cannot have this side."""
    own, numbers = spec.frame, spec.size
    if not numbers.any_size and not numbers.same_grid:
        raise ConfigError(
            f"{spec.name} takes pictures of {own.size} pixels: its weights hold their positions; leave --image-size out"
        )
    check_size(size, own.low_res if numbers.same_grid else 32)
    if numbers.same_grid:
        prompts = None if size == own.prompts else own.prompts
        return replace(own, size=size, stride=size // own.grid, mask_stride=size // own.low_res, prompt_size=prompts)
    return replace(own, size=size)
