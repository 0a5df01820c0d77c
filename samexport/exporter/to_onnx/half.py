"""An ONNX graph in fp16, with chosen nodes left in fp32 and casts exactly at the borders.

Written here because the converters of onnxruntime and onnxconverter-common produce invalid graphs for these
models (nodes out of order, two casts of one name).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

# In these the sum or the square of fp16 numbers overflows or loses the result.
KEEP_FLOAT = frozenset(
    {"LayerNormalization", "Softmax", "Exp", "ReduceSum", "ReduceMax", "ArgMax", "Div", "Sin", "Cos"}
)
_FP32, _FP16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)


class _Types:
    """Which type each tensor has so far, and the cast or converted weight that gives it another one."""

    def __init__(self, graph: GraphProto, floats: set[str]) -> None:
        self._floats = floats
        self._weights = {w.name: w for w in graph.initializer if w.name in floats}
        self._types = {i.name: _FP32 for i in graph.input}
        self._made: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.initializers = [w for w in graph.initializer if w.name not in floats]

    def read(self, name: str, kind: int) -> str:
        """Name of ``name`` as ``kind``; tensors that are not float are left alone."""
        if name not in self._floats or self._types.get(name) == kind:
            return name
        if (name, kind) not in self._made:
            new = self._made[name, kind] = f"{name}.{'fp16' if kind == _FP16 else 'fp32'}"
            if name in self._weights:
                value = numpy_helper.to_array(self._weights[name]).astype(np.float16 if kind == _FP16 else np.float32)
                self.initializers.append(numpy_helper.from_array(value, new))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], f"{new}.cast", to=kind))
        return self._made[name, kind]

    def write(self, name: str, kind: int) -> None:
        """``name`` is produced as ``kind``."""
        self._types[name] = kind


def to_half(model: ModelProto, wide: Collection[str] = ()) -> ModelProto:
    """A copy in fp16.

    Inputs and outputs of the graph, ``KEEP_FLOAT`` nodes, everything that leads to a sine or cosine (the
    encoding of coordinates) and everything after a TopK (coordinates of boxes) stay in fp32, and so do the nodes
    that make or read one of the tensors ``wide``, which half precision cannot hold.
    """
    half = ModelProto()
    half.CopyFrom(model)
    # says which tensors are float32
    del half.graph.value_info[:]
    floats = float_tensors(model)
    single = _single(model) | {node.name for node in touching(model, wide)}
    results = {o.name for o in model.graph.output} & floats
    types = _Types(model.graph, floats)
    for node in model.graph.node:
        keep = node.name in single
        kind = _FP32 if keep else _FP16
        copy = NodeProto()
        copy.CopyFrom(node)
        # all but the first input of a Resize are sizes, which stay fp32
        kinds = [_FP32 if node.op_type == "Resize" and place else kind for place in range(len(node.input))]
        copy.input[:] = [types.read(name, wanted) for name, wanted in zip(node.input, kinds, strict=True)]
        # a result of the graph keeps its name for the cast back to fp32
        copy.output[:] = [f"{name}.half" if name in results and not keep else name for name in node.output]
        types.nodes.append(copy)
        for name, made in zip(node.output, copy.output, strict=True):
            types.write(name, kind)
            if made != name:
                types.nodes.append(helper.make_node("Cast", [made], [name], f"{name}.cast", to=_FP32))
                types.write(name, _FP32)
    for field, values in ((half.graph.node, types.nodes), (half.graph.initializer, types.initializers)):
        del field[:]
        field.extend(values)
    return half


def kept_for(model: ModelProto, wide: Collection[str]) -> tuple[str, ...]:
    """The nodes of ``model`` that stay in fp32 because of the tensors ``wide`` alone: ``"Gelu node_gelu_3"``."""
    single = _single(model)
    return tuple(f"{node.op_type} {node.name}" for node in touching(model, wide) if node.name not in single)


def touching(model: ModelProto, tensors: Collection[str]) -> list[NodeProto]:
    """Nodes that make or read one of ``tensors``."""
    found = set(tensors)
    return [node for node in model.graph.node if found.intersection((*node.input, *node.output))]


def _single(model: ModelProto) -> set[str]:
    """Names of the nodes that are in fp32 whatever they compute."""
    kinds = {node.name for node in model.graph.node if node.op_type in KEEP_FLOAT}
    return kinds | _ancestors(model, {"Sin", "Cos"}) | _descendants(model, {"TopK"})


def float_tensors(model: ModelProto) -> set[str]:
    """Names of all fp32 tensors."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    named = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return named | {w.name for w in graph.initializer if w.data_type == TensorProto.FLOAT}


def _ancestors(model: ModelProto, kinds: set[str]) -> set[str]:
    """Names of the nodes that feed a node of one of ``kinds``, directly or not."""
    producer = {output: node for node in model.graph.node for output in node.output}
    waiting = [name for node in model.graph.node if node.op_type in kinds for name in node.input]
    found: set[str] = set()
    while waiting:
        node = producer.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found


def _descendants(model: ModelProto, kinds: set[str]) -> set[str]:
    """Names of the nodes of one of ``kinds``, and of those that one feeds, directly or not."""
    tensors: set[str] = set()
    found: set[str] = set()
    for node in model.graph.node:  # ONNX nodes are in the order of computing
        if node.op_type in kinds or tensors & set(node.input):
            found.add(node.name)
            tensors |= set(node.output)
    return found
