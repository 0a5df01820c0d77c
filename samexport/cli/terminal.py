"""What commands print: what is going on, tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


class Spinner:
    """One line on a terminal that says what is going on; plain lines on stderr elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status: Any = self._console.status("") if self._console.is_terminal else None

    def update(self, message: str) -> None:
        """Say what is going on now."""
        if self._status is not None:
            self._status.update(message)
        else:
            print(message, file=sys.stderr)

    def __enter__(self) -> Spinner:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


class ProgressBar:
    """A bar for work of several stages on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        # what goes to a file or a program must not end up on the terminal, where rich would put it above the bar
        redirect = sys.stdout is not None and sys.stdout.isatty()
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=redirect
        )
        self._task = self._progress.add_task("")

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how far the stage is."""
        self._progress.update(self._task, description=stage, completed=done, total=total)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under column names; lines are only folded on a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console()
    # a file or pipe has no width; do not fold what a program will read
    Console(width=None if console.is_terminal else 240).print(table)


def track(items: Sequence[Item], label: str) -> Iterable[Item]:
    """Go through the items under a progress bar on a terminal; a plain line on stderr elsewhere."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal:
        return track(items, label, console=console)
    print(f"{label}: {len(items)}", file=sys.stderr)
    return items
