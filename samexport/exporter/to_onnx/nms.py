"""Non-maximum suppression behind the sampler's top-K, as nodes of the ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from samexport.models.spec import GraphSpec


def append_nms(model: onnx.ModelProto, graph: GraphSpec, iou: float) -> None:
    """Let the graph return what NMS keeps of its candidates, in place.

    The outputs keep their names and have the fixed shapes of ``graph``: the boxes that stay, by falling score,
    then boxes and scores of 0. Running the host's NMS over them again changes nothing, so that a host need not
    know which form it has.

    Args:
        model: returns ``boxes`` [K, 4] and ``scores`` [K].
        graph: the contract with NMS; K of its outputs is the most that is kept.
        iou: of two boxes that overlap more than this, the one with the higher score stays.
    """
    boxes, scores = (spec.name for spec in graph.outputs)
    most = int(graph.outputs[1].shape[0])
    for node in model.graph.node:
        node.output[:] = [f"{name}.candidates" if name in (boxes, scores) else name for name in node.output]
        node.input[:] = [f"{name}.candidates" if name in (boxes, scores) else name for name in node.input]
    constants = {
        "nms.batch": np.array([0]), "nms.batch_and_class": np.array([0, 1]), "nms.most": np.array([most]),
        "nms.iou": np.array([iou], np.float32), "nms.box_column": np.array(2),
        "nms.no_boxes": np.zeros((most, 4), np.float32), "nms.no_scores": np.zeros(most, np.float32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        (
            _node("Unsqueeze", [f"{boxes}.candidates", "nms.batch"], "nms.boxes"),
            _node("Unsqueeze", [f"{scores}.candidates", "nms.batch_and_class"], "nms.scores"),
            _node("NonMaxSuppression", ["nms.boxes", "nms.scores", "nms.most", "nms.iou"], "nms.selected"),
            _node("Gather", ["nms.selected", "nms.box_column"], "nms.kept", axis=1),
            *_filled(boxes, "nms.no_boxes"),
            *_filled(scores, "nms.no_scores"),
        )
    )
    for value, spec in zip(model.graph.output, graph.outputs, strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            dimension.dim_value = size


def _filled(name: str, nothing: str) -> list[NodeProto]:
    """What is kept of ``name``, filled up with zeros."""
    return [
        _node("Gather", [f"{name}.candidates", "nms.kept"], f"{name}.kept", axis=0),
        _node("Concat", [f"{name}.kept", nothing], f"{name}.filled", axis=0),
        _node("Slice", [f"{name}.filled", "nms.batch", "nms.most"], name),
    ]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{output}.{kind}", **attributes)
