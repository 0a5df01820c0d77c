"""What SAM 2 remembers of one object in a video, and what a frame reads of it. Numpy only.

Facts follow SAM 2's ``SAM2Base._prepare_memory_conditioned_features`` (facebookresearch/sam2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samexport.models.families.sam2 import ABSENT_ROW
from samexport.runtimes.host.object_masks import Floats, ObjectMask

MEMORY_FRAMES = 7
PROMPTED_ROW = MEMORY_FRAMES - 1
MAX_POINTERS = 16


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even, as bits; for finite numbers."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> Floats:
    """The numbers behind the bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, eq=False)
class Remembered:
    """A frame that was decoded: its mask and its memory, bits of bfloat16 [P, 64]."""

    mask: ObjectMask
    memory: NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Read:
    """What one frame reads of one object: F memories, ``frames`` of which they are, and R pointers."""

    memories: Sequence[NDArray[np.uint16]]
    rows: Sequence[float]
    pointers: Sequence[Floats]
    ages: Sequence[float]
    frames: Sequence[int] = ()


@dataclass(eq=False)
class Bank:
    """The memories of one object by the index of their frame.

    ``prompted`` are frames with prompts, in the order in which they got them; ``tracked`` are the others, and those
    that got a prompt after they had been tracked; these are in ``corrected`` and keep their masks, too.
    """

    prompted: dict[int, Remembered] = field(default_factory=dict)
    tracked: dict[int, Remembered] = field(default_factory=dict)
    corrected: set[int] = field(default_factory=set)

    def get(self, frame: int) -> Remembered | None:
        """What is known of a frame."""
        return self.prompted.get(frame) or self.tracked.get(frame)

    def put(self, frame: int, kept: Remembered) -> None:
        """Remember a frame that had a prompt; one that was tracked before stays a tracked frame."""
        if frame in self.tracked:
            self.tracked[frame] = kept
            self.corrected.add(frame)
        else:
            self.prompted[frame] = kept

    def has_prompt(self, frame: int) -> bool:
        """Whether a frame has a mask that was asked for."""
        return frame in self.prompted or frame in self.corrected

    def follows(self, frame: int, *, backwards: bool = False) -> bool:
        """Whether a prompt is at ``frame`` or before it (after it, if the video runs backwards)."""
        return any(when >= frame if backwards else when <= frame for when in self.prompted)

    def read(
        self, frame: int, span: int = MAX_POINTERS - 1, *, backwards: bool = False, most: int | None = None
    ) -> Read:
        """What ``frame`` reads.

        In order: every frame with prompts, up to six tracked frames before this one from the oldest on; pointers of
        frames with prompts that are not in the future, then of tracked frames from the newest on.

        Args:
            frame: index.
            span: unit of the ages of pointers; 15, or in a video of less than 16 frames their number less one.
            backwards: the video runs from its end to its start, so before is after.
            most: of the frames with prompts only those that are nearest; None reads all.
        """
        step = -1 if backwards else 1
        near = sorted(self.prompted, key=lambda when: abs(frame - when))[:most]
        prompted = {when: kept for when, kept in self.prompted.items() if when in near}
        rows = [(PROMPTED_ROW, kept, when) for when, kept in prompted.items()]
        for age in range(MEMORY_FRAMES - 1, 0, -1):
            if (kept := self.tracked.get(frame - step * age)) is not None:
                rows.append((age - 1, kept, frame - step * age))
        ages = [(step * (frame - when), kept) for when, kept in prompted.items() if step * (frame - when) >= 0]
        for age in range(1, span + 1):
            if (kept := self.tracked.get(frame - step * age)) is not None:
                ages.append((age, kept))
        return Read(
            [kept.memory for _, kept, _ in rows],
            [float(row) for row, *_ in rows],
            [kept.mask.pointer for _, kept in ages],
            [age / span for age, _ in ages],
            [when for *_, when in rows],
        )

    def forget(self, frames: range) -> None:
        """Keep what was tracked on ``frames`` alone; prompts are never forgotten."""
        self.tracked = {when: kept for when, kept in self.tracked.items() if when in frames}
        self.corrected &= self.tracked.keys()


def batch(reads: Sequence[Read]) -> dict[str, Floats]:
    """Inputs of ``memory_attention`` for several objects, but for the frame; missing slots at the end are absent.

    Each has a memory and a pointer at least: :meth:`Bank.follows` its frame.
    """
    slots = max(len(read.rows) for read in reads)
    most = max(1, *(len(read.ages) for read in reads))
    cells, width = reads[0].memories[0].shape[0], len(reads[0].pointers[0])
    memory = np.zeros((len(reads), slots, cells, reads[0].memories[0].shape[1]), np.uint32)
    row = np.full((len(reads), slots), ABSENT_ROW, np.float32)
    pointers = np.zeros((len(reads), most, width), np.float32)
    age, present = np.zeros((len(reads), most), np.float32), np.zeros((len(reads), most), np.float32)
    for item, read in enumerate(reads):
        for slot, bits in enumerate(read.memories):
            memory[item, slot] = bits
        row[item, : len(read.rows)] = read.rows
        count = len(read.ages)
        pointers[item, :count] = np.array(read.pointers, np.float32).reshape(count, width)
        age[item, :count], present[item, :count] = read.ages, 1
    memory <<= 16
    return {
        "memory": memory.view(np.float32),
        "memory_row": row,
        "pointers": pointers,
        "pointer_age": age,
        "pointer_present": present,
    }
