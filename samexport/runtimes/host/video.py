"""Clips frame by frame, from a video file or a folder of pictures, and videos out. Numpy and Pillow; PyAV for files.

Nothing holds a clip: frames are read when they are wanted, in one direction or the other.
"""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ImageError, MissingDependency
from samexport.files import PICTURE_ENDINGS, reason
from samexport.installation import install_hint
from samexport.runtimes.host.image import MAX_PIXELS, read_image

Pixels = NDArray[np.uint8]

FOLDER_RATE = Fraction(30)
"""Frames per second of a folder, which has none of its own."""
VIDEO_ENDINGS = (".mp4", ".mov", ".mkv")
"""What :class:`VideoWriter` writes."""
_HELD_BYTES = 128 << 20


class Clip(ABC):
    """Frames of one size, numbered from 0.

    Attributes:
        path: of the file or folder.
        frames: their number.
        image_hw: height and width of each, upright.
        rate: frames per second.
    """

    path: Path
    frames: int
    image_hw: tuple[int, int]
    rate: Fraction

    @abstractmethod
    def read(self, frames: range) -> Iterator[Pixels]:
        """Frames as uint8 RGB [H, W, 3]; ``frames`` has step 1 or -1.

        Raises:
            ImageError: a frame is damaged or has another size than the first.
        """

    def _sized(self, pixels: Pixels, name: str) -> Pixels:
        if pixels.shape[:2] != self.image_hw:
            found, first = (f"{hw[1]}x{hw[0]}" for hw in (pixels.shape, self.image_hw))
            raise ImageError(f"{name} is {found}, the first frame {first}; scale all frames to one size")
        return pixels


def open_clip(path: Path, *, last: int | None = None) -> Clip:
    """A video file, or a folder of pictures in the order of the numbers in their names.

    A video file is decoded once to its end, so that damage and its true length are known before work is done on it.

    Args:
        path: of the file or folder.
        last: the frame that the clip ends with, if it has so many.

    Raises:
        ImageError: no such file, no frames, or a damaged one.
        MissingDependency: a video file, and PyAV is not installed.
    """
    return FrameFolder(path, last=last) if path.is_dir() else VideoFile(path, last=last)


class FrameFolder(Clip):
    """A picture a frame; see :func:`open_clip`."""

    def __init__(self, path: Path, *, last: int | None = None) -> None:
        self.path, self.rate = path, FOLDER_RATE
        try:
            names = [entry.name for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith(".")]
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {reason(error)}") from error
        self._names = sorted((n for n in names if n.lower().endswith(PICTURE_ENDINGS)), key=_by_number)
        if last is not None:
            del self._names[last + 1 :]
        if not self._names:
            raise ImageError(f"{path} holds no picture ({', '.join(PICTURE_ENDINGS)})")
        self.frames = len(self._names)
        first = read_image(path / self._names[0])
        self.image_hw = (first.shape[0], first.shape[1])

    @property
    def stems(self) -> list[str]:
        """The name of each frame's file, without its ending."""
        return [Path(name).stem for name in self._names]

    def read(self, frames: range) -> Iterator[Pixels]:
        """See :class:`Clip`."""
        for frame in frames:
            file = self.path / self._names[frame]
            yield self._sized(read_image(file), str(file))


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """Sorts frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


class VideoFile(Clip):
    """A file that FFmpeg's libraries read; see :func:`open_clip`."""

    def __init__(self, path: Path, *, last: int | None = None) -> None:
        self.path = path
        self._av = _av(f"{path.name} is read")
        if not path.is_file():
            raise ImageError(f"{path}: no such file or folder; give a video file or a folder of frames")
        self._times, self._keys = array("q"), array("q")
        self._seekable = True
        with self._decoding(0) as (container, stream):
            for frame, picture in enumerate(container.decode(stream)):
                if last is not None and frame > last:
                    break
                self._note(frame, picture)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
        self.frames = len(self._times)
        if not self.frames:
            raise ImageError(f"{path} holds no frame of a video")

    def _note(self, frame: int, picture: Any) -> None:
        """Take down when a frame is shown, and whether decoding can begin there."""
        turned = picture.rotation % 180 != 0
        size = (picture.width, picture.height) if turned else (picture.height, picture.width)
        if frame == 0:
            self.image_hw = size
            if size[0] * size[1] > MAX_PIXELS:
                raise ImageError(f"{self.path}: {size[1]}x{size[0]} is more than {MAX_PIXELS} pixels; make it smaller")
        self._sized(np.empty((*size, 0), np.uint8), f"{self.path}: frame {frame}")
        if picture.is_corrupt:
            raise ImageError(self._damaged(frame, "its data are damaged"))
        time = -1 if picture.pts is None else picture.pts
        self._seekable &= picture.pts is not None and (not self._times or time > self._times[-1])
        if picture.key_frame:
            self._keys.append(frame)
        self._times.append(time)

    @contextlib.contextmanager
    def _decoding(self, first: int) -> Iterator[tuple[Any, Any]]:
        """The open file; errors of its libraries are those of the first frame that has not been seen yet."""
        try:
            with self._av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ImageError(f"{self.path} holds no video")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                yield container, stream
        except self._av.error.FFmpegError as error:
            if not self._times:
                raise ImageError(f"{self.path} is no video, or a damaged one: {error.strerror}") from error
            raise ImageError(self._damaged(max(first, len(self._times)), error.strerror)) from error

    def _damaged(self, frame: int, why: str) -> str:
        advice = f"; --last {frame - 1} stops before it" if frame else ""
        return f"{self.path}: frame {frame} cannot be decoded ({why}){advice}"

    def read(self, frames: range) -> Iterator[Pixels]:
        """See :class:`Clip`; backwards, as many frames are held as fit into 128 MiB, since a video runs forwards."""
        if frames.step > 0:
            yield from self._forwards(frames)
            return
        held = max(1, _HELD_BYTES // (3 * self.image_hw[0] * self.image_hw[1]))
        for start in range(0, len(frames), held):
            part = frames[start : start + held]
            yield from reversed(list(self._forwards(part[::-1])))

    def _forwards(self, frames: range) -> Iterator[Pixels]:
        if not frames:
            return
        for frame, picture in self._numbered(frames[0]):
            if frame in frames:
                yield self._sized(_upright(picture), f"{self.path}: frame {frame}")
            if frame == frames[-1]:
                return
        raise ImageError(f"{self.path} ends before frame {frames[-1]}, which it had; leave it alone meanwhile")

    def _numbered(self, first: int, *, seek: bool = True) -> Iterator[tuple[int, Any]]:
        """Decoded frames with their numbers, from ``first`` or a little before it on."""
        with self._decoding(first) as (container, stream):
            at: int | None = 0
            if seek and self._seekable and (key := bisect_right(self._keys, first) - 1) > 0:
                container.seek(self._times[self._keys[key]], stream=stream)
                at = None
            for picture in container.decode(stream):
                at = self._at(picture) if at is None else at
                if at is None:
                    continue
                if at > first and seek:
                    break  # not every file is sought as exactly as it is told to be
                seek = False
                yield at, picture
                at += 1
            else:
                return
        yield from self._numbered(first, seek=False)

    def _at(self, picture: Any) -> int | None:
        """The number of a frame by its time; None for one that cannot be decoded when it is not come to in order."""
        place = bisect_left(self._times, picture.pts) if picture.pts is not None else len(self._times)
        known = place < len(self._times) and self._times[place] == picture.pts
        return place if known and not picture.is_corrupt else None


def _upright(picture: Any) -> Pixels:
    """RGB as it is to be shown: cameras store how they were held."""
    pixels: Pixels = picture.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(picture.rotation / 90)))


class VideoWriter:
    """Writes frames of one size as H.264; a context manager. A frame gets a row or column more where a side is odd.

    Raises:
        MissingDependency: PyAV is not installed.
        FileError: by :func:`samexport.files.new_file`, around the writer.
    """

    def __init__(self, path: Path, rate: Fraction, image_hw: tuple[int, int]) -> None:
        av = _av(f"{path.name} is written")
        self._frame = av.VideoFrame.from_ndarray
        self._extra = [(0, image_hw[0] % 2), (0, image_hw[1] % 2), (0, 0)]
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=rate.limit_denominator(1001), options={"crf": "20"})
        self._stream.height, self._stream.width = (side + side % 2 for side in image_hw)
        self._stream.pix_fmt = "yuv420p"

    def write(self, pixels: Pixels) -> None:
        """Add a frame, uint8 RGB [H, W, 3]."""
        frame = self._frame(np.pad(pixels, self._extra, mode="edge"), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def check_video(what: str) -> None:
    """MissingDependency with the command that installs PyAV, unless it is there."""
    _av(what)


def _av(what: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependency(f"{what} with PyAV: {install_hint('video')}") from error
    return av
