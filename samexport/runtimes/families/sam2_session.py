"""SAM 2 on the host: encode a picture once, decode any prompts for it; open a tracker for a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, PromptError
from samexport.models.families.sam2 import (
    IMAGE_ENCODER,
    MASK_DECODER,
    MASK_DECODER_WITH_MASK,
    VIDEO_GRAPHS,
)
from samexport.models.families.sam2_sparse import MEMORY_ATTENTION_PRUNED, WINDOW_GRAPHS
from samexport.runtimes.base import Tensors
from samexport.runtimes.families.sam2_sparse_tracker import Sparse, SparseTracker
from samexport.runtimes.families.sam2_tracker import TrackedFrame, Tracker
from samexport.runtimes.families.sam2_tracker_state import resume
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.object_masks import answers
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam2_prompts import count_points, pack
from samexport.runtimes.host.sam_prompts import PADDING, check_tensors
from samexport.runtimes.session import Decoded, Encoded, Session, check_numbers

_FEATURES = ("image_embed", "feat_s0", "feat_s1")
_ANSWERS = ("low_res_masks", "iou_predictions")


class Sam2Session(Session):
    """The image graphs as SAM 2's image predictor calls them, and the tracker on all graphs."""

    multimask = slice(1, None)

    @property
    def first(self) -> str:
        """The encoder."""
        return IMAGE_ENCODER

    def encode(self, picture: NDArray[np.uint8]) -> Encoded:
        """The features of a picture."""
        place = FrameMap((picture.shape[0], picture.shape[1]), self.manifest.frame)
        found = self.graphs.run(IMAGE_ENCODER, {"image": to_frame(picture, place.frame)}, _FEATURES)
        features = {name: found[name] for name in _FEATURES}
        check_numbers(IMAGE_ENCODER, *features.values())
        return Encoded(place, features)

    def pack(self, prompts: Sequence[Prompt], place: FrameMap) -> Tensors:
        """As :func:`samexport.runtimes.host.sam2_prompts.pack`."""
        return dict(pack(prompts, place))

    def click(self, points: NDArray[np.float64]) -> Tensors:
        """A click and the padding point each."""
        padded = np.stack([points, np.zeros_like(points)], axis=1).astype(np.float32)
        labels = np.tile(np.array([1, PADDING], np.float32), (len(points), 1))
        return {"point_coords": padded, "point_labels": labels}

    def open_decoder(self, packed: Tensors | None = None) -> None:
        """The decoder for prompts without masks, or with them."""
        self.graphs.open(_decoder(packed or {}))

    def check(self, prompts: Sequence[Prompt], packed: Tensors) -> None:
        """Refuse more points than the file takes, counted as a user does."""
        entries = self.graphs.open(_decoder(packed)).entry_points
        room = max((entry.points for entry in entries), default=None)
        for number, prompt in enumerate(prompts):
            # the padding point
            boxed = prompt.box is not None
            needed = len(prompt.points) + 2 * boxed + 1
            if room is not None and needed > room and (boxed or len(prompt.points)):
                most, beside = (room - 3, " with a box") if boxed else (room - 1, "")
                raise PromptError(
                    f"prompt {number} has {len(prompt.points)} points{beside}; this file takes at most"
                    f" {most}{beside}: give fewer, or export it with --points {needed}"
                )

    def decode(self, encoded: Encoded, packed: Tensors) -> Decoded:
        """Four masks a prompt."""
        check_tensors(packed["point_coords"], packed["point_labels"])
        graph = _decoder(packed)
        found = self.graphs.run(graph, {**encoded.tensors, **packed}, _ANSWERS)
        logits, scores = (found[name] for name in _ANSWERS)
        check_numbers(graph, logits, scores)
        return Decoded(logits, scores)

    def choose(self, packed: Tensors, decoded: Decoded) -> list[int]:
        """The best of masks 1..3 for one click or a mask alone; else mask 0, or the best one where that is unstable.

        So does the official predictor with ``multimask_output`` for what may mean several things.
        """
        return [
            max(
                answers(logits, scores, multimask=bool(count <= 1), fallback=True),
                key=lambda index: float(scores[index]),
            )
            for logits, scores, count in zip(
                decoded.logits, decoded.scores, count_points(packed["point_labels"]), strict=True
            )
        ]

    def tracker(
        self, *, frames: int | None = None, postprocess: bool = True, sparse: Mapping[str, Any] | None = None
    ) -> Tracker:
        """A tracker on these graphs; ``sparse`` are fields of :class:`.sam2_sparse_tracker.Sparse`."""
        self._check_video()
        options: dict[str, Any] = {"frames": frames, "postprocess": postprocess}
        if sparse is None:
            return Tracker(self.graphs.open, self.graphs.bundle.constants, **options)
        return SparseTracker(self.graphs.open, self.graphs.bundle.constants, sparse=self._left_out(sparse), **options)

    def resume(self, path: Path) -> Tracker:
        """The tracker that :func:`samexport.runtimes.families.sam2_tracker_state.save` wrote."""
        self._check_video()
        return resume(path, self.graphs.open, self.graphs.bundle.constants)

    def step(self, picture: NDArray[np.uint8], state: Any, prompts: Sequence[Prompt] = ()) -> tuple[Decoded, Any]:
        """One frame of a stream; the state is a :class:`Tracker`, prompts begin objects. One mask an object."""
        tracker: Tracker = state or self.tracker()
        begun = len(tracker.banks)
        for number, prompt in enumerate(prompts):
            tracker.add(tracker.next_frame, begun + number, prompt)
        return _decoded(tracker.step(picture)), tracker

    def _left_out(self, sparse: Mapping[str, Any]) -> Sparse:
        asked, name = Sparse(**sparse), self.graphs.bundle.folder.name
        here = set(self.graphs.bundle.graph_names)
        if asked.memory and MEMORY_ATTENTION_PRUNED not in here:
            raise BundleError(f"{name} cannot leave anything out; export it with --sparse")
        if asked.windows and not set(WINDOW_GRAPHS) <= here:
            raise BundleError(
                f"{name} cannot leave windows out: its model has no bypass for them; take --sparse smr, or export it"
                " with --sparse and --adapter FILE, or --adapter identity, which was not trained"
            )
        return asked

    def _check_video(self) -> None:
        if missing := [name for name in VIDEO_GRAPHS if name not in self.graphs.bundle.graph_names]:
            name = self.graphs.bundle.folder.name
            raise BundleError(f"{name} was made for pictures and has no {missing[0]}; export it with --video")


def _decoder(packed: Tensors) -> str:
    return MASK_DECODER_WITH_MASK if "mask_input" in packed else MASK_DECODER


def _decoded(frame: TrackedFrame) -> Decoded:
    logits = np.stack([each.low_res for each in frame.found])[:, None]
    return Decoded(logits, np.array([[each.iou.max()] for each in frame.found], np.float32))
