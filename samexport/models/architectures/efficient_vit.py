"""EfficientViT as EfficientViT-SAM uses it: convolutions, and linear attention at the two coarsest grids.

Source: EfficientViT (arXiv 2205.14756), EfficientViT-SAM (arXiv 2402.05008),
``efficientvit/models/efficientvit/{backbone,sam}.py`` and ``efficientvit/models/nn/ops.py``. Every BatchNorm has an
eps of 1e-6, every GELU is the approximation by tanh.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import LayerNorm2d

GROUP = 32
"""Width of an attention head."""
EPS = 1e-15
"""Added to the attention's denominator: 0 / 0 is 0."""


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, GELU; the last two where they are. Without BatchNorm the convolution has a bias."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, norm: bool = True,
        act: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        if norm:
            self.norm = nn.BatchNorm2d(outputs, eps=1e-6)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        x = self.conv(x)
        if hasattr(self, "norm"):
            x = self.norm(x)
        return F.gelu(x, approximate="tanh") if self.act else x


class ResBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width, 3, act=True)
        self.conv2 = ConvNorm(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = self.conv2(self.conv1(x))
        return out


class FusedMB(nn.Module):
    """3x3 to the expanded width, 1x1 back."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        self.spatial_conv = ConvNorm(inputs, inputs * expand, 3, stride, act=True)
        self.point_conv = ConvNorm(inputs * expand, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.point_conv(self.spatial_conv(x))
        return out


class MB(nn.Module):
    """1x1 to the expanded width, depthwise 3x3, 1x1 back; only the last one has a BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.inverted_conv = ConvNorm(inputs, hidden, 1, norm=False, act=True)
        self.depth_conv = ConvNorm(hidden, hidden, 3, stride, hidden, norm=False, act=True)
        self.point_conv = ConvNorm(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.point_conv(self.depth_conv(self.inverted_conv(x)))
        return out


class Plain(nn.Module):
    """A convolution under the name that the units have."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W]."""
        out: Tensor = self.conv(x)
        return out


class LiteMLA(nn.Module):
    """Attention with ReLU instead of a softmax, linear in the cells, on the map and on its neighbourhoods.

    Channels come in groups of 96: 32 queries, 32 keys, 32 values of a head.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        heads = width // GROUP
        self.qkv = Plain(width, 3 * width)
        around = nn.Conv2d(3 * width, 3 * width, kernel, padding=kernel // 2, groups=3 * width, bias=False)
        mixed = nn.Conv2d(3 * width, 3 * width, 1, groups=3 * heads, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(around, mixed)])
        self.proj = ConvNorm(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        batch, width, height, columns = x.shape
        here = self.qkv(x)
        both = torch.cat([here, self.aggreg[0](here)], dim=1)
        q, k, v = torch.split(both.view(batch, 2 * width // GROUP, 3 * GROUP, height * columns), GROUP, dim=2)
        q, k = F.relu(q), F.relu(k)
        total = k.sum(-1, keepdim=True).transpose(-1, -2) @ q
        mixed = (v @ k.transpose(-1, -2)) @ q / (total + EPS)
        out: Tensor = self.proj(mixed.reshape(batch, 2 * width, height, columns))
        return out


class Residual(nn.Module):
    """``main``, added to its input or alone."""

    def __init__(self, main: nn.Module, *, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to the output of ``main``."""
        out: Tensor = x + self.main(x) if self.shortcut else self.main(x)
        return out


class AttentionBlock(nn.Module):
    """Attention, then an inverted bottleneck, both added to their inputs."""

    def __init__(self, width: int, kernel: int, expand: int) -> None:
        super().__init__()
        self.context_module = Residual(LiteMLA(width, kernel))
        self.local_module = Residual(MB(width, width, 1, expand))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = self.local_module(self.context_module(x))
        return out


class Ops(nn.Module):
    """Modules one after the other, under the official name."""

    def __init__(self, ops: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(ops)

    def forward(self, x: Tensor) -> Tensor:
        """What the last one returns."""
        for op in self.op_list:
            x = op(x)
        return x


class Backbone(nn.Module):
    """The stages, each at half of the grid before it."""

    def __init__(self, stages: Sequence[Ops]) -> None:
        super().__init__()
        self.stages: Sequence[Ops] = nn.ModuleList(stages)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of every stage."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def _stage(kind: str, inputs: int, width: int, depth: int, kernel: int) -> Ops:
    """One stage after the stem: "fused", "mb" or "attention"."""
    if kind == "fused":
        first: nn.Module = FusedMB(inputs, width, 2, 16)
        rest: list[nn.Module] = [Residual(FusedMB(width, width, 1, 4)) for _ in range(depth)]
    elif kind == "mb":
        first, rest = MB(inputs, width, 2, 16), [Residual(MB(width, width, 1, 4)) for _ in range(depth)]
    else:
        expand = 6 if kind == "attention" else 4
        first = MB(inputs, width, 2, 4 * expand)
        rest = [AttentionBlock(width, kernel, expand) for _ in range(depth)]
    return Ops([Residual(first, shortcut=False), *rest])


class Neck(nn.Module):
    """The last three stages, each at the grid of the embedding, summed; then blocks of convolutions."""

    def __init__(self, widths: Sequence[int], width: int, depth: int, expand: int, grid: int, outputs: int) -> None:
        super().__init__()
        self.grid = grid
        self.input_ops = nn.ModuleList(Ops([ConvNorm(inputs, width, 1)]) for inputs in reversed(widths))
        self.middle = Ops([Residual(FusedMB(width, width, 1, expand)) for _ in range(depth)])
        self.output_ops = nn.ModuleList([Ops([Plain(width, outputs, bias=True)])])

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Outputs of all stages to [B, out, grid, grid]."""
        scaled = [
            F.interpolate(op(x), (self.grid, self.grid), mode="bicubic", align_corners=False)
            for op, x in zip(self.input_ops, reversed(stages), strict=False)
        ]
        summed = scaled[0] + (scaled[1] + scaled[2])
        out: Tensor = self.output_ops[0](self.middle(summed))
        return out


class EfficientViTSam(nn.Module):
    """The encoder: [B, 3, S, S] normalised image to [B, out, grid, grid]; S is 512 or 1024, the grid 64."""

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], kinds: Sequence[str], kernel: int, middle: int,
        expand: int, *, grid: int = 64, width: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        stem: list[nn.Module] = [ConvNorm(3, widths[0], 3, 2, act=True)]
        stem += [Residual(ResBlock(widths[0])) for _ in range(depths[0])]
        stages = [Ops(stem)]
        for number, kind in enumerate(kinds, 1):
            stages.append(_stage(kind, widths[number - 1], widths[number], depths[number], kernel))
        self.backbone = Backbone(stages)
        self.neck = Neck(widths[-3:], width, middle, expand, grid, width)
        self.norm = LayerNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        out: Tensor = self.norm(self.neck(self.backbone(x)))
        return out


_WIDTHS = (32, 64, 128, 256, 512, 1024)
_L = ("fused", "fused", "mb", "attention")
_XL = ("fused", "fused", "fused", "attention4", "attention")


def l0() -> EfficientViTSam:
    """EfficientViT-SAM-L0, 512 pixels."""
    return EfficientViTSam(_WIDTHS[:5], (1, 1, 1, 4, 4), _L, 5, 4, 1)


def l1() -> EfficientViTSam:
    """EfficientViT-SAM-L1, 512 pixels."""
    return EfficientViTSam(_WIDTHS[:5], (1, 1, 1, 6, 6), _L, 5, 8, 1)


def l2() -> EfficientViTSam:
    """EfficientViT-SAM-L2, 512 pixels."""
    return EfficientViTSam(_WIDTHS[:5], (1, 2, 2, 8, 8), _L, 5, 12, 1)


def xl0() -> EfficientViTSam:
    """EfficientViT-SAM-XL0, 1024 pixels."""
    return EfficientViTSam(_WIDTHS, (0, 1, 1, 2, 3, 3), _XL, 3, 6, 4)


def xl1() -> EfficientViTSam:
    """EfficientViT-SAM-XL1, 1024 pixels."""
    return EfficientViTSam(_WIDTHS, (1, 2, 2, 4, 6, 6), _XL, 3, 12, 4)


def test() -> EfficientViTSam:
    """The same code at 64 pixels: every kind of stage, grids of 8, 4 and 2 brought to 8."""
    return EfficientViTSam((8, 8, 16, 16, 32), (1, 1, 0, 1, 1), _L, 5, 1, 1, grid=8, width=64)
