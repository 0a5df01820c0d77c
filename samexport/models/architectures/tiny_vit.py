"""TinyViT as MobileSAM uses it: the third merge keeps its stride at 1, so the last grid is 1/16.

Source: TinyViT (arXiv 2207.10666), MobileSAM (arXiv 2306.14289), ``mobile_sam/modeling/tiny_vit_sam.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.layers import cells, neck

# MobileSAM's rule: a merge to one of these widths does not shrink the grid.
_STRIDE_1_WIDTHS = (320, 448, 576)


class ConvBN(nn.Module):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.bn(self.c(x))
        return out


class PatchEmbed(nn.Module):
    """Two stride-2 convolutions with a GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, width // 2, 3, 2), nn.GELU(), ConvBN(width // 2, width, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, width, S / 4, S / 4]."""
        out: Tensor = self.seq(x)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck whose last activation follows the residual sum."""

    def __init__(self, width: int, expand: int = 4) -> None:
        super().__init__()
        hidden = width * expand
        self.conv1 = ConvBN(width, hidden, 1)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """1x1, depthwise 3x3 with the stride, 1x1; no activation at the end."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if outputs in _STRIDE_1_WIDTHS else 2
        self.conv1 = ConvBN(inputs, outputs, 1)
        self.conv2 = ConvBN(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvBN(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class Attention(nn.Module):
    """Window attention with a learned bias for each (|rows|, |columns|) distance and head.

    ``qkv`` holds its rows per head: q, k and v of head 0, then of head 1, and so on.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def bias_table(self) -> Tensor:
        """The bias of every pair of cells in a window, [heads, window^2, window^2]."""
        row, column = cells(torch.arange(self.window))
        row, column = row.flatten(), column.flatten()
        distance = (row[:, None] - row).abs() * self.window + (column[:, None] - column).abs()
        return self.attention_biases[:, distance]

    def forward(self, x: Tensor) -> Tensor:
        """Windows [B, window^2, width], same shape out."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, self.heads, 3, width // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        logits = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + self.bias_table()
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        out: Tensor = self.proj(mixed)
        return out


class Mlp(nn.Module):
    """LayerNorm, Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyViTBlock(nn.Module):
    """Window attention, depthwise convolution, MLP.

    The zero padding to whole windows is added before the LayerNorm, so a padding token is the LayerNorm's
    bias and takes part in the attention like any other.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads, window)
        self.local_conv = ConvBN(width, width, 3, groups=width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W], same shape out."""
        batch, width, height, columns = x.shape
        size = self.attn.window
        pad_rows, pad_columns = -height % size, -columns % size
        padded = F.pad(x, (0, pad_columns, 0, pad_rows)).permute(0, 2, 3, 1)
        rows, cols = padded.shape[1] // size, padded.shape[2] // size
        windows = padded.view(batch, rows, size, cols, size, width).transpose(2, 3)
        mixed = self.attn(windows.reshape(-1, size * size, width))
        mixed = mixed.view(batch, rows, cols, size, size, width).transpose(2, 3)
        mixed = mixed.reshape(batch, rows * size, cols * size, width)[:, :height, :columns]
        x = self.local_conv(x + mixed.permute(0, 3, 1, 2))
        out: Tensor = x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class Stage(nn.Module):
    """Blocks of one width, then the merge to the next (none after the last stage)."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] to the next stage's width and grid."""
        x = self.blocks(x)
        out: Tensor = x if self.downsample is None else self.downsample(x)
        return out


class TinyViT(nn.Module):
    """The encoder: [B, 3, S, S] normalised image to [B, out, S / 16, S / 16].

    ``norm_head`` and ``head`` are the classifier; it is in every checkpoint and never used.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        heads: tuple[int, int, int, int],
        windows: tuple[int, int, int, int],
        out_channels: int,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(widths[0])
        stages = []
        for i, width in enumerate(widths):
            blocks: list[nn.Module] = [
                MBConv(width) if i == 0 else TinyViTBlock(width, heads[i], windows[i]) for _ in range(depths[i])
            ]
            stages.append(Stage(blocks, PatchMerging(width, widths[i + 1]) if i < 3 else None))
        self.layers: Sequence[Stage] = nn.ModuleList(stages)  # type: ignore[assignment]
        self.norm_head = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        self.neck = neck(widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a normalised image."""
        return self.with_early(x)[0]

    def with_early(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and what the third stage sees, [B, width, S / 16, S / 16], which HQ-SAM reads."""
        x = self.patch_embed(x)
        for stage in self.layers[:2]:
            x = stage(x)
        early = x
        for stage in self.layers[2:]:
            x = stage(x)
        return self.neck(x), early


def tiny_vit_5m() -> TinyViT:
    """MobileSAM's and TinySAM's encoder, 1024 pixels."""
    return TinyViT((64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7), 256)


def tiny_vit_test() -> TinyViT:
    """The same code at 64 pixels: padded windows (8 to 9, 4 to 6), both strides, several heads."""
    return TinyViT((16, 32, 32, 320), (1, 1, 2, 1), (1, 2, 2, 10), (3, 3, 3, 3), 64, classes=10)
