"""HQ-SAM's graphs: SAM's, and what its high-quality mask needs.

What depends on the image alone is computed once, in the encoder: the decoder gets ``hq_features`` instead of the
encoder's early map, which saves 1.6 GMAC a prompt and a tensor of rank 5. The rest differs from the architecture as
``graphs/decoder.py`` does from its own, except that the pixels of the upscaled map are in order here, because 3x3
convolutions follow.
"""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

from torch import Tensor, nn
from torch.nn import functional as F

from samexport.models.architectures.sam_hq import HqMaskDecoder, HqSam
from samexport.models.graphs.decoder import MaskEmbedding, Masks, Prologue, Transformer
from samexport.models.graphs.decoder_attention import ABSENT
from samexport.models.graphs.layers import Doubling, LayerNorm, parts
from samexport.models.graphs.plain import PlainEncoder
from samexport.models.spec import ModelSpec, Preprocess


class Upscaling(nn.Module):
    """Doubling, LayerNorm, GELU, doubling, all on [N, H, W, C]."""

    def __init__(self, sequence: nn.Sequential) -> None:
        super().__init__()
        first, norm, _, second, *_ = parts(sequence)
        self.first, self.second = Doubling(first), Doubling(second)
        self.norm = LayerNorm(norm.weight, norm.bias, norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, in] to [N, out, 4 H, 4 W]."""
        out: Tensor = self.second(F.gelu(self.norm(self.first(x))))
        return out.permute(0, 3, 1, 2)


class Refining(nn.Module):
    """3x3 convolution, LayerNorm over the channels between transposes, GELU, 3x3 convolution."""

    def __init__(self, sequence: nn.Sequential) -> None:
        super().__init__()
        self.first, norm, _, self.second = parts(sequence)
        self.norm = LayerNorm(norm.weight, norm.bias, norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W], same shape out."""
        x = self.norm(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.second(F.gelu(x))
        return out


class Features(nn.Module):
    """``HqMaskDecoder.features``."""

    def __init__(self, decoder: HqMaskDecoder) -> None:
        super().__init__()
        self.embedding, self.early = Upscaling(decoder.embedding_encoder), Upscaling(decoder.compress_vit_feat)

    def forward(self, embedding: Tensor, early: Tensor) -> Tensor:
        """[1, width / 8, 4 grid, 4 grid]."""
        seen = self.embedding(embedding.permute(0, 2, 3, 1))
        out: Tensor = seen + self.early(early.permute(0, 2, 3, 1))
        return out


class HqEncoder(nn.Module):
    """Image [1, 3, S, S] in 0..255 to the embedding and ``hq_features``."""

    def __init__(self, sam: HqSam, spec: ModelSpec) -> None:
        super().__init__()
        self.encoder = resolve_name(spec.size.encoder_graph)(sam.image_encoder, spec.frame)
        self.features = Features(sam.mask_decoder)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode."""
        embedding, early = self.encoder.with_early(image)
        return embedding, self.features(embedding, early)


class PlainHqEncoder(PlainEncoder):
    """Normalisation, the encoder and the features as published."""

    def __init__(self, sam: HqSam, frame: Preprocess) -> None:
        super().__init__(sam.image_encoder, frame)
        self.encoder, self.decoder = sam.encoder, sam.mask_decoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode."""
        embedding, early = self.encoder.with_early((image - self.mean) / self.std)
        return embedding, self.decoder.features(embedding, early)


class HqMasks(Masks):
    """The masks with the one of high quality added to each."""

    def __init__(self, decoder: HqMaskDecoder, grid: int) -> None:
        super().__init__(decoder, grid)
        self.upscaling, self.refine = Upscaling(decoder.output_upscaling), Refining(decoder.embedding_maskfeature)
        self.fine = decoder.hf_mlp
        del self.up1, self.up1_bias, self.norm, self.up2, self.up2_bias

    def refined(self, queries: Tensor, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Own tokens [N, 6, width] and image [N, P, width] to logits [N, 4, 4 grid, 4 grid] and IoU [N, 4]."""
        grid = self.grid
        x = F.gelu(self.upscaling(image.reshape(-1, grid, grid, image.shape[2])))
        seen = self.refine(x) + features
        channels = seen.shape[1]
        coarse = self.hyper_tokens(queries[:, 1:5]) @ x.reshape(-1, channels, 16 * grid**2)
        fine = self.fine(queries[:, 5:]) @ seen.reshape(-1, channels, 16 * grid**2)
        return (coarse + fine).reshape(-1, 4, 4 * grid, 4 * grid), self.iou(queries[:, 0])


class HqTransformer(Transformer):
    """SAM's with the other masks."""

    def __init__(self, sam: HqSam, *, shared: bool, small: bool) -> None:
        super().__init__(sam, shared=shared, small=small)
        self.fine_masks = HqMasks(sam.mask_decoder, sam.prompt_encoder.grid)
        del self.masks

    def refined(
        self, image: tuple[Tensor, ...], features: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, 4, 4 grid, 4 grid] and predicted IoU [N, 4]."""
        queries, tokens = self.attend(image, point_coords, point_labels)
        return self.fine_masks.refined(queries, tokens, features)


class HqDecoderStep(nn.Module):
    """The decoder after the prologue."""

    def __init__(self, sam: HqSam, *, small: bool = False) -> None:
        super().__init__()
        self.transformer = HqTransformer(sam, shared=True, small=small)

    def forward(
        self, image_tokens: Tensor, image_keys: Tensor, image_values: Tensor, image_queries: Tensor,
        hq_features: Tensor, point_coords: Tensor, point_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode."""
        image = (image_tokens, image_keys, image_values, image_queries)
        return self.transformer.refined(image, hq_features, point_coords, point_labels)


class HqDecoder(nn.Module):
    """Prologue and step in one graph."""

    def __init__(self, sam: HqSam, *, small: bool = False) -> None:
        super().__init__()
        self.prologue = Prologue(sam, small=small)
        self.transformer = HqTransformer(sam, shared=True, small=small)

    def forward(
        self, image_embeddings: Tensor, hq_features: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode."""
        return self.transformer.refined(self.prologue(image_embeddings), hq_features, point_coords, point_labels)


class HqDecoderWithMask(nn.Module):
    """The decoder for prompts that refine an earlier mask."""

    def __init__(self, sam: HqSam, *, small: bool = False) -> None:
        super().__init__()
        self.mask = MaskEmbedding(sam.prompt_encoder)
        self.transformer = HqTransformer(sam, shared=False, small=small)

    def forward(
        self, image_embeddings: Tensor, hq_features: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode."""
        tokens = image_embeddings.flatten(2).transpose(1, 2) + self.mask(mask_input, has_mask_input)
        return self.transformer.refined((tokens,), hq_features, point_coords, point_labels)


class PlainHqDecoder(nn.Module):
    """Prompt encoder and mask decoder as published."""

    def __init__(self, sam: HqSam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def _decode(
        self, source: Tensor, features: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        sparse = self.prompt_encoder.embed_points(point_coords, point_labels)
        absent = (point_labels == -2) * ABSENT
        return self.mask_decoder.decode_with(source, self.prompt_encoder.dense_pe(), sparse, absent, features)

    def forward(
        self, image_embeddings: Tensor, hq_features: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode."""
        source = image_embeddings + self.prompt_encoder.no_mask_dense()
        return self._decode(source.expand(point_coords.shape[0], -1, -1, -1), hq_features, point_coords, point_labels)


class PlainHqDecoderWithMask(PlainHqDecoder):
    """The same with a mask prompt."""

    def forward(  # type: ignore[override]
        self, image_embeddings: Tensor, hq_features: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode."""
        source = image_embeddings + self.prompt_encoder.embed_mask(mask_input, has_mask_input)
        return self._decode(source, hq_features, point_coords, point_labels)


Build = Callable[[HqSam, ModelSpec, bool], nn.Module]
EXPORT: dict[str, Build] = {
    "encoder": lambda sam, spec, _: HqEncoder(sam, spec),
    "decoder": lambda sam, _, small: HqDecoder(sam, small=small),
    "decoder_with_mask": lambda sam, _, small: HqDecoderWithMask(sam, small=small),
    "decoder_prologue": lambda sam, _, small: Prologue(sam, small=small),
    "decoder_step": lambda sam, _, small: HqDecoderStep(sam, small=small),
}
PLAIN: dict[str, Build] = {
    "encoder": lambda sam, spec, _: PlainHqEncoder(sam, spec.frame),
    "decoder": lambda sam, *_: PlainHqDecoder(sam),
    "decoder_with_mask": lambda sam, *_: PlainHqDecoderWithMask(sam),
}
