"""How sums of products are formed: exactly (in float32), or the worst way that float16 hardware may choose.

All tensors are float32 from the outside; rounding the results to float16 is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Window:
    """How a convolution moves, one number per spatial axis; ``padding`` is (before, after) per axis."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int


class Arithmetic:
    """Sums in float32, as torch forms them."""

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product with broadcasting batch axes."""
        return a @ b

    def sum(self, x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        """The sum over ``axes``; all axes if there are none."""
        return x.sum(tuple(axes) or tuple(range(x.dim())), keepdim=keep)

    def mean(self, x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        """The mean over ``axes``; all axes if there are none."""
        return x.mean(tuple(axes) or tuple(range(x.dim())), keepdim=keep)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """The softmax along ``axis``."""
        return x.softmax(axis)

    def standardise(self, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
        """Mean 0 and variance 1 over ``axes``; a new tensor."""
        from torch.nn import functional

        last = sorted(axis % x.dim() for axis in axes)
        if last == [*range(x.dim() - len(last), x.dim())]:
            return functional.layer_norm(x, x.shape[last[0] :], eps=epsilon)
        centred = x - x.mean(last, keepdim=True)
        return centred.mul_((centred.square().mean(last, keepdim=True) + epsilon).rsqrt())

    def convolve(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """X [N, C, ...] with weight [O, C / groups, ...]."""
        import torch

        function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[weight.dim() - 2]
        symmetric = all(before == after for before, after in window.padding)
        padding = tuple(before for before, _ in window.padding) if symmetric else (0,) * len(window.padding)
        x = x if symmetric else _pad(x, window)
        out: Tensor = function(x, weight, None, window.stride, padding, window.dilation, window.groups)
        return out


class HalfAccumulation(Arithmetic):
    """Every sum is formed one term after the other in float16, and every intermediate result is float16.

    This is the pessimistic end of what hardware does: a sum of 4096 ones is 2048, where the step to the next
    number becomes 2. Multiply and add are fused, as on ARM.
    """

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Sequential over the common axis."""
        if a.shape[-2] > b.shape[-1]:
            # the vector loop runs along the last axis of the result: make that the long one
            return self.matmul(b.transpose(-1, -2), a.transpose(-1, -2)).transpose(-1, -2)
        left = a.half().transpose(-1, -2).contiguous().unsqueeze(-1)
        right = b.half().contiguous().unsqueeze(-2)
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        total = right.new_zeros(shape)
        for term in range(a.shape[-1]):
            total.addcmul_(left[..., term, :, :], right[..., term, :, :])
        return total.float()

    def sum(self, x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        """Sequential over ``axes``."""
        axes = sorted(axis % x.dim() for axis in (axes or range(x.dim())))
        moved = x.half().movedim(tuple(axes), tuple(range(len(axes)))).flatten(0, len(axes) - 1)
        total = moved.new_zeros(moved.shape[1:])
        for term in moved:
            total.add_(term)
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        return total.reshape(shape).float() if keep else total.float()

    def mean(self, x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        """The sequential sum divided by the count."""
        count = math.prod(x.shape[axis] for axis in (axes or range(x.dim())))
        return _round(self.sum(x, axes, keep) / count)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """With a sequential sum of the exponentials."""
        raised = _round((x - x.amax(axis, keepdim=True)).half().float().exp())
        return raised / self.sum(raised, (axis,), True)

    def standardise(self, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
        """The squares are float16 too: a deviation above 256 overflows."""
        centred = _round(x - self.mean(x, axes, True))
        variance = self.mean(_round(centred.square()), axes, True)
        return _round(centred * _round((variance + epsilon).rsqrt()))

    def convolve(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """Sequential over input channels and taps."""
        padded = _pad(x, window).half()
        axes = zip(padded.shape[2:], weight.shape[2:], window.stride, window.dilation, strict=True)
        sizes = [(full - d * (k - 1) - 1) // s + 1 for full, k, s, d in axes]
        padded = padded.reshape(x.shape[0], window.groups, 1, -1, *padded.shape[2:])
        kernel = weight.half().reshape(window.groups, -1, *weight.shape[1:])
        total = padded.new_zeros((x.shape[0], window.groups, kernel.shape[1], *sizes))
        scalar = (1, *kernel.shape[:2], *[1] * len(sizes))
        taps = kernel.flatten(3)
        for channel in range(weight.shape[1]):
            for number, tap in enumerate(product(*map(range, weight.shape[2:]))):
                reach = zip(tap, sizes, window.stride, window.dilation, strict=True)
                seen: tuple[Any, ...] = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, n, s, d in reach)
                total.addcmul_(padded[:, :, :, channel, *seen], taps[:, :, channel, number].reshape(scalar))
        out: Tensor = total.flatten(1, 2).float()
        return out


def _round(x: Tensor) -> Tensor:
    return x.half().float()


def _pad(x: Tensor, window: Window) -> Tensor:
    from torch.nn import functional

    return functional.pad(x, [size for pair in reversed(window.padding) for size in pair])
