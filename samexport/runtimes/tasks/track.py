"""Objects through a clip with a bundle alone: prompts of any frame, both directions, a memory that does not grow."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from samexport.errors import PromptError
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.masks import Rle, encode_rle, trace
from samexport.runtimes.host.prompts import Prompt, fit_box
from samexport.runtimes.host.video import Clip

if TYPE_CHECKING:
    from samexport.runtimes.families.sam2_tracker import Tracker
    from samexport.runtimes.host.object_masks import ObjectMask

Direction = Literal["forwards", "backwards", "both"]


@dataclass(frozen=True, eq=False)
class ObjectPrompt:
    """What is said about an object on a frame: points and a box in pixels of the clip, or its mask, bool [H, W]."""

    frame: int
    object: int
    prompt: Prompt | NDArray[np.bool_]


class OpenTracker(Protocol):
    """Opens a tracker for a clip of so many frames: :meth:`samexport.runtimes.session.Session.tracker`."""

    def __call__(self, *, frames: int) -> Tracker: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class TrackedMask:
    """One object on one frame.

    Attributes:
        object: its number.
        segmentation: COCO run lengths over the frame.
        area: pixels.
        bbox: x, y, width, height; all 0 where the mask is empty.
        score: logit of the object being in the picture.
        predicted_iou: the decoder's own estimate; may exceed 1.
        prompted: whether the object had a prompt here.
    """

    object: int
    segmentation: Rle
    area: int
    bbox: tuple[int, int, int, int]
    score: float
    predicted_iou: float
    prompted: bool

    def to_json(self, frame: int) -> dict[str, Any]:
        """Plain data."""
        counts = self.segmentation["counts"].decode()
        return {
            "frame": frame,
            "object": self.object,
            "segmentation": {"size": self.segmentation["size"], "counts": counts},
            "area": self.area,
            "bbox": list(self.bbox),
            "present": self.score > 0,
            "object_score": self.score,
            "predicted_iou": self.predicted_iou,
            "prompted": self.prompted,
        }


@dataclass(frozen=True, eq=False)
class Tracked:
    """What one pass found on a frame: its number, the masks, and how long each part took, in seconds.

    ``windows`` are the parts of the picture that were encoded, None for all, ``tokens`` the share of the remembered
    tokens that was read; ``boxes`` are the windows in pixels.
    """

    frame: int
    masks: tuple[TrackedMask, ...]
    seconds: Mapping[str, float]
    windows: tuple[int, ...] | None = None
    tokens: float = 1.0
    boxes: Sequence[tuple[float, ...]] = ()

    def seen(self) -> dict[str, Any]:
        """What was looked at, as plain data."""
        windows = None if self.windows is None else list(self.windows)
        return {
            "frame": self.frame,
            "windows": windows,
            "boxes": [list(box) for box in self.boxes],
            "tokens": self.tokens,
        }


@dataclass(frozen=True, eq=False)
class Pass:
    """One way through a clip.

    Attributes:
        frames: in order.
        prompts: those of this pass, the first of which are on ``frames[0]``.
        until: for each object the first frame that is not asked for; of other objects all are.
    """

    frames: range
    prompts: tuple[ObjectPrompt, ...]
    until: Mapping[int, int]

    def wants(self, frame: int, object_id: int) -> bool:
        """Whether the mask of an object is asked for."""
        return object_id not in self.until or frame < self.until[object_id]


def passes(prompts: Sequence[ObjectPrompt], frames: int, direction: Direction) -> list[Pass]:
    """How to go through a clip of so many frames.

    Forwards, an object begins with its first prompt, and backwards with its last; those that come later on the way
    correct it. In both directions it goes forwards from its first prompt with all that correct it, then backwards.
    """
    begins, ends = (edge(each.frame for each in prompts) for edge in (min, max))
    if direction == "backwards":
        return [Pass(range(ends, -1, -1), tuple(prompts), {})]
    ways = [Pass(range(begins, frames), tuple(prompts), {})]
    first: dict[int, int] = {}
    for each in prompts:
        first[each.object] = min(each.frame, first.get(each.object, each.frame))
    back = tuple(each for each in prompts if each.frame == first[each.object] > 0)
    if direction == "both" and back:
        ways.append(Pass(range(max(each.frame for each in back), -1, -1), back, first))
    return ways


def check(prompts: Sequence[ObjectPrompt], clip: Clip) -> None:
    """Refuse prompts that do not lie in a clip; PromptError says which."""
    height, width = clip.image_hw
    if not prompts:
        raise PromptError("no object has a prompt; give a point, a box or a mask")
    for each in prompts:
        name = f"object {each.object}, frame {each.frame}"
        if not 0 <= each.frame < clip.frames:
            raise PromptError(f"{name}: the frames of {clip.path} are 0 to {clip.frames - 1}")
        if not isinstance(each.prompt, Prompt):
            if each.prompt.shape != clip.image_hw:
                got = f"{each.prompt.shape[1]}x{each.prompt.shape[0]}"
                raise PromptError(f"{name}: the mask is {got}, the clip {width}x{height}; scale the mask")
            continue
        try:
            fit_box(each.prompt, clip.image_hw)
        except PromptError as error:
            raise PromptError(f"{name}: {error}") from error
        for x, y in each.prompt.points.tolist():
            if not (0 <= x <= width and 0 <= y <= height):
                raise PromptError(f"{name}: ({x:g}, {y:g}) is outside the clip, {width} wide and {height} high")


def follow(open_tracker: OpenTracker, clip: Clip, ways: Iterable[Pass]) -> Iterator[Tracked]:
    """Every frame of every pass. Each pass is a stream of its own: it remembers what its later frames read.

    Raises:
        SamExportError: a frame cannot be read, or a graph returned NaN or infinity.
    """
    for way in ways:
        tracker = open_tracker(frames=clip.frames)
        start, step = way.frames[0], way.frames.step
        for each in way.prompts:
            tracker.add(step * (each.frame - start), each.object, each.prompt)
        asked = {(each.frame, each.object) for each in way.prompts}
        pictures = clip.read(way.frames)
        for frame in way.frames:
            begun = time.perf_counter()
            picture = next(pictures)
            read = time.perf_counter() - begun
            found = tracker.step(picture)
            tracker.forget()
            begun = time.perf_counter()
            masks = tuple(
                _mask(name, each, found.place, (frame, name) in asked)
                for name, each in zip(found.objects, found.found, strict=True)
                if way.wants(frame, name)
            )
            seconds = {"read": read, **found.seconds, "masks": time.perf_counter() - begun}
            boxes = found.cut.boxes(found.windows or (), clip.image_hw) if found.cut is not None else ()
            yield Tracked(frame, masks, seconds, found.windows, found.tokens, boxes)


def _mask(name: int, found: ObjectMask, place: FrameMap, prompted: bool) -> TrackedMask:
    traced = trace(found.low_res, place)
    x0, y0, x1, y1 = traced.box
    area = traced.area
    box = (x0, y0, x1 - x0 + 1, y1 - y0 + 1) if area else (0, 0, 0, 0)
    rle = encode_rle(traced, place.image_hw)
    return TrackedMask(name, rle, area, box, float(found.score), float(np.max(found.iou)), prompted)
