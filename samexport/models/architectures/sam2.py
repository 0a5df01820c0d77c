"""SAM 2 and 2.1: a whole model with the official state-dict names, and what a predictor asks of it.

Source: SAM 2 (arXiv 2408.00714), ``sam2/modeling/sam2_base.py``. Everything here is a function of its arguments; which
frames are remembered is the tracker's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.hiera import HieraSize, ImageEncoder
from samexport.models.architectures.layers import no_values
from samexport.models.architectures.mask_decoder import HeadMlp
from samexport.models.architectures.prompt_encoder import PromptEncoder
from samexport.models.architectures.sam2_mask_decoder import Decoded, Sam2MaskDecoder, choose
from samexport.models.architectures.sam2_memory import (
    MEMORY_LAYERS,
    MEMORY_WIDTH,
    MemoryAttention,
    MemoryEncoder,
    sine_1d,
    sine_2d,
)
from samexport.models.architectures.sam2_sparse import Bypass
from samexport.models.families.sam2 import Sam2Numbers
from samexport.models.spec import ModelSpec

MEMORY_FRAMES = 7
ABSENT_LOGIT = -1024.0
"""Mask logits of an object that is not in the picture."""


@dataclass(frozen=True)
class Sam2Size:
    """One model of the family.

    Attributes:
        trunk: the image encoder's numbers.
        image_size: side of the square input, a multiple of 32.
        width: of the embedding and of object pointers, a multiple of 64.
        hidden: of the MLPs in the mask decoder and in the memory attention.
        layers: of the memory attention.
        absent_memory: an embedding marks memories of frames without the object; only in 2.1.
        timed_pointers: object pointers carry how long ago they were made; only in 2.1.
    """

    trunk: HieraSize
    image_size: int = 1024
    width: int = 256
    hidden: int = 2048
    layers: int = MEMORY_LAYERS
    absent_memory: bool = True
    timed_pointers: bool = True


TINY = Sam2Size(HieraSize(96, 1, (1, 2, 7, 2), (5, 7, 9)))
SMALL = Sam2Size(HieraSize(96, 1, (1, 2, 11, 2), (7, 10, 13)))
BASE_PLUS = Sam2Size(HieraSize(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14))
LARGE = Sam2Size(HieraSize(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)))
# the same code at 64 pixels: windows that need padding in the last two stages, one global block
TEST = Sam2Size(HieraSize(16, 1, (1, 2, 3, 2), (4,), windows=(8, 4, 6, 3)), image_size=64, width=64, hidden=128)
# every kind of block once, a first layer of memory attention and one that sees objects: quick to export
SHALLOW = Sam2Size(HieraSize(16, 1, (1, 1, 5, 1), (4, 6), windows=(8, 4, 2, 3)), 64, 64, 64, layers=2)
# four windows in the third stage that reach beyond its map, an inner global block among those that are routed
CUT = Sam2Size(HieraSize(16, 1, (1, 1, 6, 1), (4, 7), windows=(8, 4, 6, 3)), 128, 64, 64, layers=2)


def size_of(spec: ModelSpec) -> Sam2Size:
    """The numbers of a model of the catalogue, at the size of its frame."""
    numbers: Sam2Numbers = spec.size
    size: Sam2Size = resolve_name(numbers.network)
    marks = numbers.version == "2.1"
    return replace(size, image_size=spec.frame.size, absent_memory=marks, timed_pointers=marks)


def empty_sam2(spec: ModelSpec) -> Sam2:
    """A SAM 2 whose tensors have shapes and no values; ``load_state_dict(..., assign=True)`` gives it values."""
    size = size_of(spec)
    with no_values():
        model = Sam2(size)
        if spec.size.cut is not None and spec.size.cut.bypass:
            model.bypass = Bypass(size.trunk.widths[2])
    return model


class Features(NamedTuple):
    """What the encoder says of one image of side S.

    Attributes:
        s0: [B, width / 8, S / 4, S / 4], for the mask decoder.
        s1: [B, width / 4, S / 8, S / 8], for the mask decoder.
        vision: [B, width, S / 16, S / 16].
    """

    s0: Tensor
    s1: Tensor
    vision: Tensor


class ObjectMask(NamedTuple):
    """One object on one frame.

    Attributes:
        low_res: mask logits [B, 1, S / 4, S / 4].
        iou: predicted IoU of the candidates [B, 3], or of the only one [B, 1].
        pointer: what stands for the object in later frames, [B, width].
        object_score: logit [B, 1] of the object being there.
    """

    low_res: Tensor
    iou: Tensor
    pointer: Tensor
    object_score: Tensor


class Sam2(nn.Module):
    """The parts under their official names, and the functions that predictors and trackers compose."""

    def __init__(self, size: Sam2Size) -> None:
        super().__init__()
        width = size.width
        self.size = size
        self.image_encoder = ImageEncoder(size.trunk, width)
        self.sam_prompt_encoder = PromptEncoder(width, size.image_size)
        self.sam_mask_decoder = Sam2MaskDecoder(width, size.hidden)
        self.memory_attention = MemoryAttention(width, size.hidden, size.layers)
        self.memory_encoder = MemoryEncoder(width)
        self.obj_ptr_proj = HeadMlp(width, width)
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(MEMORY_FRAMES, 1, 1, MEMORY_WIDTH))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, width))  # in the files, but nothing reads it
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, width))
        self.bypass: nn.Module | None = None  # of models that encode chosen windows
        if size.absent_memory:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, MEMORY_WIDTH))
        if size.timed_pointers:
            self.obj_ptr_tpos_proj = nn.Linear(width, MEMORY_WIDTH)

    def features(self, image: Tensor) -> Features:
        """Encode a normalised image [B, 3, S, S]."""
        high, middle, low = self.image_encoder(image)
        decoder = self.sam_mask_decoder
        return Features(decoder.conv_s0(high), decoder.conv_s1(middle), low)

    def without_memory(self, vision: Tensor) -> Tensor:
        """The embedding of a frame that has nothing to remember, the shape of ``vision``."""
        return vision + self.no_mem_embed.view(1, -1, 1, 1)

    def decode(
        self, embedding: Tensor, features: Features, points: Tensor | None, labels: Tensor | None, mask: Tensor | None
    ) -> Decoded:
        """All four masks for N prompts on one image.

        Args:
            embedding: of :meth:`without_memory` or :meth:`with_memory`, [1, width, S / 16, S / 16].
            features: of the same image.
            points: x, y in pixels of the frame of side S, [N, K, 2], or None for a mask alone. A box is two points.
            labels: [N, K]: 0 outside, 1 inside, 2 top-left corner, 3 bottom-right corner, -1 no point.
            mask: logits of an earlier mask, [N, 1, S / 4, S / 4], or None.
        """
        prompts = self.sam_prompt_encoder
        if points is None or labels is None:
            sparse = embedding.new_zeros(1 if mask is None else len(mask), 0, embedding.shape[1])
        else:
            # one slot of padding always, unlike the first SAM, where a box has none
            sparse = prompts.embed_points(F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1))
        dense = prompts.no_mask_dense() if mask is None else prompts.embed_mask(mask, mask.new_ones(len(mask)))
        source = (embedding + dense).expand(sparse.shape[0], -1, -1, -1)
        bias = sparse.new_zeros(sparse.shape[:2])
        decoded: Decoded = self.sam_mask_decoder(source, prompts.dense_pe(), sparse, bias, features.s0, features.s1)
        return decoded

    def object_mask(
        self,
        embedding: Tensor,
        features: Features,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        multimask: bool,
        fallback: bool,
    ) -> ObjectMask:
        """The best mask of one object on a frame of a video and its pointer; arguments as in :meth:`decode`.

        Without points there is one slot that says so, which with the padding makes two. ``multimask`` takes the
        best of three candidates, ``fallback`` is that of :func:`choose`.
        """
        if points is None or labels is None:
            points, labels = embedding.new_zeros(len(embedding), 1, 2), embedding.new_full((len(embedding), 1), -1)
        decoded = self.decode(embedding, features, points, labels, mask)
        chosen = choose(decoded, multimask=multimask, fallback=fallback)
        rows = torch.arange(len(chosen.iou), device=chosen.iou.device)
        best = chosen.iou.argmax(1)
        present = decoded.object_score > 0
        low_res = torch.where(present[..., None, None], chosen.masks[rows, best][:, None], ABSENT_LOGIT)
        pointer = self._pointer_or_absent(self.obj_ptr_proj(chosen.tokens[rows, best]), present)
        return ObjectMask(low_res, chosen.iou, pointer, decoded.object_score)

    def mask_as_output(self, features: Features, mask: Tensor, *, fallback: bool) -> ObjectMask:
        """A given mask [B, 1, S, S] of zeros and ones as if it had been predicted.

        Its pointer is decoded from the features without memory, not even the embedding that says there is none.
        """
        prompt = self.mask_downsample(mask)
        seen = self.object_mask(features.vision, features, mask=prompt, multimask=False, fallback=fallback)
        present = mask.flatten(1).amax(1, keepdim=True) > 0
        low_res = F.interpolate(20 * mask - 10, scale_factor=0.25, mode="bilinear", antialias=True)
        pointer = self._pointer_or_absent(seen.pointer, present)
        return ObjectMask(low_res, torch.ones_like(present, dtype=mask.dtype), pointer, 20.0 * present - 10)

    def _pointer_or_absent(self, pointer: Tensor, present: Tensor) -> Tensor:
        return torch.where(present, pointer, self.no_obj_ptr)

    def whole_frame(self, low_res: Tensor) -> Tensor:
        """Mask logits [B, C, S / 4, S / 4] at the size of the frame, [B, C, S, S]."""
        return F.interpolate(low_res, scale_factor=4.0, mode="bilinear", align_corners=False)

    def encode_memory(self, vision: Tensor, logits: Tensor, object_score: Tensor, *, binary: bool) -> Tensor:
        """What is remembered of a frame.

        Args:
            vision: features [B, width, S / 16, S / 16].
            logits: of the mask, [B, 1, S, S].
            object_score: [B, 1].
            binary: forget how sure the mask is; for frames with prompts.

        Returns:
            [B, 64, S / 16, S / 16].
        """
        return self.encode_mask(vision, (logits > 0).to(logits) if binary else logits.sigmoid(), object_score)

    def encode_mask(self, vision: Tensor, mask: Tensor, object_score: Tensor) -> Tensor:
        """The same of a mask [B, 1, S, S] from 0 to 1."""
        memory: Tensor = self.memory_encoder(vision, 20 * mask - 10)
        if self.size.absent_memory:
            absent = (object_score <= 0).to(memory)[..., None, None]
            memory = memory + absent * self.no_obj_embed_spatial[..., None, None]
        return memory

    def with_memory(
        self, vision: Tensor, memory: Tensor, memory_pos: Tensor, pointers: int, bias: Tensor | None = None
    ) -> Tensor:
        """The embedding of a frame that has memories; arguments as in :class:`MemoryAttention`."""
        embedding: Tensor = self.memory_attention(vision, memory, memory_pos, pointers, bias)
        return embedding

    def memory_tokens(self, memory: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """A memory [B, 64, grid, grid] as tokens [B, grid * grid, 64], and their positions [1, grid * grid, 64].

        ``row`` is 0 for the frame before, 5 for the one six frames before, 6 for a frame with prompts.
        """
        place = sine_2d(MEMORY_WIDTH, memory.shape[-1]).to(self.maskmem_tpos_enc)
        tokens, place = (x.flatten(2).transpose(1, 2) for x in (memory, place))
        return tokens, place + self.maskmem_tpos_enc[row]

    def pointer_tokens(self, pointers: Sequence[Tensor], offsets: Sequence[int], span: int) -> tuple[Tensor, Tensor]:
        """Pointers, each [B, width], as tokens [B, n, 64], and their positions [1, n, 64].

        Each pointer is cut into width / 64 tokens with one position: how many frames ago it was made, as a share
        of ``span``.
        """
        tokens = torch.stack(list(pointers), dim=1)
        parts = tokens.shape[-1] // MEMORY_WIDTH
        return tokens.reshape(len(tokens), -1, MEMORY_WIDTH), self.pointer_times(offsets, span).repeat_interleave(
            parts, 1
        )

    def pointer_times(self, offsets: Sequence[int], span: int) -> Tensor:
        """Positions of pointers made ``offsets`` frames ago, [1, n, 64]; zeros in SAM 2.0."""
        return self.share_times(torch.tensor(offsets).to(self.maskmem_tpos_enc) / span)[None]

    def share_times(self, shares: Tensor) -> Tensor:
        """Positions of pointers by the share of the span since they were made, [..., n] to [..., n, 64]."""
        if not self.size.timed_pointers:
            return shares.new_zeros(*shares.shape, MEMORY_WIDTH)
        times: Tensor = self.obj_ptr_tpos_proj(sine_1d(shares, self.size.width))
        return times
