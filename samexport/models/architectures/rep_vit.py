"""RepViT as EdgeSAM and RepViT-SAM use it: convolutions alone, with branches that are one convolution once trained.

Source: RepViT (arXiv 2307.09283), EdgeSAM (arXiv 2312.06660) and its ``edge_sam/modeling/rep_vit.py``, RepViT-SAM
(arXiv 2312.05760) and its ``sam/repvit_sam/modeling/repvit.py``. The two have different branches: in EdgeSAM the 1x1
branch has a BatchNorm of its own, in RepViT-SAM the sum of the branches has one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import neck
from samexport.models.architectures.tiny_vit import ConvBN


class SqueezeExcite(nn.Module):
    """Each channel is scaled by a number that the means of all channels decide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(8, (width // 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        gate: Tensor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class EdgeMixer(nn.Module):
    """EdgeSAM's depthwise branches: 3x3 and 1x1, each with its BatchNorm, and the input itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvBN(width, width, 3, groups=width)
        self.conv1 = ConvBN(width, width, 1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = self.conv(x) + self.conv1(x) + x
        return out


class RepMixer(nn.Module):
    """RepViT-SAM's depthwise branches: 3x3 with a BatchNorm, 1x1 with a bias, the input; a BatchNorm of the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvBN(width, width, 3, groups=width)
        self.conv1 = nn.Conv2d(width, width, 1, groups=width)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = self.bn(self.conv(x) + self.conv1(x) + x)
        return out


class ChannelMixer(nn.Module):
    """1x1 to twice the width, GELU, 1x1 back, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.m = nn.Sequential(ConvBN(width, 2 * width, 1), nn.GELU(), ConvBN(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        out: Tensor = x + self.m(x)
        return out


class Block(nn.Module):
    """Tokens are mixed by depthwise convolutions, then channels; nothing stands between the two."""

    def __init__(self, token_mixer: nn.Sequential, width: int) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.channel_mixer = ChannelMixer(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, width, H / stride, W / stride]."""
        out: Tensor = self.channel_mixer(self.token_mixer(x))
        return out


def _features(
    widths: Sequence[int], depths: Sequence[int], mixer: type[nn.Module], strides: Sequence[int]
) -> nn.ModuleList:
    """The stem and the blocks of all stages; a stage but for the first begins with a block that changes the width."""
    first = widths[0]
    stem = nn.Sequential(ConvBN(3, first // 2, 3, 2), nn.GELU(), ConvBN(first // 2, first, 3, 2))
    blocks: list[nn.Module] = [stem]
    before = first
    for width, depth, stride in zip(widths, depths, (1, *strides), strict=True):
        if width != before:
            change = (ConvBN(before, before, 3, stride, groups=before), nn.Identity(), ConvBN(before, width, 1))
            blocks.append(Block(nn.Sequential(*change), width))
        for number in range(depth):
            squeeze = SqueezeExcite(width) if number % 2 == 0 and number < depth - 1 else nn.Identity()
            blocks.append(Block(nn.Sequential(mixer(width), squeeze), width))
        before = width
    return nn.ModuleList(blocks)


class RepViT(nn.Module):
    """RepViT-SAM's encoder: [B, 3, S, S] normalised image to [B, out, S / 16, S / 16]."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        # the last stage keeps the grid
        self.features: Sequence[nn.Module] = _features(widths, depths, RepMixer, (2, 2, 1))  # type: ignore[assignment]
        self.neck = neck(widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        for block in self.features:
            x = block(x)
        out: Tensor = self.neck(x)
        return out


class Upsampled(nn.Module):
    """A 1x1 convolution under the official name; the grid is doubled outside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(inputs, outputs, 1, bias=False)]
        self.op_list: Sequence[nn.Conv2d] = nn.ModuleList(convolutions)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, 2 H, 2 W], bicubic (a = -0.75) as EdgeSAM's PyTorch code has it.

        EdgeSAM's export scripts take bilinear weights instead, and so do the files that it publishes.
        """
        return F.interpolate(self.op_list[0](x), scale_factor=2, mode="bicubic", align_corners=False)


class EdgeViT(nn.Module):
    """EdgeSAM's encoder: the third and the fourth stage are fused at 1/16; shapes as :class:`RepViT`."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        self.features: Sequence[nn.Module] = _features(widths, depths, EdgeMixer, (2, 2, 2))  # type: ignore[assignment]
        # the fourth stage begins with the block that changes the width
        self.third = len(self.features) - 1 - depths[-1]
        self.fuse_stage2 = nn.Conv2d(widths[2], out_channels, 1, bias=False)
        self.fuse_stage3 = Upsampled(widths[3], out_channels)
        self.neck = neck(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        for block in self.features[: self.third]:
            x = block(x)
        fused = self.fuse_stage2(x)
        for block in self.features[self.third :]:
            x = block(x)
        out: Tensor = self.neck(fused + self.fuse_stage3(x))
        return out


def edge_sam() -> EdgeViT:
    """EdgeSAM's encoder (RepViT-M1, later called M0.9), 1024 pixels."""
    return EdgeViT((48, 96, 192, 384), (3, 3, 15, 2))


def repvit_m2_3() -> RepViT:
    """RepViT-SAM's encoder, 1024 pixels."""
    return RepViT((80, 160, 320, 640), (7, 7, 35, 2))


def edge_test() -> EdgeViT:
    """The same code at 64 pixels: blocks with and without a gate, grids of 4 and 2 fused."""
    return EdgeViT((16, 24, 32, 48), (2, 1, 1, 1), 64)


def repvit_test() -> RepViT:
    """The same at 64 pixels: blocks with and without a gate, all strides."""
    return RepViT((16, 24, 32, 48), (2, 1, 1, 1), 64)
