"""SAM 2's graphs: every tensor name, shape, range and meaning, the modules behind them, and the constants beside them.

Axes: N prompts on one picture, or objects in a video; K points of a prompt; F memories and R pointers of an object.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from samexport.models.families.sam import ABSENT, LABELS, POINTS, PROMPTS, check_size
from samexport.models.families.sam2_sparse import (
    MEMORY_ATTENTION_PRUNED,
    SPARSE_FEATURES,
    WINDOW_GRAPHS,
    Cut,
    pruned_attention,
    window_graphs,
)
from samexport.models.spec import Axis, GraphSpec, ModelSpec, Preprocess, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from samexport.models.architectures.sam2 import Sam2

IMAGE_ENCODER = "image_encoder"
MASK_DECODER = "mask_decoder"
MASK_DECODER_WITH_MASK = "mask_decoder_with_mask"
MASK_DECODER_TRACKED = "mask_decoder_tracked"
MEMORY_ATTENTION = "memory_attention"
MEMORY_ENCODER = "memory_encoder"
IMAGE_GRAPHS = (IMAGE_ENCODER, MASK_DECODER, MASK_DECODER_WITH_MASK)
VIDEO_GRAPHS = (*IMAGE_GRAPHS, MASK_DECODER_TRACKED, MEMORY_ATTENTION, MEMORY_ENCODER)

MEMORY_WIDTH = 64
MEMORIES = Axis("F", "memories", traced=4, usual=7, high=64)
POINTERS = Axis("R", "pointers", traced=5, usual=16, high=80)
ABSENT_ROW = -1
"""``memory_row`` of a slot without a memory."""


def image_frame(size: int = 1024) -> Preprocess:
    """As the official image predictor stretches a picture."""
    return Preprocess(size, resize="stretch", filter="bilinear_float")


def video_frame(size: int = 1024) -> Preprocess:
    """As the official video predictor does."""
    return Preprocess(size, resize="stretch", filter="bicubic")


def sam2_graphs(image_size: int = 1024, width: int = 256) -> tuple[GraphSpec, ...]:
    """The graphs of every SAM 2 and 2.1 model, the first three of which are all that pictures need.

    Args:
        image_size: side of the square input, a multiple of 32.
        width: channels of the embedding and of object pointers.
    """
    return (*_image_graphs(image_size, width), *_video_graphs(image_size, width))


def _image_graphs(size: int, width: int) -> tuple[GraphSpec, ...]:
    frame = image_frame(size)
    image = TensorSpec("image", (1, 3, size, size), f"RGB, stretched to {size} x {size}, sides apart", 0, 255)
    seen = (
        TensorSpec("image_embed", (1, width, frame.grid, frame.grid), "stride 16, with the embedding for no memory"),
        TensorSpec("feat_s0", (1, width // 8, frame.low_res, frame.low_res), "stride 4"),
        TensorSpec("feat_s1", (1, width // 4, size // 8, size // 8), "stride 8"),
    )
    vision = TensorSpec("vision", (1, width, frame.grid, frame.grid), "stride 16, as memories are made and read with")
    points = (
        TensorSpec("point_coords", ("N", "K", 2), f"x, y in pixels of the {size} frame", 0, size - 1),
        TensorSpec("point_labels", ("N", "K"), LABELS, ABSENT, 3, fill=ABSENT),
    )
    mask_prompt = (
        TensorSpec("mask_input", ("N", 1, frame.low_res, frame.low_res), "logits of an earlier mask", -32, 32),
        TensorSpec("has_mask_input", ("N",), "1 where mask_input is to be used, else 0", 0, 1),
    )
    decoded, axes = _decoded(frame, width), (PROMPTS, POINTS)
    return (
        GraphSpec(IMAGE_ENCODER, "image to features; normalisation is inside", (image,), (*seen, vision)),
        GraphSpec(
            MASK_DECODER, "points and boxes to masks; a padding point ends each", (*seen, *points), decoded, axes
        ),
        GraphSpec(
            MASK_DECODER_WITH_MASK,
            "points, boxes and an earlier mask to masks",
            (*seen, *points, *mask_prompt),
            decoded,
            axes,
        ),
    )


def _decoded(frame: Preprocess, width: int) -> tuple[TensorSpec, ...]:
    low = frame.low_res
    return (
        TensorSpec(
            "low_res_masks",
            ("N", 4, low, low),
            "logits, mask where > 0; index 0 answers a clear prompt, 1..3 an ambiguous one",
            role="mask_logits",
        ),
        TensorSpec("iou_predictions", ("N", 4), "predicted IoU of each mask, 0..1", role="mask_scores"),
        TensorSpec("object_score", ("N", 1), "logit of the object being in the picture"),
        TensorSpec("object_pointers", ("N", 4, width), "of each mask, for later frames, if the object is there"),
    )


def _video_graphs(size: int, width: int) -> tuple[GraphSpec, ...]:
    frame = image_frame(size)
    grid, low, cells = frame.grid, frame.low_res, frame.grid**2
    vision = TensorSpec("vision", (1, width, grid, grid), "stride 16, of this frame")
    embedding = TensorSpec("image_embed", ("N", width, grid, grid), "what each object makes of this frame")
    features = (
        TensorSpec("feat_s0", (1, width // 8, low, low), "stride 4"),
        TensorSpec("feat_s1", (1, width // 4, size // 8, size // 8), "stride 8"),
    )
    remembered = (
        TensorSpec("memory", ("N", "F", cells, MEMORY_WIDTH), "memories, cells row-major"),
        TensorSpec(
            "memory_row",
            ("N", "F"),
            "frames ago minus 1, 6 for a frame with prompts, -1 absent slot",
            ABSENT_ROW,
            6,
            fill=ABSENT_ROW,
        ),
        TensorSpec("pointers", ("N", "R", width), "object pointers"),
        TensorSpec("pointer_age", ("N", "R"), "frames ago as a share of 15, or of a shorter clip less one", -1, 1),
        TensorSpec("pointer_present", ("N", "R"), "1, or 0 for an absent slot", 0, 1),
    )
    mask = (
        TensorSpec("mask_logits", ("N", 1, low, low), "of the chosen mask; -1024 where the object is absent", -32, 32),
        TensorSpec("binary", ("N",), "1 to forget how sure the mask is, for frames with prompts, else 0", 0, 1),
        TensorSpec("object_present", ("N",), "1 where object_score is above 0, else 0", 0, 1),
    )
    memory = TensorSpec("memory", ("N", cells, MEMORY_WIDTH), "to be kept in bfloat16, cells row-major")
    return (
        GraphSpec(
            MASK_DECODER_TRACKED, "masks without prompts", (embedding, *features), _decoded(frame, width), (PROMPTS,)
        ),
        GraphSpec(
            MEMORY_ATTENTION,
            "a frame as objects remember it",
            (vision, *remembered),
            (embedding,),
            (PROMPTS, MEMORIES, POINTERS),
        ),
        GraphSpec(MEMORY_ENCODER, "a frame and its masks to memories", (vision, *mask), (memory,), (PROMPTS,)),
    )


def fixed(graph: GraphSpec, sizes: Mapping[str, int]) -> GraphSpec:
    """The graph with numbers for some of its axes, for files of fixed sizes."""

    def of(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in tensor.shape))

    left = tuple(axis for axis in graph.axes if axis.name not in sizes)
    return replace(graph, inputs=tuple(map(of, graph.inputs)), outputs=tuple(map(of, graph.outputs)), axes=left)


def sam2_module(model: Sam2, graph: str) -> nn.Module:
    """The export form of one graph; KeyError for a name that is none of ``VIDEO_GRAPHS``."""
    from samexport.models.graphs.sam2 import FORMS

    return FORMS[graph](model).eval().requires_grad_(False)


def sam2_constants(model: Sam2) -> dict[str, NDArray[Any]]:
    """What a tracker needs besides the graphs.

    ``no_object_pointer`` [width] stands for an object that is not there; ``mask_downsample`` [4, 4] and its bias [1]
    make the prompt of a mask that was given.
    """
    conv = model.mask_downsample
    named = {
        "no_object_pointer": model.no_obj_ptr[0],
        "mask_downsample": conv.weight[0, 0],
        "mask_downsample_bias": conv.weight.new_zeros(1) if conv.bias is None else conv.bias,
    }
    return {name: value.detach().numpy().copy() for name, value in named.items()}


@dataclass(frozen=True)
class Sam2Numbers:
    """What tells one model's network from another's.

    Attributes:
        network: dotted path of the :class:`samexport.models.architectures.sam2.Sam2Size`; the frame has its side.
        width: channels of the embedding.
        layers: of the memory attention.
        version: 2.1, or 2.0, which neither marks memories without the object nor dates pointers.
        cut: of a model that can encode chosen windows.
    """

    network: str
    width: int = 256
    layers: int = 4
    version: str = "2.1"
    cut: Cut | None = None


def all_graphs(size: int, numbers: Sam2Numbers) -> tuple[GraphSpec, ...]:
    """The graphs of one model: those of every SAM 2, and what it has for leaving out windows and memories."""
    dense = sam2_graphs(size, numbers.width)
    attention = next(graph for graph in dense if graph.name == MEMORY_ATTENTION)
    windows = () if numbers.cut is None else window_graphs(dense, numbers.cut)
    return (*dense, pruned_attention(attention, numbers.layers), *windows)


def graph_names(features: Collection[str]) -> tuple[str, ...]:
    """Those to export for some features, where the model has them."""
    if set(SPARSE_FEATURES) & set(features):
        return (*VIDEO_GRAPHS, MEMORY_ATTENTION_PRUNED, *WINDOW_GRAPHS)
    return VIDEO_GRAPHS if "video" in features else IMAGE_GRAPHS


def at_size(spec: ModelSpec, size: int) -> ModelSpec:
    """A model with a frame of another side: positions are derived anew, weights stay as they are."""
    check_size(size)
    return replace(spec, frame=replace(spec.frame, size=size), graphs=all_graphs(size, spec.size))
