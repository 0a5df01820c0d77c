"""A .tflite file as data: its flatbuffer, and the JSON in the ZIP that is appended to it.

Readers of the flatbuffer start at its first byte, readers of a ZIP at the last: one file is both. Programs that
only know TFLite never see the JSON; everyone else finds it with any unzip tool.
"""

from __future__ import annotations

import json
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError

METADATA_NAME = "samexport.json"
_IDENTIFIER = b"TFL3"
# a ZIP cannot hold an earlier date, and the same input must give the same bytes
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def read_model(path: Path) -> Any:
    """The file as ``ModelT`` of LiteRT's generated schema: plain objects that can be changed and packed again.

    Weights stay in the file until they are used, so it must not be overwritten meanwhile.

    Raises:
        BundleError: this is not a TFLite file.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from error
    if content[4:8] != _IDENTIFIER:
        raise BundleError(f"{path.name} is not a TFLite file")
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise BundleError(f"{path.name} is a damaged TFLite file; export it again") from error


def write_model(model: Any, path: Path) -> None:
    """Pack ``ModelT`` into a file; data starts at multiples of 16 bytes, as the schema demands."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    buffers, model.buffers = model.buffers, [_Aligned(buffer.data) for buffer in model.buffers]
    try:
        builder.Finish(model.Pack(builder), _IDENTIFIER)
    finally:
        model.buffers = buffers
    path.write_bytes(builder.Output())


class _Aligned:
    """Packs as ``BufferT``, whose own Pack loses the alignment."""

    def __init__(self, data: NDArray[np.uint8] | None) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:
        from ai_edge_litert import schema_py_generated as schema

        place = None
        if self.data is not None and len(self.data):
            builder.StartVector(1, len(self.data), 16)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = np.asarray(self.data).tobytes()
            builder.vectorNumElems = len(self.data)
            place = builder.EndVector()
        schema.BufferStart(builder)
        if place is not None:
            schema.BufferAddData(builder, place)
        return int(schema.BufferEnd(builder))


def operator_names() -> dict[int, str]:
    """Builtin code to name, ``{0: "ADD", ...}``."""
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Sizes of a ``TensorT``; a scalar has none."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def constant_bytes(model: Any, tensor: Any) -> NDArray[np.uint8] | None:
    """The data of a constant ``TensorT``, None for one that is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)


def append_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Append the ZIP with :data:`METADATA_NAME`; the same metadata gives the same bytes."""
    entry = zipfile.ZipInfo(METADATA_NAME, _NO_DATE)
    entry.compress_type = zipfile.ZIP_STORED
    # the default names the operating system
    entry.create_system = 0
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, json.dumps(metadata, indent=1, sort_keys=True))


def read_metadata(path: Path) -> dict[str, Any]:
    """What :func:`append_metadata` wrote.

    Raises:
        BundleError: there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, Any] = json.loads(archive.read(METADATA_NAME))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise BundleError(f"{path.name} carries no {METADATA_NAME}") from error
    return found
