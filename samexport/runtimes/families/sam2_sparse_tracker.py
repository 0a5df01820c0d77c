"""The tracker that encodes only windows that matter, and of old memories reads only salient tokens.

Facts follow Efficient-SAM2 (arXiv 2602.08224). Where its code has slips, this does what is meant, unless ``quirks``
asks for them: every object is pruned, only the attention of the frame before is asked, and the whole picture is dense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.models.families.sam2 import ABSENT_ROW
from samexport.models.families.sam2_sparse import (
    ENCODER_ROUTED,
    ENCODER_STEM,
    ENCODER_TAIL,
    KEPT_SHARE,
    MASK_DECODER_SALIENT,
    MEMORY_ATTENTION_PRUNED,
    OLD_FRAMES,
    kept_tokens,
)
from samexport.runtimes.base import Tensors
from samexport.runtimes.families.sam2_tracker import TrackedFrame, Tracker
from samexport.runtimes.host.memory import PROMPTED_ROW, Read, batch, from_bfloat16
from samexport.runtimes.host.object_masks import Floats
from samexport.runtimes.host.windows import Ids, Windows, choose, choose_as_published


@dataclass(frozen=True)
class Sparse:
    """What is left out.

    Attributes:
        windows: encode chosen windows alone, from the second frame after a prompt on.
        memory: of old memories read salient tokens alone.
        share: how much of the decoder's attention the windows are to hold where an object is unsure.
        object_threshold: the score below which an object is unsure.
        keep: the share of an old memory's tokens that is read.
        most: at most so many windows, those that the decoder looked at most; None for any number.
        quirks: what the published code does: it prunes the object alone that began last; it asks the attention to all
            frames since it was last asked, of all objects; and it routes all windows where the whole picture is
            wanted. (It also counts the attention on the frame with the prompt, which no graph returns.)

    Raises:
        ConfigError: a share is not in 0..1.
    """

    windows: bool = True
    memory: bool = True
    share: float = 0.7
    object_threshold: float = 5.0
    keep: float = KEPT_SHARE
    most: int | None = None
    quirks: bool = False

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ConfigError(f"at least one window is seen, not {self.most}")
        if not (0 < self.share <= 1 and 0 < self.keep <= 1):
            raise ConfigError(f"shares are above 0 and at most 1, got {self.share} of attention, {self.keep} of tokens")


class SparseTracker(Tracker):
    """A :class:`Tracker` on the graphs of a sparse bundle.

    A frame with a prompt and the one after it are seen whole. Memories of frames with prompts, the newest one and all
    pointers are read whole, as are all memories until five older ones are known.

    Attributes:
        kept: for each object, by frame, the cells whose tokens are read once its memory is old, [layers, count].
        chosen: the windows for a frame, as (frame, ids).
        looked: with ``quirks`` the attention of frames since it was last asked.
        decoded: what the decoder made of the last frame.
        rooms: the numbers of windows that are seen; empty for any. It begins with what a file of fixed sizes takes.
    """

    def __init__(self, *args: Any, sparse: Sparse, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sparse = sparse
        self.chosen: tuple[int, Ids] | None = None
        self.kept: dict[int, dict[int, NDArray[np.int64]]] = {}
        self.looked: list[Floats] = []
        self.decoded: Tensors = {}
        self._used: Ids | None = None
        self._prompted = False
        self._read_tokens = self._all_tokens = 0

    @property
    def saliency(self) -> tuple[int, int]:
        """Layers of the memory attention, and cells of a memory."""
        _, layers, cells = self._open(MEMORY_ATTENTION_PRUNED).graph.outputs[1].shape
        return int(layers), int(cells)

    @property
    def windows(self) -> Windows:
        """How a picture is cut."""
        return Windows(self.square.grid, math.isqrt(int(self._open(ENCODER_STEM).graph.outputs[2].shape[1])))

    def _frame(self, frame: int, *args: Any, **options: Any) -> TrackedFrame:
        self._used, self._read_tokens, self._all_tokens = None, 0, 0
        self._prompted = frame in self.waiting
        found = super()._frame(frame, *args, **options)
        windows = None if self._used is None else tuple(self._used.tolist())
        share = self._read_tokens / self._all_tokens if self._all_tokens else 1.0
        return replace(found, windows=windows, tokens=share, cut=None if windows is None else self.windows)

    def forget(self) -> None:
        """Drop what no later frame reads, see :meth:`Tracker.forget`."""
        super().forget()
        for name, kept in self.kept.items():
            tracked = self.banks[name].tracked if name in self.banks else {}
            self.kept[name] = {frame: cells for frame, cells in kept.items() if frame in tracked}

    def _encode(self, frame: int, inputs: Tensors) -> Tensors:
        ids = self._wanted(frame)
        if ids is None:
            return super()._encode(frame, inputs)
        self._used = ids
        stem = self._run(ENCODER_STEM, "encode", inputs)
        routed = {"chosen": stem["windows"][ids], "inside": self.windows.inside[ids].astype(np.float32)}
        # a model without a bypass passes windows on as they are
        merged = stem.get("bypassed", stem["windows"]).copy()
        merged[ids] = self._run(ENCODER_ROUTED, "encode", routed)["routed"]
        features = self._run(ENCODER_TAIL, "encode", {"merged": merged})
        return {**features, "feat_s0": stem["feat_s0"], "feat_s1": stem["feat_s1"]}

    def _wanted(self, frame: int) -> Ids | None:
        """The windows to route; None for the dense encoder."""
        routed = self.sparse.windows and self.sparse.quirks and not self.rooms
        every = np.arange(self.windows.count) if routed else None
        if self.chosen is None or self.chosen[0] != frame or self._prompted:
            return every
        ids = self.chosen[1]
        return every if len(ids) == self.windows.count else ids

    def _decode(self, frame: int, inputs: Tensors, *, backwards: bool) -> Tensors:
        if not self.sparse.windows:
            return super()._decode(frame, inputs, backwards=backwards)
        decoded = self.decoded = self._run(MASK_DECODER_SALIENT, "decode", inputs)
        scores, looked = decoded["object_score"][:, 0], decoded["saliency"]
        # prompts are answered without candidates of all objects, so the frame after them is seen whole, too
        if not self._prompted:
            # an object that is not there has no candidates
            masks = (decoded["low_res_masks"][:, 1:] > 0) & (scores > 0)[:, None, None, None]
            limits = {"object_threshold": self.sparse.object_threshold, "share": self.sparse.share}
            if self.sparse.quirks:
                self.looked += [*looked]
                ids = choose_as_published(self.windows, masks, scores, self.looked, **limits)
            else:
                ids = choose(self.windows, masks, scores, looked, **limits)
            ids = self._fitted(ids, self.windows.ranked(looked.sum(axis=0)))
            self.chosen = (frame - 1 if backwards else frame + 1, ids)
        return decoded

    def _fitted(self, ids: Ids, ranked: Ids) -> Ids:
        """As many as are allowed, filled up with further windows where a file takes certain numbers alone."""
        if self.sparse.most is not None and len(ids) > self.sparse.most:
            ids = np.sort([each for each in ranked if each in ids][: self.sparse.most])
        if not self.rooms or len(ids) in self.rooms:
            return ids
        room = min((room for room in self.rooms if room > len(ids)), default=self.windows.count)
        others = [each for each in ranked if each not in ids]
        return np.sort(np.concatenate([ids, others[: room - len(ids)]]).astype(np.int64))

    @cached_property
    def rooms(self) -> Sequence[int]:
        """See above."""
        entries = self._open(ENCODER_ROUTED).bounds
        return [dict(entry.slots)["windows"] for entry in entries if not entry.flexible]

    def _kind(self, name: int, read: Read) -> tuple[int, ...]:
        return (len(read.rows), self._newest(read) is not None, self._pruned(name, read))

    def _newest(self, read: Read) -> int | None:
        """The frame before, if it has a memory and no prompt."""
        return read.frames[-1] if read.rows[-1] == 0 else None

    def _pruned(self, name: int, read: Read) -> bool:
        """Whether only salient tokens of old memories are read."""
        if self.sparse.quirks and name != next(reversed(self.banks)):
            return False
        old, known = _old(read), self.kept.get(name, {})
        return len(old) == OLD_FRAMES and all(read.frames[slot] in known for slot in old)

    def _attend(self, names: Sequence[int], reads: Sequence[Read], vision: Floats) -> Floats:
        cells = reads[0].memories[0].shape[0]
        memories = sum(len(read.rows) for read in reads) * cells
        self._all_tokens += memories
        if not self.sparse.memory or self._newest(reads[0]) is None:
            self._read_tokens += memories
            return super()._attend(names, reads, vision)
        pruned = self._pruned(names[0], reads[0])
        whole = [_without(read, set(_old(read)) if pruned else set()) for read in reads]
        inputs = batch([_without(read, {len(read.rows) - 1}) for read in whole])
        named = zip(names, reads, strict=True)
        old = [self._old_tokens(name, read) if pruned else _no_tokens(read, self.saliency[0]) for name, read in named]
        inputs |= {key: np.stack([each[key] for each in old]) for key in ("kept", "kept_cell", "kept_row")}
        inputs["newest"] = np.stack([from_bfloat16(read.memories[-1]) for read in reads])
        found = self._run(MEMORY_ATTENTION_PRUNED, "remember", {"vision": vision, **inputs})
        self._read_tokens += sum(len(read.rows) for read in whole) * cells
        self._read_tokens += sum(int((each["kept_row"] != ABSENT_ROW).sum()) for each in old)
        count = kept_tokens(cells, self.sparse.keep)
        for name, read, saliency in zip(names, reads, found["saliency"], strict=True):
            kept = np.sort(np.argpartition(-saliency, count - 1, axis=-1)[:, :count], axis=-1)
            self.kept.setdefault(name, {})[read.frames[-1]] = kept
        return found["image_embed"]

    def _old_tokens(self, name: int, read: Read) -> Mapping[str, NDArray[Any]]:
        """The tokens of old memories that were salient when these were new, layer by layer."""
        slots, known = _old(read), self.kept[name]
        cells = [known[read.frames[slot]] for slot in slots]
        tokens = [from_bfloat16(read.memories[slot])[each] for slot, each in zip(slots, cells, strict=True)]
        rows = [np.full(each.shape[1], read.rows[slot], np.float32) for slot, each in zip(slots, cells, strict=True)]
        return {
            "kept": np.concatenate(tokens, axis=1),
            "kept_cell": np.concatenate(cells, axis=1),
            "kept_row": np.concatenate(rows),
        }


def _old(read: Read) -> list[int]:
    """Slots of tracked frames but the newest."""
    return [slot for slot, row in enumerate(read.rows) if 0 < row < PROMPTED_ROW]


def _without(read: Read, slots: set[int]) -> Read:
    """The same without some memories."""
    left = [slot for slot in range(len(read.rows)) if slot not in slots]
    return replace(
        read,
        memories=[read.memories[slot] for slot in left],
        rows=[read.rows[slot] for slot in left],
        frames=[read.frames[slot] for slot in left],
    )


def _no_tokens(read: Read, layers: int) -> Mapping[str, NDArray[Any]]:
    """One absent token."""
    return {
        "kept": np.zeros((layers, 1, read.memories[0].shape[1]), np.float32),
        "kept_cell": np.zeros((layers, 1), np.int64),
        "kept_row": np.full(1, ABSENT_ROW, np.float32),
    }
