"""Which of many measurements is under way, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")


class Steps:
    """Counts steps on stderr, with an estimate of what is left: a bar on a terminal, else a line a step.

    Of many small steps, ``lines`` of them get a line.
    """

    def __init__(self, total: int, lines: int | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._total, self._done, self._start = total, 0, 0.0
        self._every = 1 if lines is None else max(1, total // lines)
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        # names of folders may look like rich's markup
        name, left = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[left]}", markup=False)
        self._bar = Progress(name, BarColumn(), MofNCompleteColumn(), left, console=console, disable=self._plain)
        self._task = self._bar.add_task("", total=total, left="")

    def note(self, name: str) -> None:
        """Something that is no step is under way."""
        if self._plain:
            print(name, file=sys.stderr, flush=True)
        else:
            self._bar.update(self._task, description=name)

    def begin(self, name: str) -> None:
        """The next step is under way."""
        self._start = self._start or time.monotonic()
        if self._plain and self._done % self._every == 0:
            print(f"[{self._done + 1}/{self._total}] {name}{self._left()}", file=sys.stderr, flush=True)
        self._bar.update(self._task, description=name, left=self._left())

    def end(self) -> None:
        """It is done."""
        self._done += 1
        self._bar.update(self._task, completed=self._done)

    def each(self, items: Iterator[Item], names: Sequence[str]) -> Iterable[Item]:
        """Pass items on as they come; ``names`` says what is under way."""
        for _, item in zip(self._begun(names), items, strict=True):
            self.end()
            yield item

    def _begun(self, names: Sequence[str]) -> Iterator[None]:
        for name in names:
            self.begin(name)
            yield

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
