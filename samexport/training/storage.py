"""Pictures in any storage that Arrow opens, and a teacher's embeddings computed by Ray Data on many machines."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samexport.errors import ConfigError, FileError, ImageError, MissingDependency
from samexport.files import PICTURE_ENDINGS, reason
from samexport.installation import install_hint
from samexport.models.spec import Preprocess
from samexport.quiet import silent

if TYPE_CHECKING:
    from torch import nn

    from samexport.training.cache import EmbeddingCache

_SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Ray reports to nobody and leaves the terminal to us, unless the user's environment says otherwise."""


@dataclass(frozen=True)
class StoredPicture:
    """A picture outside of this machine's folders, of ``size`` bytes; ``files`` is a ``pyarrow.fs.FileSystem``."""

    files: Any
    path: str
    size: int

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.path)

    def open(self) -> io.BytesIO:
        """All its bytes; FileError if they cannot be had."""
        try:
            with self.files.open_input_file(self.path) as file:
                return io.BytesIO(file.read())
        except OSError as error:
            raise FileError(f"{self.path} cannot be read: {reason(error)}; see that the storage is there") from error


def is_stored(place: str) -> bool:
    """Whether it is an address such as s3://bucket/folder, not a folder of this machine."""
    return "://" in place


def stored_pictures(address: str) -> tuple[StoredPicture, ...]:
    """The pictures of a folder, sorted by name.

    Args:
        address: as Arrow and Ray Data take it: s3://bucket/folder, gs://bucket/folder, hdfs://host/folder, file:///folder.

    Raises:
        MissingDependency: pyarrow, of the extra [ray], is not installed.
        ConfigError: the address cannot be opened, or no picture is there.
    """
    try:
        from pyarrow import ArrowException, fs
    except ModuleNotFoundError as error:
        raise MissingDependency(f"pictures by an address need pyarrow: {install_hint('ray')}") from error
    try:
        files, folder = fs.FileSystem.from_uri(address)
        found = files.get_file_info(fs.FileSelector(folder))
    except (OSError, ArrowException) as error:
        raise ConfigError(
            f"{address} cannot be opened: {reason(error)}; give a folder such as s3://bucket/folder"
        ) from error
    chosen = sorted(
        (info for info in found if info.is_file and info.path.lower().endswith(PICTURE_ENDINGS)),
        key=lambda info: str(info.path),
    )
    if not chosen:
        raise ConfigError(f"{address} holds no picture ({', '.join(PICTURE_ENDINGS)})")
    return tuple(StoredPicture(files, info.path, info.size) for info in chosen)


class _Teacher:
    """What a process of Ray does: the embeddings of one shard after the other."""

    def __init__(self, network: Any, pictures: Sequence[Path | StoredPicture], frame: Preprocess, device: str) -> None:
        import ray

        from samexport.training.distill import encoding

        self._pictures, self._frame = pictures, frame
        self._encode = encoding(ray.get(network), frame, device)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        from samexport.training.cache import embeddings

        first, end = rows["first"].item(), rows["end"].item()
        try:
            found = embeddings(self._pictures[first:end], self._frame, self._encode).numpy()
        except (ImageError, FileError) as error:
            # an exception would reach the user as Ray's
            return {"shard": rows["shard"], "embeddings": np.zeros((1, 0), np.float16), "error": [str(error)]}
        return {"shard": rows["shard"], "embeddings": found[None], "error": [""]}


def fill_by_ray(
    cache: EmbeddingCache, network: nn.Module, device: str, done: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Compute the missing shards of a prepared cache on the machines of a Ray cluster, and write them here.

    The cluster is the one that the variable RAY_ADDRESS names, else this machine. Each of its processes has the
    teacher and reads pictures from where they lie, which must be the same place for all; on "cuda" each has a GPU.

    Raises:
        MissingDependency: Ray, of the extra [ray], is not installed.
        ConfigError: no cluster can be joined, or it has no GPU for "cuda".
        ImageError: a picture cannot be read.
    """
    import torch

    missing = cache.missing()
    if not missing:
        return
    rows = [{"shard": shard, "first": part.start, "end": part.stop} for shard, part in missing.items()]
    ray = _joined()
    most = int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))
    if not most:
        raise ConfigError("Ray's cluster has no GPU; add --device cpu")
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Teacher, batch_size=1, num_gpus=int(device == "cuda"),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(rows))),
        fn_constructor_args=(ray.put(deepcopy(network).cpu()), cache.paths, cache.frame, device),
    )  # fmt: skip
    for number, row in enumerate(made.iter_rows()):
        if row["error"]:
            raise ImageError(row["error"])
        cache.store(int(row["shard"]), torch.from_numpy(np.array(row["embeddings"])))
        done(number + 1, len(rows))


def need_ray() -> Any:
    """Ray with Ray Data; MissingDependency if it is not installed."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingDependency(f"--ray needs Ray: {install_hint('ray')}") from error
    return ray


def _joined() -> Any:
    """Ray, started or joined; its own words stay away from the terminal.

    It is left when the process ends: a second start after a shutdown may end the process.
    """
    ray = need_ray()
    try:
        with silent(output=True):
            ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no cluster of Ray: {reason(error)}; look at the variable RAY_ADDRESS") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
