"""Small rewrites of a converted .tflite, for what the converter decides alone.

- A product of two computed tensors that the converter made FULLY_CONNECTED (it does so for one prompt) becomes
  BATCH_MATMUL again: XNNPACK has no FULLY_CONNECTED with computed weights, the plain kernel is 8 times slower.
- Elementwise operations and PAD get four dimensions where fewer mean something else on a GPU. Delegates hold
  every tensor as batch, height, width, channels; some constants broadcast there differently than on the CPU, and
  PAD takes the wrong axes, both without an error (rules and how they were found: ``tflite_lint``).
- MEAN keeps the axis that it reduces, which the converter drops and restores with a RESHAPE.
- A product with more batches than LiteRT's WebGPU accelerator can start is split (it returns zeros otherwise).
- CONCATENATION of more tensors than XNNPACK takes becomes several.
- GATHER of one constant place, which GPUs do not know, becomes SLICE and RESHAPE.
- RESHAPE after RESHAPE and SLICE after SLICE are one; what nobody reads is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from samexport.exporter.to_tflite.graph import Graph, Shape
from samexport.runtimes.formats.tflite import constant_bytes
from samexport.runtimes.formats.tflite_lint import (
    ELEMENTWISE,
    LARGEST_PRODUCT,
    XNNPACK_JOINS,
    broadcasts_on_gpu,
    inner_and_outer,
    pads_on_gpu,
    product_fits_gpu,
)

_RANK = 4


def improve(model: Any, *, gpu: bool = False) -> None:
    """Apply every rewrite to every subgraph of ``ModelT``, in place.

    With ``gpu`` products that are too large for a GPU are split, which costs copies on a CPU.
    """
    for subgraph in model.subgraphs:
        graph = Graph(model, subgraph)
        subgraph.operators = [new for old in subgraph.operators for new in _computed_product(graph, old)]
        subgraph.operators = [new for old in subgraph.operators for new in _one_place(graph, old)]
        subgraph.operators = [new for old in subgraph.operators for new in _four_dimensional(graph, old)]
        _keep_reduced_axis(graph)
        if gpu:
            subgraph.operators = [new for old in subgraph.operators for new in _split_product(graph, old)]
        subgraph.operators = [new for old in subgraph.operators for new in _joined_in_steps(graph, old)]
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


def _one_place(graph: Graph, operator: Any) -> Iterator[Any]:
    """GATHER with a single constant index as a slice."""
    places = graph.integers(int(operator.inputs[1])) if graph.kind(operator) == "GATHER" else []
    if len(places) != 1 or operator.builtinOptions.batchDims:
        yield operator
        return
    source, axis = int(operator.inputs[0]), operator.builtinOptions.axis % len(graph.shape(int(operator.inputs[0])))
    cut, part = graph.part(source, axis, places[0] % graph.shape(source)[axis], 1)
    yield cut
    yield graph.reshape(part, int(operator.outputs[0]))


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


def _keep_reduced_axis(graph: Graph) -> None:
    """MEAN, an operation with a scalar, RESHAPE to [..., 1]: the converter drops the axis and restores it later."""
    readers: dict[int, list[Any]] = {}
    for operator in graph.subgraph.operators:
        for index in operator.inputs:
            readers.setdefault(int(index), []).append(operator)
    for mean in graph.subgraph.operators:
        rank = len(graph.shape(int(mean.inputs[0])))
        if (
            graph.kind(mean) != "MEAN"
            or mean.builtinOptions.keepDims
            or graph.integers(int(mean.inputs[1])) != [rank - 1]
        ):
            continue
        chain, target = [mean], (*graph.shape(int(mean.outputs[0])), 1)
        while len(found := readers.get(int(chain[-1].outputs[0]), [])) == 1 and _with_scalar(graph, found[0]):
            chain.append(found[0])
        if [graph.kind(o) for o in found] != ["RESHAPE"] or graph.shape(int(found[0].outputs[0])) != target:
            continue
        mean.builtinOptions.keepDims = True
        renamed: dict[int, int] = {}
        for operator in chain:
            out = int(operator.outputs[0])
            renamed[out] = graph.tensor_like(out, target)
            operator.inputs = np.array([renamed.get(int(t), int(t)) for t in operator.inputs], np.int32)
            operator.outputs = np.array([renamed[out]], np.int32)
        found[0].inputs = np.array([renamed[int(found[0].inputs[0])], found[0].inputs[1]], np.int32)


def _with_scalar(graph: Graph, operator: Any) -> bool:
    return graph.kind(operator) in ELEMENTWISE and any(graph.shape(int(t)) == () for t in operator.inputs)


def _split_product(graph: Graph, operator: Any) -> Iterator[Any]:
    """A product of too many batches as several, sliced and joined along the first batch axis that is not 1."""
    from ai_edge_litert import schema_py_generated as schema

    inputs, out = [int(t) for t in operator.inputs], int(operator.outputs[0])
    shapes = [graph.shape(t) for t in inputs]
    options = operator.builtinOptions
    computed = graph.kind(operator) == "BATCH_MATMUL" and not any(graph.is_constant(t) for t in inputs)
    if not computed or product_fits_gpu(shapes[1], adjoint=options.adjY):
        yield operator
        return
    inner, _ = inner_and_outer(shapes[1], adjoint=options.adjY)
    axis = next((i for i, size in enumerate(shapes[1][:-2]) if size != 1), 0)
    behind = int(np.prod(shapes[1][axis + 1 : -2]))
    step = max(1, LARGEST_PRODUCT // (inner * behind))
    parts = []
    for start in range(0, shapes[1][axis], step):
        size = min(step, shapes[1][axis] - start)
        cut = [graph.part(t, axis, start, size) for t in inputs]
        parts.append(graph.tensor_like(out, _resized(graph.shape(out), axis, size)))
        yield from (operation for operation, _ in cut)
        kind = schema.BuiltinOptions.BatchMatMulOptions
        yield graph.operator("BATCH_MATMUL", kind, options, [tensor for _, tensor in cut], parts[-1:])
    joined = schema.ConcatenationOptionsT()
    joined.axis = axis
    yield graph.operator("CONCATENATION", schema.BuiltinOptions.ConcatenationOptions, joined, parts, [out])


def _joined_in_steps(graph: Graph, operator: Any) -> Iterator[Any]:
    """A join of too many tensors as joins of neighbours, then of what these give."""
    if graph.kind(operator) == "CONCATENATION":
        options, kind = operator.builtinOptions, operator.builtinOptionsType
        while len(operator.inputs) > XNNPACK_JOINS:
            parts = [int(t) for t in operator.inputs]
            joined = []
            for start in range(0, len(parts), XNNPACK_JOINS):
                group = parts[start : start + XNNPACK_JOINS]
                if len(group) == 1:
                    joined += group
                    continue
                size = sum(graph.shape(t)[options.axis] for t in group)
                shape = list(graph.shape(group[0]))
                shape[options.axis] = size
                joined.append(graph.tensor_like(int(operator.outputs[0]), tuple(shape)))
                yield graph.operator("CONCATENATION", kind, options, group, joined[-1:])
            operator.inputs = np.array(joined, np.int32)
    yield operator


def _resized(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _merge_chains(graph: Graph) -> None:
    """RESHAPE of RESHAPE, SLICE of SLICE, RESHAPE to the same shape and the same RESHAPE twice."""
    producers, outputs = graph.producers(), {int(t) for t in graph.subgraph.outputs}
    same: dict[int, int] = {}
    made: dict[tuple[int, Shape], int] = {}
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
        if kind == "RESHAPE" and out not in outputs:
            first = made.setdefault((source, graph.shape(out)), out)
            if graph.shape(source) == graph.shape(out) or first != out:
                same[out] = source if graph.shape(source) == graph.shape(out) else first


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
