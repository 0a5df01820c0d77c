"""PyTorch operations written with what TFLite's delegates run well, while ``torch.export`` traces a graph.

litert-torch lowers each operation by itself; these lower to something slower, larger, or refused by a GPU:

- ``layer_norm`` becomes a batch norm of 15 operations, with reshapes; here it is nine.
- ``matmul`` of four dimensions is flattened to three and back; ``einsum`` keeps them.
- ``matmul`` with weights for each head repeats them for each prompt (BROADCAST_TO, 8 MB for one prompt batch of
  four); here the prompts join the rows. A weight on the left moves to the right: GPUs take weights there only.
- ``expand`` becomes BROADCAST_TO, which no GPU delegate knows; joining copies is a constant or a small CONCAT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.layer_norm`` over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def half_safe_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The same without the square of a large number: rows are divided by their largest deviation first.

    Half precision ends at 65504, the square of 256; SAM's layers go beyond. Here squares are at most 1.
    """
    centred = x - x.mean(-1, keepdim=True)
    peak = centred.abs().amax(-1, keepdim=True).clamp(min=eps**0.5)
    scaled = centred / peak
    floor = eps**0.5 / peak
    y = scaled * torch.rsqrt((scaled * scaled).mean(-1, keepdim=True) + floor * floor)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``torch.matmul`` without repeating an operand."""
    if a.dim() == b.dim() == 2 and isinstance(a, nn.Parameter):
        return F.linear(b.T.contiguous(), a).T
    if b.dim() == 2 and isinstance(b, nn.Parameter):
        return F.linear(a.contiguous(), b.T)
    if a.dim() == 4 and b.dim() == 3:
        return _matmul_by_head(a, b)
    if a.dim() == b.dim() and a.dim() in (3, 4) and a.shape[:-2] == b.shape[:-2]:
        batch = "xyz"[: a.dim() - 2]
        return torch.einsum(f"{batch}ij,{batch}jk->{batch}ik", a, b)
    return torch.matmul(a, b)


def _matmul_by_head(a: Tensor, b: Tensor) -> Tensor:
    """[N, heads, T, D] by [heads, D, C]."""
    count, heads, tokens, depth = a.shape
    rows = a.transpose(0, 1).reshape(heads, count * tokens, depth)
    return torch.bmm(rows, b).reshape(heads, count, tokens, b.shape[-1]).transpose(0, 1)


def expand(x: Tensor, *sizes: int) -> Tensor:
    """``Tensor.expand``; each step doubles, since XNNPACK joins at most five tensors."""
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = tuple(sizes[0])
    x = x.reshape((1,) * (len(sizes) - x.dim()) + tuple(x.shape))
    for axis, size in enumerate(sizes):
        while size != -1 and x.shape[axis] < size:
            x = torch.cat([x, x.narrow(axis, 0, min(size - x.shape[axis], x.shape[axis]))], dim=axis)
    return x


_FORMS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.Tensor.expand: expand,
}


class TfliteForms(TorchFunctionMode):
    """While active, the operations above run in their TFLite form; the results are the same up to rounding.

    With ``half_safe`` LayerNorm is the form that cannot overflow in half precision.
    """

    def __init__(self, *, half_safe: bool = False) -> None:
        super().__init__()
        layer_norms = {F.layer_norm: half_safe_layer_norm} if half_safe else {}
        self._forms: dict[Callable[..., Any], Callable[..., Any]] = {**_FORMS, **layer_norms}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every operation."""
        form: Callable[..., Any] = self._forms.get(func, func)
        return form(*args, **(kwargs or {}))
