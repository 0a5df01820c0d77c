"""The graphs of each model family: every tensor name, shape, range and meaning is written here, once."""

from __future__ import annotations

from samexport.models.spec import Frame, GraphSpec, TensorSpec

LABELS = "1 inside, 0 outside, 2 and 3 box corners, -1 SAM's padding point, -2 absent slot"


def sam_graphs(frame: Frame, embed_dim: int = 256) -> tuple[GraphSpec, ...]:
    """The graphs of every model that shares SAM's decoder (SAM, MobileSAM, TinySAM, ...).

    Axes: N prompts, K points a prompt. ``decoder_prologue`` and ``decoder_step`` together are ``decoder``;
    the former depends on the image alone.
    """
    size, grid, low = frame.size, frame.grid, frame.low_res
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
    labels = TensorSpec("point_labels", ("N", "K"), LABELS, -2, 3)
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
        GraphSpec("decoder", "points and boxes to masks", (embeddings, coords, labels), (masks, scores)),
        GraphSpec(
            "decoder_with_mask",
            "points, boxes and an earlier mask to masks",
            (embeddings, coords, labels, *mask_prompt),
            (masks, scores),
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
        ),
    )
