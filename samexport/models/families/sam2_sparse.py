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
WINDOW_GRAPHS = (ENCODER_STEM, ENCODER_ROUTED, ENCODER_TAIL, MASK_DECODER_SALIENT)
"""What encodes chosen windows; it needs a bypass for the others."""

SPARSE_FEATURES = ("sparse", "sparse-adapter", "sparse-shortcut")
"""Sparse as far as weights were published; with a bypass of one's own; without one, which nobody trained."""

KEPT_SHARE, OLD_FRAMES = 0.05, 5
"""How many of its tokens are read of each of so many old memories."""

CHOSEN = Axis("W", "windows", traced=3, usual=8)
KEPT = Axis("M", "kept", traced=6, usual=1020)
LEAST_KEPT = 64
"""Room in files of fixed sizes for the tokens of small maps, of which 0.05 is next to nothing."""


@dataclass(frozen=True)
class Cut:
    """How a model encodes chosen windows.

    Attributes:
        window: side of the windows of the third stage, in tokens.
        width: channels there.
        bypass: whether there is a bottleneck for windows that are not chosen; else they go on as they are.
    """

    window: int
    width: int
    bypass: bool = True


def window_graphs(dense: Sequence[GraphSpec], cut: Cut) -> tuple[GraphSpec, ...]:
    """The graphs for chosen windows of a model with these ``dense`` ones."""
    graphs = {graph.name: graph for graph in dense}
    return (*_encoder_graphs(graphs["image_encoder"], cut), _salient(graphs["mask_decoder_tracked"]))


def kept_tokens(cells: int, share: float = KEPT_SHARE) -> int:
    """How many tokens of an old memory are kept, at least one; as the official code rounds: 204 of 4096."""
    return max(1, int(cells * (1 - (1 - share))))


def _tensors(graph: GraphSpec) -> dict[str, TensorSpec]:
    return {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}


def _encoder_graphs(encoder: GraphSpec, cut: Cut) -> tuple[GraphSpec, ...]:
    known = _tensors(encoder)
    grid = int(known["vision"].shape[-1])
    tokens, count = (cut.window**2, cut.width), (-(-grid // cut.window)) ** 2
    passed = "bypassed" if cut.bypass else "windows"
    stem = (
        known["feat_s0"],
        known["feat_s1"],
        TensorSpec("windows", (count, *tokens), "all windows row by row; rows of it are routed"),
        TensorSpec("bypassed", (count, *tokens), "what the windows become that are not routed"),
    )
    chosen = (
        TensorSpec("chosen", ("W", *tokens), "rows of windows"),
        TensorSpec("inside", ("W", tokens[0]), "1 where a token lies on the map, else 0; all 0 for no window", 0, 1),
    )
    routed = TensorSpec("routed", ("W", *tokens), f"to be put in the place of rows of {passed}")
    merged = TensorSpec("merged", (count, *tokens), f"{passed}, those that were routed in their places")
    axes = (replace(CHOSEN, usual=min(CHOSEN.usual, count), high=count),)
    return (
        GraphSpec(
            ENCODER_STEM,
            "image to fine maps and windows; normalisation is inside",
            encoder.inputs,
            stem if cut.bypass else stem[:-1],
        ),
        GraphSpec(ENCODER_ROUTED, "blocks that only chosen windows go through", chosen, (routed,), axes),
        GraphSpec(ENCODER_TAIL, "all windows to features", (merged,), (known["image_embed"], known["vision"])),
    )


def pruned_attention(attention: GraphSpec, layers: int) -> GraphSpec:
    """The memory attention that of old memories reads the tokens that were kept; it needs no weights of its own."""
    known = _tensors(attention)
    memory, row = known["memory"], known["memory_row"]
    cells, width = memory.shape[2:]
    added = (
        replace(memory, name="newest", shape=("N", cells, width), meaning="memory of the frame before"),
        replace(memory, meaning="whole memories but the newest, cells row-major"),
        row,
        TensorSpec("kept", ("N", layers, "M", width), "tokens of old memories, other ones for each layer"),
        TensorSpec("kept_cell", ("N", layers, "M"), "their cells", 0, int(cells) - 1, dtype="int64"),
        replace(row, name="kept_row", shape=("N", "M"), meaning="their frames, as memory_row"),
    )
    vision, _, _, *pointers = attention.inputs
    saliency = TensorSpec("saliency", ("N", layers, cells), "attention to newest in each layer, sums to 1")
    return GraphSpec(
        MEMORY_ATTENTION_PRUNED, "a frame as objects remember it, of old frames a few tokens",
        (vision, *added, *pointers), (*attention.outputs, saliency),
        (*attention.axes, replace(KEPT, usual=max(LEAST_KEPT, OLD_FRAMES * kept_tokens(int(cells))))),
    )  # fmt: skip


def _salient(tracked: GraphSpec) -> GraphSpec:
    grid = _tensors(tracked)["image_embed"].shape[-1]
    looked = TensorSpec("saliency", ("N", grid, grid), "where the decoder looked for the object; sums to 1")
    meaning = "masks without prompts, and where they were looked for"
    return replace(tracked, name=MASK_DECODER_SALIENT, meaning=meaning, outputs=(*tracked.outputs, looked))
