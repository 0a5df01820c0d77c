"""Objects of SAM 2's golden clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from samexport.models.families.sam2_sparse import ENCODER_ROUTED, ENCODER_STEM
from samexport.runtimes.adapters.entry_points import window_rooms
from samexport.runtimes.base import Tensors
from samexport.runtimes.families.sam2_sparse_tracker import SparseTracker
from samexport.runtimes.families.sam2_tracker import TrackedFrame
from samexport.runtimes.host.object_masks import ObjectMask
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.clip import Followed
from samexport.runtimes.session import Session

_LARGE = 4.0
Clip = Sequence[NDArray[np.uint8]]


def follow(session: Session, clip: Clip, seed: int) -> Iterator[Followed]:
    """One object that is clicked, one whose mask is given, both on the first frame."""
    tracker = session.tracker(frames=len(clip))
    tracker.add(0, 1, _click(clip, seed))
    tracker.add(0, 2, _mask(clip))
    for frame in tracker.propagate(clip):
        yield Followed(frame.masks(), _numbers(frame), min(map(_margin, frame.found)))


def follow_sparse(session: Session, clip: Clip, seed: int) -> Iterator[Followed]:
    """One object, with all that the bundle can leave out.

    What random weights find is everywhere, so no more than half of the windows are seen. These must be the same; of the
    tokens that are kept a few may differ, for some are always nearly as salient as others.
    """
    here = session.graphs.bundle.graph_names
    count = session.graphs.bundle.graph(ENCODER_STEM).outputs[2].shape[0] if ENCODER_STEM in here else 0
    most = int(count) // 2 or None
    tracker = cast(SparseTracker, session.tracker(sparse={"windows": bool(count), "most": most}))
    if count:
        # a file of fixed sizes sees as many, and any other one can
        tracker.rooms = window_rooms(session.graphs.bundle.graph(ENCODER_ROUTED))
    # its score, far from all others, is what differences of later scores are measured against
    tracker.add(0, 1, np.roll(_mask(clip), seed * clip[0].shape[1] // 8, axis=1))
    for picture in clip:
        frame = tracker.step(picture)
        seen = np.ones((1, max(1, int(count))), np.float32)
        if frame.windows is not None:
            seen[:] = 0
            seen[:, list(frame.windows)] = 1
        margin = min(map(_margin, frame.found))
        if tracker.decoded:
            margin = min(margin, _margin_of_windows(tracker))
        yield Followed(frame.masks(), {**_numbers(frame), "windows": seen, "kept": _kept(tracker, frame.index)}, margin)


def _kept(tracker: SparseTracker, frame: int) -> NDArray[np.bool_]:
    """Which tokens of the memory of the frame before will be read, [1, layers, cells]."""
    layers, cells = tracker.saliency
    kept = np.zeros((1, layers, cells), np.bool_)
    if (chosen := tracker.kept.get(1, {}).get(frame - 1)) is not None:
        np.put_along_axis(kept[0], chosen, True, axis=1)
    return kept


def _margin_of_windows(tracker: SparseTracker) -> float:
    """How far the choice of windows is from another one."""
    windows, sparse, decoded = tracker.windows, tracker.sparse, tracker.decoded
    score, saliency = float(decoded["object_score"][0, 0]), decoded["saliency"][0]
    logits = decoded["low_res_masks"][0, 1:]
    peaks = windows.peaks(logits) if score > 0 else np.full(windows.count, -np.inf)
    margins = [abs(score - sparse.object_threshold), float(np.abs(peaks).min() / np.abs(logits).max())]
    wanted, sums = peaks > 0, windows.sums(saliency)
    if score < sparse.object_threshold or not wanted.any():
        looked = windows.of_saliency(saliency, sparse.share)
        before = np.cumsum(np.sort(sums)[::-1])[: len(looked)][-2:]
        margins += [*np.abs(before - sparse.share).tolist(), _gap(sums, len(looked))]
        wanted[looked] = True
    if sparse.most is not None and wanted.sum() > sparse.most:
        margins.append(_gap(sums[wanted], sparse.most))
        return min(margins)
    seen = tracker.chosen[1] if tracker.chosen else np.flatnonzero(wanted)
    margins.append(_gap(sums[~wanted], len(seen) - int(wanted.sum())))
    return min(margins)


def _gap(values: NDArray[np.float32], count: int) -> float:
    """By what share the last of the ``count`` largest is above the next one."""
    ordered = np.sort(values)[::-1]
    return float(1 - ordered[count] / ordered[count - 1]) if 0 < count < len(ordered) else np.inf


def _click(clip: Clip, seed: int) -> Prompt:
    height, width = clip[0].shape[:2]
    return Prompt.make((np.random.default_rng(seed).uniform(0.2, 0.8, 2) * (width, height)).round(1))


def _mask(clip: Clip) -> NDArray[np.bool_]:
    height, width = clip[0].shape[:2]
    mask = np.zeros((height, width), np.bool_)
    mask[height // 4 : 3 * height // 4, width // 4 : width // 2] = True
    return mask


def _numbers(frame: TrackedFrame) -> Tensors:
    return {
        # a given mask has 10, far from all others
        "object_score": np.clip([each.score for each in frame.found], -_LARGE, _LARGE).astype(np.float32),
        "iou_predictions": np.array([each.iou.max() for each in frame.found], np.float32),
        "object_pointers": np.stack([each.pointer for each in frame.found]),
    }


def _margin(found: ObjectMask) -> float:
    """Between the two best candidates, and between the object's presence and its absence."""
    ordered = np.sort(found.iou)
    return min(abs(found.score), float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else np.inf)
