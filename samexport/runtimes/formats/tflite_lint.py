"""A static look at a .tflite: which operations would leave a delegate, or run there with another result.

Nothing is run. The GPU rules are what LiteRT's WebGPU accelerator accepts (``litert_gpu`` asks it for real) and
what phones' GPU and NPU delegates are known to refuse; the XNNPACK rules are those that cost time on a CPU. What
single phones compute wrongly is apart (``tflite_traps``): files for a CPU are not judged by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samexport.runtimes.formats.tflite import constant_bytes, operator_names, read_model, shape_of
from samexport.runtimes.formats.tflite_traps import TRAPS, Wires

Shape = tuple[int, ...]
Delegate = Literal["gpu", "xnnpack"]

ELEMENTWISE = frozenset({"ADD", "SUB", "MUL", "DIV", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM", "POW"})
# All that LiteRT 2.3's WebGPU accelerator compiled of the operations that our graphs contain.
_GPU_OPERATIONS = ELEMENTWISE | {
    "ABS", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "COS", "DEPTHWISE_CONV_2D", "EXP",
    "FULLY_CONNECTED", "GELU", "LOGISTIC", "MAX_POOL_2D", "MEAN", "NEG", "PAD", "REDUCE_MAX", "RELU", "RESHAPE",
    "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SIN", "SLICE", "SOFTMAX", "SQRT", "SQUARE",
    "STRIDED_SLICE", "SUM", "TANH", "TRANSPOSE",
}  # fmt: skip
TITLES: dict[Delegate, str] = {"gpu": "GPU", "xnnpack": "XNNPACK"}
_FLOAT32, _INT32 = 0, 2
_GPU_RANK = 4
XNNPACK_JOINS = 5
LARGEST_PRODUCT = 32768
_SMALL_MATRIX = 2048


@dataclass(frozen=True)
class Finding:
    """One operation that ``delegate`` refuses, or (``wrong_result``) computes differently than the CPU.

    ``signature`` is the entry point, ``operator`` the place of the operation in it, ``tensor`` its first output.
    """

    delegate: Delegate
    signature: str
    operator: int
    kind: str
    tensor: str
    reason: str
    wrong_result: bool = False

    def __str__(self) -> str:
        """One line for the report; of a tensor's path through the modules only the end."""
        name = self.tensor.rsplit("/", 1)[-1]
        return f"{self.signature} operator {self.operator} {self.kind} ({name}): {self.reason}"


@dataclass(frozen=True)
class Lint:
    """What the linter saw: operations of each entry point by kind, the highest rank, and the findings.

    ``traps`` are the rules of :data:`TRAPS` that a file for a GPU must keep, ``warnings`` the others.
    """

    operations: dict[str, dict[str, int]]
    max_rank: int
    findings: tuple[Finding, ...]
    traps: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()

    @property
    def total(self) -> int:
        """Operations of all entry points."""
        return sum(sum(kinds.values()) for kinds in self.operations.values())

    def of(self, delegate: Delegate) -> tuple[Finding, ...]:
        """Findings for one delegate."""
        return tuple(f for f in self.findings if f.delegate == delegate)

    def leaving(self, delegate: Delegate) -> int:
        """Operations that have a finding for the delegate."""
        return len({(f.signature, f.operator) for f in self.of(delegate)})


def lint(path: Path) -> Lint:
    """Look at every entry point of a file.

    Raises:
        BundleError: this is not a TFLite file.
    """
    model = read_model(path)
    names = {s.subgraphIndex: s.signatureKey.decode() for s in model.signatureDefs or ()}
    operations, findings, ranks = {}, [], [0]
    traps: dict[bool, list[Finding]] = {True: [], False: []}
    for number, subgraph in enumerate(model.subgraphs):
        name = names.get(number, f"subgraph_{number}")
        kinds = [operator_kind(model, operator) for operator in subgraph.operators]
        operations[name] = dict(sorted(Counter(kinds).items()))
        ranks += [len(shape_of(tensor)) for tensor in subgraph.tensors]
        for place, (operator, kind) in enumerate(zip(subgraph.operators, kinds, strict=True)):
            look = _Look(model, subgraph, operator, kind)
            tensor = subgraph.tensors[operator.outputs[0]].name.decode()
            for delegate, wrong, reason in look.reasons():
                findings.append(Finding(delegate, name, place, kind, tensor, reason, wrong))
        wires = Wires(model, subgraph, kinds)
        for trap in TRAPS.values():
            for place, index, reason in trap.find(wires):
                tensor, seen = subgraph.tensors[index].name.decode(), f"{reason} ({trap.seen})"
                traps[trap.refused].append(Finding("gpu", name, place, kinds[place], tensor, seen, wrong_result=True))
    return Lint(operations, max(ranks), tuple(findings), tuple(traps[True]), tuple(traps[False]))


def operator_kind(model: Any, operator: Any) -> str:
    """Builtin name (``"ADD"``), or the name of a custom operation (``"FlexErf"``)."""
    code = model.operatorCodes[operator.opcodeIndex]
    if code.customCode:
        return str(code.customCode.decode())
    return operator_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def gpu_shape(shape: Sequence[int]) -> Shape:
    """Batch, height, width, channels: how GPU delegates hold a tensor of up to four dimensions."""
    *front, channels = shape or (1,)
    batch, *middle = front or (1,)
    return (batch, *(1,) * (2 - len(middle)), *middle, channels)


def broadcasts_on_gpu(shapes: Sequence[Shape], constant: Sequence[bool], out: Shape) -> bool:
    """Whether an elementwise operation gives on a GPU what it gives on a CPU.

    Computed tensors are held as :func:`gpu_shape` says, constants fill up from the left. Two computed ones
    broadcast as on the CPU.

    Args:
        shapes: of the operands.
        constant: whether each operand is a constant.
        out: shape of the result on the CPU.
    """
    if max(map(len, (*shapes, out))) > _GPU_RANK:
        return False
    if not any(constant):
        return True
    held = [
        (1,) * (_GPU_RANK - len(shape)) + shape if fixed else gpu_shape(shape)
        for shape, fixed in zip(shapes, constant, strict=True)
    ]
    try:
        return np.broadcast_shapes(*held) == gpu_shape(out)
    except ValueError:
        return False


def pads_on_gpu(shape: Shape, out: Shape) -> bool:
    """Whether PAD from one shape to the other is what it is on a CPU: three or four axes, the first untouched."""
    return shape[0] == out[0] and (len(shape) == _GPU_RANK or (len(shape) == 3 and shape[0] == 1))


def multiplies_on_gpu(left: Shape, right: Shape, *, right_is_constant: bool) -> bool:
    """Whether BATCH_MATMUL of these shapes is on a GPU what it is on a CPU: the batches are not broadcast."""
    if right_is_constant and len(right) == 2:
        return True
    batches = [_without_leading_ones(shape[:-2]) for shape in (left, right)]
    return batches[0] == batches[1]


def inner_and_outer(right: Shape, *, adjoint: bool) -> tuple[int, int]:
    """Rows that a BATCH_MATMUL sums over and columns that it makes, from the shape of its right matrices."""
    return (right[-1], right[-2]) if adjoint else (right[-2], right[-1])


def product_fits_gpu(right: Shape, *, adjoint: bool) -> bool:
    """Whether LiteRT's WebGPU accelerator computes a product with these computed right matrices.

    Found by trying: beyond 32768 rows over all batches the result is zero, except for small matrices.
    """
    inner, outer = inner_and_outer(right, adjoint=adjoint)
    return inner * outer <= _SMALL_MATRIX or inner * math.prod(right[:-2]) <= LARGEST_PRODUCT


def _without_leading_ones(shape: Shape) -> Shape:
    return next((shape[i:] for i, size in enumerate(shape) if size != 1), ())


@dataclass(frozen=True)
class _Look:
    """One operation with what is needed to judge it."""

    model: Any
    subgraph: Any
    operator: Any
    kind: str

    def reasons(self) -> Iterator[tuple[Delegate, bool, str]]:
        """Delegate, whether it computes something else instead of refusing, and why."""
        tensors = [self.subgraph.tensors[i] for i in (*self.operator.inputs, *self.operator.outputs) if i >= 0]
        if self.kind not in _GPU_OPERATIONS:
            yield "gpu", False, "GPU delegates do not know this operation"
        for tensor in tensors:
            name, rank = tensor.name.decode(), len(shape_of(tensor))
            if rank > _GPU_RANK:
                yield "gpu", False, f"{name} has {rank} dimensions"
            if tensor.shapeSignature is not None and -1 in tensor.shapeSignature:
                yield "gpu", False, f"{name} has a dynamic shape"
            allowed = (_FLOAT32, _INT32) if self._constant(tensor) else (_FLOAT32,)
            if tensor.type not in allowed:
                yield "gpu", False, f"{name} is neither float32 nor a constant int32"
        yield from self._operands()

    def _constant(self, tensor: Any) -> bool:
        return constant_bytes(self.model, tensor) is not None

    def _adjoint(self) -> bool:
        return bool(self.operator.builtinOptions and self.operator.builtinOptions.adjY)

    def _operands(self) -> Iterator[tuple[Delegate, bool, str]]:
        tensors = [self.subgraph.tensors[i] for i in self.operator.inputs if i >= 0]
        shapes, fixed = [shape_of(t) for t in tensors], [self._constant(t) for t in tensors]
        out = shape_of(self.subgraph.tensors[self.operator.outputs[0]])
        if self.kind in ELEMENTWISE and not broadcasts_on_gpu(shapes, fixed, out):
            yield "gpu", True, f"{shapes} broadcast to something else than {list(out)}"
        if self.kind == "PAD" and not pads_on_gpu(shapes[0], out):
            yield (
                "gpu",
                len(out) > 2,
                f"{list(shapes[0])} is padded to {list(out)}; the batch or its lack counts",
            )
        if self.kind == "SOFTMAX" and len(out) < 2:
            yield "gpu", True, "a single axis"
        if self.kind == "BATCH_MATMUL" and fixed[0]:
            yield "gpu", False, "the left matrix is a constant"
        elif self.kind == "BATCH_MATMUL" and not multiplies_on_gpu(*shapes, right_is_constant=fixed[1]):
            yield "gpu", True, f"{shapes} are products with different batches"
        elif self.kind == "BATCH_MATMUL" and not (fixed[1] or product_fits_gpu(shapes[1], adjoint=self._adjoint())):
            yield (
                "gpu",
                True,
                f"{list(shapes[1])} are more rows than WebGPU sums over; target gpu splits them",
            )
        if self.kind == "FULLY_CONNECTED" and not fixed[1]:
            yield "xnnpack", False, "the weights are computed"
        if self.kind == "CONCATENATION" and len(tensors) > XNNPACK_JOINS:
            yield "xnnpack", False, f"{len(tensors)} tensors are joined, more than {XNNPACK_JOINS}"
