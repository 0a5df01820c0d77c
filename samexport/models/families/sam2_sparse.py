"""Efficient-SAM2's graphs: the contracts of the encoder in three parts and of memory attention on kept tokens."""

from __future__ import annotations

from typing import Protocol

from samexport.models.families.sam import PROMPTS
from samexport.models.families.sam2 import ABSENT_ROW, MEMORIES, MEMORY_WIDTH, POINTERS
from samexport.models.spec import Axis, GraphSpec, TensorSpec

MEMORY_LAYERS = 4
ENCODER_STEM = "encoder_stem"
ENCODER_ROUTED = "encoder_routed"
ENCODER_TAIL = "encoder_tail"
MEMORY_ATTENTION_PRUNED = "memory_attention_pruned"
SPARSE_GRAPHS = (ENCODER_STEM, ENCODER_ROUTED, ENCODER_TAIL, MEMORY_ATTENTION_PRUNED)

CHOSEN = Axis("W", "windows", traced=3, usual=8)
KEPT = Axis("M", "kept", traced=6, usual=1020)


class Cut(Protocol):
    """How the map of stride 16 is cut into windows: :class:`samexport.runtimes.host.windows.Windows`."""

    @property
    def grid(self) -> int:
        """Side of the map in tokens."""

    @property
    def window(self) -> int:
        """Side of a window in tokens."""

    @property
    def count(self) -> int:
        """How many there are."""


def sparse_graphs(size: int, width: int, trunk_width: int, cut: Cut) -> tuple[GraphSpec, ...]:
    """The graphs that a model has besides those of SAM 2.

    Args:
        size: side of the square input.
        width: channels of the embedding.
        trunk_width: of the trunk's third stage.
        cut: its windows.
    """
    return (*_encoder_graphs(size, width, trunk_width, cut), _pruned(size, width))


def _encoder_graphs(size: int, width: int, trunk_width: int, cut: Cut) -> tuple[GraphSpec, ...]:
    grid, tokens = cut.grid, (cut.window**2, trunk_width)
    image = TensorSpec("image", (1, 3, size, size), f"RGB, stretched to {size} x {size}, sides apart", 0, 255)
    stem = (
        TensorSpec("feat_s0", (1, width // 8, size // 4, size // 4), "stride 4"),
        TensorSpec("feat_s1", (1, width // 4, size // 8, size // 8), "stride 8"),
        TensorSpec("windows", (cut.count, *tokens), "all windows row by row; rows of it are routed"),
        TensorSpec("bypassed", (cut.count, *tokens), "what the windows become that are not routed"),
    )
    chosen = [TensorSpec("chosen", ("W", *tokens), "rows of windows")]
    if grid % cut.window:
        chosen.append(TensorSpec("inside", ("W", tokens[0]), "1 where a token lies on the map, else 0", 0, 1))
    routed = TensorSpec("routed", ("W", *tokens), "to be put in the place of rows of bypassed")
    merged = TensorSpec("merged", (cut.count, *tokens), "bypassed windows, those that were routed in their places")
    seen = (
        TensorSpec("image_embed", (1, width, grid, grid), "stride 16, with the embedding for no memory"),
        TensorSpec("vision", (1, width, grid, grid), "stride 16, as memories are made and read with"),
    )
    return (
        GraphSpec(ENCODER_STEM, "image to fine maps and windows; normalisation is inside", (image,), stem),
        GraphSpec(
            ENCODER_ROUTED, "the blocks that only chosen windows go through", tuple(chosen), (routed,), (CHOSEN,)
        ),
        GraphSpec(ENCODER_TAIL, "all windows to features", (merged,), seen),
    )


def _pruned(size: int, width: int) -> GraphSpec:
    grid = size // 16
    cells, layers = grid**2, MEMORY_LAYERS
    remembered = (
        TensorSpec("newest", ("N", cells, MEMORY_WIDTH), "memory of the frame before, cells row-major"),
        TensorSpec("memory", ("N", "F", cells, MEMORY_WIDTH), "whole memories, those of frames with prompts first"),
        TensorSpec(
            "memory_row",
            ("N", "F"),
            "frames ago minus 1, 6 for a frame with prompts, -1 absent slot",
            ABSENT_ROW,
            6,
            fill=ABSENT_ROW,
        ),
        TensorSpec("kept", ("N", layers, "M", MEMORY_WIDTH), "tokens of old memories, other ones for each layer"),
        TensorSpec("kept_cell", ("N", layers, "M"), "their cells", 0, cells - 1, dtype="int64"),
        TensorSpec("kept_row", ("N", "M"), "their frames, as memory_row", ABSENT_ROW, 6, fill=ABSENT_ROW),
        TensorSpec("pointers", ("N", "R", width), "object pointers"),
        TensorSpec("pointer_age", ("N", "R"), "frames ago as a share of 15, or of a shorter clip less one", -1, 1),
        TensorSpec("pointer_present", ("N", "R"), "1, or 0 for an absent slot", 0, 1),
    )
    outputs = (
        TensorSpec("image_embed", ("N", width, grid, grid), "what each object makes of this frame"),
        TensorSpec("saliency", ("N", layers, cells), "attention to newest, for each layer; the highest are kept later"),
    )
    vision = TensorSpec("vision", (1, width, grid, grid), "stride 16, of this frame")
    axes = (PROMPTS, MEMORIES, KEPT, POINTERS)
    return GraphSpec(
        MEMORY_ATTENTION_PRUNED, "a frame as objects remember it, a few tokens of old frames",
        (vision, *remembered), outputs, axes,
    )  # fmt: skip
