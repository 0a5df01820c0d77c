"""Objects of SAM 2's golden clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from samexport.runtimes.host.object_masks import ObjectMask
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.clip import Followed
from samexport.runtimes.session import Session

_LARGE = 4.0


def follow(session: Session, clip: Sequence[NDArray[np.uint8]], seed: int) -> Iterator[Followed]:
    """One object that is clicked, one whose mask is given, both on the first frame."""
    height, width = clip[0].shape[:2]
    tracker = session.tracker(frames=len(clip))
    click = np.random.default_rng(seed).uniform(0.2, 0.8, 2) * (width, height)
    mask = np.zeros((height, width), np.bool_)
    mask[height // 4 : 3 * height // 4, width // 4 : width // 2] = True
    tracker.add(0, 1, Prompt.make(click.round(1)))
    tracker.add(0, 2, mask)
    for frame in tracker.propagate(clip):
        numbers = {
            # a given mask has 10, far from all others
            "object_score": np.clip([each.score for each in frame.found], -_LARGE, _LARGE).astype(np.float32),
            "iou_predictions": np.array([each.iou.max() for each in frame.found], np.float32),
            "object_pointers": np.stack([each.pointer for each in frame.found]),
        }
        yield Followed(frame.masks(), numbers, min(map(_margin, frame.found)))


def _margin(found: ObjectMask) -> float:
    """Between the two best candidates, and between the object's presence and its absence."""
    ordered = np.sort(found.iou)
    return min(abs(found.score), float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else np.inf)
