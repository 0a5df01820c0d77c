"""Export form of RepViT, for EdgeSAM and RepViT-SAM.

What differs from ``architectures/rep_vit.py``, and why it is the same function:

- Every convolution has its BatchNorm in it. The branches of a depthwise mixer are linear, so they are one 3x3
  convolution: the 1x1 branch and the input are added to the tap in the middle.
- ``std`` is in the first convolution.
- The gate's mean is one over the columns, then one over the rows: a sum of 65,536 numbers leaves half precision.
- EdgeSAM's bicubic doubling is linear, acts on rows and columns apart, and has the same weights for every picture:
  two constant matrices, because TFLite and CoreML have no bicubic resize. The neck's first convolution is linear
  and without bias, so it stands in the two convolutions before the doubling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import rep_vit
from samexport.models.architectures.tiny_vit import ConvBN
from samexport.models.graphs.layers import Bicubic, Neck, Normalise, fold_batch_norm, frozen, parts, pointwise
from samexport.models.spec import Preprocess


def _fused(mixer: nn.Module) -> nn.Conv2d:
    """One biased depthwise 3x3 convolution that equals all branches; computed in float64."""
    if isinstance(mixer, ConvBN):
        return fold_batch_norm(mixer.c, mixer.bn)
    if isinstance(mixer, rep_vit.EdgeMixer):
        whole = _widened(mixer.conv, fold_batch_norm(mixer.conv1.c, mixer.conv1.bn))
        return _single(*whole, mixer.conv.c)
    if not isinstance(mixer, rep_vit.RepMixer):
        raise TypeError(f"no token mixer: {type(mixer).__name__}")
    weight, bias = _widened(mixer.conv, mixer.conv1)
    sum_of_branches = _single(weight, bias, mixer.conv.c, dtype=torch.float64)
    return fold_batch_norm(sum_of_branches, mixer.bn)


def _widened(conv: ConvBN, pointwise: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of 3x3 + 1x1 + input, float64."""
    main = fold_batch_norm(conv.c, conv.bn)
    weight = main.weight.double().clone()
    weight[:, :, 1, 1] += pointwise.weight.double()[:, :, 0, 0] + 1
    return weight, _bias(main) + _bias(pointwise)


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise ValueError("a branch has no bias")
    return conv.bias.double()


def _single(weight: Tensor, bias: Tensor, like: nn.Conv2d, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    conv = nn.Conv2d(like.in_channels, like.out_channels, 3, padding=1, groups=like.groups)
    conv.weight, conv.bias = frozen(weight.to(dtype)), frozen(bias.to(dtype))
    return conv


class Gate(nn.Module):
    """Squeeze and excite, with the mean in two steps."""

    def __init__(self, gate: rep_vit.SqueezeExcite) -> None:
        super().__init__()
        self.fc1, self.fc2 = gate.fc1, gate.fc2

    def forward(self, x: Tensor) -> Tensor:
        """[1, width, H, W], same shape out."""
        mean = x.mean(3, keepdim=True).mean(2, keepdim=True)
        gate: Tensor = self.fc2(F.relu(self.fc1(mean)))
        return x * gate.sigmoid()


class Block(nn.Module):
    """One fused mixer, a gate where there is one, and the two 1x1 convolutions."""

    def __init__(self, block: rep_vit.Block) -> None:
        super().__init__()
        mixer, gate, *widening = parts(block.token_mixer)
        first, _, second = parts(block.channel_mixer.m)
        mixers: list[nn.Module] = [_fused(mixer)]
        if isinstance(gate, rep_vit.SqueezeExcite):
            mixers.append(Gate(gate))
        mixers += [fold_batch_norm(conv.c, conv.bn) for conv in widening]
        self.mixer = nn.Sequential(*mixers)
        self.expand, self.reduce = (fold_batch_norm(conv.c, conv.bn) for conv in (first, second))

    def forward(self, x: Tensor) -> Tensor:
        """[1, in, H, W] to [1, width, H / stride, W / stride]."""
        x = self.mixer(x)
        out: Tensor = x + self.reduce(F.gelu(self.expand(x)))
        return out


class RepViTEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to embedding [1, out, S / 16, S / 16]."""

    def __init__(self, encoder: rep_vit.RepViT | rep_vit.EdgeViT, frame: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(frame)
        stem, *blocks = encoder.features
        first, _, second = parts(stem)
        self.stem1 = self.normalise.fold(fold_batch_norm(first.c, first.bn))
        self.stem2 = fold_batch_norm(second.c, second.bn)
        self.blocks = nn.ModuleList(Block(block) for block in blocks if isinstance(block, rep_vit.Block))
        self.neck = Neck(encoder.neck)

    def stem(self, image: Tensor) -> Tensor:
        """Pixels 0..255 to the first stage's grid."""
        out: Tensor = self.stem2(F.gelu(self.stem1(self.normalise(image))))
        return out

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.permute(0, 2, 3, 1))
        return out


class EdgeViTEncoder(RepViTEncoder):
    """The same with two stages fused."""

    def __init__(self, encoder: rep_vit.EdgeViT, frame: Preprocess) -> None:
        super().__init__(encoder, frame)
        self.third = encoder.third - 1  # the stem is no block here
        project, *_ = parts(encoder.neck)
        self.fuse2 = pointwise(project, encoder.fuse_stage2)
        self.fuse3 = pointwise(project, encoder.fuse_stage3.op_list[0])
        self.grid_doubled = Bicubic(frame.grid // 2, frame.grid)
        self.neck = Neck(encoder.neck, projects=False)

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        x = self.stem(image)
        for block in self.blocks[: self.third]:
            x = block(x)
        fused = self.fuse2(x)
        for block in self.blocks[self.third :]:
            x = block(x)
        fused = fused + self.grid_doubled(self.fuse3(x))
        out: Tensor = self.neck(fused.permute(0, 2, 3, 1))
        return out
