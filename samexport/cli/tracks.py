"""What was followed through a clip: kept on disk frame by frame, then written in the order of frames."""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from samexport.cli.results import check_folder, foreign, save_picture
from samexport.errors import ConfigError, FileError
from samexport.files import check_output, new_file, new_folder, reason
from samexport.runtimes.host.drawing import PALETTE, draw_masks, draw_prompts, outline_boxes
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.video import VIDEO_ENDINGS, Clip, VideoWriter, check_video
from samexport.runtimes.tasks.track import ObjectPrompt, Tracked

if TYPE_CHECKING:
    from samexport.cli.track import Outputs

_OURS = re.compile(r"frame\d{5,}_object\d+\.png")
# the colour of windows, all the same
_FRAMED = 6
Record = dict[str, Any]
Sink = Callable[[int, Sequence[Record]], None]
"""Takes a frame and its masks."""


def mask_name(frame: int, object_id: int) -> str:
    """The file of a mask in the folder of masks."""
    return f"frame{frame:05d}_object{object_id}.png"


def check_outputs(outputs: Outputs, inputs: Sequence[Path]) -> None:
    """Refuse results that cannot be written, before the work that makes them.

    Raises:
        ConfigError: there is nothing to write.
        FileError: something is in the way.
        MissingDependency: a video is to be written, and PyAV is not installed.
    """
    if not (outputs.masks or outputs.overlay or outputs.json):
        raise ConfigError("nothing would be written; give --out, --overlay or --json")
    for path, endings in ((outputs.overlay, VIDEO_ENDINGS), (outputs.json, (".json",))):
        if path is not None:
            check_output(path, force=outputs.force, endings=endings, inputs=inputs)
    if outputs.masks is not None:
        if os.path.isdir(outputs.masks) and any(os.path.isdir(p) and outputs.masks.samefile(p) for p in inputs):
            raise FileError(f"{outputs.masks} is an input of this command; choose another name for the output")
        check_folder(outputs.masks, force=outputs.force, ours=_OURS)
    if outputs.overlay is not None:
        check_video(f"{outputs.overlay.name} is written")


class Tracks:
    """The masks of a clip, in a temporary file that the system deletes; a context manager."""

    def __init__(self) -> None:
        with _told():
            self._rows = sqlite3.connect("", isolation_level=None)
            self._rows.execute("CREATE TABLE mask (frame, object, present, record, PRIMARY KEY (frame, object))")
            self._rows.execute("CREATE TABLE seen (frame, record)")

    def add(self, tracked: Tracked) -> None:
        """Keep what was found on a frame."""
        records = [mask.to_json(tracked.frame) for mask in tracked.masks]
        rows = [(r["frame"], r["object"], r["present"], json.dumps(r, allow_nan=False)) for r in records]
        with _told():
            self._rows.executemany("INSERT INTO mask VALUES (?, ?, ?, ?)", rows)
            self._rows.execute("INSERT INTO seen VALUES (?, ?)", (tracked.frame, json.dumps(tracked.seen())))

    def __iter__(self) -> Iterator[Record]:
        """In the order of frames, then objects."""
        with _told():
            for (text,) in self._rows.execute("SELECT record FROM mask ORDER BY frame, object"):
                yield json.loads(text)

    def seen(self) -> Iterator[Record]:
        """What was looked at, in the order of frames; a frame that was passed twice comes twice."""
        with _told():
            for (text,) in self._rows.execute("SELECT record FROM seen ORDER BY frame, rowid"):
                yield json.loads(text)

    @property
    def objects(self) -> list[int]:
        """Those that were followed."""
        return [name for (name,) in self._rows.execute("SELECT DISTINCT object FROM mask ORDER BY object")]

    def summary(self) -> Iterator[str]:
        """A line an object."""
        query = "SELECT object, min(frame), max(frame), count(*), sum(present) FROM mask GROUP BY object"
        for name, first, last, count, present in self._rows.execute(query):
            yield f"object {name}: frames {first} to {last}, in the picture on {present} of {count}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise FileError(f"masks cannot be kept in the folder for temporary files: {reason(error)}") from error


def write(
    tracks: Tracks, clip: Clip, prompts: Sequence[ObjectPrompt], outputs: Outputs, facts: Mapping[str, Any],
    progress: Callable[[str, int, int], None],
) -> dict[str, str]:  # fmt: skip
    """Write the results, each whole or not at all; returns what was written, by path.

    Args:
        tracks: the masks.
        clip: what they were found in.
        prompts: drawn where they were given.
        outputs: where results go.
        facts: stand at the head of the .json.
        progress: is told how far it is.

    Raises:
        SamExportError: a result cannot be written, or the clip not be read again.
    """
    size = {"width": clip.image_hw[1], "height": clip.image_hw[0], "frames": clip.frames}
    header = {**facts, **size, "frames_per_second": float(clip.rate), "objects": tracks.objects}
    written: dict[str, str] = {}
    count = sum(1 for _ in tracks)
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if outputs.masks is not None:
            sinks.append(stack.enter_context(_pngs(outputs.masks, force=outputs.force)))
            written[str(outputs.masks)] = f"{count} PNGs"
        if outputs.json is not None:
            seen = tracks.seen() if facts["sparse"] else iter(())
            sinks.append(stack.enter_context(_json(outputs.json, header, seen, force=outputs.force)))
            written[str(outputs.json)] = f"{count} masks"
        if outputs.overlay is not None:
            sinks.append(stack.enter_context(_overlay(outputs.overlay, clip, prompts, tracks, force=outputs.force)))
            written[str(outputs.overlay)] = f"{clip.frames} frames"
        for frame, records in _by_frame(tracks, clip.frames):
            for sink in sinks:
                sink(frame, records)
            progress("writing", frame + 1, clip.frames)
    return written


def _by_frame(tracks: Iterable[Record], frames: int) -> Iterator[tuple[int, list[Record]]]:
    """Every frame with its masks, also those without any."""
    groups = itertools.groupby(tracks, key=lambda record: int(record["frame"]))
    following, records = next(groups, (frames, iter(())))
    for frame in range(frames):
        if frame < following:
            yield frame, []
        else:
            yield frame, list(records)
            following, records = next(groups, (frames, iter(())))


@contextmanager
def _pngs(path: Path, *, force: bool) -> Iterator[Sink]:
    is_empty = path.is_dir() and not os.listdir(path)
    with new_folder(path, force=force or is_empty, refusal=partial(foreign, ours=_OURS)) as private:

        def add(_: int, records: Sequence[Record]) -> None:
            for record in records:
                save_picture(_mask(record), private / mask_name(record["frame"], record["object"]))

        yield add


@contextmanager
def _json(path: Path, header: Mapping[str, Any], seen: Iterator[Record], *, force: bool) -> Iterator[Sink]:
    with new_file(path, force=force) as private, open(private, "w", encoding="utf-8", newline="\n") as stream:
        # names of files may hold bytes that are no text, which JSON's escapes can say
        stream.write(json.dumps(header, allow_nan=False)[:-1] + ', "tracks": [')
        lines = itertools.chain("\n", itertools.repeat(",\n"))

        def add(_: int, records: Sequence[Record]) -> None:
            for record in records:
                stream.write(next(lines) + json.dumps(record, allow_nan=False))

        yield add
        stream.write("\n]")
        if (first := next(seen, None)) is not None:
            stream.write(', "seen": [\n' + json.dumps(first))
            for record in seen:
                stream.write(",\n" + json.dumps(record))
            stream.write("\n]")
        stream.write("}\n")


@contextmanager
def _overlay(path: Path, clip: Clip, prompts: Sequence[ObjectPrompt], tracks: Tracks, *, force: bool) -> Iterator[Sink]:
    pictures, looked = clip.read(range(clip.frames)), _by_frame(tracks.seen(), clip.frames)
    colours = {name: number for number, name in enumerate(tracks.objects)}
    with new_file(path, force=force) as private, VideoWriter(private, clip.rate, clip.image_hw) as video:

        def add(frame: int, records: Sequence[Record]) -> None:
            canvas = draw_masks(next(pictures), map(partial(_painted, colours), sorted(records, key=_by_area)))
            boxes = [box for record in next(looked)[1] for box in record["boxes"]]
            outline_boxes(canvas, {_FRAMED + len(PALETTE) * number: box for number, box in enumerate(boxes)})
            for each in prompts:
                if each.frame == frame and isinstance(each.prompt, Prompt):
                    boxes = [] if each.prompt.box is None else [each.prompt.box]
                    draw_prompts(canvas, points=each.prompt.points, labels=each.prompt.labels, boxes=boxes)
            video.write(canvas)

        yield add


def _by_area(record: Record) -> int:
    """The largest first, so that small ones stay visible."""
    return -int(record["area"])


def _painted(colours: Mapping[int, int], record: Record) -> tuple[int, int, int, NDArray[np.bool_]]:
    x, y, width, height = record["bbox"]
    return colours[record["object"]], x, y, np.ascontiguousarray(_mask(record)[y : y + height, x : x + width])


def _mask(record: Record) -> NDArray[np.bool_]:
    rle = record["segmentation"]
    return decode_rle({"size": rle["size"], "counts": rle["counts"].encode()})
