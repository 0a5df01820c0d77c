"""Layers that several architectures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of [B, C, H, W], biased variance (SAM ``modeling/common.py``)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel; same shape out."""
        centred = x - x.mean(1, keepdim=True)
        scale = torch.sqrt(centred.square().mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * (centred / scale) + self.bias[:, None, None]


def cells(places: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column [S, S] of each cell of a square grid with ``places`` [S] along both sides.

    As meshgrid, which exporters decompose.
    """
    size = places.shape[0]
    return places[:, None].expand(size, size), places.expand(size, size)


def in_windows(attention: nn.Module, x: Tensor, size: int, step: int = 1) -> Tensor:
    """Attention inside windows of ``size`` cells: [B, H, W, width] to [B, H / step, W / step, out].

    The map is padded with zeros to whole windows. An attention that pools its queries by ``step`` gives windows of
    ``size / step``.
    """
    batch, height, columns, width = x.shape
    padded = F.pad(x, (0, 0, 0, -columns % size, 0, -height % size))
    rows, cols = padded.shape[1] // size, padded.shape[2] // size
    windows = padded.view(batch, rows, size, cols, size, width).transpose(2, 3)
    mixed = attention(windows.reshape(-1, size, size, width))
    size = size // step
    mixed = mixed.view(batch, rows, cols, size, size, -1).transpose(2, 3)
    whole: Tensor = mixed.reshape(batch, rows * size, cols * size, -1)
    return whole[:, : height // step, : columns // step]


def neck(channels: int, out_channels: int) -> nn.Sequential:
    """SAM's neck: 1x1 and 3x3 convolutions without bias, a LayerNorm2d after each."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


class _NoInit(TorchFunctionMode):
    """Skips ``torch.nn.init``; drawing on the meta device makes torch import its compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        drawn = getattr(func, "__module__", "") == "torch.nn.init"
        return given.get("tensor") if drawn else func(*args, **given)


@contextmanager
def no_values() -> Iterator[None]:
    """Modules made inside have tensors with shapes and no values; torch's own fake tensors where its mode is on."""
    meta = nullcontext() if detect_fake_mode() else torch.device("meta")
    with meta, _NoInit():
        yield
