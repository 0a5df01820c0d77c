"""Small rewrites of a converted .tflite, for what the converter decides alone.

- A product of two computed tensors that the converter made FULLY_CONNECTED (it does so for one prompt) becomes
  BATCH_MATMUL again: XNNPACK has no FULLY_CONNECTED with computed weights, the plain kernel is 8 times slower.
- Elementwise operations and PAD get four dimensions where fewer mean something else on a GPU. Delegates hold
  every tensor as batch, height, width, channels; some constants broadcast there differently than on the CPU, and
  PAD takes the wrong axes, both without an error (rules and how they were found: ``tflite_lint``).
- RESHAPE after RESHAPE and SLICE after SLICE are one; what nobody reads is removed.

Objects are those of LiteRT's generated schema (``ModelT`` and its parts), which carry no types.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from samexport.runtimes.tflite_file import constant_bytes, shape_of
from samexport.runtimes.tflite_lint import ELEMENTWISE, broadcasts_on_gpu, operator_kind, pads_on_gpu

Shape = tuple[int, ...]
_INT32 = 2
_RANK = 4


class Graph:
    """One subgraph of a model, with what rewrites need: look up, add a tensor, an operation."""

    def __init__(self, model: Any, subgraph: Any) -> None:
        self.model, self.subgraph = model, subgraph

    def kind(self, operator: Any) -> str:
        """Builtin name, ``"ADD"``."""
        return operator_kind(self.model, operator)

    def shape(self, index: int) -> Shape:
        """Sizes of a tensor."""
        return shape_of(self.subgraph.tensors[index])

    def is_constant(self, index: int) -> bool:
        """Whether the tensor's data is in the file."""
        return constant_bytes(self.model, self.subgraph.tensors[index]) is not None

    def integers(self, index: int) -> list[int]:
        """Values of a constant int32 tensor."""
        data = constant_bytes(self.model, self.subgraph.tensors[index])
        return [] if data is None else np.frombuffer(data.tobytes(), np.int32).tolist()

    def producers(self) -> dict[int, Any]:
        """Tensor to the operation that computes it."""
        return {int(t): operator for operator in self.subgraph.operators for t in operator.outputs}

    def uses(self) -> Counter[int]:
        """How often each tensor is read; an output of the graph counts once."""
        read = [int(t) for operator in self.subgraph.operators for t in operator.inputs]
        return Counter([*read, *(int(t) for t in self.subgraph.outputs)])

    def tensor_like(self, index: int, shape: Shape) -> int:
        """A new tensor of another shape; of a constant it shares the data."""
        tensor = copy.copy(self.subgraph.tensors[index])
        tensor.shape = np.array(shape, np.int32)
        tensor.shapeSignature = None
        if not self.is_constant(index):
            tensor.buffer = 0
        tensor.name = tensor.name + b"/" + "x".join(map(str, shape)).encode()
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def integer_constant(self, values: Sequence[int], shape: Shape | None = None) -> int:
        """A new constant int32 tensor, a vector unless ``shape`` says otherwise."""
        from ai_edge_litert import schema_py_generated as schema

        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(np.array(values, np.int32).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.type, tensor.buffer = b"sizes", _INT32, len(self.model.buffers) - 1
        tensor.shape = np.array(shape or [len(values)], np.int32)
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def code(self, name: str) -> int:
        """The model's index of an operator code, added if it has none."""
        from ai_edge_litert import schema_py_generated as schema

        wanted = getattr(schema.BuiltinOperator, name)
        for index, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == wanted:
                return index
        added = schema.OperatorCodeT()
        added.builtinCode, added.deprecatedBuiltinCode, added.version = wanted, min(wanted, 127), 1
        self.model.operatorCodes.append(added)
        return len(self.model.operatorCodes) - 1

    def reshape(self, source: int, target: int) -> Any:
        """An operation that gives ``source`` the shape of ``target``."""
        from ai_edge_litert import schema_py_generated as schema

        sizes = self.shape(target)
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(sizes, np.int32)
        inputs = [source, self.integer_constant(sizes)]
        return self.operator("RESHAPE", schema.BuiltinOptions.ReshapeOptions, options, inputs, [target])

    def operator(self, name: str, kind: int, options: Any, inputs: list[int], outputs: list[int]) -> Any:
        """A new operation, in no list yet."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.OperatorT()
        made.opcodeIndex, made.builtinOptionsType, made.builtinOptions = self.code(name), kind, options
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        return made


def improve(model: Any) -> None:
    """Apply every rewrite to every subgraph of ``ModelT``, in place."""
    for subgraph in model.subgraphs:
        graph = Graph(model, subgraph)
        subgraph.operators = [new for old in subgraph.operators for new in _computed_product(graph, old)]
        subgraph.operators = [new for old in subgraph.operators for new in _four_dimensional(graph, old)]
        _merge_chains(graph)
        _drop_unread(graph)
    _drop_unused_data(model)


def _computed_product(graph: Graph, operator: Any) -> Iterator[Any]:
    """FULLY_CONNECTED with computed weights [out, in] as a batch product of one."""
    from ai_edge_litert import schema_py_generated as schema

    inputs = [int(t) for t in operator.inputs]
    plain = graph.kind(operator) == "FULLY_CONNECTED" and not any(t >= 0 for t in inputs[2:])
    if not plain or graph.is_constant(inputs[1]) or operator.builtinOptions.fusedActivationFunction:
        yield operator
        return
    rows, weights, out = graph.shape(inputs[0]), graph.shape(inputs[1]), int(operator.outputs[0])
    left = graph.tensor_like(inputs[0], (1, int(np.prod(rows[:-1])), rows[-1]))
    right = graph.tensor_like(inputs[1], (1, *weights))
    product = graph.tensor_like(out, (1, int(np.prod(rows[:-1])), weights[0]))
    options = schema.BatchMatMulOptionsT()
    options.adjY = True
    yield graph.reshape(inputs[0], left)
    yield graph.reshape(inputs[1], right)
    kind = schema.BuiltinOptions.BatchMatMulOptions
    yield graph.operator("BATCH_MATMUL", kind, options, [left, right], [product])
    yield graph.reshape(product, out)


def _four_dimensional(graph: Graph, operator: Any) -> Iterator[Any]:
    """Lift an elementwise operation or a PAD to four dimensions, where a GPU would get fewer wrong."""
    inputs, out = [int(t) for t in operator.inputs], int(operator.outputs[0])
    if not _lifts(graph, operator):
        yield operator
        return
    kind, lifted = graph.kind(operator), []
    for place, index in enumerate(inputs):
        shape = graph.shape(index)
        if kind == "PAD" and place == 1:
            pads = [0] * (2 * (_RANK - shape[0])) + graph.integers(index)
            lifted.append(graph.integer_constant(pads, (_RANK, 2)))
        elif len(shape) in (0, _RANK):
            lifted.append(index)
        else:
            lifted.append(graph.tensor_like(index, _lifted(shape)))
            if not graph.is_constant(index):
                yield graph.reshape(index, lifted[-1])
    shape = graph.shape(out)
    result = out if len(shape) == _RANK else graph.tensor_like(out, _lifted(shape))
    operator.inputs, operator.outputs = np.array(lifted, np.int32), np.array([result], np.int32)
    yield operator
    if result != out:
        yield graph.reshape(result, out)


def _lifts(graph: Graph, operator: Any) -> bool:
    kind, inputs = graph.kind(operator), [int(t) for t in operator.inputs]
    shapes, out = [graph.shape(t) for t in inputs], graph.shape(int(operator.outputs[0]))
    if kind == "PAD":
        return len(out) < _RANK and not pads_on_gpu(shapes[0], out)
    return kind in ELEMENTWISE and not broadcasts_on_gpu(shapes, [graph.is_constant(t) for t in inputs], out)


def _lifted(shape: Shape) -> Shape:
    return (1,) * (_RANK - len(shape)) + shape


def _merge_chains(graph: Graph) -> None:
    """RESHAPE of RESHAPE, SLICE of SLICE, and RESHAPE to the same shape."""
    producers, outputs = graph.producers(), {int(t) for t in graph.subgraph.outputs}
    same: dict[int, int] = {}
    for operator in graph.subgraph.operators:
        operator.inputs = np.array([same.get(int(t), int(t)) for t in operator.inputs], np.int32)
        before = producers.get(int(operator.inputs[0])) if len(operator.inputs) else None
        kind, out = graph.kind(operator), int(operator.outputs[0])
        if before is not None and kind == graph.kind(before) == "SLICE":
            starts = [graph.integers(int(o.inputs[1])) for o in (before, operator)]
            total = [a + b for a, b in zip(*starts, strict=True)]
            operator.inputs[1] = graph.integer_constant(total)
            operator.inputs[0] = before.inputs[0]
        if before is not None and kind == graph.kind(before) == "RESHAPE":
            operator.inputs[0] = before.inputs[0]
        source = int(operator.inputs[0]) if len(operator.inputs) else -1
        if kind == "RESHAPE" and out not in outputs and graph.shape(source) == graph.shape(out):
            same[out] = source


def _drop_unread(graph: Graph) -> None:
    """Remove operations whose results nobody reads, then tensors that no operation touches."""
    subgraph, uses = graph.subgraph, graph.uses()
    kept = []
    for operator in reversed(subgraph.operators):
        if any(uses[int(t)] for t in operator.outputs):
            kept.append(operator)
        else:
            uses.subtract(int(t) for t in operator.inputs)
    subgraph.operators = kept[::-1]
    touched = {int(t) for o in kept for t in (*o.inputs, *o.outputs) if t >= 0}
    touched |= {int(t) for t in (*subgraph.inputs, *subgraph.outputs)}
    place = {old: new for new, old in enumerate(sorted(touched))}
    subgraph.tensors = [subgraph.tensors[old] for old in place]
    for operator in kept:
        operator.inputs = np.array([place.get(int(t), -1) for t in operator.inputs], np.int32)
        operator.outputs = np.array([place[int(t)] for t in operator.outputs], np.int32)
    subgraph.inputs = np.array([place[int(t)] for t in subgraph.inputs], np.int32)
    subgraph.outputs = np.array([place[int(t)] for t in subgraph.outputs], np.int32)
    number = next(i for i, s in enumerate(graph.model.subgraphs) if s is subgraph)
    for signature in graph.model.signatureDefs or ():
        if signature.subgraphIndex == number:
            for tensor in (*signature.inputs, *signature.outputs):
                tensor.tensorIndex = place[tensor.tensorIndex]


def _drop_unused_data(model: Any) -> None:
    """Renumber the buffers: buffer 0 stays empty, equal data is stored once."""
    kept: list[Any] = [model.buffers[0]]
    places: dict[bytes, int] = {}
    for tensor in (t for subgraph in model.subgraphs for t in subgraph.tensors):
        data = constant_bytes(model, tensor)
        if data is None:
            tensor.buffer = 0
            continue
        digest = hashlib.sha256(data.tobytes()).digest()
        if digest not in places:
            places[digest] = len(kept)
            kept.append(model.buffers[tensor.buffer])
        tensor.buffer = places[digest]
    for entry in model.metadata or ():
        kept.append(model.buffers[entry.buffer])
        entry.buffer = len(kept) - 1
    model.buffers = kept
