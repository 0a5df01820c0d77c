"""SAM on the host: encode a picture once, decode any prompts for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samexport.errors import PromptError
from samexport.runtimes.base import Tensors
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import (
    PADDING,
    check_tensors,
    count_tokens,
    has_box,
    pack,
    select_mask,
    stability,
)
from samexport.runtimes.session import Decoded, Encoded, OpenGraphs, Session, check_numbers

_EMBEDDINGS = "image_embeddings"
_ANSWERS = ("low_res_masks", "iou_predictions")


class SamSession(Session):
    """The encoder, and the decoder whole or in two halves."""

    multimask = slice(1, None)

    def __init__(self, graphs: OpenGraphs) -> None:
        super().__init__(graphs)
        self._split = "decoder_step" in graphs.bundle.graph_names

    @property
    def first(self) -> str:
        """The encoder."""
        return "encoder"

    def encode(self, picture: NDArray[np.uint8]) -> Encoded:
        """The embedding of a picture."""
        place = FrameMap((picture.shape[0], picture.shape[1]), self.manifest.frame)
        names = self.graphs.bundle.graph("encoder").output_names
        found = self.graphs.run("encoder", {"image": to_frame(picture, place.frame)}, names)
        check_numbers("encoder", *found.values())
        return Encoded(place, {name: found[name] for name in names})

    def pack(self, prompts: Sequence[Prompt], place: FrameMap) -> Tensors:
        """As :func:`samexport.runtimes.host.sam_prompts.pack`."""
        return dict(pack(prompts, place))

    def click(self, points: NDArray[np.float64]) -> Tensors:
        """A click and SAM's padding point each."""
        padded = np.stack([points, np.zeros_like(points)], axis=1).astype(np.float32)
        labels = np.tile(np.array([1, PADDING], np.float32), (len(points), 1))
        return {"point_coords": padded, "point_labels": labels}

    def open_decoder(self, packed: Tensors | None = None) -> None:
        """The decoder for prompts without masks, or with them."""
        for graph in self._decoders(packed or {}):
            self.graphs.open(graph)

    def check(self, prompts: Sequence[Prompt], packed: Tensors) -> None:
        """Refuse more points than the file takes, counted as a user does."""
        entries = self.graphs.open(self._decoders(packed)[-1]).entry_points
        room = max((entry.points for entry in entries), default=None)
        for number, needed in enumerate(count_tokens(packed["point_labels"])):
            if room is None or needed <= room:
                continue
            # without SAM's padding point
            boxed = prompts[number].box is not None
            most, beside = (room - 2, " with a box") if boxed else (room - 1, "")
            raise PromptError(
                f"prompt {number} has {len(prompts[number].points)} points{beside}; this file takes at most"
                f" {most}{beside}: give fewer, or export it with --points {needed}"
            )

    def decode(self, encoded: Encoded, packed: Tensors) -> Decoded:
        """Four masks a prompt; the first call for a picture in two halves runs the first half, once."""
        check_tensors(packed["point_coords"], packed["point_labels"])
        *before, graph = self._decoders(packed)
        for name in before:
            if not set(self.graphs.bundle.graph(name).output_names) <= set(encoded.tensors):
                encoded.tensors.update(self.graphs.run(name, {_EMBEDDINGS: encoded.tensors[_EMBEDDINGS]}))
        given = {**encoded.tensors, **packed}
        inputs = {name: given[name] for name in self.graphs.bundle.graph(graph).input_names}
        found = self.graphs.run(graph, inputs, _ANSWERS)
        logits, scores = (found[name] for name in _ANSWERS)
        check_numbers("decoder", logits, scores)
        return Decoded(logits, stability(logits) if self.manifest.scores == "stability" else scores)

    def choose(self, packed: Tensors, decoded: Decoded) -> list[int]:
        """By :func:`samexport.runtimes.host.sam_prompts.select_mask`; where stability ranks, clicks have all masks."""
        labels, trained = packed["point_labels"], self.manifest.mask_outputs
        return [
            max(trained, key=lambda index: float(found[index]))
            if self.manifest.scores == "stability" and not boxed
            else select_mask(found, int(count), trained, boxed=bool(boxed))
            for found, count, boxed in zip(decoded.scores, count_tokens(labels), has_box(labels), strict=True)
        ]

    def _decoders(self, packed: Tensors) -> tuple[str, ...]:
        if "mask_input" in packed:
            return ("decoder_with_mask",)
        return ("decoder_prologue", "decoder_step") if self._split else ("decoder",)
