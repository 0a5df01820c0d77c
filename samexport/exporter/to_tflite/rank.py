"""Four dimensions for every tensor of three in a file for a GPU, batch first: [a, b, c] becomes [1, a, b, c].

Phones' GPUs gave wrong numbers where a tensor of three dimensions is read twice (``tflite_traps``). Operations that
take four as well get them; all others keep theirs between two RESHAPEs, so each such tensor has one reader. A RESHAPE
that becomes one to the same shape goes away afterwards, so there are about as many operations as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from samexport.exporter.to_tflite.graph import Graph, Shape
from samexport.runtimes.formats.tflite_lint import ELEMENTWISE
from samexport.runtimes.formats.tflite_traps import Wires, shared_of_rank_3

_RANK = 4


def lift(graph: Graph) -> None:
    """Rewrite the subgraph in place if it has a tensor of three dimensions that is read twice; its ends stay."""
    wires = Wires(graph.model, graph.subgraph, [graph.kind(operator) for operator in graph.subgraph.operators])
    if not any(True for _ in shared_of_rank_3(wires)):
        return
    lifted: dict[int, int] = {}
    operators: list[Any] = []
    for index in map(int, graph.subgraph.inputs):
        if len(graph.shape(index)) == _RANK - 1:
            lifted[index] = graph.tensor_like(index, (1, *graph.shape(index)))
            operators.append(graph.reshape(index, lifted[index]))
    for operator in graph.subgraph.operators:
        operators += _lifted(graph, operator, lifted)
    graph.subgraph.operators = operators


def _lifted(graph: Graph, operator: Any, lifted: dict[int, int]) -> Iterator[Any]:
    """The operation on lifted tensors, or between two reshapes; what it makes is added to ``lifted``."""
    outputs = {int(t) for t in graph.subgraph.outputs}
    made = [int(t) for t in operator.outputs if len(graph.shape(int(t))) == _RANK - 1]
    change = _CHANGES.get(graph.kind(operator))
    touched = bool(made) or any(int(t) in lifted for t in operator.inputs)
    if not touched or (change is not None and change(graph, operator)):
        operator.inputs = np.array([lifted.get(int(t), int(t)) for t in operator.inputs], np.int32)
        renamed = {}
        for index in made:
            renamed[index] = lifted[index] = graph.tensor_like(index, (1, *graph.shape(index)))
        operator.outputs = np.array([renamed.get(int(t), int(t)) for t in operator.outputs], np.int32)
        yield operator
    else:
        given = [int(t) for t in operator.inputs]
        own = {t: graph.tensor_like(t, graph.shape(t)) for t in dict.fromkeys(given) if t in lifted}
        yield from (graph.reshape(lifted[index], target) for index, target in own.items())
        operator.inputs = np.array([own.get(t, t) for t in given], np.int32)
        yield operator
        for index in made:
            if index in outputs:
                own_out = graph.tensor_like(index, graph.shape(index))
                operator.outputs = np.array(
                    [own_out if int(t) == index else int(t) for t in operator.outputs], np.int32
                )
            lifted[index] = graph.tensor_like(index, (1, *graph.shape(index)))
            yield graph.reshape(own_out if index in outputs else index, lifted[index])
    for index in made:
        if index in outputs:
            yield graph.reshape(lifted[index], index)


Change = Callable[[Graph, Any], bool]
"""Makes an operation on tensors of three dimensions one on four; False, and nothing changed, where it cannot."""


def _as_it_is(graph: Graph, operator: Any) -> bool:
    return True


def _by_axis(graph: Graph, operator: Any) -> bool:
    options, rank = operator.builtinOptions, len(graph.shape(int(operator.outputs[0])))
    if rank == _RANK - 1:
        options.axis = options.axis % rank + 1
    return True


def _reshape(graph: Graph, operator: Any) -> bool:
    shape = graph.shape(int(operator.outputs[0]))
    if len(shape) == _RANK - 1:
        operator.inputs = np.array([operator.inputs[0], graph.integer_constant((1, *shape))], np.int32)
        if operator.builtinOptions is not None:
            operator.builtinOptions.newShape = np.array((1, *shape), np.int32)
    return True


def _with_constants(*before: int) -> Change:
    """An operation whose further inputs have a number for each axis: those of the first axis are ``before``."""

    def change(graph: Graph, operator: Any) -> bool:
        values = [graph.integers(int(t)) for t in operator.inputs[1:]]
        if not all(values):
            return False
        longer = [graph.integer_constant((first, *rest)) for first, rest in zip(before, values, strict=True)]
        operator.inputs = np.array([operator.inputs[0], *longer], np.int32)
        return True

    return change


def _transpose(graph: Graph, operator: Any) -> bool:
    order = graph.integers(int(operator.inputs[1]))
    if not order:
        return False
    operator.inputs = np.array([operator.inputs[0], graph.integer_constant((0, *(i + 1 for i in order)))], np.int32)
    return True


def _pad(graph: Graph, operator: Any) -> bool:
    pads = graph.integers(int(operator.inputs[1]))
    if not pads:
        return False
    operator.inputs = np.array([operator.inputs[0], graph.integer_constant((0, 0, *pads), (_RANK, 2))], np.int32)
    return True


def _reduce(graph: Graph, operator: Any) -> bool:
    axes = graph.integers(int(operator.inputs[1]))
    if not axes or not operator.builtinOptions.keepDims:
        return False
    # a scalar stays one
    shape: Shape = graph.shape(int(operator.inputs[1]))
    moved = graph.integer_constant([axis % (_RANK - 1) + 1 for axis in axes], shape or (1,))
    operator.inputs = np.array([operator.inputs[0], moved], np.int32)
    return True


def _product(graph: Graph, operator: Any) -> bool:
    """Weights for each of the first axis get its place, too."""
    given = [int(t) for t in operator.inputs]
    operator.inputs = np.array(
        [
            graph.tensor_like(t, (1, *graph.shape(t))) if graph.is_constant(t) and len(graph.shape(t)) == 3 else t
            for t in given
        ],
        np.int32,
    )
    return True


def _connected(graph: Graph, operator: Any) -> bool:
    return bool(operator.builtinOptions.keepNumDims) or len(graph.shape(int(operator.outputs[0]))) < _RANK - 1


_CHANGES: Mapping[str, Change] = {
    **dict.fromkeys((*ELEMENTWISE, "ABS", "COS", "EXP", "GELU", "LOGISTIC", "NEG", "RELU", "RSQRT", "SIN", "SOFTMAX",
                     "SQRT", "SQUARE", "TANH"), _as_it_is),
    "CONCATENATION": _by_axis, "RESHAPE": _reshape, "SLICE": _with_constants(0, 1), "TRANSPOSE": _transpose,
    "PAD": _pad,
    "MEAN": _reduce, "SUM": _reduce, "REDUCE_MAX": _reduce, "BATCH_MATMUL": _product, "FULLY_CONNECTED": _connected,
}  # fmt: skip
