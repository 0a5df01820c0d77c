"""Objects through a video on exported graphs: frame by frame, no torch.

Facts follow SAM 2's ``SAM2VideoPredictor`` (facebookresearch/sam2). Objects do not see each other: a picture is encoded
once, what is left is done for all objects in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError, ImageError, ParityFailed, PromptError
from samexport.models.families.sam2 import VIDEO_GRAPHS, video_frame
from samexport.models.spec import Preprocess
from samexport.runtimes.base import Runtime, Tensors
from samexport.runtimes.host.frames import FrameMap, to_frame, upscale_logits
from samexport.runtimes.host.image import Picture, as_pixels
from samexport.runtimes.host.memory import (
    MAX_POINTERS,
    MEMORY_FRAMES,
    Bank,
    Read,
    Remembered,
    batch,
    to_bfloat16,
)
from samexport.runtimes.host.object_masks import (
    Floats,
    ObjectMask,
    as_output,
    given_mask,
    mask_prompt,
    object_mask,
)
from samexport.runtimes.host.prompts import Prompt, fit_box
from samexport.runtimes.host.sam2_prompts import CLAMP, slots
from samexport.runtimes.host.sam_prompts import PADDING
from samexport.runtimes.host.windows import Windows

TrackPrompt = Prompt | NDArray[np.bool_]
"""Points and a box in pixels of the video, or a mask [H, W] that becomes the frame's mask."""

Direction = Literal["forwards", "backwards", "both"]

GRAPHS = VIDEO_GRAPHS
KEPT_FRAMES = MAX_POINTERS - 1
"""How far back a frame reads: older ones are forgotten in a stream."""

_FEATURES = ("image_embed", "feat_s0", "feat_s1")


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """Objects on one frame.

    Attributes:
        index: of the frame, from 0.
        place: of the video in the model's frame.
        objects: their names, in the order of their first prompts.
        found: the mask of each.
        seconds: how long each part took; "encode" is 0 where nothing new had to be seen.
        windows: the parts of the picture that were encoded, numbered row by row; None is all of it.
        tokens: the share of the remembered tokens that was read.
        cut: how the picture is cut, where it was encoded in parts.
    """

    index: int
    place: FrameMap
    objects: tuple[int, ...]
    found: tuple[ObjectMask, ...]
    seconds: Mapping[str, float]
    windows: tuple[int, ...] | None = None
    tokens: float = 1.0
    cut: Windows | None = None

    def logits(self) -> Floats:
        """At the size of the video, [objects, H, W]."""
        if not self.found:
            return np.zeros((0, *self.place.image_hw), np.float32)
        return upscale_logits(np.stack([each.low_res for each in self.found]), self.place)

    def masks(self) -> NDArray[np.bool_]:
        """At the size of the video, [objects, H, W]; all False where an object is not in the picture."""
        return self.logits() > 0

    def labels(self) -> NDArray[np.int32]:
        """[H, W]: 0, or 1 + the place of the object with the highest logit; masks do not overlap here."""
        if not self.found:
            return np.zeros(self.place.image_hw, np.int32)
        logits = self.logits()
        best = logits.argmax(axis=0)
        return np.where(logits.max(axis=0) > 0, best + 1, 0).astype(np.int32)


class Tracker:
    """Follows objects through the frames of a video.

    A stream, frame by frame, in a memory that does not grow::

        tracker.add(0, 1, Prompt.make([320, 200]))
        for picture in camera:
            frame = tracker.step(picture)
            frame.masks()  # bool [objects, H, W]

    A clip whose frames can be read again, in both directions::

        tracker = Tracker(runtimes, constants, frames=len(clip))
        tracker.add(40, 1, Prompt.make([320, 200]))
        for frame in tracker.propagate(clip, direction="both"):
            ...

    Args:
        runtimes: the graphs by name, see ``GRAPHS``. A function opens those that a video needs when it needs them.
        constants: those of the model, see :func:`samexport.models.families.sam2.sam2_constants`.
        frames: length of the clip where it is known. It sets the unit of the pointers' ages in clips of less than 16
            frames, and every frame is remembered, so that it can be corrected later. A stream forgets what no frame
            reads any more.
        postprocess: the official predictor's default. An unstable single mask falls back on the best candidate, and
            memories of frames with prompts are made from binary masks. (Its third switch fills holes, on GPUs alone.)
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime] | Callable[[str], Runtime],
        constants: Mapping[str, NDArray[Any]],
        *,
        frames: int | None = None,
        postprocess: bool = True,
    ) -> None:
        if frames is not None and frames < 1:
            raise ConfigError(f"a video has at least one frame, got {frames}")
        self.frames, self.postprocess = frames, postprocess
        self.banks: dict[int, Bank] = {}
        self.next_frame = 0
        self.image_hw: tuple[int, int] | None = None
        self.waiting: dict[int, list[tuple[int, TrackPrompt]]] = {}
        self._open = runtimes if callable(runtimes) else runtimes.__getitem__
        self._constants = constants
        self._seen: tuple[int, Tensors] | None = None
        self._seconds: dict[str, float] = {}

    @property
    def square(self) -> Preprocess:
        """How a picture becomes the square that the model sees."""
        return video_frame(int(self._open("image_encoder").graph.inputs[0].shape[-1]))

    @property
    def place(self) -> FrameMap:
        """Of the video in that square; a picture has been seen."""
        assert self.image_hw is not None
        return FrameMap(self.image_hw, self.square)

    @property
    def span(self) -> int:
        """Unit of the ages of pointers, and how far back they reach."""
        return max(1, min(self.frames or MAX_POINTERS, MAX_POINTERS) - 1)

    def add(self, frame: int, object_id: int, prompt: TrackPrompt) -> None:
        """Say what to follow, or correct it, on a frame that comes next or may be read again.

        Prompts wait for :meth:`step` or :meth:`propagate`. Each has all points of its object on that frame; the
        mask that the object has there already is a prompt too. The first prompt of an object is where it begins.

        Raises:
            PromptError: a frame that is not in the video or gone by, or an earlier mask as ``mask_input``.
        """
        if frame < 0 or (self.frames is not None and frame >= self.frames):
            raise PromptError(f"frame {frame} is not in the video; it has the frames 0 to {(self.frames or 1) - 1}")
        if self.frames is None and frame < self.next_frame:
            raise PromptError(f"frame {frame} of the stream is gone; the next one is {self.next_frame}")
        if isinstance(prompt, Prompt) and prompt.mask_input is not None:
            raise PromptError("a tracker finds an object's earlier mask itself; give points, a box or a mask [H, W]")
        if not isinstance(prompt, Prompt) and (prompt.dtype != np.bool_ or prompt.ndim != 2):
            raise PromptError(f"a mask to follow is bool [H, W], got {prompt.dtype} {list(prompt.shape)}")
        if self.image_hw is not None:
            check_prompt(prompt, self.image_hw)
        self.waiting.setdefault(frame, []).append((object_id, prompt))

    def remove(self, object_id: int) -> None:
        """Follow an object no longer."""
        self.banks.pop(object_id, None)
        for frame, prompts in self.waiting.items():
            self.waiting[frame] = [each for each in prompts if each[0] != object_id]

    def step(self, picture: Picture) -> TrackedFrame:
        """The next frame of a stream: its prompts, then every object that has begun.

        A prompt of an object that is followed already corrects what it would be without.

        Raises:
            ImageError: the picture cannot be used, or has another size than those before.
            PromptError: a prompt is outside of the picture.
            ParityFailed: a graph returned NaN or infinity.
        """
        frame = self.next_frame
        result = self._frame(frame, lambda: picture, backwards=False)
        self.next_frame += 1
        if self.frames is None:
            self.forget()
        return result

    def forget(self) -> None:
        """Drop what no frame from the next one on reads; prompts stay. A stream does so by itself."""
        for bank in self.banks.values():
            bank.forget(range(self.next_frame - KEPT_FRAMES, self.next_frame))

    def save(self, path: Path, *, force: bool = False) -> None:
        """As :func:`samexport.runtimes.families.sam2_tracker_state.save`."""
        from samexport.runtimes.families.sam2_tracker_state import save

        save(self, Path(path), force=force)

    def propagate(
        self, clip: Sequence[Picture], *, direction: Direction = "forwards", start: int | None = None
    ) -> Iterator[TrackedFrame]:
        """Every frame of a clip, from ``start`` or the first (backwards: the last) prompt on.

        All prompts are seen before, in the order of frames: as in the official predictor a prompt from the future
        lends its memory. "both" goes forwards from the first prompt, then backwards from the frame before it.

        Raises:
            PromptError: there is no prompt.
            ImageError, ParityFailed: as :meth:`step`.
        """
        if self.frames != len(clip):
            raise ConfigError(f"the tracker was made for {self.frames} frames, the clip has {len(clip)}")
        for frame in sorted(self.waiting):
            self._prompts(frame, clip[frame])
        prompted = [frame for bank in self.banks.values() for frame in bank.prompted]
        if not prompted:
            raise PromptError("no object has a prompt; give at least one point, box or mask")
        first = min(prompted) if start is None else start
        ways: list[tuple[Iterable[int], bool]] = [(range(first, len(clip)), False)]
        if direction == "backwards":
            last = max(prompted) if start is None else start
            ways = [(range(last, -1, -1), True)]
        elif direction == "both":
            ways.append((range(first - 1, -1, -1), True))
        for frames, backwards in ways:
            for frame in frames:
                yield self._frame(frame, partial(clip.__getitem__, frame), backwards=backwards)

    def _frame(self, frame: int, picture: Callable[[], Picture], *, backwards: bool) -> TrackedFrame:
        self._seconds = dict.fromkeys(("encode", "remember", "decode", "memorise"), 0.0)
        if self._seen is None or self._seen[0] != frame:
            self._seen = None
        if frame in self.waiting or self.image_hw is None:
            self._follow_corrected(frame, picture(), backwards=backwards)
            self._prompts(frame, picture())
        begun = {name: bank for name, bank in self.banks.items() if bank.follows(frame, backwards=backwards)}
        if wanted := [name for name, bank in begun.items() if not bank.has_prompt(frame)]:
            self._track(frame, wanted, self._features(frame, picture()), backwards=backwards)
        found = [kept.mask for bank in begun.values() if (kept := bank.get(frame)) is not None]
        return TrackedFrame(frame, self.place, tuple(begun), tuple(found), dict(self._seconds))

    def _follow_corrected(self, frame: int, picture: Picture, *, backwards: bool) -> None:
        """Track what a prompt corrects: it is answered with the memory and the mask that are there."""
        named = dict.fromkeys(name for name, _ in self.waiting.get(frame, []) if name in self.banks)
        banks = {name: self.banks[name] for name in named}
        wanted = [n for n, bank in banks.items() if not bank.get(frame) and bank.follows(frame, backwards=backwards)]
        if wanted:
            self._track(frame, wanted, self._features(frame, picture), backwards=backwards)

    def _prompts(self, frame: int, picture: Picture) -> None:
        """Answer the prompts that wait for a frame; an object's last answer is remembered."""
        features = self._features(frame, picture)
        assert self.image_hw is not None
        waiting = self.waiting.get(frame, [])
        for _, prompt in waiting:
            check_prompt(prompt, self.image_hw)
        answered: dict[int, ObjectMask] = {}
        for name, prompt in waiting:
            bank = self.banks.setdefault(name, Bank())
            kept = bank.get(frame)
            earlier = answered.get(name) or (kept.mask if kept else None)
            if isinstance(prompt, Prompt):
                embed = self._read(frame, [name], features) if frame in bank.tracked else features["image_embed"]
                answered[name] = self._click(prompt, embed, features, earlier)
            else:
                answered[name] = self._give_mask(prompt, features)
        self.waiting.pop(frame, None)
        if answered:
            for name, kept in self._memorise(answered, features, binary=self.postprocess).items():
                self.banks[name].put(frame, kept)

    def _click(self, prompt: Prompt, embed: Floats, features: Tensors, earlier: ObjectMask | None) -> ObjectMask:
        """The mask that points and a box ask for; a mask from before takes part."""
        coords, labels = slots(fit_box(prompt, self.place.image_hw))
        inputs = {
            **{name: features[name] for name in _FEATURES},
            "image_embed": embed,
            "point_coords": self.place.to_frame(coords).astype(np.float32)[None],
            "point_labels": labels[None],
        }
        graph = "mask_decoder"
        if earlier is not None:
            graph = "mask_decoder_with_mask"
            inputs["mask_input"] = np.clip(earlier.low_res, -CLAMP, CLAMP)[None, None]
            inputs["has_mask_input"] = np.ones(1, np.float32)
        multimask = int(np.count_nonzero(labels != PADDING)) <= 1
        return self._object(self._run(graph, "decode", inputs), 0, multimask=multimask)

    def _give_mask(self, mask: NDArray[np.bool_], features: Tensors) -> ObjectMask:
        """A mask as it is; its pointer comes from the features without memory, not even the embedding for none."""
        square = given_mask(mask, self.square.size)
        inputs = {
            **{name: features[name] for name in _FEATURES},
            "image_embed": features["vision"],
            "point_coords": np.zeros((1, 2, 2), np.float32),
            "point_labels": np.full((1, 2), PADDING, np.float32),
            "mask_input": mask_prompt(square, self._constants),
            "has_mask_input": np.ones(1, np.float32),
        }
        seen = self._object(self._run("mask_decoder_with_mask", "decode", inputs), 0, multimask=False)
        return as_output(square, seen, self._constants["no_object_pointer"])

    def _track(self, frame: int, names: Sequence[int], features: Tensors, *, backwards: bool) -> None:
        embed = self._read(frame, names, features, backwards=backwards)
        inputs = {"image_embed": embed, "feat_s0": features["feat_s0"], "feat_s1": features["feat_s1"]}
        decoded = self._decode(frame, inputs, backwards=backwards)
        found = {name: self._object(decoded, item, multimask=True) for item, name in enumerate(names)}
        for name, kept in self._memorise(found, features, binary=False).items():
            self.banks[name].tracked[frame] = kept

    def _decode(self, frame: int, inputs: Tensors, *, backwards: bool) -> Tensors:
        """Masks of objects without prompts on a frame."""
        return self._run("mask_decoder_tracked", "decode", inputs)

    def _object(self, decoded: Tensors, item: int, *, multimask: bool) -> ObjectMask:
        nothing = self._constants["no_object_pointer"]
        return object_mask(decoded, item, nothing, multimask=multimask, fallback=self.postprocess)

    def _read(self, frame: int, names: Sequence[int], features: Tensors, *, backwards: bool = False) -> Floats:
        """What objects make of a frame, [objects, width, grid, grid]."""
        most = self._room
        reads = [self.banks[name].read(frame, self.span, backwards=backwards, most=most) for name in names]
        # an absent memory costs as much as one that is there, so objects with as many memories go together
        groups: dict[tuple[int, ...], list[int]] = {}
        for item, read in enumerate(reads):
            groups.setdefault(self._kind(names[item], read), []).append(item)
        parts: dict[int, Floats] = {}
        for items in (part for group in groups.values() for part in _even(group)):
            embed = self._attend([names[item] for item in items], [reads[item] for item in items], features["vision"])
            parts |= dict(zip(items, embed, strict=True))
        return np.stack([parts[item] for item in range(len(reads))])

    @property
    def _room(self) -> int | None:
        """How many frames with prompts a file of fixed sizes takes besides the six others; None for any number."""
        rooms = [dict(entry.slots)["memories"] for entry in self._open("memory_attention").bounds]
        return max(1, max(rooms) - MEMORY_FRAMES + 1) if rooms else None

    def _kind(self, name: int, read: Read) -> tuple[int, ...]:
        """Objects of which this is equal read in one batch."""
        return (len(read.rows),)

    def _attend(self, names: Sequence[int], reads: Sequence[Read], vision: Floats) -> Floats:
        """What objects of one kind make of a frame."""
        return self._run("memory_attention", "remember", {"vision": vision, **batch(reads)})["image_embed"]

    def _memorise(self, found: Mapping[int, ObjectMask], features: Tensors, *, binary: bool) -> dict[int, Remembered]:
        masks = list(found.values())
        inputs = {
            "vision": features["vision"],
            "mask_logits": np.stack([mask.low_res for mask in masks])[:, None],
            "binary": np.full(len(masks), float(binary), np.float32),
            "object_present": np.array([mask.present for mask in masks], np.float32),
        }
        memory = self._run("memory_encoder", "memorise", inputs)["memory"]
        # the official predictor stores it so on every device: the rounding is part of the reference
        return {name: Remembered(found[name], to_bfloat16(memory[item])) for item, name in enumerate(found)}

    def _features(self, frame: int, picture: Picture) -> Tensors:
        if self._seen is not None and self._seen[0] == frame:
            return self._seen[1]
        pixels = as_pixels(picture)
        height, width = pixels.shape[:2]
        if self.image_hw not in (None, (height, width)):
            first = f"{self.image_hw[1]}x{self.image_hw[0]}"
            raise ImageError(f"frame {frame} is {width}x{height}, those before {first}; scale them to one size")
        self.image_hw = (height, width)
        with self._timed("encode"):
            inputs = {"image": to_frame(pixels, self.square)}
        self._seen = (frame, self._encode(frame, inputs))
        return self._seen[1]

    def _encode(self, frame: int, inputs: Tensors) -> Tensors:
        """The features of a picture."""
        return self._run("image_encoder", "encode", inputs)

    def _run(self, graph: str, part: str, inputs: Tensors) -> Tensors:
        with self._timed(part):
            outputs = self._open(graph).run(inputs)
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ParityFailed(f"{graph} gives NaN or infinity in {name}; run `samexport verify` on the bundle")
        return outputs

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start


def _even(group: Sequence[int]) -> Sequence[Sequence[int]]:
    """An odd group of several as an even one and the last one.

    ONNX Runtime gives each thread whole products of a batch: two threads take as long for three objects as for four.
    """
    return (group[:-1], group[-1:]) if len(group) > 1 and len(group) % 2 else (group,)


def check_prompt(prompt: TrackPrompt, image_hw: tuple[int, int]) -> None:
    """PromptError for points, boxes or masks that do not lie in a video of this height and width."""
    height, width = image_hw
    if not isinstance(prompt, Prompt):
        if prompt.shape != image_hw:
            got = f"{prompt.shape[1]}x{prompt.shape[0]}"
            raise PromptError(f"the mask is {got}, the video {width}x{height}; scale the mask")
        return
    fit_box(prompt, image_hw)
    for x, y in prompt.points.tolist():
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(f"({x:g}, {y:g}) is outside the video, {width} wide and {height} high")
