"""Export form of EfficientViT-SAM's encoder.

What differs from ``architectures/efficient_vit.py``, and why it is the same function:

- Every BatchNorm is in its convolution, ``std`` in the first one.
- The bicubic resizes are products with constant matrices, because TFLite and CoreML have no bicubic resize. The map
  that has the size already is left as it is.
- The linear attention stays in half precision's range. Its sums over all cells, hundreds of thousands, are weighted
  means here: out = sum_j w_j mean_j(v), where mean_j weighs the cells by key channel j and w_j is the share of
  channel j in the query, q_j k_j over their sum. The means of the keys k_j are divided by the largest, which cancels
  in the share. So nothing is larger than 32 times the largest query, key or value. What official code adds against
  0 / 0 (1e-15) is 0 in half precision; here a denominator is at least its smallest normal number, 2^-14. That changes
  nothing but the answer of cells and channels that are all but empty.
- No tensor is above rank 4.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import efficient_vit
from samexport.models.architectures.efficient_vit import GROUP
from samexport.models.graphs.layers import Bicubic, LayerNorm, Normalise, fold_batch_norm
from samexport.models.spec import Preprocess

TINY = 2.0**-14


class Conv(nn.Module):
    """One convolution, and the GELU where there is one."""

    def __init__(self, unit: efficient_vit.ConvNorm) -> None:
        super().__init__()
        norm = getattr(unit, "norm", None)
        self.conv = unit.conv if norm is None else fold_batch_norm(unit.conv, norm)
        self.act = unit.act

    def forward(self, x: Tensor) -> Tensor:
        """[1, inputs, H, W] to [1, outputs, H / stride, W / stride]."""
        x = self.conv(x)
        return F.gelu(x, approximate="tanh") if self.act else x


class Attention(nn.Module):
    """Linear attention whose sums are weighted means; see the module's docstring."""

    def __init__(self, attention: efficient_vit.LiteMLA) -> None:
        super().__init__()
        self.qkv, self.around, self.proj = attention.qkv.conv, attention.aggreg[0], Conv(attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        """[1, width, H, W], same shape out."""
        _, width, height, columns = x.shape
        cells = height * columns
        here = self.qkv(x)
        both = torch.cat([here, self.around(here)], dim=1)
        q, k, v = torch.split(both.reshape(2 * width // GROUP, 3 * GROUP, cells), GROUP, dim=1)
        q, k = F.relu(q), F.relu(k)
        sizes = k.mean(-1, keepdim=True)
        means = v @ (k / sizes.clamp(min=TINY) * (1 / cells)).transpose(-1, -2)
        share = q * (sizes / sizes.amax(1, keepdim=True).clamp(min=TINY))
        share = share / share.sum(1, keepdim=True).clamp(min=TINY)
        out: Tensor = self.proj((means @ share).reshape(1, 2 * width, height, columns))
        return out


def _form(module: nn.Module) -> nn.Module:
    """The export form of any module of the encoder."""
    if isinstance(module, efficient_vit.ConvNorm):
        return Conv(module)
    if isinstance(module, efficient_vit.LiteMLA):
        return Attention(module)
    if isinstance(module, efficient_vit.Plain):
        return module.conv
    if isinstance(module, efficient_vit.Residual):
        return efficient_vit.Residual(_form(module.main), shortcut=module.shortcut)
    if isinstance(module, efficient_vit.Ops):
        return nn.Sequential(*map(_form, module.op_list))
    # a chain of units, in the order in which they are declared
    return nn.Sequential(*map(_form, module.children()))


class EfficientViTEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to embedding [1, out, grid, grid]."""

    def __init__(self, encoder: efficient_vit.EfficientViTSam, frame: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(frame)
        self.stages = nn.ModuleList(map(_form, encoder.backbone.stages))
        first = cast("nn.Sequential", self.stages[0])[0]
        self.normalise.fold(cast("Conv", first).conv)
        neck = encoder.neck
        self.inputs = nn.ModuleList(map(_form, neck.input_ops))
        sides = [frame.size >> (len(self.stages) - number) for number in range(3)]
        self.resizes = nn.ModuleList(nn.Identity() if side == neck.grid else Bicubic(side, neck.grid) for side in sides)
        self.middle, self.output = _form(neck.middle), _form(neck.output_ops[0])
        self.norm = LayerNorm(encoder.norm.weight, encoder.norm.bias, encoder.norm.eps)

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        x = self.normalise(image)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        last, second, third = (
            resize(op(x)) for op, resize, x in zip(self.inputs, self.resizes, reversed(found[-3:]), strict=True)
        )
        x = self.output(self.middle(last + (second + third)))
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out
