"""A subgraph of a .tflite that can be changed: look up tensors, add tensors and operations.

Objects are those of LiteRT's generated schema (``ModelT`` and its parts), which carry no types.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from samexport.runtimes.formats.tflite import constant_bytes, shape_of
from samexport.runtimes.formats.tflite_lint import operator_kind

Shape = tuple[int, ...]
_INT32 = 2


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

    def part(self, source: int, axis: int, start: int, size: int) -> tuple[Any, int]:
        """An operation that takes ``size`` places of an axis, and its result."""
        from ai_edge_litert import schema_py_generated as schema

        sizes, starts = list(self.shape(source)), [0] * len(self.shape(source))
        sizes[axis], starts[axis] = size, start
        target = self.tensor_like(source, tuple(sizes))
        inputs = [source, self.integer_constant(starts), self.integer_constant(sizes)]
        kind = schema.BuiltinOptions.SliceOptions
        return self.operator("SLICE", kind, schema.SliceOptionsT(), inputs, [target]), target

    def operator(self, name: str, kind: int, options: Any, inputs: list[int], outputs: list[int]) -> Any:
        """A new operation, in no list yet."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.OperatorT()
        made.opcodeIndex, made.builtinOptionsType, made.builtinOptions = self.code(name), kind, options
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        return made
