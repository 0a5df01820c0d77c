"""Reads a weight file, whatever its name, without running anything from it.

What a file is, its first bytes say. torch reads pickles with ``weights_only=True``, and there is no other way in:
names of metadata that training scripts save beside the weights become empty records and are never looked up.
A file is hashed and read through one open descriptor, so that the hash is that of what was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samexport.errors import CheckpointError, FileError
from samexport.files import open_regular, reason
from samexport.models.weights.inert_pickle import rehearse

MAX_FILE = 16 << 30
"""Bytes; SAM ViT-H beside the state of its optimizer has 8 GB."""
MAX_PICKLE = 16 << 20
"""Bytes without the tensors; that file has 0.4 MB of them."""

GIVE = "give the path of a weight file (.pt, .pth, .ckpt, .bin, .safetensors)"
_LEGACY_PICKLES = 5
# what training scripts save beside the weights; these stay names
_METADATA = (
    "argparse.Namespace", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list",
    "builtins.range", "builtins.slice", "builtins.str",
    "datetime.date", "datetime.datetime", "datetime.timedelta", "datetime.timezone",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "typing.Any",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "torch.torch_version.TorchVersion", "uuid.UUID",
)  # fmt: skip
_METADATA_DICTS = (
    "addict.addict.Dict", "collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict",
)  # fmt: skip
_STRANGERS = (
    (rb"\s*<(!DOCTYPE|html|\?xml)", "a web page: the download may need a login"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a packed archive: unpack it first"),
    (rb"\x89HDF", "HDF5: only PyTorch's weights are read"),
    (rb"GGUF", "GGUF: only PyTorch's weights are read"),
    (rb"....TFL3", "a TFLite model, not weights"),
    (rb"\s*[\[{]", "JSON: give the files that it names, one --checkpoint each"),
)


class HoldsCode(CheckpointError):
    """A pickle that names classes or functions which are no weights; none of them was looked up."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: dictionaries and tensors, on the CPU; ``metadata`` is that of a safetensors file."""

    content: Any
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


ReadLive = Callable[[zipfile.ZipFile], Any]


def read_weight_file(path: Path, live: ReadLive | None = None) -> WeightFile:
    """Read and hash a file of torch (zipped or in the old format) or safetensors.

    ``live`` reads the archive of a pickled model, which torch refuses, from its inert records.

    Raises:
        CheckpointError: it is absent, not a regular file, empty, cut off, no weight file, too large, or changes
            while it is read.
        HoldsCode: it needs code to load.
    """
    try:
        with open_regular(path) as stream:
            before = os.fstat(stream.fileno())
            if not 0 < before.st_size <= MAX_FILE:
                problem = (
                    "is empty (0 bytes); download it again" if not before.st_size else f"has over {MAX_FILE} bytes"
                )
                raise CheckpointError(f"{path} {problem}")
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            content, metadata = _read(stream, path, live)
            if _identity(os.stat(path)) != _identity(before):
                raise CheckpointError(f"{path} changed while it was read; try again")
    except FileError as error:
        kind = f"{path} is a folder, not a file" if os.path.isdir(path) else error
        raise CheckpointError(f"{kind}; {GIVE}") from error
    return WeightFile(content, digest, metadata)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(stream: io.BufferedReader, path: Path, live: ReadLive | None) -> tuple[Any, Mapping[str, str]]:
    start = stream.read(64)
    stream.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(stream, path, live), {}
    # before pickles: the length of the header, which comes first, may begin like one
    if start[7:9] == b"\x00{":
        return _read_safetensors(path)
    if start.startswith(b"\x80"):
        _rehearse_legacy(stream, path)
        return _load(stream, path), {}
    stranger = next((f" (it is {what})" for pattern, what in _STRANGERS if re.match(pattern, start, re.S)), "")
    raise CheckpointError(f"{path} is cut off, damaged or no checkpoint{stranger}; {GIVE}")


def _read_zip(stream: io.BufferedReader, path: Path, live: ReadLive | None) -> Any:
    with _damage_of(path), zipfile.ZipFile(stream) as archive:
        pickle = _checked_archive(archive, path, os.fstat(stream.fileno()).st_size)
        rehearse(io.BytesIO(archive.read(pickle)))
        try:
            return _load(stream, path)
        except HoldsCode:
            if live is None:
                raise
            return live(archive)


def _checked_archive(archive: zipfile.ZipFile, path: Path, size: int) -> str:
    """The name of the pickle in an archive whose entries are what torch writes: stored, once each, and no larger."""
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in names):
        raise _holds_code(path, "TorchScript")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} has compressed entries, which torch never writes; unpack it, or save it again")
    if len(names) != len(entries) or sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{path} is not a torch file: a zip with no name twice and no entry inside another")
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip of other files, no checkpoint, or damaged; unpack it and {GIVE}")
    if pickles[0].file_size > MAX_PICKLE:
        raise CheckpointError(f"{path}: its pickle has over {MAX_PICKLE} bytes; save the state dict alone")
    return pickles[0].filename


def _rehearse_legacy(stream: io.BufferedReader, path: Path) -> None:
    """The pickles before the tensors of a file in the old format."""
    start = io.BytesIO(stream.read(MAX_PICKLE))
    stream.seek(0)
    with _damage_of(path):
        for _ in range(_LEGACY_PICKLES):
            rehearse(start)


@contextlib.contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Whatever a damaged archive or pickle makes Python stumble over, as one line."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is cut off, damaged or no checkpoint ({show(reason(error))}); download it again"
        ) from error


def _load(stream: io.BufferedReader, path: Path) -> Any:
    import torch

    stream.seek(0)
    metadata: list[Any] = [(_Beside, name) for name in _METADATA]
    metadata += [(_BesideDict, name) for name in _METADATA_DICTS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(metadata):
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; the error says more
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes the unpickler stumble in any way
        # torch's own message has many lines, and tells how to run the file's code
        found = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        if found is None:
            raise CheckpointError(f"{path} is cut off, damaged or no checkpoint; download it again") from error
        raise _holds_code(path, found[1]) from error


def _holds_code(path: Path, what: str) -> HoldsCode:
    return HoldsCode(
        f"{path} holds more than tensors ({show(what)}); loading that could run its code, so it is refused: give a"
        " file of plain tensors, such as torch.save(model.state_dict(), FILE) writes"
    )


class _Beside:
    """Stands for an object of metadata: takes any arguments and state, keeps none."""

    def __new__(cls, *_: object, **__: object) -> _Beside:
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


class _BesideDict(_Beside):
    """The same for what is filled like a dictionary; torch fills no subclasses."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


def _read_safetensors(path: Path) -> tuple[Any, Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is cut off, damaged or no safetensors file ({show(reason(error))}); download it again"
        ) from error


def show(text: object) -> str:
    """A key or name from a file, fit for one line of a terminal."""
    return ascii(text)[1:-1][:120] if isinstance(text, str) else f"a key of type {type(text).__name__}"
