"""Export form of NanoSAM's encoder.

What differs from ``architectures/nano_sam.py``, and why it is the same function:

- Every BatchNorm is in its convolution, ``std`` in the first one; the learned positions are in the last bias, a map.
- After a ReLU a border of zeros changes no maximum, so the pooling is padded with them: TFLite's GPU has no other Pad.
- The transposed convolution (3x3, stride 2) is four small convolutions, one for each position in a block of 2x2 of
  its output, because formats disagree about its padding: output row 2 i sees input row i with the middle tap, row
  2 i + 1 sees rows i and i + 1 with the last and the first one. All four are one 2x2 convolution with four times the
  channels on a map that has a row and a column of zeros more, and two rank-4 transposes put the pixels in order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import nano_sam
from samexport.models.graphs.layers import Normalise, fold_batch_norm, frozen, parts
from samexport.models.spec import Preprocess

# of the 3x3 kernel, by the parity of the output row: (tap for the input row, tap for the next one)
_TAPS = ((1, None), (2, 0))


class Block(nn.Module):
    """A residual block with two or three convolutions."""

    def __init__(self, block: nano_sam.BasicBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = fold_batch_norm(block.conv1, block.bn1), fold_batch_norm(block.conv2, block.bn2)
        self.shortcut: nn.Module = nn.Identity()
        if block.downsample is not None:
            self.shortcut = fold_batch_norm(*parts(block.downsample))

    def forward(self, x: Tensor) -> Tensor:
        """[1, inputs, H, W] to [1, width, H / stride, W / stride]."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Doubled(nn.Module):
    """The transposed convolution as one 2x2 convolution and a rearrangement."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        if (conv.kernel_size, conv.stride, conv.padding, conv.output_padding) != ((3, 3), (2, 2), (1, 1), (1, 1)):
            raise ValueError("only a 3x3 transposed convolution with stride 2 that doubles the grid")
        outputs = conv.out_channels
        weight = torch.zeros(4, outputs, conv.in_channels, 2, 2)
        for place in range(4):
            for row, row_tap in enumerate(_TAPS[place // 2]):
                for column, column_tap in enumerate(_TAPS[place % 2]):
                    if row_tap is not None and column_tap is not None:
                        weight[place, :, :, row, column] = conv.weight[:, :, row_tap, column_tap].T
        if conv.bias is None:
            raise ValueError("the transposed convolution has no bias")
        self.outputs = outputs
        self.weight, self.bias = frozen(weight.flatten(0, 1)), frozen(conv.bias.repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        """[1, inputs, H, W] to [1, outputs, 2 H, 2 W]."""
        _, _, height, columns = x.shape
        x = F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)
        # [row, column, out] of a block -> pixels in order, channel by channel
        x = x.reshape(2, 2 * self.outputs, height, columns).permute(1, 2, 0, 3)
        x = x.reshape(2, self.outputs, 2 * height, columns).permute(1, 2, 3, 0)
        return x.reshape(1, self.outputs, 2 * height, 2 * columns)


class NanoSamEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to embedding [1, out, S / 16, S / 16]."""

    def __init__(self, encoder: nano_sam.NanoSam, frame: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(frame)
        backbone = encoder.backbone
        self.stem = self.normalise.fold(fold_batch_norm(backbone.conv1, backbone.bn1))
        layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        self.blocks = nn.Sequential(*(Block(block) for layer in layers for block in parts(layer)))
        first, _, second, _, third, _, doubled, _ = parts(encoder.up_1)
        self.convolutions = nn.ModuleList([first, second, third])
        self.doubled = Doubled(doubled)
        self.project, _, last = parts(encoder.proj)
        self.last = frozen(last.weight)
        self.positions = frozen(encoder.pos_embedding + last.bias[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        x = F.pad(F.relu(self.stem(self.normalise(image))), (1, 1, 1, 1))
        x = self.blocks(F.max_pool2d(x, 3, 2))
        for conv in self.convolutions:
            x = F.gelu(conv(x))
        x = F.gelu(self.project(F.gelu(self.doubled(x))))
        return F.conv2d(x, self.last) + self.positions
