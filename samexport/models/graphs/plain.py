"""The graphs without any rewrite: the architectures wrapped in the graph contracts.

They are the reference of every parity check and the baseline of every benchmark.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samexport.models.architectures.sam import Sam
from samexport.models.graphs.decoder_attention import ABSENT
from samexport.models.graphs.layers import frozen
from samexport.models.spec import Preprocess


class PlainEncoder(nn.Module):
    """Normalisation and the encoder as published."""

    def __init__(self, encoder: nn.Module, frame: Preprocess) -> None:
        super().__init__()
        self.image_encoder = encoder
        self.mean = frozen(torch.tensor(frame.mean).view(1, 3, 1, 1))
        self.std = frozen(torch.tensor(frame.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Encode."""
        out: Tensor = self.image_encoder((image - self.mean) / self.std)
        return out


class PlainDecoder(nn.Module):
    """Prompt encoder and mask decoder as published, the embedding repeated for each prompt."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def _decode(self, source: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        sparse = self.prompt_encoder.embed_points(point_coords, point_labels)
        absent = (point_labels == -2) * ABSENT
        out: tuple[Tensor, Tensor] = self.mask_decoder(source, self.prompt_encoder.dense_pe(), sparse, absent)
        return out

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode."""
        source = image_embeddings + self.prompt_encoder.no_mask_dense()
        return self._decode(source.expand(point_coords.shape[0], -1, -1, -1), point_coords, point_labels)


class PlainDecoderWithMask(PlainDecoder):
    """The same with a mask prompt."""

    def forward(  # type: ignore[override]
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor,
        mask_input: Tensor, has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Decode."""
        source = image_embeddings + self.prompt_encoder.embed_mask(mask_input, has_mask_input)
        return self._decode(source, point_coords, point_labels)
