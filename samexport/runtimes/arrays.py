"""Arrays in files of strangers: what they claim is checked before memory is taken. Numpy only."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import FileError
from samexport.files import read_bytes, reason

_FORMAT: Any = np.lib.format  # numpy has no types for it
_HEADERS = {(1, 0): _FORMAT.read_array_header_1_0, (2, 0): _FORMAT.read_array_header_2_0}
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def parse_npy(data: bytes, name: str) -> NDArray[Any]:
    """An array from the bytes of an ``.npy`` file; FileError unless it holds exactly the numbers that it claims."""
    stream = io.BytesIO(data)
    try:
        shape, fortran, dtype = _HEADERS[_FORMAT.read_magic(stream)](stream)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise ValueError(f"holds {dtype}, not real numbers")
        body = data[stream.tell() :]
        # Python's integers do not overflow, whatever the header claims
        if math.prod(map(int, shape)) * dtype.itemsize != len(body):
            raise ValueError(f"claims shape {list(shape)} of {dtype} and holds {len(body)} bytes")
        flat = np.frombuffer(body, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, KeyError, TypeError, EOFError, SyntaxError, OverflowError, tokenize.TokenError) as error:
        raise FileError(f"{name} is not a usable .npy: {reason(error)}") from error


def read_npy(path: Path, *, limit: int = 1 << 30) -> NDArray[Any]:
    """Read an ``.npy`` file of at most ``limit`` bytes; FileError if it is not one."""
    return parse_npy(read_bytes(path, limit=limit), str(path))


def read_npz(path: Path, *, limit: int = 256 << 20) -> dict[str, NDArray[Any]]:
    """Read an ``.npz`` file that unpacks to at most ``limit`` bytes; FileError if it is damaged or larger."""
    data = read_bytes(path, limit=limit)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"unpacks to more than {limit >> 20} MiB")
            if any(member.compress_type not in _PLAIN or member.flag_bits & 1 for member in members):
                raise ValueError("compressed in an unusual way, or encrypted")
            return {
                member.filename.removesuffix(".npy"): parse_npy(archive.read(member), f"{path} ({member.filename})")
                for member in members
            }
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, OSError, OverflowError) as error:
        raise FileError(f"{path} is damaged: {reason(error)}") from error
