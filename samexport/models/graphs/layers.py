"""Pieces that export forms share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.spec import Preprocess

QUERY_CHUNK = 512
"""Queries of an attention over a whole map that are computed at a time: all scores would be hundreds of megabytes."""


def frozen(tensor: Tensor) -> nn.Parameter:
    """A weight that keeps its values and needs no gradient."""
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)


def parts(sequence: nn.Module) -> tuple[Any, ...]:
    """The children in order; Any, because torch does not say what kind of module each one is."""
    return tuple(sequence.children())


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that equals ``norm(conv(x))`` in evaluation mode; computed in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("the BatchNorm has no running statistics")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    height, width = conv.kernel_size
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, (height, width), groups=conv.groups)
    folded.stride, folded.padding = conv.stride, conv.padding
    before = 0 if conv.bias is None else conv.bias.double()
    folded.weight = frozen((conv.weight.double() * scale[:, None, None, None]).float())
    folded.bias = frozen((norm.bias.double() + (before - norm.running_mean.double()) * scale).float())
    return folded


def pointwise(second: nn.Conv2d, first: nn.Conv2d) -> nn.Conv2d:
    """One 1x1 convolution that equals ``second(first(x))``, both 1x1 and without bias; computed in float64."""
    if first.bias is not None or second.bias is not None:
        raise ValueError("only convolutions without bias are joined")
    joined = nn.Conv2d(first.in_channels, second.out_channels, 1, bias=False)
    weight = second.weight.double()[:, :, 0, 0] @ first.weight.double()[:, :, 0, 0]
    joined.weight = frozen(weight.float()[:, :, None, None])
    return joined


class Bicubic(nn.Module):
    """``F.interpolate(mode="bicubic", align_corners=False)`` of a square grid, as two products.

    The resize is linear and acts on columns and rows apart; the matrix is what it makes of the unit vectors. It is
    on the right both times, because TFLite's GPU takes no constant on the left.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        units = torch.eye(source, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, source)
        rows = F.interpolate(units, (target, source), mode="bicubic", align_corners=False)[:, 0, :, 0].T
        self.weights = frozen(rows.T.float())

    def forward(self, x: Tensor) -> Tensor:
        """[1, C, source, source] to [1, C, target, target]."""
        return ((x @ self.weights).transpose(2, 3) @ self.weights).transpose(2, 3)


class Normalise(nn.Module):
    """Subtracts the mean; :meth:`fold` moves the division by ``std`` into the first convolution.

    The mean cannot move there: a convolution pads with zeros, which are the mean only after this step.
    """

    def __init__(self, frame: Preprocess) -> None:
        super().__init__()
        self.mean = frozen(torch.tensor(frame.mean).view(1, 3, 1, 1))
        self._std = torch.tensor(frame.std, dtype=torch.float64)

    def fold(self, conv: nn.Conv2d) -> nn.Conv2d:
        """``conv`` for an image that is not yet divided by ``std``; changes it in place."""
        conv.weight = frozen((conv.weight.double() / self._std[None, :, None, None]).float())
        return conv

    def forward(self, image: Tensor) -> Tensor:
        """[1, 3, S, S] pixels 0..255 to pixels around 0."""
        return image - self.mean


class FromPicture(nn.Module):
    """An encoder whose image comes in 8 bits: pixels of the rounded mean, the padding, become the mean itself.

    Whole numbers cannot hold the mean, so the padding would not be 0 after the normalisation; at 1024 pixels and a
    third of padding that alone left 34 dB. A pixel of the picture with exactly that colour moves by less than half
    a step too; all others stay as they are.
    """

    def __init__(self, encoder: nn.Module, frame: Preprocess) -> None:
        super().__init__()
        mean = torch.tensor(frame.mean).view(1, 3, 1, 1)
        self.encoder = encoder
        self.whole, self.rest = frozen(mean.round()), frozen(mean - mean.round())

    def forward(self, image: Tensor) -> Tensor:
        """[1, 3, S, S], whole numbers from 0 to 255; returns what the encoder does."""
        distance = (image - self.whole).abs().sum(1, keepdim=True)
        out: Tensor = self.encoder(image + self.rest * F.relu(1 - distance))
        return out


class LayerNorm(nn.Module):
    """LayerNorm over the last axis; ``bias`` None leaves it out (the caller has folded it elsewhere)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight = frozen(weight)
        self.bias = None if bias is None else frozen(bias)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], same shape out."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PreNorm(nn.Module):
    """A block of a transformer: attention and an MLP, each on normalised input and added to it."""

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = norm1, norm2, mlp
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def patches(embedding: nn.Conv2d, normalise: Normalise) -> nn.Conv2d:
    """A copy of a patch convolution that does a part of the normalisation."""
    height, width = embedding.kernel_size
    patch = nn.Conv2d(3, embedding.out_channels, (height, width))
    patch.stride, patch.padding = embedding.stride, embedding.padding
    patch.weight, patch.bias = frozen(embedding.weight), embedding.bias
    return normalise.fold(patch)


class Neck(nn.Module):
    """SAM's neck on channels-last input: the 1x1 convolution is a matrix product, LayerNorm2d a LayerNorm.

    With ``projects`` False the caller has the 1x1 convolution elsewhere.
    """

    def __init__(self, neck: nn.Sequential, *, projects: bool = True) -> None:
        super().__init__()
        first, norm1, second, norm2 = parts(neck)
        self.project = frozen(first.weight[:, :, 0, 0].T) if projects else None
        self.norm1 = LayerNorm(norm1.weight, norm1.bias, norm1.eps)
        self.conv = second
        self.norm2 = LayerNorm(norm2.weight, norm2.bias, norm2.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[1, H, W, width] to [1, out, H, W]."""
        x = self.norm1(x if self.project is None else x @ self.project)
        x = x.permute(0, 3, 1, 2)
        x = self.norm2(self.conv(x).permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2)


class Doubling(nn.Module):
    """A 2x2 transposed convolution with stride 2 on [N, H, W, C]: a matrix product, and its 2x2 pixels put in order.

    TFLite's GPU has no transposed convolution.
    """

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        if conv.kernel_size != (2, 2) or conv.stride != (2, 2) or conv.bias is None:
            raise ValueError("only a 2x2 transposed convolution with stride 2 is a matrix product")
        self.outputs = conv.out_channels
        self.weight, self.bias = frozen(conv.weight.permute(0, 2, 3, 1).flatten(1)), frozen(conv.bias.repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, in] to [N, 2 H, 2 W, out]."""
        _, height, columns, _ = x.shape
        x = (x @ self.weight + self.bias).reshape(-1, columns, 2, 2 * self.outputs).transpose(1, 2)
        return x.reshape(-1, 2 * height, 2 * columns, self.outputs)


def in_chunks(queries: Tensor, chunk: int) -> Sequence[Tensor]:
    """``queries`` [..., P, C] as parts of ``chunk``, or as they are: converters do not split into one."""
    return (queries,) if queries.shape[-2] <= chunk else torch.split(queries, chunk, dim=queries.dim() - 2)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What was made of :func:`in_chunks`, one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=parts[0].dim() - 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, chunk: int = QUERY_CHUNK) -> Tensor:
    """Attention of [..., P, C] to [..., L, C] without a scale, ``chunk`` queries at a time; leading axes broadcast."""
    turned = keys.transpose(-1, -2)
    return joined([(part @ turned).softmax(-1) @ values for part in in_chunks(queries, chunk)])


def partition(x: Tensor, size: int) -> Tensor:
    """[1, H, W, C] to windows [H / size * W / size, size * size, C] without a tensor above rank 4."""
    _, height, columns, width = x.shape
    rows, cols = height // size, columns // size
    split = x.reshape(rows, size, cols, size * width).transpose(1, 2)
    return split.reshape(rows * cols, size * size, width)


def merge(windows: Tensor, size: int, height: int, columns: int) -> Tensor:
    """The inverse of :func:`partition` for windows that cover ``height`` x ``columns``, cropped to that."""
    rows, cols = -(-height // size), -(-columns // size)
    width = windows.shape[-1]
    joined = windows.reshape(rows, cols, size, size * width).transpose(1, 2)
    return joined.reshape(1, rows * size, cols * size, width)[:, :height, :columns]
