"""Weights with what makes quantizing hard, planted into others; in single precision they compute the same.

The kinds of trouble are those that the papers describe: heavy-tailed channels behind a LayerNorm (SmoothQuant, arXiv
2211.10438) and in the values, a few tokens far above all others (LLM.int8(), arXiv 2208.07339), keys with two modes
(PTQ4SAM, arXiv 2405.03144). Scales are powers of two, so no product of floats rounds otherwise than before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from samexport.models.architectures.tiny_vit import TinyViT, TinyViTBlock

KINDS = ("channels", "values", "tokens", "keys")
_TAIL = 8
"""The power of a uniform number that a channel's exponent is: 70 % of channels stay, few come near the strength."""


@torch.no_grad()
def plant(encoder: TinyViT, strength: int, kinds: Collection[str] = KINDS, seed: int = 0) -> None:
    """Change a TinyViT in place; 1 changes nothing but what ``tokens`` silences.

    Args:
        encoder: with its weights.
        strength: a power of two; how far the largest is above the usual.
        kinds: some of ``KINDS``. ``channels``: gain and bias of every LayerNorm, undone by the columns behind.
            ``values``: the same of values and projection. ``tokens``: in every MLP the unit that says least is
            silenced, and what it hears from some tokens is as many times larger. ``keys``: half of the channels of
            all keys are moved up and half down, which no softmax sees.
        seed: which channels.
    """
    random = torch.Generator().manual_seed(seed)
    for block in _blocks(encoder):
        qkv, width = block.attn.qkv, block.attn.proj.in_features
        # rows of a head: queries, keys, values
        rows = torch.arange(3 * width).view(block.attn.heads, 3, -1)
        if "channels" in kinds:
            for norm, linear in ((block.attn.norm, qkv), (block.mlp.norm, block.mlp.fc1)):
                scales = _scales(width, strength, random)
                norm.weight *= scales
                norm.bias *= scales
                linear.weight /= scales
        if "values" in kinds:
            scales = _scales(width, strength, random)
            values = rows[:, 2].flatten()
            qkv.weight[values] *= scales[:, None]
            qkv.bias[values] *= scales
            block.attn.proj.weight /= scales
        if "tokens" in kinds:
            unit = block.mlp.fc2.weight.abs().sum(0).argmin()
            block.mlp.fc2.weight[:, unit] = 0
            block.mlp.fc1.weight[unit] *= strength
        if "keys" in kinds:
            sides = torch.where(torch.arange(rows.shape[2]) % 2 == 0, 1.0, -1.0)
            qkv.bias[rows[:, 1]] += (strength - 1) * sides * qkv.weight[rows[:, 1]].norm(dim=-1).mean()


def _scales(count: int, strength: int, random: torch.Generator) -> Tensor:
    return (strength ** torch.rand(count, generator=random) ** _TAIL).log2().round().exp2()


def _blocks(encoder: TinyViT) -> Iterator[TinyViTBlock]:
    for stage in encoder.layers:
        for block in stage.blocks:
            if isinstance(block, TinyViTBlock):
                yield block
