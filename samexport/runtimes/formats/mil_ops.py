"""What each MIL operation computes, as one table. Parameters and defaults follow coremltools' operation definitions.

An operation takes an :class:`Arithmetic` and its inputs by parameter name: float tensors are float32, integers
int32, strings ``str``; a parameter that takes several values gets a tuple. It returns a tensor or a tuple.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samexport.runtimes.formats.mil_arithmetic import Arithmetic, Window

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, Any]
Function = Callable[[Arithmetic, Inputs], Any]


def _numbers(inputs: Inputs, name: str, default: Sequence[int] = ()) -> list[int]:
    """A list of integers, or ``default`` where the parameter is left out."""
    return [int(n) for n in inputs[name].reshape(-1)] if name in inputs else list(default)


def _number(inputs: Inputs, name: str, default: float = 0) -> float:
    return inputs[name].item() if name in inputs else default


def _several(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _unary(function: Callable[[Any], Any]) -> Function:
    return lambda _, inputs: function(inputs["x"])


def _binary(function: Callable[[Any, Any], Any]) -> Function:
    return lambda _, inputs: function(inputs["x"], inputs["y"])


def _clip(_: Arithmetic, inputs: Inputs) -> Tensor:
    return inputs["x"].clamp(_number(inputs, "alpha"), _number(inputs, "beta", 1))  # type: ignore[no-any-return]


def _rsqrt(_: Arithmetic, inputs: Inputs) -> Tensor:
    return (inputs["x"] + _number(inputs, "epsilon", 1e-12)).rsqrt()  # type: ignore[no-any-return]


def _log(_: Arithmetic, inputs: Inputs) -> Tensor:
    return (inputs["x"] + _number(inputs, "epsilon", 1e-45)).log()  # type: ignore[no-any-return]


def _gelu(_: Arithmetic, inputs: Inputs) -> Tensor:
    from torch.nn import functional

    x, mode = inputs["x"], inputs.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()  # type: ignore[no-any-return]
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _cast(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    name, x = inputs["dtype"], inputs["x"]
    if name.startswith("fp"):
        # a copy, because the caller may round it in place
        return x.to(torch.float32, copy=True)  # type: ignore[no-any-return]
    return x.to(torch.bool if name == "bool" else torch.int32)  # type: ignore[no-any-return]


def _select(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    return torch.where(inputs["cond"].bool(), inputs["a"], inputs["b"])


# Products and sums


def _matmul(arithmetic: Arithmetic, inputs: Inputs) -> Tensor:
    x, y = inputs["x"], inputs["y"]
    x = x.transpose(-1, -2) if _number(inputs, "transpose_x") else x
    y = y.transpose(-1, -2) if _number(inputs, "transpose_y") else y
    return arithmetic.matmul(x, y)


def _linear(arithmetic: Arithmetic, inputs: Inputs) -> Tensor:
    x = inputs["x"]
    # one large product is faster than a batch of small ones with a shared weight
    flat = arithmetic.matmul(x.reshape(-1, x.shape[-1]), inputs["weight"].transpose(0, 1))
    if "bias" in inputs:
        flat = flat.add_(inputs["bias"])
    return flat.reshape(*x.shape[:-1], -1)


def _padding(inputs: Inputs, x: Tensor, kernel: Sequence[int], window: Sequence[Sequence[int]]) -> Any:
    """(before, after) per spatial axis for ``pad_type``: valid, custom, same (more behind) or same_lower."""
    kind = inputs.get("pad_type", "valid")
    if kind == "valid":
        return ((0, 0),) * len(kernel)
    if kind == "custom":
        pad = _numbers(inputs, "pad")
        return tuple(zip(pad[::2], pad[1::2], strict=True))
    pairs = []
    for size, k, s, d in zip(x.shape[2:], kernel, *window, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if kind == "same" else (more, less))
    return tuple(pairs)


def _conv(arithmetic: Arithmetic, inputs: Inputs) -> Tensor:
    x, weight = inputs["x"], inputs["weight"]
    ones = (1,) * (weight.dim() - 2)
    stride, dilation = tuple(_numbers(inputs, "strides", ones)), tuple(_numbers(inputs, "dilations", ones))
    padding = _padding(inputs, x, weight.shape[2:], (stride, dilation))
    window = Window(stride, dilation, padding, int(_number(inputs, "groups", 1)))
    return _with_bias(arithmetic.convolve(x, weight, window), inputs)


def _conv_transpose(_: Arithmetic, inputs: Inputs) -> Tensor:
    """Only without padding and overlap, which is all that SAM needs: each output pixel is one sum of products."""
    from torch.nn import functional

    x, weight = inputs["x"], inputs["weight"]
    stride = tuple(_numbers(inputs, "strides", (1,) * (weight.dim() - 2)))
    plain = inputs.get("pad_type", "valid") == "valid" or not any(_numbers(inputs, "pad"))
    if stride != tuple(weight.shape[2:]) or weight.dim() != 4 or not plain:
        raise NotImplementedError("conv_transpose with overlap or padding")
    out = functional.conv_transpose2d(x, weight, None, stride, groups=int(_number(inputs, "groups", 1)))
    return _with_bias(out, inputs)


def _with_bias(x: Tensor, inputs: Inputs) -> Tensor:
    if "bias" not in inputs:
        return x
    return x + inputs["bias"].reshape(-1, *[1] * (x.dim() - 2))  # type: ignore[no-any-return]


def _layer_norm(arithmetic: Arithmetic, inputs: Inputs) -> Tensor:
    x = inputs["x"]
    axes = _numbers(inputs, "axes", range(x.dim()))
    out = arithmetic.standardise(x, axes, _number(inputs, "epsilon", 1e-5))
    shape = [size if axis in {a % x.dim() for a in axes} else 1 for axis, size in enumerate(x.shape)]
    if "gamma" in inputs:
        out = out.mul_(inputs["gamma"].reshape(shape))
    return out.add_(inputs["beta"].reshape(shape)) if "beta" in inputs else out


def _batch_norm(_: Arithmetic, inputs: Inputs) -> Tensor:
    x = inputs["x"]
    shape = (-1, *[1] * (x.dim() - 2))
    scale = (inputs["variance"] + _number(inputs, "epsilon", 1e-5)).rsqrt()
    scale = scale * inputs["gamma"] if "gamma" in inputs else scale
    out = (x - inputs["mean"].reshape(shape)) * scale.reshape(shape)
    return out + inputs["beta"].reshape(shape) if "beta" in inputs else out  # type: ignore[no-any-return]


def _softmax(arithmetic: Arithmetic, inputs: Inputs) -> Tensor:
    return arithmetic.softmax(inputs["x"], int(_number(inputs, "axis", -1)))


def _reduce(name: str) -> Function:
    def function(arithmetic: Arithmetic, inputs: Inputs) -> Tensor:
        x, keep = inputs["x"], bool(_number(inputs, "keep_dims"))
        axes = _numbers(inputs, "axes", range(x.dim()))
        if name in ("amax", "amin"):
            return getattr(x, name)(tuple(axes), keepdim=keep)  # type: ignore[no-any-return]
        return getattr(arithmetic, name)(x, axes, keep)  # type: ignore[no-any-return]

    return function


def _max_pool(_: Arithmetic, inputs: Inputs) -> Tensor:
    from torch.nn import functional

    x, kernel = inputs["x"], _numbers(inputs, "kernel_sizes")
    stride = _numbers(inputs, "strides", (1,) * len(kernel))
    if _number(inputs, "ceil_mode"):
        raise NotImplementedError("max_pool with ceil_mode")
    padding = _padding(inputs, x, kernel, (stride, (1,) * len(kernel)))
    padded = functional.pad(x, [n for pair in reversed(padding) for n in pair], value=float("-inf"))
    return functional.max_pool2d(padded, kernel, stride)


# Shapes


def _reshape(_: Arithmetic, inputs: Inputs) -> Tensor:
    x = inputs["x"]
    # 0 keeps the size of that axis
    sizes = [size or x.shape[axis] for axis, size in enumerate(_numbers(inputs, "shape"))]
    return x.reshape(sizes)  # type: ignore[no-any-return]


def _expand_dims(_: Arithmetic, inputs: Inputs) -> Tensor:
    x, axes = inputs["x"], _numbers(inputs, "axes")
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _squeeze(_: Arithmetic, inputs: Inputs) -> Tensor:
    axes = _numbers(inputs, "axes")
    return inputs["x"].squeeze(tuple(axes)) if axes else inputs["x"].squeeze()  # type: ignore[no-any-return]


def _concat(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    if _number(inputs, "interleave"):
        raise NotImplementedError("concat with interleave")
    values = [value.reshape(1) if value.dim() == 0 else value for value in _several(inputs["values"])]
    return torch.cat(values, int(_number(inputs, "axis")))


def _stack(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    return torch.stack(_several(inputs["values"]), int(_number(inputs, "axis")))


def _split(_: Arithmetic, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = inputs["x"], int(_number(inputs, "axis"))
    if "split_sizes" in inputs:
        return x.split(_numbers(inputs, "split_sizes"), axis)  # type: ignore[no-any-return]
    return x.split(x.shape[axis] // int(_number(inputs, "num_splits")), axis)  # type: ignore[no-any-return]


def _slice_by_index(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    x = inputs["x"]
    begin, end = _numbers(inputs, "begin"), _numbers(inputs, "end")
    stride, off = _numbers(inputs, "stride", [1] * x.dim()), [0] * x.dim()
    from_start, to_end = _numbers(inputs, "begin_mask", off), _numbers(inputs, "end_mask", off)
    single = _numbers(inputs, "squeeze_mask", off)
    for axis in reversed(range(x.dim())):
        if single[axis]:
            x = x.select(axis, begin[axis])
            continue
        bounds = slice(None if from_start[axis] else begin[axis], None if to_end[axis] else end[axis], stride[axis])
        start, stop, step = bounds.indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, stop, step),)]
        else:
            x = x.index_select(axis, torch.arange(start, stop, step))
    return x  # type: ignore[no-any-return]


def _slice_by_size(_: Arithmetic, inputs: Inputs) -> Tensor:
    x = inputs["x"]
    places = zip(_numbers(inputs, "begin"), _numbers(inputs, "size"), strict=True)
    return x[tuple(slice(b, None if n == -1 else b + n) for b, n in places)]  # type: ignore[no-any-return]


def _pad(_: Arithmetic, inputs: Inputs) -> Tensor:
    from torch.nn import functional

    pad = _numbers(inputs, "pad")
    widths = [n for pair in reversed([*zip(pad[::2], pad[1::2], strict=True)]) for n in pair]
    mode = inputs.get("mode", "constant")
    if mode == "constant":
        return functional.pad(inputs["x"], widths, value=_number(inputs, "constant_val"))
    return functional.pad(inputs["x"], widths, mode=mode)


def _shape(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    return torch.tensor(inputs["x"].shape, dtype=torch.int32)


def _gather(_: Arithmetic, inputs: Inputs) -> Tensor:
    x, indices, axis = inputs["x"], inputs["indices"].long(), int(_number(inputs, "axis"))
    if _number(inputs, "batch_dims"):
        raise NotImplementedError("gather with batch_dims")
    axis %= x.dim()
    # negative indices count from the end up to iOS 16 and do not occur later
    taken = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])  # type: ignore[no-any-return]


def _fill(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    value = inputs["value"] if "value" in inputs else torch.zeros(())
    return torch.full(_numbers(inputs, "shape"), value.item(), dtype=value.dtype)


def _upsample_nearest(_: Arithmetic, inputs: Inputs) -> Tensor:
    x = inputs["x"]
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        factor = _number(inputs, name, 1)
        if factor != int(factor):
            raise NotImplementedError("upsample_nearest_neighbor by a fraction")
        x = x.repeat_interleave(int(factor), dim=axis)
    return x  # type: ignore[no-any-return]


# Weights that are put together when a package is loaded


def _affine_dequantize(_: Arithmetic, inputs: Inputs) -> Tensor:
    import torch

    data = inputs["quantized_data"].to(torch.float32)
    sizes = [1] * data.dim()
    sizes[int(_number(inputs, "axis"))] = -1
    scale, zero = (inputs[n].to(torch.float32) for n in ("scale", "zero_point"))
    if scale.numel() > 1:
        scale = scale.reshape(sizes)
    return (data - (zero.reshape(sizes) if zero.numel() > 1 else zero)) * scale  # type: ignore[no-any-return]


def _lut_to_dense(_: Arithmetic, inputs: Inputs) -> Tensor:
    """A table's values by indices of as many bits as the table needs, packed from the lowest bit of each byte."""
    import torch

    table, packed = inputs["lut"].to(torch.float32), inputs["indices"].to(torch.int64)
    bits, shape = table.numel().bit_length() - 1, _numbers(inputs, "shape")
    single = packed.unsqueeze(1).bitwise_right_shift(torch.arange(8)).bitwise_and(1).reshape(-1)
    places = single[: math.prod(shape) * bits].reshape(-1, bits) << torch.arange(bits)
    dense: Tensor = table[places.sum(1)].reshape(shape)
    return dense


OPERATIONS: dict[str, Function] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_lut_to_dense": _lut_to_dense,
    **{name: _unary(operator.methodcaller(name)) for name in (
        "abs", "ceil", "cos", "erf", "exp", "floor", "logical_not", "relu", "round", "sigmoid", "sign", "sin",
        "sqrt", "square", "tanh",
    )},
    **{name: _binary(function) for name, function in (
        ("add", operator.add), ("sub", operator.sub), ("mul", operator.mul), ("pow", operator.pow),
        ("floor_div", operator.floordiv), ("mod", operator.mod), ("equal", operator.eq),
        ("not_equal", operator.ne), ("less", operator.lt), ("less_equal", operator.le),
        ("greater", operator.gt), ("greater_equal", operator.ge),
    )},
    "identity": _unary(lambda x: x),
    # the interpreter turns a quotient of integers into the integer that the declared type says
    "real_div": _binary(operator.truediv),
    "maximum": _binary(lambda x, y: x.maximum(y)),
    "minimum": _binary(lambda x, y: x.minimum(y)),
    "clip": _clip,
    "rsqrt": _rsqrt,
    "log": _log,
    "gelu": _gelu,
    "silu": _unary(lambda x: x * x.sigmoid()),
    "cast": _cast,
    "select": _select,
    "matmul": _matmul,
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "reduce_sum": _reduce("sum"),
    "reduce_mean": _reduce("mean"),
    "reduce_max": _reduce("amax"),
    "reduce_min": _reduce("amin"),
    "max_pool": _max_pool,
    "reshape": _reshape,
    "transpose": lambda _, inputs: inputs["x"].permute(_numbers(inputs, "perm")),
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "pad": _pad,
    "tile": lambda _, inputs: inputs["x"].repeat(_numbers(inputs, "reps")),
    "shape": _shape,
    "gather": _gather,
    "fill": _fill,
    "upsample_nearest_neighbor": _upsample_nearest,
}  # fmt: skip
"""Everything the interpreter can execute, by the name in the program."""

MOVES = frozenset((
    "concat", "expand_dims", "gather", "identity", "max_pool", "pad", "reduce_max", "reduce_min", "relu", "reshape",
    "select", "slice_by_index", "slice_by_size", "split", "squeeze", "stack", "tile", "transpose",
    "upsample_nearest_neighbor",
))  # fmt: skip
"""Operations that compute nothing: their results are among their inputs, and may be views of them."""
