"""What commands print: which step is under way, tables, what was written. Results on stdout, all else on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from samexport.cli.guard import interrupted, one_line

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
# of a file or pipe, which no line of ours reaches
_ANY_WIDTH = 100_000
# a cell that is folded at this width can still be read
_READABLE = 24
_COLOURS = {"PASS": "green", "ok": "green", "FAIL": "bold red", "MISSING": "bold red", "SKIPPED": "yellow"}


class Steps:
    """Says which step is under way, how many there are and for how long it all runs: ``[3/9] exporting decoder  12 s``.

    Where their number is not known (a search, say), ``total`` is None and it is ``[3] ...``.

    On a terminal one line that changes, elsewhere one line a step on stderr.
    """

    def __init__(self, total: int | None) -> None:
        self._total, self._number, self._step = total, 0, ""
        self._start = time.monotonic()
        self._bar: Any = None

    def update(self, message: str) -> None:
        """Go on to what is done now; after a colon comes a detail of the same step.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed before and a library swallowed it.
        """
        if interrupted.is_set():
            raise KeyboardInterrupt
        step = message.partition(":")[0]
        if step != self._step:
            self._step, self._number = step, self._number + 1
            if self._bar is None:
                seconds = time.monotonic() - self._start
                print(f"{self._place} {step}  {seconds:.0f} s", file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"{self._place} {message}")

    @property
    def _place(self) -> str:
        known = self._total is not None and self._number <= self._total
        return f"[{self._number}/{self._total}]" if known else f"[{self._number}]"

    def __enter__(self) -> Steps:
        console = _console(stderr=True)
        if console.is_terminal:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.add_task("")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class ProgressBar:
    """A bar for work of several stages on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        console = _console(stderr=True)
        # what goes to a file or a program must not end up on the terminal, where rich would put it above the bar
        redirect = sys.stdout is not None and sys.stdout.isatty()
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=redirect
        )
        self._task = self._progress.add_task("")

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how far the stage is."""
        self._progress.update(self._task, description=stage, completed=done, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def track(items: Sequence[Item], label: str) -> Iterable[Item]:
    """Go through the items under a progress bar on a terminal; a plain line on stderr elsewhere."""
    from rich.progress import track

    console = _console(stderr=True)
    if console.is_terminal:
        return track(items, label, console=console)
    print(f"{label}: {len(items)}", file=sys.stderr)
    return items


def _console(*, stderr: bool = False) -> Console:
    """Takes texts as they are: names may look like markup or emoji."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under column names; nothing is cut.

    On a terminal that is too narrow, cells are folded, or where that would be unreadable each row becomes a
    paragraph. A file or pipe gets lines of any length.
    """
    from rich.padding import Padding
    from rich.table import Column, Table
    from rich.text import Text

    texts = [[Text(one_line(cell), _COLOURS.get(cell, "")) for cell in row] for row in rows]
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None, pad_edge=False)
    for row in texts:
        table.add_row(*row)
    console = _console()
    if not console.is_terminal:
        console.width = _ANY_WIDTH
        with console.capture() as captured:
            console.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
        return
    widths = [max(map(len, (name, *cells))) for name, *cells in zip(columns, *texts, strict=True)]
    if sum(min(width, _READABLE) + 2 for width in widths) - 2 <= console.width:
        console.print(table)
        return
    for first, *rest in texts:
        named = [Text.assemble((f"{name} ", "dim"), cell) for name, cell in zip(columns[1:], rest, strict=True) if cell]
        console.print(first)
        console.print(Padding(Text(", ").join(named), (0, 0, 0, 2)))


def print_written(paths: Sequence[Path]) -> None:
    """The last line of a command: the files and folders that it wrote, with their sizes."""
    print(f"wrote {', '.join(map(_described, paths))}")


def _described(path: Path) -> str:
    files = written_files(path)
    number = f"{len(files)} file{'s' if len(files) != 1 else ''}, " if path.is_dir() else ""
    return f"{path}{'/' if path.is_dir() else ''} ({number}{size_text(sum(files.values()))})"


def written_files(path: Path) -> dict[str, int]:
    """Names below a folder, or the name of a file, and their sizes in bytes."""
    if not path.is_dir():
        return {path.name: path.stat().st_size}
    return {p.relative_to(path).as_posix(): p.stat().st_size for p in sorted(path.rglob("*")) if p.is_file()}


def size_text(size: int) -> str:
    """Bytes as ``12.3 MB`` or ``1.2 kB``, powers of 1000."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
