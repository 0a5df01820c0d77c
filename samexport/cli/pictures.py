"""Pictures that a command is given (files, folders, standard input), the loop over them, and what the user is told."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from samexport.cli.options import CHECKS
from samexport.cli.terminal import ProgressBar
from samexport.errors import ConfigError, FileError, ImageError, PromptError, SamExportError
from samexport.files import PICTURE_ENDINGS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

_STDIN, _STDIN_LIMIT = "-", 1 << 30

Pictures = Annotated[
    list[str], typer.Argument(metavar="IMAGE", help="Pictures: files, folders of them, or - for standard input.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="NUMBER",
        help="Refuse larger pictures.",
        show_default="210 million",
        rich_help_panel=CHECKS,
    ),
]
RESULTS = "Results"

Out = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Write the picture with the masks drawn on it; of several pictures, a folder.",
        rich_help_panel=RESULTS,
    ),
]
Masks = Annotated[
    str | None,
    typer.Option(
        "--masks",
        "--coco",
        metavar="FILE",
        help="Write the masks: a .json of COCO results, or a folder of PNGs.",
        rich_help_panel=RESULTS,
    ),
]
Annotations = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="COCO's file with the pictures; --masks x.json then has their image ids.",
        rich_help_panel=RESULTS,
    ),
]


@dataclass(frozen=True)
class Source:
    """One picture: its path as it was given, None for standard input, and the name of its results."""

    path: str | None
    key: str

    @property
    def name(self) -> str:
        """What to call it to the user."""
        return "standard input" if self.path is None else self.path

    def read(self, max_pixels: int | None, note: Note) -> Image:
        """Uint8 RGB [H, W, 3]; errors as ``read_image``."""
        from samexport.runtimes.host.image import MAX_PIXELS, read_image

        limit = MAX_PIXELS if max_pixels is None else max_pixels
        if self.path is not None:
            return read_image(self.path, max_pixels=limit, note=note)
        stream = getattr(sys.stdin, "buffer", None)
        data = b"" if stream is None else stream.read(_STDIN_LIMIT + 1)
        if len(data) > _STDIN_LIMIT:
            raise ImageError(f"{self.name}: more than {_STDIN_LIMIT >> 20} MiB; give the path of a picture file")
        return read_image(io.BytesIO(data), max_pixels=limit, note=note)


def find_pictures(arguments: Sequence[str]) -> list[Source]:
    """The pictures that arguments name, folders in the order of their names.

    Raises:
        ConfigError: a folder without a picture, or two pictures whose results would have the same name.
        ImageError: a file that is written like a folder.
    """
    paths: list[str | None] = []
    for argument in arguments:
        if argument == _STDIN:
            paths.append(None)
        elif os.path.isdir(argument):
            paths += _in_folder(Path(argument))
        elif argument.endswith(os.sep):
            raise ImageError(f"{argument} is not a folder; give the path of a picture file")
        else:
            paths.append(argument)
    names = [Path("stdin" if path is None else path) for path in paths]
    for keys in ([name.stem for name in names], [name.name for name in names]):
        if len(set(keys)) == len(keys):
            return [Source(path, key) for path, key in zip(paths, keys, strict=True)]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ConfigError(f"two of the pictures are called {twice}, so would be their results; run the command for each")


def _in_folder(folder: Path) -> list[str]:
    try:
        files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise ImageError(f"{folder} cannot be read: {error.strerror}") from error
    found = [
        path for path in files if path.lower().endswith(PICTURE_ENDINGS) and not os.path.basename(path).startswith(".")
    ]
    if not found:
        raise ConfigError(f"{folder} holds no picture ({', '.join(PICTURE_ENDINGS)})")
    return found


@dataclass
class Reporter:
    """Tells what was found: lines, or with ``as_json`` an object a picture on a line of its own.

    A standard output that is closed does not end the work: the error is raised by :meth:`close`.
    """

    as_json: bool
    several: bool
    failed: int = 0
    _broken: list[OSError] = field(default_factory=list)

    def say(self, source: Source, lines: Iterable[str]) -> None:
        """Print lines about a picture, unless a program reads."""
        for line in () if self.as_json else lines:
            self._print(f"{source.name}: {line}" if self.several else line)

    def announce(self, text: str) -> None:
        """Print what holds for all pictures; aside if a program reads."""
        if self.as_json:
            _aside(text)
        else:
            self._print(text)

    def note(self, source: Source, text: str) -> None:
        """What a user should know although all is well."""
        _aside(f"note: {source.name}: {text}")

    def emit(self, record: Mapping[str, Any]) -> None:
        """An object for a program."""
        if self.as_json:
            self._print(json.dumps(record, allow_nan=False))

    def fail(self, source: Source, error: SamExportError) -> None:
        """A picture that cannot be used, one of several."""
        self.failed += 1
        text = str(error) if source.name in str(error) else f"{source.name}: {error}"
        _aside(f"error: {text}")
        self.emit({"image": source.name, "error": text})

    def close(self) -> None:
        """Raise what stood in the way of printing, if anything did."""
        if self._broken:
            raise self._broken[0]

    def _print(self, text: str) -> None:
        if not self._broken:
            try:
                print(_printable(text, sys.stdout), flush=True)
            except OSError as error:
                self._broken.append(error)


def _aside(text: str) -> None:
    with contextlib.suppress(OSError):
        print(_printable(text, sys.stderr), file=sys.stderr)


def _printable(text: str, stream: TextIO | None) -> str:
    """Names of files may have characters that a terminal cannot show, or bytes that are none."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


Note = Callable[[str], None]
Stages = Callable[[str, int, int], None]
Work = Callable[[Source, "Image", Note, Stages], tuple[list[str], dict[str, Any]]]
"""Does all for a picture and writes its results; returns lines for a user and an object for a program."""


def process(sources: Sequence[Source], work: Work, reporter: Reporter, max_pixels: int | None) -> None:
    """Do the work for each picture; one of several that cannot be used is told and left out.

    Raises:
        SamExportError: of a single picture its own error; of several a ConfigError that counts, at the end.
    """
    with ProgressBar() as bar:
        for number, source in enumerate(sources):
            notes: list[str] = []
            if reporter.several:
                bar.update(source.name, number, len(sources))
            stages = _silent if reporter.several else bar.update
            try:
                start = time.perf_counter()
                image = source.read(max_pixels, notes.append)
                reading = 1e3 * (time.perf_counter() - start)
                lines, record = work(source, image, notes.append, stages)
            except (ImageError, PromptError, FileError, MemoryError) as error:
                wrong = _too_large(source) if isinstance(error, MemoryError) else error
                if not reporter.several:
                    raise wrong from error
                reporter.fail(source, wrong)
                continue
            finally:
                for note in notes:
                    reporter.note(source, note)
            record["timings_ms"] = {"read": reading, **record["timings_ms"]}
            reporter.say(source, lines)
            size = {"width": image.shape[1], "height": image.shape[0]}
            reporter.emit({"image": source.name, **size, **record, "notes": notes})
    reporter.close()
    if reporter.failed:
        raise ConfigError(f"{reporter.failed} of {len(sources)} pictures could not be used")


def _silent(_stage: str, _done: int, _total: int) -> None:
    """The bar counts pictures."""


def _too_large(source: Source) -> ImageError:
    return ImageError(f"{source.name}: there is not enough memory for a picture of this size; make it smaller")


def show_timings(timings: Mapping[str, float], placement: str) -> str:
    """Milliseconds by stage; opening files only where some were opened."""
    shown = [f"{name} {ms:.0f} ms" for name, ms in timings.items() if ms or name != "open"]
    return f"{', '.join(shown)} on {placement}"
