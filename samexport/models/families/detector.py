"""Detectors that propose boxes: the graph beside a family's own, and those that there are."""

from __future__ import annotations

from samexport.errors import ConfigError
from samexport.models.spec import GraphSpec, SamplerSpec, TensorSpec

SAMPLER = "prompt_sampler"
_ARCH = "samexport.models.architectures"


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


SAMPLERS: dict[str, SamplerSpec] = {
    sampler.name: sampler
    for sampler in (
        SamplerSpec(
            name="object-aware",
            summary="MobileSAMv2's class-agnostic YOLOv8x",
            size=f"{_ARCH}.object_detector:DETECTOR_X",
            image_size=1024,
            # while training, an object is the target of ten cells; 300 boxes are kept in the end
            candidates=3000,
            licence="AGPL-3.0 (the weights, as their trainer's owner holds)",
        ),
        SamplerSpec(
            name="test",
            summary="the same network with a few channels, for tests",
            size=f"{_ARCH}.object_detector:DETECTOR_TEST",
            image_size=96,
            candidates=60,
            licence="Apache-2.0",
            score_gain=64.0,
            hidden=True,
        ),
    )
}


def find_sampler(name: str) -> SamplerSpec:
    """The detector called ``name``; ConfigError names those that there are."""
    if name not in SAMPLERS:
        known = ", ".join(s.name for s in SAMPLERS.values() if not s.hidden)
        raise ConfigError(f"no sampler is called {name!r}; an export knows: {known}")
    return SAMPLERS[name]
