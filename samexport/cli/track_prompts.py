"""Prompts for a video: from the order of a command line, and from a .json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from samexport.cli.options import MAX_OBJECT
from samexport.cli.segment import numbers
from samexport.errors import PromptError, SamExportError
from samexport.files import read_json, reason
from samexport.runtimes.host.image import read_image
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.track import ObjectPrompt


def of_line(order: Iterable[tuple[str, str]]) -> Iterator[ObjectPrompt]:
    """The prompts of a command line.

    Args:
        order: name and text of "frame", "object_id", "point", "box" and "mask", as they were typed.

    Raises:
        PromptError: one that is none, or an object or frame without any.
    """
    for group in _groups(order):
        yield from group.prompts()


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    frame: Annotated[int, msgspec.Meta(ge=0)]
    object: Annotated[int, msgspec.Meta(ge=1, le=MAX_OBJECT)] = 1
    points: list[tuple[float, float]] = []
    labels: list[int] | None = None
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None


def of_file(path: Path) -> Iterator[ObjectPrompt]:
    """The prompts of a .json, see docs/track.md; masks are named as seen from its folder.

    Raises:
        PromptError: the file cannot be read, or a prompt in it is none.
    """
    try:
        for entry in msgspec.convert(read_json(path), list[_Entry]):
            mask = None if entry.mask is None else path.parent / entry.mask
            yield from _object_prompts(entry.frame, entry.object, entry.points, entry.labels, entry.box, mask)
    except (msgspec.ValidationError, SamExportError) as error:
        told = str(error) if str(path) in str(error) else f"{path}: {reason(error)}"
        raise PromptError(told) from error


@dataclass
class _Group:
    """What was said about an object on a frame."""

    frame: int
    object: int
    points: list[list[float]] = field(default_factory=list)
    box: list[float] | None = None
    mask: Path | None = None

    def add(self, name: str, text: str) -> None:
        if name == "point":
            self.points.append(numbers(text, (2, 3), "--point x,y or x,y,label"))
            return
        if (self.box if name == "box" else self.mask) is not None:
            raise PromptError(f"object {self.object} has two of --{name} on frame {self.frame}; give one of them")
        if name == "box":
            self.box = numbers(text, (4,), "--box x0,y0,x1,y1")
        else:
            self.mask = Path(text)

    def prompts(self) -> Iterator[ObjectPrompt]:
        """The mask first, which points and a box then correct."""
        labels = [point[2] if len(point) == 3 else 1 for point in self.points]
        yield from _object_prompts(self.frame, self.object, [p[:2] for p in self.points], labels, self.box, self.mask)


def _groups(order: Iterable[tuple[str, str]]) -> Iterable[_Group]:
    groups: dict[tuple[int, int], _Group] = {}
    at = {"frame": 0, "object_id": 1}
    waiting: dict[str, str] = {}
    for name, text in order:
        if name in at:
            option = f"--{name.removesuffix('_id')} {text}"
            if name in waiting:
                raise PromptError(f"{waiting[name]} has no prompt; --frame and --object stand before their prompts")
            at[name], waiting[name] = int(text), option
        else:
            waiting.clear()
            key = at["frame"], at["object_id"]
            groups.setdefault(key, _Group(*key)).add(name, text)
    for option in waiting.values():
        raise PromptError(f"{option} has no prompt; --frame and --object stand before their prompts")
    return groups.values()


def _object_prompts(
    frame: int, name: int, points: Sequence[Sequence[float]], labels: Sequence[float] | None,
    box: Sequence[float] | None, mask: Path | None,
) -> Iterator[ObjectPrompt]:  # fmt: skip
    if mask is not None:
        yield ObjectPrompt(frame, name, _read_mask(mask))
    if len(points) or box is not None or mask is None:
        yield ObjectPrompt(frame, name, Prompt.make(points, labels, box))


def _read_mask(path: Path) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = read_image(path).max(axis=-1) > 0
    if not inside.any():
        raise PromptError(f"{path} is black all over, so there is no object in it")
    return inside
