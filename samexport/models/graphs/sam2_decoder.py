"""Export forms of SAM 2's prompt encoder and mask decoder.

They are made of the pieces of SAM's (:mod:`samexport.models.graphs.decoder`, where the algebra is explained). What
SAM 2 adds:

- A token for the object's presence comes first, and its score, the pointers of all four masks and the sigmoid of the
  predicted IoU are outputs. The choice among the masks is the host's.
- The maps of strides 4 and 8 are added while the pixels of a cell are still together, so they are brought into that
  order, once for all prompts.
- SAM 2's padding point is a slot with label -1 like any other; it follows clicks and boxes. A mask alone has none.
- In a frame that is tracked each object has an embedding of its own and no prompt. Its two tokens say "no point", so
  what the tokens make of each other before they see the image is a constant, and what they ask of it is, too.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.mask_decoder import MASK_TOKENS
from samexport.models.architectures.sam import Sam
from samexport.models.architectures.sam2 import Sam2
from samexport.models.architectures.sam2_mask_decoder import Sam2MaskDecoder
from samexport.models.graphs.decoder import Layer, MaskEmbedding, Masks, Prologue, PromptTokens
from samexport.models.graphs.decoder_attention import KnownTokenToImage, Positions, TokenToImage
from samexport.models.graphs.layers import LayerNorm, frozen

OWN_TOKENS = 2 + MASK_TOKENS
_NO_POINTS = 2

Decoded = tuple[Tensor, Tensor, Tensor, Tensor]


class _Parts(nn.Module):
    """The two parts under the names that SAM has for them."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.sam_prompt_encoder, model.sam_mask_decoder


def _as_sam(model: Sam2) -> Sam:
    return cast(Sam, _Parts(model))


def _own_tokens(decoder: Sam2MaskDecoder) -> Tensor:
    tokens = [decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight]
    return torch.cat(tokens)[None]


class Sam2PromptTokens(PromptTokens):
    """Points to tokens [N, 6 + K, width] and key biases [N, 6 + K]."""

    def __init__(self, model: Sam2) -> None:
        super().__init__(model.sam_prompt_encoder, model.sam_mask_decoder)
        self.own = frozen(_own_tokens(model.sam_mask_decoder))
        self.own_bias = frozen(torch.zeros(1, OWN_TOKENS))


class Sam2Masks(nn.Module):
    """Upscaling with the fine maps, hypernetworks, and the heads on the decoder's own tokens."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        decoder = model.sam_mask_decoder
        self.masks = Masks(decoder, model.sam_prompt_encoder.grid)
        self.score, self.pointer = decoder.pred_obj_score_head, model.obj_ptr_proj

    def forward(self, queries: Tensor, image: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> Decoded:
        """Own tokens [N, 6, width], image [N, P, width] and the two maps to the outputs."""
        base, count = self.masks, queries.shape[0]
        grid = base.grid
        coarse = _in_cells(feat_s1, grid)
        fine = _in_cells(feat_s0, 2 * grid).reshape(2 * grid, grid, 2, -1)
        # rows (row i), then columns: the pixels of a cell follow each other
        fine = fine.reshape(grid, 2, grid, -1).transpose(1, 2).reshape(1, 4 * grid * grid, -1)
        x = torch.addmm(base.up1_bias, image.reshape(-1, image.shape[-1]), base.up1).reshape(count, grid * grid, -1)
        x = x + coarse.reshape(1, grid * grid, -1)
        x = F.gelu(base.norm(x.reshape(-1, base.norm.weight.shape[0])))
        x = torch.addmm(base.up2_bias, x, base.up2).reshape(count, 4 * grid * grid, -1)
        x = F.gelu(x + fine).reshape(count, -1, base.up2.shape[1] // 4)
        tokens = queries[:, 2:]
        h = tokens.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(base.hyper, base.hyper_bias, strict=True)):
            h = h @ weight + bias
            h = F.relu(h) if layer < 2 else h
        logits = base._in_order(h.transpose(0, 1) @ x.transpose(1, 2))
        return logits, base.iou(queries[:, 1]).sigmoid(), self.score(queries[:, 0]), self.pointer(tokens)


def _in_cells(feature: Tensor, side: int) -> Tensor:
    """[1, C, 2 side, 2 side] to [side, side, 2, 2 * C]: cell by cell, rows of the cell, columns with channels."""
    x = feature[0].permute(1, 2, 0)
    return x.reshape(side, 2, side, -1).transpose(1, 2)


class Sam2Transformer(nn.Module):
    """Both layers, the last attention and the masks."""

    def __init__(self, model: Sam2, *, shared: bool) -> None:
        super().__init__()
        transformer = model.sam_mask_decoder.transformer
        positions = Positions(model.sam_prompt_encoder, small=False)
        first, second = transformer.layers
        self.layer0, self.layer1 = Layer(first, positions, shared=shared), Layer(second, positions, shared=False)
        self.final = TokenToImage(transformer.final_attn_token_to_image, positions)
        norm = transformer.norm_final_attn
        self.norm = LayerNorm(norm.weight, norm.bias, norm.eps)
        self.masks = Sam2Masks(model)

    def forward(
        self, image: tuple[Tensor, ...], feat_s0: Tensor, feat_s1: Tensor, own: Tensor, bias: Tensor
    ) -> Decoded:
        """Tokens ``own`` [N, 6 + K, width] with key biases, and the image as :class:`Layer` takes it."""
        queries, tokens = self.layer0(own, own, bias, image)
        return self.after_first(queries, tokens, feat_s0, feat_s1, own, bias)

    def after_first(
        self, queries: Tensor, tokens: Tensor, feat_s0: Tensor, feat_s1: Tensor, own: Tensor, bias: Tensor
    ) -> Decoded:
        """What follows the first layer."""
        queries, tokens = self.layer1(queries, own, bias, (tokens,))
        # only the decoder's own tokens are read from here on
        queries, own = queries[:, :OWN_TOKENS], own[:, :OWN_TOKENS]
        queries = self.norm(queries + self.final(queries + own, tokens))
        out: Decoded = self.masks(queries, tokens, feat_s0, feat_s1)
        return out


class Sam2Decoder(nn.Module):
    """The graph ``mask_decoder``: N prompts on one picture."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.prologue = Prologue(_as_sam(model))
        self.prompt = Sam2PromptTokens(model)
        self.transformer = Sam2Transformer(model, shared=True)

    def forward(
        self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> Decoded:
        """Decode."""
        own, bias = self.prompt(point_coords, point_labels)
        out: Decoded = self.transformer(self.prologue(image_embed), feat_s0, feat_s1, own, bias)
        return out


class Sam2DecoderWithMask(nn.Module):
    """The graph ``mask_decoder_with_mask``: the image differs by prompt from the start."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        self.mask = MaskEmbedding(model.sam_prompt_encoder)
        self.prompt = Sam2PromptTokens(model)
        self.transformer = Sam2Transformer(model, shared=False)

    def forward(
        self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask_input: Tensor,
    ) -> Decoded:  # fmt: skip
        """Decode."""
        own, bias = self.prompt(point_coords, point_labels)
        tokens = image_embed.flatten(2).transpose(1, 2) + self.mask(mask_input, has_mask_input)
        out: Decoded = self.transformer((tokens,), feat_s0, feat_s1, own, bias)
        return out


class Sam2TrackedDecoder(nn.Module):
    """The graph ``mask_decoder_tracked``: N objects, each with its own embedding and no prompt."""

    def __init__(self, model: Sam2) -> None:
        super().__init__()
        prompts = model.sam_prompt_encoder
        nothing = prompts.not_a_point_embed.weight.expand(1, _NO_POINTS, -1)
        self.own = frozen(torch.cat([_own_tokens(model.sam_mask_decoder), nothing], dim=1))
        self.bias = frozen(torch.zeros(1, self.own.shape[1]))
        self.no_mask = frozen(prompts.no_mask_embed.weight)
        self.transformer = Sam2Transformer(model, shared=False)
        with torch.no_grad():
            self.begun = frozen(self.transformer.layer0.among_tokens(self.own, self.own, self.bias))
        self.asks = KnownTokenToImage(cast(TokenToImage, self.transformer.layer0.to_image), self.begun + self.own)

    def forward(self, image_embed: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> Decoded:
        """Decode."""
        image, own, bias = self.given(image_embed)
        queries, image, _ = self.first(image, own, bias)
        out: Decoded = self.transformer.after_first(queries, image, feat_s0, feat_s1, own, bias)
        return out

    def given(self, image_embed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image's tokens; the decoder's own of each object and their key biases."""
        count = image_embed.shape[0]
        image = image_embed.flatten(2).transpose(1, 2) + self.no_mask
        return image, self.own.expand(count, -1, -1), self.bias.expand(count, -1)

    def first(self, image: Tensor, own: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and image after the first layer, and the weights with which the tokens saw the image."""
        layer, weights = self.transformer.layer0, self.asks(image)
        seen = cast(TokenToImage, layer.to_image).mix(weights, image)
        return *layer.with_image(self.begun, seen, own, bias, (image,)), weights
