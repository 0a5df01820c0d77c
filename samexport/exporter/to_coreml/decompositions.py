"""Operations written as others: what coremltools 9.0 reads wrongly, and what adds badly in half precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# half precision counts no further: 2048 + 1 is 2048
_MOST_TERMS = 2048


def decompositions(*, half: bool) -> dict[Any, Callable[..., Any]]:
    """By ATen operation, for ``ExportedProgram.run_decompositions``; ``half`` for files that compute in fp16."""
    import torch

    aten = torch.ops.aten
    found: dict[Any, Callable[..., Any]] = {aten.gelu.default: _gelu}
    return found | {aten.conv2d.default: _in_halves} if half else found


def _gelu(x: Tensor, approximate: str = "none") -> Any:
    """The approximation by tanh in its parts: coremltools reads no keyword of an operation and takes erf for both."""
    if approximate == "none":
        return NotImplemented
    return x * 0.5 * (1 + (x * (1 + x * x * 0.044715) * math.sqrt(2 / math.pi)).tanh())


def _in_halves(x: Tensor, weight: Tensor, bias: Tensor | None = None, *window: Any) -> Any:
    """A convolution of very long sums as the sum of two, each over half of the channels.

    Where hardware adds 2304 terms one after the other in half precision, the 3x3 convolution of SAM's neck alone
    takes the embedding of the demo weights from 53 to 44 dB; in halves it is 49.
    """
    channels = weight.shape[1]
    # stride, padding and dilation come before the groups
    if window[3:] not in ((), (1,)) or channels < 2 or weight[0].numel() <= _MOST_TERMS:
        return NotImplemented
    import torch

    conv = torch.ops.aten.conv2d.default
    first, second = slice(None, channels // 2), slice(channels // 2, None)
    return conv(x[:, first], weight[:, first], bias, *window) + conv(x[:, second], weight[:, second], None, *window)
