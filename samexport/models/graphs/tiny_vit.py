"""Export form of TinyViT.

What differs from ``architectures/tiny_vit.py``, and why it is the same function:

- Conv and BatchNorm are one convolution; the classifier is gone; ``std`` is in the first convolution.
- The attention bias of each pair of cells is a baked table, the softmax scale is in the query weights.
- LayerNorm and qkv run on real tokens only. A padding token is the LayerNorm's bias b, so its q, k, v are
  constants. k of every token contains b Wk + bias, which adds the same number to all logits of a row and
  cancels in the softmax: it is dropped. v contains b Wv + bias, and the weights of a row sum to 1: it moves
  behind the attention, into ``proj``. What remains of a padding token is zero, a plain Pad.
- Tokens stay [1, H, W, C]; windows are cut in two rank-4 steps (TFLite's GPU and the Neural Engine stop
  at 4 and 5). ``proj`` runs after the crop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import tiny_vit
from samexport.models.graphs.layers import (
    LayerNorm,
    Neck,
    Normalise,
    fold_batch_norm,
    frozen,
    merge,
    partition,
    parts,
)
from samexport.models.spec import Preprocess


def _fold(conv: tiny_vit.ConvBN) -> nn.Conv2d:
    return fold_batch_norm(conv.c, conv.bn)


class ConvStage(nn.Module):
    """1x1, GELU, depthwise 3x3, GELU, 1x1: both MBConv and the merge to the next width."""

    def __init__(self, block: tiny_vit.MBConv | tiny_vit.PatchMerging) -> None:
        super().__init__()
        self.residual = isinstance(block, tiny_vit.MBConv)
        self.conv1, self.conv2, self.conv3 = _fold(block.conv1), _fold(block.conv2), _fold(block.conv3)

    def forward(self, x: Tensor) -> Tensor:
        """[1, in, H, W] to [1, out, H / stride, W / stride]."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(x + out) if self.residual else out


class WindowAttention(nn.Module):
    """Attention of one block on [1, H, W, C]; see the module's docstring for what was folded."""

    def __init__(self, attention: tiny_vit.Attention) -> None:
        super().__init__()
        width, self.heads, self.window = attention.proj.in_features, attention.heads, attention.window
        self.norm = LayerNorm(attention.norm.weight, None, attention.norm.eps)
        # rows per head (q, k, v) -> all q, all k, all v
        weight = attention.qkv.weight.double().view(self.heads, 3, -1, width).transpose(0, 1).reshape(3, width, width)
        bias = attention.qkv.bias.double().view(self.heads, 3, -1).transpose(0, 1).reshape(3, width)
        bias = bias + weight @ attention.norm.bias.double()
        scale = (width // self.heads) ** -0.5
        self.qkv = frozen(torch.cat([weight[0] * scale, weight[1], weight[2]]).T.float())
        self.q_bias = frozen(torch.cat([bias[0] * scale, torch.zeros(2 * width)]).float())
        self.table = frozen(attention.bias_table())
        self.proj = frozen(attention.proj.weight.T)
        self.proj_bias = frozen((attention.proj.bias.double() + attention.proj.weight.double() @ bias[2]).float())

    def forward(self, x: Tensor) -> Tensor:
        """[1, H, W, C], same shape out."""
        _, height, columns, width = x.shape
        size, tokens = self.window, self.window**2
        qkv = self.norm(x) @ self.qkv + self.q_bias
        qkv = F.pad(qkv, (0, 0, 0, -columns % size, 0, -height % size))
        heads = partition(qkv, size).reshape(-1, tokens, 3 * self.heads, width // self.heads).transpose(1, 2)
        q, k, v = torch.split(heads, self.heads, dim=1)
        mixed = (q @ k.transpose(-1, -2) + self.table).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).reshape(-1, tokens, width)
        return merge(mixed, size, height, columns) @ self.proj + self.proj_bias


class Block(nn.Module):
    """Attention, depthwise convolution (the only step that wants channels first), MLP."""

    def __init__(self, block: tiny_vit.TinyViTBlock) -> None:
        super().__init__()
        self.attention = WindowAttention(block.attn)
        self.local_conv = _fold(block.local_conv)
        self.mlp = block.mlp

    def forward(self, x: Tensor) -> Tensor:
        """[1, H, W, C], same shape out."""
        x = (x + self.attention(x)).permute(0, 3, 1, 2)
        x = self.local_conv(x).permute(0, 2, 3, 1)
        out: Tensor = x + self.mlp(x)
        return out


class TinyViTEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to embedding [1, out, S / 16, S / 16]."""

    def __init__(self, encoder: tiny_vit.TinyViT, frame: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(frame)
        first, _, second = parts(encoder.patch_embed.seq)
        self.stem1, self.stem2 = self.normalise.fold(_fold(first)), _fold(second)
        blocks = [parts(stage.blocks) for stage in encoder.layers]
        self.convolutions = nn.ModuleList(ConvStage(b) for b in blocks[0])
        self.merges = nn.ModuleList(ConvStage(s.downsample) for s in encoder.layers if s.downsample is not None)
        self.stages = nn.ModuleList(nn.Sequential(*(Block(b) for b in stage)) for stage in blocks[1:])
        self.neck = Neck(encoder.neck)

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        return self.with_early(image)[0]

    def with_early(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and what the third stage sees, [1, width, S / 16, S / 16]."""
        x = self.stem2(F.gelu(self.stem1(self.normalise(image))))
        for convolution in self.convolutions:
            x = convolution(x)
        merged = []
        for merge_stage, stage in zip(self.merges, self.stages, strict=True):
            merged.append(merge_stage(x))
            x = stage(merged[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.neck(x.permute(0, 2, 3, 1)), merged[1]
