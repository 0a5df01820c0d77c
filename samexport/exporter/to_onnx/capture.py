"""A graph module as the program that torch.onnx translates, traced once instead of three times.

``torch.onnx.export`` decomposes every program, which traces it two more times, symbolic shapes and all: half of the
time of an export. Every operation of our graphs has a translation, torch's or one of those here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from onnxscript import opset18

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

# its operations have type variables that no caller can meet
op: Any = opset18


def _less(x: Any, number: float, alpha: float = 1.0) -> Any:
    scaled = x if alpha == 1 else op.Mul(x, op.CastLike(op.Constant(value_float=float(alpha)), x))
    return op.Sub(op.CastLike(op.Constant(value_float=float(number)), x), scaled)


def _square(x: Any) -> Any:
    return op.Mul(x, x)


def _normalised(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, fast: bool
) -> Any:
    return op.BatchNormalization(x, weight, bias, mean, variance, epsilon=eps)


def _transposed(
    x: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0), groups: int = 1, dilation: Sequence[int] = (1, 1),
) -> Any:  # fmt: skip
    return op.ConvTranspose(
        x, weight, bias, strides=_pair(stride), pads=2 * _pair(padding), output_padding=_pair(output_padding),
        group=groups, dilations=_pair(dilation),
    )  # fmt: skip


def _flat(x: Any, start: int = 0, end: int = -1) -> Any:
    """Torch's own translation reads the shape at run time; it is asked for where what follows has no fixed size."""
    after = list(x.shape[end % len(x.shape) + 1 :])
    if not all(isinstance(size, int) for size in after):
        raise ValueError("only axes of fixed size may follow the flattened ones")
    return op.Reshape(x, op.Constant(value_ints=[*(start % len(x.shape)) * [0], -1, *after]))


def _pair(sizes: Sequence[int]) -> list[int]:
    """One number for rows and columns, or one for each."""
    return [*sizes] if len(sizes) == 2 else 2 * [*sizes]


# what torch.onnx knows decomposed alone, or says in more nodes; the arguments are torch's
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.rsub.Scalar: _less,
    torch.ops.aten.square.default: _square,
    torch.ops.aten.flatten.using_ints: _flat,
    torch.ops.aten.batch_norm.default: _normalised,
    torch.ops.aten.conv_transpose2d.input: _transposed,
}


def capture(module: nn.Module, given: tuple[Tensor, ...], shapes: Mapping[str, Any]) -> ExportedProgram:
    """The module's program, which is decomposed only where it has something to decompose.

    Args:
        module: in evaluation mode.
        given: example inputs.
        shapes: the dynamic axes of each input, as ``torch.export.export`` wants them; it raises errors of any kind.
    """
    # a cache of symbolic shapes costs more than it saves
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        program = torch.export.export(module, given, dynamic_shapes=dict(shapes), strict=False)
    decompose = program.run_decompositions

    def run_decompositions(table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
        targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
        return program if targets.isdisjoint(table) else decompose(dict(table))

    vars(program)["run_decompositions"] = run_decompositions
    return program
