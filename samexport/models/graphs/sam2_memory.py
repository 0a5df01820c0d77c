"""Export forms of SAM 2's memory attention and memory encoder.

What differs from ``architectures/sam2_memory.py``, and why it is the same function:

- Channel pairs that turn together lie half a width apart: the rows of the projections of queries and keys are
  permuted alike, which leaves their products unchanged. The softmax scale is in the query projection.
- V-fold: A (M Wv + b) Wo = (A M) (Wv Wo) + b Wo, since the weights of a row sum to 1. So memories are mixed at their
  own width of 64, and the frame's tokens without a projection.
- A memory or pointer slot may be absent: its key carries a bias of ABSENT in one more channel, which meets a 1 in the
  queries. Slots of fixed files and objects with histories of different lengths need no second score matrix.
- Rows of the table of times are picked as labels are in SAM's decoder; the ages of pointers are encoded in the graph.
- Queries go in chunks, so the scores, of 471 MB in each layer, are never all in memory.
- The first self-attention knows nothing of the object: ``vision`` has no object axis before the first memory is read.
- The mask is enlarged by two products with the matrix of bilinear weights. ``gamma`` is in the second linear layer,
  LayerNorm2d a LayerNorm between two transposes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import sam2_memory
from samexport.models.architectures.layers import LayerNorm2d
from samexport.models.architectures.sam2 import MEMORY_FRAMES, Sam2
from samexport.models.architectures.sam2_memory import MEMORY_WIDTH, rotary_angles, sine_2d
from samexport.models.graphs.decoder_attention import ABSENT
from samexport.models.graphs.layers import QUERY_CHUNK, LayerNorm, attend, frozen, parts
from samexport.models.graphs.sam2_encoder import Lateral

# twice this is a step at 0 for every logit of 1e-9 and more
_STEEP = 2.0**15


class Turned(nn.Module):
    """A projection whose result is turned by its place on the map: [..., P, in] to [..., P, width], halves apart.

    ``turn`` has the cosines and sines of the angles, [P, width / 2]; all projections share them.
    """

    def __init__(self, projection: nn.Linear, turn: tuple[nn.Parameter, nn.Parameter], scale: float = 1.0) -> None:
        super().__init__()
        weight, bias = projection.weight * scale, projection.bias * scale
        self.even, self.odd = frozen(weight[::2].T), frozen(weight[1::2].T)
        self.even_bias, self.odd_bias = frozen(bias[::2]), frozen(bias[1::2])
        self.cos, self.sin = turn

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The projection before it is turned."""
        return x @ self.even + self.even_bias, x @ self.odd + self.odd_bias

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Project, turn and append further channels."""
        even, odd = self.halves(x)
        turned = even * self.cos - odd * self.sin, even * self.sin + odd * self.cos
        return torch.cat([*turned, *more], dim=-1)


class Fold(nn.Module):
    """The projections of values and of the output, as one after the mixing."""

    def __init__(self, attention: sam2_memory.RotaryAttention) -> None:
        super().__init__()
        value, out = attention.v_proj, attention.out_proj
        self.weight = frozen((value.weight.double().T @ out.weight.double().T).float())
        self.bias = frozen((out.weight.double() @ value.bias.double() + out.bias.double()).float())

    def forward(self, x: Tensor) -> Tensor:
        """Mixed tokens to the update."""
        return x @ self.weight + self.bias


class Memory(nn.Module):
    """Slots of memories and pointers to tokens, what is added to their keys, and the biases of their keys."""

    _ROWS = tuple(float(row) for row in range(-1, MEMORY_FRAMES))

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        grid = model.size.image_size // 16
        self.sine = frozen(sine_2d(MEMORY_WIDTH, grid).flatten(2).transpose(1, 2)[None])
        self.rows = frozen(torch.tensor(self._ROWS))
        times = model.maskmem_tpos_enc.reshape(MEMORY_FRAMES, MEMORY_WIDTH)
        self.times = frozen(F.pad(times, (0, 0, 1, 0)))
        self.timed = model.size.timed_pointers
        if self.timed:
            width = model.size.width
            periods = 10000.0 ** (2 * (torch.arange(width // 2, dtype=torch.float64) // 2) / (width // 2))
            self.frequencies = frozen((1 / periods).float()[None])
            self.ages, self.ages_bias = frozen(model.obj_ptr_tpos_proj.weight.T), frozen(model.obj_ptr_tpos_proj.bias)

    def maps(self, memory: Tensor, memory_row: Tensor) -> tuple[Tensor, Tensor]:
        """[N, F, P, 64] and [N, F] to what the keys are made of, [N, F, P, 64], and biases [N, F, 1, 1]."""
        chosen = F.relu(1 - (memory_row[..., None] - self.rows).abs())
        return memory + (self.sine + (chosen @ self.times)[:, :, None]), chosen[..., :1, None] * ABSENT

    def pointers(self, pointers: Tensor, age: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, R, width], [N, R], [N, R] to tokens, what their keys are made of, [N, R parts, 64], and biases."""
        count, slots, width = pointers.shape
        parts = width // MEMORY_WIDTH
        tokens = pointers.reshape(count, slots, parts, MEMORY_WIDTH)
        bias = ((present - 1) * -ABSENT)[..., None].expand(count, slots, parts).reshape(count, -1, 1)
        flat = tokens.reshape(count, -1, MEMORY_WIDTH)
        if not self.timed:
            # an input that nothing reads would vanish from the graph
            return flat, (tokens + 0 * age[..., None, None]).reshape(count, -1, MEMORY_WIDTH), bias
        angle = age[..., None] * self.frequencies
        time = torch.cat([angle.sin(), angle.cos()], dim=-1) @ self.ages + self.ages_bias
        return flat, (tokens + time[:, :, None]).reshape(count, -1, MEMORY_WIDTH), bias


class MemoryLayer(nn.Module):
    """The frame attends to itself, then to the memory."""

    def __init__(
        self, layer: sam2_memory.MemoryAttentionLayer, turn: tuple[nn.Parameter, nn.Parameter], chunk: int
    ) -> None:
        super().__init__()
        own, cross = layer.self_attn, layer.cross_attn_image
        scale = 1 / math.sqrt(own.q_proj.out_features)
        self.chunk = chunk
        self.own_query, self.own_key = Turned(own.q_proj, turn, scale), Turned(own.k_proj, turn)
        self.query, self.key = Turned(cross.q_proj, turn, scale), Turned(cross.k_proj, turn)
        self.own_fold, self.fold = Fold(own), Fold(cross)
        self.ones = frozen(torch.ones(1, len(turn[0]), 1))
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3

    def forward(
        self, x: Tensor, tokens: Tensor, maps: tuple[Tensor, Tensor], pointers: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Update [1 or N, P, width].

        Args:
            x: tokens of the frame.
            tokens: what is mixed, [N, L, 64].
            maps: of :meth:`Memory.maps`.
            pointers: the last two of :meth:`Memory.pointers`.
        """
        x = self.itself(x)
        return self.updated(x, attend(self.queries(x), self.keys(maps, pointers), tokens, self.chunk))

    def itself(self, x: Tensor) -> Tensor:
        """The frame after its attention to itself."""
        own = self.norm1(x)
        out: Tensor = x + self.own_fold(attend(self.own_query(own), self.own_key(own), own, self.chunk))
        return out

    def updated(self, x: Tensor, read: Tensor) -> Tensor:
        """The frame with what it has ``read``, [N, P, 64]."""
        x = x + self.fold(read)
        out: Tensor = x + self.linear2(F.relu(self.linear1(self.norm3(x))))
        return out

    def queries(self, x: Tensor) -> Tensor:
        """[1 or N, P, width + 1]."""
        out: Tensor = self.query(self.norm2(x), self.ones.expand(x.shape[0], self.ones.shape[1], 1))
        return out

    def keys(self, maps: tuple[Tensor, Tensor], pointers: tuple[Tensor, Tensor]) -> Tensor:
        """[N, L, width + 1]."""
        (placed, bias), (placeless, pointer_bias) = maps, pointers
        count, cells = placed.shape[0], placed.shape[2]
        on_map = self.key(placed, bias.expand(count, placed.shape[1], cells, 1))
        off_map = torch.cat([*self.key.halves(placeless), pointer_bias], dim=-1)
        return torch.cat([on_map.reshape(count, -1, on_map.shape[-1]), off_map], dim=1)


class Sam2MemoryAttention(nn.Module):
    """The graph ``memory_attention``: what N objects make of a frame. ``chunk`` queries at a time."""

    layer: type[MemoryLayer] = MemoryLayer

    def __init__(self, model: Sam2, chunk: int = QUERY_CHUNK) -> None:
        super().__init__()
        width, grid = model.size.width, model.size.image_size // 16
        angles = rotary_angles(width, grid)
        turn = frozen(angles.cos()), frozen(angles.sin())
        self.place = frozen(0.1 * sine_2d(width, grid))
        self.memory = Memory(model)
        self.layers = nn.ModuleList(self.layer(layer, turn, chunk) for layer in model.memory_attention.layers)
        self.norm = model.memory_attention.norm
        self.grid = grid

    def forward(
        self, vision: Tensor, memory: Tensor, memory_row: Tensor, pointers: Tensor, pointer_age: Tensor,
        pointer_present: Tensor,
    ) -> Tensor:  # fmt: skip
        """Read the memory."""
        count = memory.shape[0]
        pointer_tokens, *placeless = self.memory.pointers(pointers, pointer_age, pointer_present)
        maps = self.memory.maps(memory, memory_row)
        tokens = [memory.reshape(count, -1, MEMORY_WIDTH), pointer_tokens]
        x = (vision + self.place).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, torch.cat(tokens, dim=1), maps, tuple(placeless))
        out: Tensor = self.norm(x).transpose(1, 2).reshape(count, -1, self.grid, self.grid)
        return out


def _bilinear(source: int, target: int) -> Tensor:
    """Weights [target, source] of an enlargement with ``align_corners`` False."""
    each = torch.eye(source, dtype=torch.float64)[None]
    weights: Tensor = F.interpolate(each, size=target, mode="linear", align_corners=False)[0].T
    return weights.float()


class Normed(nn.Module):
    """LayerNorm2d and GELU on [N, C, H, W]; the result is channels last."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.norm = LayerNorm(norm.weight, norm.bias, norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, H, W, C]."""
        return F.gelu(self.norm(x.permute(0, 2, 3, 1)))


class FuserBlock(nn.Module):
    """ConvNeXt block on channels-last maps."""

    def __init__(self, block: sam2_memory.FuserBlock) -> None:
        super().__init__()
        self.dwconv, self.pwconv1 = block.dwconv, block.pwconv1
        self.norm = LayerNorm(block.norm.weight, block.norm.bias, block.norm.eps)
        self.out, self.out_bias = frozen(block.pwconv2.weight.T * block.gamma), frozen(block.pwconv2.bias * block.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C], same shape out."""
        pixels = self.norm(self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + (F.gelu(self.pwconv1(pixels)) @ self.out + self.out_bias)


class Sam2MemoryEncoder(nn.Module):
    """The graph ``memory_encoder``: the memories of N objects on one frame."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        encoder, size = model.memory_encoder, model.size.image_size
        self.enlarge = frozen(_bilinear(size // 4, size).T)
        *steps, last = parts(encoder.mask_downsampler.encoder)
        self.convs = nn.ModuleList(steps[::3])
        self.norms = nn.ModuleList(Normed(norm) for norm in steps[1::3])
        self.last, self.project = frozen(last.weight[:, :, 0, 0].T), frozen(encoder.pix_feat_proj.weight[:, :, 0, 0].T)
        self.bias = frozen(last.bias + encoder.pix_feat_proj.bias)
        self.fuser = nn.ModuleList(FuserBlock(block) for block in parts(encoder.fuser.layers))
        self.out = Lateral(encoder.out_proj)
        nothing = torch.zeros(1, MEMORY_WIDTH)
        self.absent = frozen(model.no_obj_embed_spatial if model.size.absent_memory else nothing)

    def forward(self, vision: Tensor, mask_logits: Tensor, binary: Tensor, object_present: Tensor) -> Tensor:
        """Encode."""
        mask = (mask_logits.transpose(-1, -2) @ self.enlarge).transpose(-1, -2) @ self.enlarge
        hard = binary[:, None, None, None]
        # x > 0 without a comparison, which phones' GPUs do not have, and in half precision too
        inside = 1 - F.relu(1 - F.relu((mask * _STEEP).clamp(-1, 1) * _STEEP))
        x = 20 * (hard * inside + (1 - hard) * mask.sigmoid()) - 10
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if i == 0 else x.permute(0, 3, 1, 2)))
        x = x @ self.last + (vision.permute(0, 2, 3, 1) @ self.project + self.bias)
        for block in self.fuser:
            x = block(x)
        memory = self.out(x.flatten(1, 2)) + self.out.bias
        marked: Tensor = memory + (1 - object_present)[:, None, None] * self.absent
        return marked
