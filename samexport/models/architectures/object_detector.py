"""MobileSAMv2's object-aware detector: a class-agnostic YOLOv8 with 26 distance bins and no mask prototypes.

Written from the published structure alone (MobileSAMv2, arXiv 2312.09579; distance bins: Generalized Focal
Loss, arXiv 2006.04388). State-dict names are those of the published weights, ``model.<layer>...``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class DetectorSize:
    """Every number that tells one detector from another; the defaults are MobileSAMv2's.

    Attributes:
        widths: channels after each halving of the resolution; the last three feed the head.
        depths: bottlenecks of the four stages; the layers that join levels have ``depths[0]``.
        classes: outputs of the score branch.
        reg_max: bins of one distance, so a distance is at most ``reg_max - 1`` cells.
        class_width: hidden width of the score branch; that of the box branch is ``4 * reg_max``.
        mask_width: hidden width of the mask-coefficient branch.
        mask_coefficients: outputs of that branch.
        batch_norm_eps: not in a state dict; the published file says 0.001.
    """

    widths: tuple[int, int, int, int, int] = (80, 160, 320, 640, 640)
    depths: tuple[int, int, int, int] = (3, 6, 6, 3)
    classes: int = 1
    reg_max: int = 26
    class_width: int = 320
    mask_width: int = 80
    mask_coefficients: int = 32
    batch_norm_eps: float = 1e-3

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], batch_norm_eps: float = 1e-3) -> Self:
        """Read the sizes off the shapes of a state dict; KeyError names a tensor that is missing."""
        first, second, third, fourth, fifth = (shapes[f"model.{i}.conv.weight"][0] for i in (0, 1, 3, 5, 7))
        stages = [f"model.{i}.m." for i in (2, 4, 6, 8)]
        one, two, three, four = (len({k.split(".")[3] for k in shapes if k.startswith(s)}) for s in stages)
        return cls(
            widths=(first, second, third, fourth, fifth),
            depths=(one, two, three, four),
            classes=shapes["model.22.cv3.0.2.weight"][0],
            reg_max=shapes["model.22.dfl.conv.weight"][1],
            class_width=shapes["model.22.cv3.0.0.conv.weight"][0],
            mask_width=shapes["model.22.cv4.0.0.conv.weight"][0],
            mask_coefficients=shapes["model.22.cv4.0.2.weight"][0],
            batch_norm_eps=batch_norm_eps,
        )


DETECTOR_X = DetectorSize()
DETECTOR_TEST = DetectorSize(
    widths=(8, 8, 16, 16, 24),
    depths=(1, 2, 1, 1),
    reg_max=6,
    class_width=16,
    mask_width=8,
    mask_coefficients=4,
)
"""The same code for tests: every kind of layer, a repeated bottleneck, three different head widths."""


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=eps, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with the input added where ``residual``."""

    def __init__(self, width: int, eps: float, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.cv1, self.cv2 = Conv(width, width, 3, 1, eps), Conv(width, width, 3, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = self.cv2(self.cv1(x))
        return x + out if self.residual else out


class C2f(nn.Module):
    """A chain of bottlenecks on half of the channels; the output sees every link of the chain."""

    def __init__(self, inputs: int, outputs: int, depth: int, eps: float, *, residual: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = Conv(inputs, outputs, 1, 1, eps)
        self.cv2 = Conv((2 + depth) * half, outputs, 1, 1, eps)
        self.m = nn.ModuleList(Bottleneck(half, eps, residual=residual) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W]."""
        links = list(self.cv1(x).chunk(2, dim=1))
        for bottleneck in self.m:
            links.append(bottleneck(links[-1]))
        out: Tensor = self.cv2(torch.cat(links, dim=1))
        return out


class SPPF(nn.Module):
    """Spatial pyramid pooling: the input beside its maxima over 5x5, 9x9 and 13x13 pixels."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.cv1 = Conv(width, width // 2, 1, 1, eps)
        self.cv2 = Conv(width // 2 * 4, width, 1, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        levels = [self.cv1(x)]
        for _ in range(3):
            levels.append(F.max_pool2d(levels[-1], 5, 1, 2))
        out: Tensor = self.cv2(torch.cat(levels, dim=1))
        return out


class DistanceBins(nn.Module):
    """The expectation over bins 0, 1, 2, ... as the 1x1 convolution that the published weights carry."""

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reg_max, 1, 1, bias=False)
        self.conv.weight = nn.Parameter(torch.arange(reg_max, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, bins: Tensor) -> Tensor:
        """Logits [B, 4 * reg_max, A] to distances in cells [B, 4, A]."""
        batch, channels, anchors = bins.shape
        grouped = bins.view(batch, 4, channels // 4, anchors).transpose(1, 2).softmax(1)
        out: Tensor = self.conv(grouped)
        return out.view(batch, 4, anchors)


class Head(nn.Module):
    """Box bins (``cv2``) and class scores (``cv3``) at three levels.

    ``cv4`` gave mask coefficients while the detector was trained; nothing uses them.
    """

    def __init__(self, size: DetectorSize) -> None:
        super().__init__()
        inputs, eps = size.widths[2:], size.batch_norm_eps

        def branch(width: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(Conv(n, width, 3, 1, eps), Conv(width, width, 3, 1, eps), nn.Conv2d(width, outputs, 1))
                for n in inputs
            )

        self.cv2 = branch(4 * size.reg_max, 4 * size.reg_max)
        self.cv3 = branch(size.class_width, size.classes)
        self.dfl = DistanceBins(size.reg_max)
        self.cv4 = branch(size.mask_width, size.mask_coefficients)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Maps of the three levels to [B, 4 * reg_max + classes, H, W] each."""
        heads = zip(self.cv2, self.cv3, levels, strict=True)
        return [torch.cat([box(x), score(x)], dim=1) for box, score, x in heads]


class ObjectDetector(nn.Module):
    """The whole detector: [B, 3, H, W] in 0..1, H and W multiples of 32, to raw maps of strides 8, 16, 32.

    Layers without weights (10, 11, 13, 14, 16, 19: upsampling and joining) keep their place in ``model``,
    because names count them.
    """

    def __init__(self, size: DetectorSize = DETECTOR_X) -> None:
        super().__init__()
        self.size = size
        w0, w1, w2, w3, w4 = size.widths
        d0, d1, d2, d3 = size.depths
        eps = size.batch_norm_eps

        def join(inputs: int, outputs: int) -> C2f:
            return C2f(inputs, outputs, d0, eps, residual=False)

        self.model = nn.ModuleList([
            Conv(3, w0, 3, 2, eps), Conv(w0, w1, 3, 2, eps), C2f(w1, w1, d0, eps, residual=True),
            Conv(w1, w2, 3, 2, eps), C2f(w2, w2, d1, eps, residual=True),
            Conv(w2, w3, 3, 2, eps), C2f(w3, w3, d2, eps, residual=True),
            Conv(w3, w4, 3, 2, eps), C2f(w4, w4, d3, eps, residual=True), SPPF(w4, eps),
            nn.Identity(), nn.Identity(), join(w4 + w3, w3), nn.Identity(), nn.Identity(), join(w3 + w2, w2),
            Conv(w2, w2, 3, 2, eps), nn.Identity(), join(w2 + w3, w3),
            Conv(w3, w3, 3, 2, eps), nn.Identity(), join(w3 + w4, w4), Head(size),
        ])  # fmt: skip

    @property
    def head(self) -> Head:
        """The last layer."""
        head = self.model[22]
        if not isinstance(head, Head):
            raise TypeError(f"layer 22 is the head, found {type(head).__name__}")
        return head

    def features(self, image: Tensor) -> list[Tensor]:
        """What the head sees: maps of strides 8, 16 and 32, ``size.widths[2:]`` channels."""
        m = self.model
        level3 = m[4](m[3](m[2](m[1](m[0](image)))))
        level4 = m[6](m[5](level3))
        level5 = m[9](m[8](m[7](level4)))
        joined4 = m[12](torch.cat([_twice(level5), level4], dim=1))
        joined3 = m[15](torch.cat([_twice(joined4), level3], dim=1))
        out4 = m[18](torch.cat([m[16](joined3), joined4], dim=1))
        out5 = m[21](torch.cat([m[19](out4), level5], dim=1))
        return [joined3, out4, out5]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Detect; :meth:`decode` turns the maps into boxes."""
        out: list[Tensor] = self.head(self.features(image))
        return out

    def decode(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw maps to boxes [B, A, 4] xyxy in pixels of the input and scores [B, A, classes] in 0..1.

        Anchors go level by level, row by row.
        """
        bins = 4 * self.size.reg_max
        flat = torch.cat([x.flatten(2) for x in maps], dim=2)
        points, strides = anchors([(x.shape[2], x.shape[3]) for x in maps])
        near, far = self.head.dfl(flat[:, :bins]).transpose(1, 2).chunk(2, dim=2)
        boxes = torch.cat([points - near, points + far], dim=2) * strides
        return boxes, flat[:, bins:].transpose(1, 2).sigmoid()


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def anchors(grids: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Cell centres x, y [A, 2] in cells and strides [A, 1] in pixels of levels with (rows, columns)."""
    points, strides = [], []
    for (rows, columns), stride in zip(grids, STRIDES, strict=True):
        row, column = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        points.append(torch.stack([column, row], dim=-1).view(-1, 2))
        strides.append(torch.full((rows * columns, 1), float(stride)))
    return torch.cat(points), torch.cat(strides)
