"""The maximum along an axis in a form whose shape every tool can tell.

From opset 18 on ReduceMax takes its axis as an input, and ONNX Runtime's ``symbolic_shape_infer`` (which runs before
quantization and TensorRT) does not look at it: it stops there. ArgMax has an attribute instead.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper, numpy_helper


def name_places(model: onnx.ModelProto) -> None:
    """Take each maximum along one axis from the place where it stands, in place; the numbers are the same."""
    constants = {weight.name: weight for weight in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMax" and len(node.input) > 1 else None
        keeps = all(a.i for a in node.attribute if a.name == "keepdims")
        if axes is None or list(axes.dims) != [1] or not keeps:
            nodes.append(node)
            continue
        axis, place = int(numpy_helper.to_array(axes)[0]), f"{node.output[0]}.place"
        source, out = node.input[0], node.output[0]
        nodes.append(helper.make_node("ArgMax", [source], [place], f"{node.name}.place", axis=axis, keepdims=1))
        nodes.append(helper.make_node("GatherElements", [source, place], [out], node.name, axis=axis))
    replaced = onnx.GraphProto()
    replaced.node.extend(nodes)
    model.graph.ClearField("node")
    model.graph.node.extend(replaced.node)
