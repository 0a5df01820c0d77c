"""Detectors that propose boxes: the graph beside a family's own, and those that there are."""

from __future__ import annotations

from samexport.models.spec import GraphSpec, TensorSpec

SAMPLER = "prompt_sampler"


def sampler_graph(image_size: int, boxes: int, *, ranked: bool) -> GraphSpec:
    """The graph of an object detector that proposes boxes.

    Args:
        image_size: side of the square input.
        boxes: how many it returns.
        ranked: the best ones by falling score; else every box that the detector looks at, in a fixed order.
    """
    image = TensorSpec(
        "image",
        (1, 3, image_size, image_size),
        "picture scaled to the input's long side, grey bars (114) around it; BGR unless the manifest says RGB",
        0,
        255,
    )
    order = "by falling score" if ranked else "cell by cell, not sorted"
    corners = TensorSpec(
        "boxes",
        (boxes, 4),
        f"x0, y0, x1, y1 in pixels of the input, {order}",
        role="ranked_boxes" if ranked else "tensor",
    )
    scores = TensorSpec("scores", (boxes,), "0..1, of each box", role="ranked_scores" if ranked else "tensor")
    return GraphSpec(SAMPLER, "picture to candidate boxes; threshold and NMS come after", (image,), (corners, scores))
