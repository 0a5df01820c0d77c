"""A .tflite file as data: its flatbuffer, and the JSON in the ZIP that is appended to it.

Readers of the flatbuffer start at its first byte, readers of a ZIP at the last: one file is both. Programs that
only know TFLite never see the JSON; everyone else finds it with any unzip tool.
"""

from __future__ import annotations

import functools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, FileError, MissingDependency
from samexport.files import read_bytes, to_json
from samexport.installation import install_hint

METADATA_NAME = "samexport.json"
_IDENTIFIER = b"TFL3"
# offsets in a flatbuffer are 32 bits with a sign
_LARGEST = 2**31
Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors, by name."""
# a ZIP cannot hold an earlier date, and the same input must give the same bytes
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def read_model(path: Path) -> Any:
    """The file as ``ModelT`` of LiteRT's generated schema: plain objects that can be changed and packed again.

    It is in memory as a whole: as long as a file is mapped, Windows neither deletes nor renames it.

    Raises:
        BundleError: this is not a TFLite file.
        MissingDependency: ai-edge-litert is not installed.
    """
    try:
        content = read_bytes(path, limit=_LARGEST)
    except FileError as error:
        raise BundleError(str(error)) from error
    return parse_model(content, path.name)


def parse_model(content: bytes, name: str) -> Any:
    """The same from the content of a file; ``name`` is for messages."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ModuleNotFoundError as error:
        raise MissingDependency(f"reading TFLite needs {error.name}: {install_hint('litert')}") from error
    if content[4:8] != _IDENTIFIER:
        raise BundleError(f"{name} is not a TFLite file")
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise BundleError(f"{name} is a damaged TFLite file; export it again") from error


def write_model(model: Any, path: Path) -> None:
    """Pack ``ModelT`` into a file."""
    path.write_bytes(pack_model(model))


def pack_model(model: Any) -> bytes:
    """The content of a file; data starts at multiples of 16 bytes, as the schema demands."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    buffers, model.buffers = model.buffers, [_Aligned(buffer.data) for buffer in model.buffers]
    try:
        builder.Finish(model.Pack(builder), _IDENTIFIER)
    finally:
        model.buffers = buffers
    return bytes(builder.Output())


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


def signatures(path: Path) -> dict[str, tuple[Shapes, Shapes]]:
    """The entry points of a file: name to the shapes of its inputs and of its outputs; errors as :func:`read_model`."""
    model = read_model(path)
    found: dict[str, tuple[Shapes, Shapes]] = {}
    for signature in model.signatureDefs or ():
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        sides = (
            {entry.name.decode(): shape_of(tensors[entry.tensorIndex]) for entry in side}
            for side in (signature.inputs, signature.outputs)
        )
        found[signature.signatureKey.decode()] = (next(sides), next(sides))
    return found


@functools.cache
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
        archive.writestr(entry, to_json(metadata).removesuffix("\n"))
