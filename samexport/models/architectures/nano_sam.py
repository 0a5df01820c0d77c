"""NanoSAM's encoder: a ResNet18 and a head that doubles its last grid.

Source: NVIDIA-AI-IOT/nanosam, ``nanosam/models/timm_image_encoder.py``; ResNet (arXiv 1512.03385).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(x + shortcut)


def _layer(inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, width, stride), BasicBlock(width, width, 1))


class ResNet(nn.Module):
    """The backbone without its classifier, in four layers of two blocks."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        first, second, third, fourth = widths
        self.layer1 = _layer(first, first, 1)
        self.layer2 = _layer(first, second, 2)
        self.layer3 = _layer(second, third, 2)
        self.layer4 = _layer(third, fourth, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, last width, S / 32, S / 32]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x


class NanoSam(nn.Module):
    """The encoder: [B, 3, S, S] normalised image to [B, out, S / 16, S / 16]; S is fixed by the learned positions."""

    def __init__(self, widths: tuple[int, int, int, int], grid: int, out_channels: int) -> None:
        super().__init__()
        self.backbone = ResNet(widths)
        out = out_channels
        self.up_1 = nn.Sequential(
            nn.Conv2d(widths[-1], out, 3, padding=1), nn.GELU(),
            nn.Conv2d(out, out, 3, padding=1), nn.GELU(),
            nn.Conv2d(out, out, 3, padding=1), nn.GELU(),
            nn.ConvTranspose2d(out, out, 3, 2, 1, 1), nn.GELU(),
        )  # fmt: skip
        self.proj = nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.GELU(), nn.Conv2d(out, out, 1))
        self.pos_embedding = nn.Parameter(torch.zeros(1, out, grid, grid))

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        out: Tensor = self.proj(self.up_1(self.backbone(x))) + self.pos_embedding
        return out


def resnet18() -> NanoSam:
    """NanoSAM's encoder, 1024 pixels."""
    return NanoSam((64, 128, 256, 512), 64, 256)


def resnet_test() -> NanoSam:
    """The same code at 64 pixels."""
    return NanoSam((8, 16, 16, 24), 4, 64)
