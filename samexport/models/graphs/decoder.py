"""Export forms of SAM's prompt encoder and mask decoder.

What differs from ``architectures/``, and why it is the same function (see also ``decoder_attention.py``):

- Prompts are the batch axis N; the image embedding is never repeated. What layer 0 computes from the image
  alone (keys, values, queries) is computed once: the prologue.
- Labels pick embeddings by max(0, 1 - |label - code|), which is 1 for equal integers and else 0: no
  comparison, cast or select, so every format and delegate can run it.
- A 2x2 transposed convolution with stride 2 is a matrix product. LayerNorm, GELU, the second one and the
  product with the hypernetworks act on each pixel, so the pixels are put in order at the end, on the logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures import mask_decoder
from samexport.models.architectures.mask_decoder import MASK_TOKENS, MaskDecoder
from samexport.models.architectures.prompt_encoder import PromptEncoder
from samexport.models.architectures.sam import Sam
from samexport.models.graphs.decoder_attention import (
    ABSENT,
    ImageToToken,
    Positions,
    SelfAttention,
    SharedTokenToImage,
    TokenToImage,
)
from samexport.models.graphs.layers import LayerNorm, frozen, parts


def _norm(norm: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(norm.weight, norm.bias, norm.eps)


class PromptTokens(nn.Module):
    """Points to tokens [N, 5 + K, width] and key biases [N, 5 + K]."""

    _CODES = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)

    def __init__(self, prompts: PromptEncoder, decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_size = prompts.image_size
        # the position encoding must not lose precision: an angle of 100 has few bits left in fp16
        self.frequencies = frozen(2 * math.pi * prompts.pe_layer.positional_encoding_gaussian_matrix)
        self.codes = frozen(torch.tensor(self._CODES))
        nothing = torch.zeros_like(prompts.not_a_point_embed.weight)
        points = [e.weight for e in prompts.point_embeddings]
        self.table = frozen(torch.cat([nothing, prompts.not_a_point_embed.weight, *points]))
        self.is_point = frozen(torch.tensor([[0.0], [0.0], [1.0], [1.0], [1.0], [1.0]]))
        self.own = frozen(decoder.own_tokens()[None])
        self.own_bias = frozen(torch.zeros(1, self.own.shape[1]))

    def forward(self, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode [N, K, 2] pixels and [N, K] labels."""
        unit = (point_coords + 0.5) * (2 / self.image_size) - 1
        angle = unit @ self.frequencies
        encoded = torch.cat([angle.sin(), angle.cos()], dim=-1)
        chosen = F.relu(1 - (point_labels[..., None] - self.codes).abs())
        sparse = encoded * (chosen @ self.is_point) + chosen @ self.table
        count = point_coords.shape[0]
        tokens = torch.cat([self.own.expand(count, -1, -1), sparse], dim=1)
        bias = torch.cat([self.own_bias.expand(count, -1), chosen[..., 0] * ABSENT], dim=1)
        return tokens, bias


class Masks(nn.Module):
    """Upscaling, hypernetworks and IoU head on the updated tokens and image."""

    def __init__(self, decoder: MaskDecoder, grid: int) -> None:
        super().__init__()
        self.grid = grid
        first, norm, _, second, _ = parts(decoder.output_upscaling)
        self.up1, self.up1_bias = self._as_product(first)
        self.norm = LayerNorm(norm.weight, norm.bias, norm.eps)
        self.up2, self.up2_bias = self._as_product(second)
        heads = [h.layers for h in decoder.output_hypernetworks_mlps]
        self.hyper = nn.ParameterList(frozen(torch.stack([h[i].weight.T for h in heads])) for i in range(3))
        self.hyper_bias = nn.ParameterList(frozen(torch.stack([h[i].bias[None] for h in heads])) for i in range(3))
        self.iou = decoder.iou_prediction_head

    @staticmethod
    def _as_product(conv: nn.ConvTranspose2d) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight [in, 4 * out] and bias [4 * out]; the four pixels of the 2x2 block one after the other."""
        if conv.kernel_size != (2, 2) or conv.stride != (2, 2) or conv.bias is None:
            raise ValueError("only a 2x2 transposed convolution with stride 2 is a matrix product")
        return frozen(conv.weight.permute(0, 2, 3, 1).flatten(1)), frozen(conv.bias.repeat(4))

    def forward(self, queries: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Own tokens [N, 5, width] and image [N, P, width] to logits [N, 4, 4 grid, 4 grid] and IoU [N, 4]."""
        count = queries.shape[0]
        x = torch.addmm(self.up1_bias, image.reshape(-1, image.shape[-1]), self.up1)
        x = F.gelu(self.norm(x.reshape(-1, self.norm.weight.shape[0])))
        x = F.gelu(torch.addmm(self.up2_bias, x, self.up2)).reshape(count, -1, self.up2.shape[1] // 4)
        logits = self.hyper_tokens(queries[:, 1:]) @ x.transpose(1, 2)
        return self._in_order(logits), self.iou(queries[:, 0])

    def hyper_tokens(self, mask_tokens: Tensor) -> Tensor:
        """Tokens of the masks [N, 4, width] to the weights of the upscaled image's channels [N, 4, width / 8]."""
        h = mask_tokens.transpose(0, 1)
        for layer, (weight, bias) in enumerate(zip(self.hyper, self.hyper_bias, strict=True)):
            h = h @ weight + bias
            h = F.relu(h) if layer < 2 else h
        return h.transpose(0, 1)

    def _in_order(self, logits: Tensor) -> Tensor:
        """[N, 4, row, column, i, j, k, l] flat to [N, 4, row i k, column j l], in two rank-4 transposes."""
        count, grid = logits.shape[0], self.grid
        outer = logits.reshape(-1, grid, 2, 8).transpose(1, 2)
        inner = outer.reshape(-1, 2 * grid, 2, 2).transpose(1, 2)
        return inner.reshape(count, MASK_TOKENS, 4 * grid, 4 * grid)


class Prologue(nn.Module):
    """What the decoder computes from the image alone; outputs as the spec of ``decoder_prologue`` says."""

    def __init__(self, sam: Sam, *, small: bool = False) -> None:
        super().__init__()
        layer = sam.mask_decoder.transformer.layers[0]
        to_image, to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        self.no_mask = frozen(sam.prompt_encoder.no_mask_embed.weight.T)
        self.small, positions = small, Positions(sam.prompt_encoder, small=small)
        if small:
            self.positions = positions
        else:
            self.pe = frozen(positions() + self.no_mask)
        self.places = frozen(torch.cat([to_image.k_proj.weight, to_token.q_proj.weight]))
        self.places_bias = frozen(torch.cat([torch.zeros_like(to_image.k_proj.bias), to_token.q_proj.bias])[:, None])
        self.values = frozen(to_image.v_proj.weight)
        self.values_bias = frozen(to_image.v_proj.weight @ self.no_mask + to_image.v_proj.bias[:, None])

    def forward(self, image_embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embedding [1, width, grid, grid] to image tokens, keys, values, queries."""
        pe = self.positions() + self.no_mask if self.small else self.pe
        x = image_embeddings.reshape(pe.shape)
        keys, queries = (self.places @ (x + pe) + self.places_bias).chunk(2)
        tokens = (x + self.no_mask).transpose(0, 1)
        return tokens, keys, self.values @ x + self.values_bias, queries


class Layer(nn.Module):
    """One two-way block on tokens [N, T, width] and the image."""

    def __init__(self, block: mask_decoder.TwoWayBlock, positions: Positions, *, shared: bool) -> None:
        super().__init__()
        self.first, self.mlp = block.first, block.mlp
        self.self_attention = SelfAttention(block.self_attn)
        attention = block.cross_attn_token_to_image
        self.to_image = SharedTokenToImage(attention) if shared else TokenToImage(attention, positions)
        self.to_token = ImageToToken(block.cross_attn_image_to_token, positions)
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        self.norm3, self.norm4 = _norm(block.norm3), _norm(block.norm4)

    def forward(self, queries: Tensor, own: Tensor, bias: Tensor, image: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """``image`` is the tokens [N, P, width] alone, or the four outputs of the prologue."""
        queries = self.among_tokens(queries, own, bias)
        tokens, *shared = image
        seen = self.to_image(queries + own, *shared[:2]) if shared else self.to_image(queries + own, tokens)
        return self.with_image(queries, seen, own, bias, image)

    def among_tokens(self, queries: Tensor, own: Tensor, bias: Tensor) -> Tensor:
        """Tokens after they attended to each other."""
        q = queries if self.first else queries + own
        attended = self.self_attention(q, queries, bias)
        out: Tensor = self.norm1(attended if self.first else queries + attended)
        return out

    def with_image(
        self, queries: Tensor, seen: Tensor, own: Tensor, bias: Tensor, image: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Tokens with what they have ``seen`` of the image, and the image updated."""
        tokens, *shared = image
        queries = self.norm2(queries + seen)
        queries = self.norm3(queries + self.mlp(queries))
        mix = (queries + own, queries, bias)
        update = self.to_token.shared(shared[2], *mix) if shared else self.to_token(tokens, *mix)
        return queries, self.norm4(tokens + update)


class Transformer(nn.Module):
    """Prompt tokens, both layers, the last attention and the masks."""

    def __init__(self, sam: Sam, *, shared: bool, small: bool) -> None:
        super().__init__()
        decoder = sam.mask_decoder
        positions = Positions(sam.prompt_encoder, small=small)
        self.prompt = PromptTokens(sam.prompt_encoder, decoder)
        first, second = decoder.transformer.layers
        self.layer0, self.layer1 = Layer(first, positions, shared=shared), Layer(second, positions, shared=False)
        self.final = TokenToImage(decoder.transformer.final_attn_token_to_image, positions)
        self.norm = _norm(decoder.transformer.norm_final_attn)
        self.masks = Masks(decoder, sam.prompt_encoder.grid)

    def forward(self, image: tuple[Tensor, ...], point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, 4, 4 grid, 4 grid] and predicted IoU [N, 4]."""
        out: tuple[Tensor, Tensor] = self.masks(*self.attend(image, point_coords, point_labels))
        return out

    def attend(self, image: tuple[Tensor, ...], point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's own tokens [N, T, width] and the image [N, P, width], updated."""
        own, bias = self.prompt(point_coords, point_labels)
        queries, tokens = self.layer0(own, own, bias, image)
        queries, tokens = self.layer1(queries, own, bias, (tokens,))
        # only the decoder's own tokens are read from here on
        count = self.prompt.own.shape[1]
        queries, own = queries[:, :count], own[:, :count]
        return self.norm(queries + self.final(queries + own, tokens)), tokens


class DecoderStep(nn.Module):
    """The decoder after the prologue."""

    def __init__(self, sam: Sam, *, small: bool = False) -> None:
        super().__init__()
        self.transformer = Transformer(sam, shared=True, small=small)

    def forward(
        self, image_tokens: Tensor, image_keys: Tensor, image_values: Tensor, image_queries: Tensor,
        point_coords: Tensor, point_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode."""
        image = (image_tokens, image_keys, image_values, image_queries)
        out: tuple[Tensor, Tensor] = self.transformer(image, point_coords, point_labels)
        return out


class Decoder(nn.Module):
    """Prologue and step in one graph."""

    def __init__(self, sam: Sam, *, small: bool = False) -> None:
        super().__init__()
        self.prologue = Prologue(sam, small=small)
        self.transformer = Transformer(sam, shared=True, small=small)

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode."""
        out: tuple[Tensor, Tensor] = self.transformer(self.prologue(image_embeddings), point_coords, point_labels)
        return out


class MaskEmbedding(nn.Module):
    """``PromptEncoder.embed_mask`` with LayerNorm2d as LayerNorm between two transposes."""

    def __init__(self, prompts: PromptEncoder) -> None:
        super().__init__()
        stages = parts(prompts.mask_downscaling)
        self.conv1, norm1, _, self.conv2, norm2, _, last = stages
        self.norm1 = LayerNorm(norm1.weight, norm1.bias, norm1.eps)
        self.norm2 = LayerNorm(norm2.weight, norm2.bias, norm2.eps)
        self.last, self.last_bias = frozen(last.weight[:, :, 0, 0].T), frozen(last.bias)
        self.no_mask = frozen(prompts.no_mask_embed.weight[None])

    def forward(self, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
        """[N, 1, 4 grid, 4 grid] and [N] to tokens [N, P, width]."""
        x = F.gelu(self.norm1(self.conv1(mask_input).permute(0, 2, 3, 1)))
        x = F.gelu(self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        x = x.flatten(1, 2) @ self.last + self.last_bias
        has = has_mask_input[:, None, None]
        return has * x + (1 - has) * self.no_mask


class DecoderWithMask(nn.Module):
    """The decoder for prompts that refine an earlier mask: the image differs by prompt from the start."""

    def __init__(self, sam: Sam, *, small: bool = False) -> None:
        super().__init__()
        self.mask = MaskEmbedding(sam.prompt_encoder)
        self.transformer = Transformer(sam, shared=False, small=small)

    def forward(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode."""
        tokens = image_embeddings.flatten(2).transpose(1, 2) + self.mask(mask_input, has_mask_input)
        out: tuple[Tensor, Tensor] = self.transformer((tokens,), point_coords, point_labels)
        return out
