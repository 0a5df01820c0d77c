"""SAM 2's mask decoder: SAM's, with finer image features, a score for the object's presence and mask tokens out.

Source: SAM 2 (arXiv 2408.00714), ``sam2/modeling/sam/mask_decoder.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.hiera import Mlp
from samexport.models.architectures.mask_decoder import MASK_TOKENS, HeadMlp, MaskDecoder

STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98


class Decoded(NamedTuple):
    """What the decoder says of N prompts.

    Attributes:
        masks: logits [N, 4, S / 4, S / 4]; mask 0 is for prompts that leave no doubt, 1..3 are alternatives.
        iou: predicted IoU of each mask [N, 4], in 0..1.
        tokens: the mask tokens [N, 4, width], from which object pointers are made.
        object_score: logit [N, 1] of the object being in the picture.
    """

    masks: Tensor
    iou: Tensor
    tokens: Tensor
    object_score: Tensor


class Chosen(NamedTuple):
    """The masks of :class:`Decoded` that answer a prompt: 3, or 1. ``tokens`` belong to the masks asked for."""

    masks: Tensor
    iou: Tensor
    tokens: Tensor


class Sam2MaskDecoder(MaskDecoder):
    """Decoder with skip connections from the features of strides 4 and 8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        for block in self.transformer.layers:
            block.mlp = Mlp(width, hidden, F.relu)  # type: ignore[assignment]  # same layer, official names
        self.obj_score_token = nn.Embedding(1, width)
        self.pred_obj_score_head = HeadMlp(width, 1)
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)

    def forward(  # type: ignore[override]
        self, source: Tensor, dense_pe: Tensor, sparse: Tensor, token_bias: Tensor, feat_s0: Tensor, feat_s1: Tensor
    ) -> Decoded:
        """Decode.

        Args:
            source: embedding plus dense prompt, [N, width, grid, grid].
            dense_pe: [1, width, grid, grid].
            sparse: prompt tokens, [N, K, width].
            token_bias: [N, K], 0 for a present token, very negative for an absent one.
            feat_s0: ``conv_s0`` of the stride 4 map, [1 or N, width / 8, 4 grid, 4 grid].
            feat_s1: ``conv_s1`` of the stride 8 map, [1 or N, width / 4, 2 grid, 2 grid].
        """
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(source.shape[0], -1, -1), sparse], dim=1)
        bias = F.pad(token_bias, (own.shape[0], 0))
        image, places = (x.flatten(2).transpose(1, 2) for x in (source, dense_pe))
        queries, image = self.transformer(tokens, image, places, bias)
        score, iou, *masks = queries[:, : own.shape[0]].unbind(1)
        upscaled = self._upscale(image.transpose(1, 2).reshape(source.shape), feat_s0, feat_s1)
        hyper = torch.stack([mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, masks, strict=True)], 1)
        return Decoded(
            (hyper @ upscaled.flatten(2)).view(-1, MASK_TOKENS, *upscaled.shape[2:]),
            self.iou_prediction_head(iou).sigmoid(),
            torch.stack(masks, dim=1),
            self.pred_obj_score_head(score),
        )

    def _upscale(self, image: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> Tensor:
        first, norm, activation, second, last = self.output_upscaling
        x: Tensor = last(second(activation(norm(first(image) + feat_s1))) + feat_s0)
        return x


def stability(logits: Tensor, delta: float = STABILITY_DELTA) -> Tensor:
    """IoU of the masks at thresholds ``delta`` and ``-delta``, of [..., H, W]; 1 where the larger one is empty."""
    inner, outer = ((logits > threshold).sum((-2, -1)) for threshold in (delta, -delta))
    return torch.where(outer > 0, inner / outer.clamp(min=1), 1.0)


def choose(decoded: Decoded, *, multimask: bool, fallback: bool, delta: float = STABILITY_DELTA) -> Chosen:
    """Masks 1..3 if ``multimask``, else mask 0; ``fallback`` replaces an unstable mask 0 by the best of the others.

    The token stays that of mask 0 even then, as in the official code.
    """
    masks, iou, tokens, _ = decoded
    if multimask:
        return Chosen(masks[:, 1:], iou[:, 1:], tokens[:, 1:])
    rows = torch.arange(len(masks), device=masks.device)
    picked = torch.zeros_like(rows)
    if fallback:
        unstable = stability(masks[:, 0], delta) < STABILITY_THRESHOLD
        picked = torch.where(unstable, 1 + iou[:, 1:].argmax(1), picked)
    return Chosen(masks[rows, picked][:, None], iou[rows, picked][:, None], tokens[:, :1])
