"""A teacher's embeddings of many pictures on disk: computed once, in shards, each with its checksum."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samexport.errors import FileError
from samexport.files import new_file, read_bytes, read_json, sha256, to_json, write_text
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.image import read_image
from samexport.training.storage import StoredPicture

INDEX = "cache.json"
_SHARD = 64
"""Pictures of a shard: at 256 channels of 64 x 64 cells in fp16, 134 MB."""


@dataclass(frozen=True)
class Framed:
    """Pictures in a model's frame.

    Attributes:
        pixels: float32 [B, 3, S, S], 0..255.
        ids: int16 [B, S, S], 0 in the picture and -1 beside it, as ``training.loop.embed`` takes it.
        inside: height and width of each picture in the frame.
    """

    pixels: Tensor
    ids: Tensor
    inside: tuple[tuple[int, int], ...]


def read_framed(paths: Sequence[Path | StoredPicture], frame: Preprocess) -> Framed:
    """Read pictures and put them into the frame; ImageError names the one that cannot be read."""
    pixels, inside = [], []
    ids = torch.full((len(paths), frame.size, frame.size), -1, dtype=torch.int16)
    for number, path in enumerate(paths):
        picture = read_image(path if isinstance(path, Path) else path.open())
        placed = FrameMap((picture.shape[0], picture.shape[1]), frame).inside
        pixels.append(torch.from_numpy(np.ascontiguousarray(to_frame(picture, frame)))[0])
        ids[number, : placed[0], : placed[1]] = 0
        inside.append(placed)
    return Framed(torch.stack(pixels).float(), ids, tuple(inside))


def embeddings(paths: Sequence[Path | StoredPicture], frame: Preprocess, encode: Callable[[Framed], Tensor]) -> Tensor:
    """What ``encode`` makes of each picture, float16 [B, C, G, G] on the CPU; errors as :func:`read_framed`."""
    return torch.cat([encode(read_framed([path], frame)).to("cpu", torch.float16) for path in paths]).contiguous()


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings of ``paths`` by the teacher that ``identity`` describes, in ``folder``.

    ``encode`` turns pictures into embeddings [B, C, G, G]. Processes may fill it together, each its own shards.
    """

    folder: Path
    paths: tuple[Path | StoredPicture, ...]
    identity: dict[str, Any]
    frame: Preprocess
    encode: Callable[[Framed], Tensor]

    def prepare(self) -> None:
        """Make the folder and say what is in it.

        Raises:
            FileError: the folder holds the embeddings of another teacher or of other pictures.
        """
        wanted = {
            "teacher": self.identity,
            "pictures": [path.name for path in self.paths],
            "sizes": [path.stat().st_size if isinstance(path, Path) else path.size for path in self.paths],
            "shard": _SHARD,
        }
        index = self.folder / INDEX
        if index.exists():
            if read_json(index) != wanted:
                raise FileError(f"{self.folder} has embeddings of another teacher or of other pictures; delete it")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(index, to_json(wanted))

    def fill(self, rank: int = 0, world: int = 1, done: Callable[[int, int], None] = lambda *_: None) -> None:
        """Compute the shards of this process that are missing or damaged; ``done`` hears how many of how many."""
        shards = range(rank, self.shards, world)
        for number, shard in enumerate(shards):
            if not self._whole(shard):
                self.store(shard, embeddings([self.paths[n] for n in self._part(shard)], self.frame, self.encode))
            done(number + 1, len(shards))

    def missing(self) -> dict[int, range]:
        """The shards that are not there or damaged, each with the numbers of its pictures."""
        return {shard: self._part(shard) for shard in range(self.shards) if not self._whole(shard)}

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-len(self.paths) // _SHARD)

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[tuple[Framed, Tensor]]:
        """Pictures and their embeddings float32 [size, C, G, G], by the numbers of the pictures."""
        from safetensors import safe_open

        with contextlib.ExitStack() as stack:
            opened: dict[int, Any] = {}
            for start in range(0, len(numbers), size):
                chosen = numbers[start : start + size]
                found = []
                for number in chosen:
                    shard, row = divmod(number, _SHARD)
                    if shard not in opened:
                        opened[shard] = stack.enter_context(safe_open(self._path(shard), "pt"))
                    found.append(opened[shard].get_slice("embeddings")[row : row + 1])
                yield read_framed([self.paths[n] for n in chosen], self.frame), torch.cat(found).float()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _whole(self, shard: int) -> bool:
        path = self._path(shard)
        told = path.with_suffix(".sha256")
        return (
            path.exists() and told.exists() and read_bytes(told, limit=100).decode("ascii", "replace") == sha256(path)
        )

    def _part(self, shard: int) -> range:
        return range(len(self.paths))[shard * _SHARD : (shard + 1) * _SHARD]

    def store(self, shard: int, found: Tensor) -> None:
        """Write a shard: float16 [B, C, G, G] of its pictures."""
        from safetensors.torch import save_file

        path = self._path(shard)
        with new_file(path, force=True) as private:
            save_file({"embeddings": found}, private)
        write_text(path.with_suffix(".sha256"), sha256(path), force=True)
