"""A golden clip: objects that are followed through frames made of the golden picture, as a tracker follows them.

The cases judge each graph on inputs that are given. This judges all of them together with what the host does between
them, frame after frame, each reading what its own earlier frames left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from samexport.models.spec import TensorSpec
from samexport.runtimes.base import Tensors
from samexport.runtimes.parity.compare import Tier, compare_masks, compare_output, intersection_over_union
from samexport.runtimes.session import Session
from samexport.runtimes.verdicts import Check, Row, Verdict

_SEEDS = 3
_CLEAR = 2e-3


@dataclass(frozen=True, eq=False)
class Followed:
    """Objects on one frame.

    Attributes:
        masks: bool [objects, H, W].
        numbers: what else is compared, by name; the first axis counts objects. Of booleans the whole clip's
            are compared as a mask is.
        margin: how far any choice (which mask, whether the object is there) is from another one.
    """

    masks: NDArray[np.bool_]
    numbers: Tensors
    margin: float


Follow = Callable[[Session, Sequence[NDArray[np.uint8]], int], Iterator[Followed]]
"""A family's objects on the frames of a clip; the prompts are drawn from a seed."""
Frames = list[NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Clip:
    """What the reference found: masks bool [frames, objects, H, W], and numbers [frames, objects, ...]."""

    seed: int
    masks: NDArray[np.bool_]
    numbers: Tensors = field(default_factory=dict)


def clip_frames(picture: NDArray[np.uint8], count: int) -> Frames:
    """The picture, moved to the right by a twentieth of its width from frame to frame, around its edge."""
    step = max(1, picture.shape[1] // 20)
    return [np.roll(picture, number * step, axis=1) for number in range(count)]


def make_clip(follow: Follow, session: Session, frames: Frames) -> Clip | None:
    """The first seed's clip whose choices are all clear, else the longest beginning of which that is true.

    Where two masks have nearly the same score, rounding decides which one is followed: no check could tell it from
    a mistake. None if no seed has a frame.
    """
    longest: list[Followed] = []
    best = 0
    for seed in range(_SEEDS):
        clear: list[Followed] = []
        for frame in follow(session, frames, seed):
            if frame.margin < _CLEAR:
                break
            clear.append(frame)
        if len(clear) > len(longest):
            longest, best = clear, seed
        if len(longest) == len(frames):
            break
    return _joined(longest, best) if longest else None


def _joined(frames: Sequence[Followed], seed: int) -> Clip:
    numbers = {name: np.stack([frame.numbers[name] for frame in frames]) for name in frames[0].numbers}
    return Clip(seed, np.stack([frame.masks for frame in frames]), numbers)


def compare_clip(
    check: Check, clip: Clip, follow: Follow, session: Session, frames: Frames, limits: Tier
) -> Iterable[Row]:
    """A row for the masks of all frames, each for itself, and one for each of the other numbers.

    The row of the masks tells their mean IoU as well where it passes.
    """
    followed = follow(session, frames, clip.seed)
    found = _joined([next(followed) for _ in clip.masks], clip.seed)
    expected, actual = (each.masks.reshape(-1, *each.masks.shape[2:]) for each in (clip, found))
    row = compare_masks(check, "masks", expected, actual, limits)
    if row.verdict is Verdict.PASS:
        ious = intersection_over_union(expected, actual)
        row = replace(row, reason=f"IoU of {len(ious)} masks: mean {ious.mean():.5f}, worst {ious.min():.5f}")
    rows = [row]
    for name, values in clip.numbers.items():
        if values.dtype == np.bool_:
            one, other = (each.reshape(1, len(each), -1) for each in (values, found.numbers[name]))
            rows.append(compare_masks(check, name, one, other, limits))
            continue
        spec = TensorSpec(name, values.shape, "of each frame and object")
        rows.append(compare_output(check, spec, values, found.numbers[name], limits))
    return rows
