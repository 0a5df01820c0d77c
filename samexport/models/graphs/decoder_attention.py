"""Attention between a prompt's tokens and the image's, as SAM's decoder is exported.

- From layer 1 on the image tokens x differ by prompt, but there are only T tokens a prompt. Products of x with
  a projection move to the token side: q_h (x Wk_h)^T = (q_h Wk_h^T) x^T, A (x Wv_h + b) = (A x) Wv_h + b, and
  A (v_h Wo_h) for the output. The position term pe Wk_h is a constant. A bias of keys adds the same number to
  all logits of a row and cancels in the softmax.
- A label of -2 marks an absent slot: its key gets a bias of ABSENT in every attention over tokens, so its
  weight is exactly 0 and it changes nothing.
- The position terms are baked, or with ``small`` computed in the graph from the sines and cosines of the grid's
  columns and rows: an angle is the sum of one of each, and sin(a + b) = sin a cos b + cos a sin b. A runtime that
  evaluates constants when it opens a file has the same graph then; others pay for it in every call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samexport.models.architectures import mask_decoder
from samexport.models.architectures.mask_decoder import HEADS
from samexport.models.architectures.prompt_encoder import PromptEncoder
from samexport.models.graphs.layers import frozen

# exp(-1e4) is 0 in every precision, and 1e4 is far from the end of fp16.
ABSENT = -1e4


def _by_head(weight: Tensor) -> Tensor:
    """Rows of a projection [inner, width] as [heads, inner / heads, width]."""
    return weight.reshape(HEADS, -1, weight.shape[1])


class Positions(nn.Module):
    """The position encoding of the cells, [width, P]: a constant, or with ``small`` made of two tables."""

    def __init__(self, prompts: PromptEncoder, *, small: bool) -> None:
        super().__init__()
        self.small = small
        if not small:
            self.pe = frozen(prompts.dense_pe().flatten(2)[0])
            return
        centre = (torch.arange(prompts.grid, dtype=torch.float64) + 0.5) / prompts.grid * 2 - 1
        across, down = 2 * math.pi * prompts.pe_layer.positional_encoding_gaussian_matrix.double()
        column, row = across[:, None, None] * centre, down[:, None, None] * centre[:, None]
        self.column_sin, self.column_cos = frozen(column.sin().float()), frozen(column.cos().float())
        self.row_sin, self.row_cos = frozen(row.sin().float()), frozen(row.cos().float())

    def forward(self) -> Tensor:
        """The encoding."""
        if not self.small:
            return self.pe
        sine = self.column_sin * self.row_cos + self.column_cos * self.row_sin
        cosine = self.column_cos * self.row_cos - self.column_sin * self.row_sin
        return torch.cat([sine, cosine]).flatten(1)


class SelfAttention(nn.Module):
    """Attention among the tokens of a prompt; absent ones have no weight."""

    def __init__(self, attention: mask_decoder.Attention) -> None:
        super().__init__()
        self.q, self.k = attention.q_proj, attention.k_proj
        self.v, self.out = attention.v_proj, attention.out_proj

    def forward(self, q: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Queries and keys from ``q``, values from ``v``, both [N, T, width]."""
        query, key, value = (_heads(x) for x in (self.q(q), self.k(q), self.v(v)))
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias[:, None, None]
        out: Tensor = self.out(_join(logits.softmax(-1) @ value))
        return out


def _heads(x: Tensor) -> Tensor:
    """[N, T, inner] to [N, heads, T, inner / heads]."""
    return x.reshape(x.shape[0], -1, HEADS, x.shape[-1] // HEADS).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """[N, heads, T, depth] to [N, T, heads * depth]."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, HEADS * x.shape[-1])


class TokenSide(nn.Module):
    """The projections of a cross attention that act on tokens; ``scaled`` carries the softmax scale."""

    def __init__(self, scaled: nn.Linear) -> None:
        super().__init__()
        factor = (scaled.out_features // HEADS) ** -0.5
        self.weight, self.bias = frozen(scaled.weight.T * factor), frozen(scaled.bias * factor)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] to [N, heads, T, depth]."""
        return _heads(x @ self.weight + self.bias)


class SharedTokenToImage(nn.Module):
    """Layer 0 without a mask prompt: keys and values [inner, P] come from the prologue."""

    def __init__(self, attention: mask_decoder.Attention) -> None:
        super().__init__()
        self.query, self.out = TokenSide(attention.q_proj), attention.out_proj

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens [N, T, width] to their update."""
        depth, cells = keys.shape[0] // HEADS, keys.shape[1]
        weights = (self.query(tokens) @ keys.reshape(HEADS, depth, cells)).softmax(-1)
        out: Tensor = self.out(_join(weights @ values.reshape(HEADS, depth, cells).transpose(1, 2)))
        return out


class TokenToImage(nn.Module):
    """Token-to-image attention on image tokens of each prompt, all projections on the token side."""

    def __init__(self, attention: mask_decoder.Attention, positions: Positions) -> None:
        super().__init__()
        self.query = TokenSide(attention.q_proj)
        self.key = frozen(_by_head(attention.k_proj.weight))
        self.small = positions.small
        if self.small:
            self.positions = positions
        else:
            self.key_pe = frozen(_by_head(attention.k_proj.weight @ positions()))
        self.value = frozen(_by_head(attention.v_proj.weight).transpose(1, 2))
        self.out = frozen(attention.out_proj.weight.T)
        self.out_bias = frozen(attention.out_proj.bias + attention.out_proj.weight @ attention.v_proj.bias)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Tokens [N, T, width] attend to image tokens [N, P, width]."""
        return self.mix(self.weights(tokens, image), image)

    def weights(self, tokens: Tensor, image: Tensor) -> Tensor:
        """How much each head of each token takes of each image token, [N, heads * T, P]."""
        count, _, width = tokens.shape
        q = self.query(tokens)
        content = (q @ self.key).reshape(count, -1, width) @ image.transpose(1, 2)
        key_pe = self.key @ self.positions() if self.small else self.key_pe
        weights: Tensor = (content + (q @ key_pe).reshape(count, -1, image.shape[1])).softmax(-1)
        return weights

    def mix(self, weights: Tensor, image: Tensor) -> Tensor:
        """The update [N, T, width] that these weights make of the image."""
        seen = (weights @ image).reshape(image.shape[0], HEADS, -1, image.shape[-1])
        return _join(seen @ self.value) @ self.out + self.out_bias


class KnownTokenToImage(nn.Module):
    """:class:`TokenToImage` of tokens [1, T, width] that are known: all that they ask is a constant, on the right.

    GPUs take constants there alone.
    """

    def __init__(self, attention: TokenToImage, tokens: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            query = attention.query(tokens)
            self.asked = frozen((query @ attention.key).flatten(0, 2).T)
            self.places = frozen((query @ attention.key_pe).flatten(0, 2).T)

    def forward(self, image: Tensor) -> Tensor:
        """The weights of image tokens [N, P, width], [N, heads * T, P]."""
        weights: Tensor = (image @ self.asked + self.places).transpose(1, 2).softmax(-1)
        return weights


class ImageToToken(nn.Module):
    """Image-to-token attention: the softmax runs over the few tokens, the scores are [N, heads, T, P].

    The position term is pe Wq + bias as [heads, depth + 1, P]; the last row is 1 and meets the key bias.
    """

    def __init__(self, attention: mask_decoder.Attention, positions: Positions) -> None:
        super().__init__()
        self.key = TokenSide(attention.k_proj)
        self.key.bias = frozen(torch.zeros_like(self.key.bias))
        self.query = frozen(_by_head(attention.q_proj.weight))
        bias = attention.q_proj.bias[:, None]
        self.small = positions.small
        if self.small:
            self.positions, self.query_bias = positions, frozen(_by_head(bias))
        else:
            rows = _by_head(attention.q_proj.weight @ positions() + bias)
            self.query_pe = frozen(torch.cat([rows, torch.ones(HEADS, 1, rows.shape[-1])], dim=1))
        self.value, self.value_bias = frozen(attention.v_proj.weight.T), frozen(attention.v_proj.bias)
        self.out = frozen(_by_head(attention.out_proj.weight.T))
        # the weights of each head sum to 1, so a share of the bias on every value token is the bias
        self.out_bias = frozen(attention.out_proj.bias / HEADS)

    def _query_pe(self) -> Tensor:
        if not self.small:
            return self.query_pe
        rows = self.query @ self.positions() + self.query_bias
        return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)

    def keys(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Keys of tokens [N, T, width] with the bias as last channel, [N, heads, T, depth + 1]."""
        k = self.key(tokens)
        return torch.cat([k, bias[:, None, :, None].expand(-1, HEADS, -1, 1)], dim=-1)

    def mix(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Scores [N, heads, T, P] and value tokens [N, T, width] to the image's update [N, P, width]."""
        count, width = tokens.shape[0], tokens.shape[-1]
        raised = torch.exp(scores - scores.amax(2, keepdim=True))
        weights = raised / raised.sum(2, keepdim=True)
        value = _heads(tokens @ self.value + self.value_bias) @ self.out + self.out_bias
        flat = weights.reshape(count, -1, scores.shape[-1]).transpose(1, 2)
        return flat @ value.reshape(count, -1, width)

    def shared(self, queries: Tensor, key_tokens: Tensor, value_tokens: Tensor, bias: Tensor) -> Tensor:
        """Layer 0 without a mask prompt: queries [inner, P] come from the prologue."""
        rows = queries.reshape(HEADS, -1, queries.shape[-1])
        rows = torch.cat([rows, self._query_pe()[:, -1:]], dim=1)
        return self.mix(self.keys(key_tokens, bias) @ rows, value_tokens)

    def forward(self, image: Tensor, key_tokens: Tensor, value_tokens: Tensor, bias: Tensor) -> Tensor:
        """Image tokens [N, P, width] attend to tokens [N, T, width]."""
        count, cells, width = image.shape
        k = self.keys(key_tokens, bias)
        content = (k[..., :-1] @ self.query).reshape(count, -1, width) @ image.transpose(1, 2)
        scores = content + (k @ self._query_pe()).reshape(count, -1, cells)
        return self.mix(scores.reshape(count, HEADS, -1, cells), value_tokens)
