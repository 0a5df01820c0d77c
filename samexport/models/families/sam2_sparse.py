"""Efficient-SAM2's graphs: the contracts of the encoder in three parts and of memory attention on kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from samexport.models.spec import Axis, GraphSpec, TensorSpec

ENCODER_STEM = "encoder_stem"
ENCODER_ROUTED = "encoder_routed"
ENCODER_TAIL = "encoder_tail"
MEMORY_ATTENTION_PRUNED = "memory_attention_pruned"
MASK_DECODER_SALIENT = "mask_decoder_salient"
SPARSE_GRAPHS = (ENCODER_STEM, ENCODER_ROUTED, ENCODER_TAIL, MEMORY_ATTENTION_PRUNED, MASK_DECODER_SALIENT)

CHOSEN = Axis("W", "windows", traced=3, usual=8, high=64)
KEPT = Axis("M", "kept", traced=6, usual=1020)


@dataclass(frozen=True)
class Cut:
    """How a model can be sparse.

    Attributes:
        window: side of the windows of the third stage, in tokens.
        width: channels there.
        layers: of the memory attention.
    """

    window: int
    width: int
    layers: int = 4


def sparse_graphs(dense: Sequence[GraphSpec], cut: Cut) -> tuple[GraphSpec, ...]:
    """The graphs that a model has besides its ``dense`` ones."""
    graphs = {graph.name: graph for graph in dense}
    return (
        *_encoder_graphs(graphs["image_encoder"], cut),
        _pruned(graphs["memory_attention"], cut),
        _salient(graphs["mask_decoder_tracked"]),
    )


def _tensors(graph: GraphSpec) -> dict[str, TensorSpec]:
    return {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}


def _encoder_graphs(encoder: GraphSpec, cut: Cut) -> tuple[GraphSpec, ...]:
    known = _tensors(encoder)
    grid = int(known["vision"].shape[-1])
    tokens, count = (cut.window**2, cut.width), (-(-grid // cut.window)) ** 2
    stem = (
        known["feat_s0"],
        known["feat_s1"],
        TensorSpec("windows", (count, *tokens), "all windows row by row; rows of it are routed"),
        TensorSpec("bypassed", (count, *tokens), "what the windows become that are not routed"),
    )
    chosen = [TensorSpec("chosen", ("W", *tokens), "rows of windows")]
    if grid % cut.window:
        chosen.append(TensorSpec("inside", ("W", tokens[0]), "1 where a token lies on the map, else 0", 0, 1))
    routed = TensorSpec("routed", ("W", *tokens), "to be put in the place of rows of bypassed")
    merged = TensorSpec("merged", (count, *tokens), "bypassed windows, those that were routed in their places")
    return (
        GraphSpec(ENCODER_STEM, "image to fine maps and windows; normalisation is inside", encoder.inputs, stem),
        GraphSpec(ENCODER_ROUTED, "blocks that only chosen windows go through", tuple(chosen), (routed,), (CHOSEN,)),
        GraphSpec(ENCODER_TAIL, "all windows to features", (merged,), (known["image_embed"], known["vision"])),
    )


def _pruned(attention: GraphSpec, cut: Cut) -> GraphSpec:
    known = _tensors(attention)
    memory, row = known["memory"], known["memory_row"]
    cells, width = memory.shape[2:]
    added = (
        replace(memory, name="newest", shape=("N", cells, width), meaning="memory of the frame before"),
        replace(memory, meaning="whole memories but the newest, cells row-major"),
        row,
        TensorSpec("kept", ("N", cut.layers, "M", width), "tokens of old memories, other ones for each layer"),
        TensorSpec("kept_cell", ("N", cut.layers, "M"), "their cells", 0, int(cells) - 1, dtype="int64"),
        replace(row, name="kept_row", shape=("N", "M"), meaning="their frames, as memory_row"),
    )
    vision, _, _, *pointers = attention.inputs
    saliency = TensorSpec("saliency", ("N", cut.layers, cells), "attention to newest in each layer, sums to 1")
    return GraphSpec(
        MEMORY_ATTENTION_PRUNED, "a frame as objects remember it, of old frames a few tokens",
        (vision, *added, *pointers), (*attention.outputs, saliency), (*attention.axes, KEPT),
    )  # fmt: skip


def _salient(tracked: GraphSpec) -> GraphSpec:
    grid = _tensors(tracked)["image_embed"].shape[-1]
    looked = TensorSpec("saliency", ("N", grid, grid), "where the decoder looked for the object; sums to 1")
    meaning = "masks without prompts, and where they were looked for"
    return replace(tracked, name=MASK_DECODER_SALIENT, meaning=meaning, outputs=(*tracked.outputs, looked))
