"""The same network by fewer passes over memory, for training on a GPU in half precision.

Eager PyTorch under autocast spends most of a step on casts and on the decoder's maps of each prompt; here attention and
normalisation are one kernel each and keep the precision of what they get.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import mask_decoder
from samexport.models.architectures.layers import LayerNorm2d


class _Attention(mask_decoder.Attention):
    """All tokens are present in training, so ``key_bias`` is zero."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        split = mask_decoder.split_heads
        mixed = F.scaled_dot_product_attention(split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v)))
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _normalised(x, self.weight, self.bias, self.eps)


class _LayerNorm2d(LayerNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _normalised(x.permute(0, 2, 3, 1), self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of the last axis; inside it computes in fp32 whatever it gets."""
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    mask_decoder.Attention: _Attention,
    nn.LayerNorm: _LayerNorm,
    LayerNorm2d: _LayerNorm2d,
}


def quicken(model: nn.Module) -> None:
    """Let a model's layers compute so from now on; its weights and their names stay."""
    for module in model.modules():
        module.__class__ = _QUICK.get(type(module), type(module))
