"""Reads an ``.mlpackage`` with an ML Program from disk into plain data: functions, operations, constants.

Systems before iOS 18 know one function a package. A decoder with several entry points is then a folder
``NAME.mlpackages`` with one ``NAME.<entry point>.mlpackage`` each, which is read as if it were one package.

The layout is that of Apple's coremltools (BSD-3): ``Manifest.json`` names the root model, a ``Model``
protobuf; constants stand in it or in ``weights/weight.bin``, a blob file (MILBlob in the coremltools sources)
whose records start with 64 bytes of metadata. Only coremltools' generated protobuf classes are used.
"""

from __future__ import annotations

import importlib.util
import math
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, FileError, MissingDependency
from samexport.files import read_bytes, read_json, reason
from samexport.installation import install_hint

Constant = NDArray[Any] | str

SEVERAL = ".mlpackages"
"""Ending of a folder with one package for each entry point."""

# the limit of a protobuf
_LARGEST_MODEL = 2**31
_PROTOS = "samexport_coreml_protos"
_MODEL_PATH = "@model_path/"
# sentinel, type of the elements, bytes, offset of the data; the rest of the 64 bytes is not needed
_BLOB = struct.Struct("<IIQQ")
_BLOB_SENTINEL = 0xDEADBEEF
_BLOB_TYPES = {"float16": 1, "float32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int32": 8}
# kinds that the protobuf stores as raw bytes
_AS_BYTES = {"float16", "int8", "uint8", "int16", "uint16"}


@dataclass(frozen=True)
class Value:
    """A named result: its declared element type (``float16``, ``int32``, ...) and shape, None where unknown."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Operation:
    """One step: ``inputs`` maps each parameter to the names of the values it takes."""

    kind: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Function:
    """One entry point. ``bounds`` holds (lowest, highest) of each axis of the inputs that are flexible."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Constant]
    bounds: Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, eq=False)
class Package:
    """An opened package: its entry points, the default one, and the inputs that are pictures.

    ``files`` says which ``.mlpackage`` holds each entry point.
    """

    functions: Mapping[str, Function]
    default: str
    image_inputs: frozenset[str]
    files: Mapping[str, Path]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_package(path: Path) -> Package:
    """Parse a package, or a folder of packages with one entry point each.

    Raises:
        BundleError: it is not an ``.mlpackage``, it is damaged, or it holds no ML Program.
        MissingDependency: coremltools is not installed.
    """
    if path.suffix != SEVERAL:
        return _read_one(path)
    files = {file.stem.rpartition(".")[2]: file for file in sorted(path.glob("*.mlpackage"))}
    if not files:
        raise BundleError(f"{path.name} holds no .mlpackage; export it again")
    parts = {name: _read_one(file) for name, file in files.items()}
    if any(len(part.functions) != 1 for part in parts.values()):
        raise BundleError(f"{path.name} holds a package with several functions; export it again")
    return Package(
        {name: replace(next(iter(part.functions.values())), name=name) for name, part in parts.items()},
        next(iter(parts)),
        frozenset().union(*(part.image_inputs for part in parts.values())),
        files,
        next(iter(parts.values())).metadata,
    )


def _read_one(path: Path) -> Package:
    protos = _protos()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model_path = _root_model(path)
    try:
        model = protos.Model_pb2.Model.FromString(read_bytes(model_path, limit=_LARGEST_MODEL))
    except DecodeError as error:
        raise BundleError(f"{path.name} is damaged: its model is not a protobuf; export it again") from error
    if model.WhichOneof("Type") != "mlProgram":
        raise BundleError(f"{path.name} holds no ML Program; only those are supported")
    described = {f.name: f for f in model.description.functions} or {"main": model.description}
    weights = _Weights(model_path.parent, path)
    try:
        functions = {
            name: _function(name, function, described[name], weights)
            for name, function in model.mlProgram.functions.items()
        }
    except (KeyError, ValueError, struct.error, OSError) as error:
        raise BundleError(f"{path.name} is damaged: {reason(error)}; export it again") from error
    pictures = {i.name for d in described.values() for i in d.input if i.type.WhichOneof("Type") == "imageType"}
    return Package(
        functions,
        model.description.defaultFunctionName or "main",
        frozenset(pictures),
        dict.fromkeys(functions, path),
        dict(model.description.metadata.userDefined),
    )


def _protos() -> ModuleType:
    """Coremltools' protobuf classes without the converters, whose import takes seconds and prints warnings.

    They are loaded as a package of their own. Protobuf keeps one class for a message, so they are the same
    classes if coremltools is imported as well.
    """
    if _PROTOS not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or not found.submodule_search_locations:
            raise MissingDependency(f"reading an .mlpackage needs coremltools: {install_hint('coremltools')}")
        folder = Path(found.submodule_search_locations[0]) / "proto"
        spec = importlib.util.spec_from_file_location(
            _PROTOS, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise MissingDependency(f"this coremltools has no protobuf classes: {install_hint('coremltools')}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PROTOS] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[_PROTOS]
            raise
    return sys.modules[_PROTOS]


def _root_model(path: Path) -> Path:
    """The model file that ``Manifest.json`` names."""
    try:
        manifest = read_json(path / "Manifest.json", limit=1 << 20)
        relative = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (FileError, KeyError, TypeError) as error:
        raise BundleError(f"{path.name} is not an .mlpackage: its Manifest.json cannot be used") from error
    return _inside(path, path / "Data", str(relative))


def _inside(package: Path, folder: Path, relative: str) -> Path:
    """``folder / relative``, which must be a file of the package and not a way out of it."""
    try:
        resolved = (folder / relative).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{package.name} refers to {relative!r}: {reason(error)}") from error
    if not resolved.is_relative_to(package.resolve()) or not resolved.is_file():
        raise BundleError(f"{package.name} refers to {relative!r}, which is not a file of the package")
    return resolved


class _Weights:
    """The blob files of a package; each is mapped into memory once."""

    def __init__(self, folder: Path, package: Path) -> None:
        self._folder, self._package = folder, package
        self._files: dict[str, NDArray[np.uint8]] = {}

    def read(self, file_name: str, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array whose metadata starts at ``offset``; ValueError unless it is what the program declares."""
        if file_name not in self._files:
            path = _inside(self._package, self._folder, file_name.removeprefix(_MODEL_PATH))
            self._files[file_name] = np.memmap(path, np.uint8, "r")
        data = self._files[file_name]
        sentinel, kind, size, start = _BLOB.unpack(data[offset : offset + _BLOB.size].tobytes())
        wanted = math.prod(shape) * np.dtype(dtype).itemsize
        found = (sentinel, kind, size)
        if found != (_BLOB_SENTINEL, _BLOB_TYPES.get(dtype), wanted) or start + size > len(data):
            raise ValueError(f"the weights at byte {offset} are not {dtype} {list(shape)}")
        array: NDArray[Any] = data[start : start + size].view(dtype).reshape(shape)
        return array


def _function(name: str, proto: Any, description: Any, weights: _Weights) -> Function:
    block = proto.block_specializations[proto.opset]
    constants: dict[str, Constant] = {}
    operations = []
    for operation in block.operations:
        if operation.type == "const":
            constants[operation.outputs[0].name] = _constant(operation.attributes["val"], weights)
        else:
            operations.append(_operation(operation, constants, weights))
    return Function(
        name,
        tuple(_value(v) for v in proto.inputs),
        tuple(block.outputs),
        tuple(operations),
        constants,
        {i.name: _bounds(i.type.multiArrayType) for i in description.input},
    )


def _operation(proto: Any, constants: dict[str, Constant], weights: _Weights) -> Operation:
    """One operation; values that stand in its arguments join ``constants`` under a name of their own."""
    # a nested block (cond, while_loop) makes an operation that no table knows
    kind = f"{proto.type} with blocks" if len(proto.blocks) else proto.type
    inputs = {}
    for parameter, argument in proto.inputs.items():
        names = []
        for index, binding in enumerate(argument.arguments):
            name = binding.name
            if binding.WhichOneof("binding") == "value":
                name = f"{proto.outputs[0].name}.{parameter}.{index}"
                constants[name] = _constant(binding.value, weights)
            names.append(name)
        inputs[parameter] = tuple(names)
    for parameter, value in proto.attributes.items() if proto.type.startswith("constexpr_") else ():
        # before iOS 18 what makes a weight stands in the operation itself
        if parameter != "name":
            name = f"{proto.outputs[0].name}.{parameter}"
            constants[name], inputs[parameter] = _constant(value, weights), (name,)
    return Operation(kind, inputs, tuple(_value(v) for v in proto.outputs))


def _value(proto: Any) -> Value:
    return Value(proto.name, *_tensor_type(proto.type))


def _tensor_type(proto: Any) -> tuple[str, tuple[int | None, ...]]:
    """Element type in numpy's words, or ``string``; and the shape."""
    if proto.WhichOneof("type") != "tensorType":
        raise ValueError(f"a value of type {proto.WhichOneof('type')} is not supported")
    tensor = proto.tensorType
    dtype = _protos().MIL_pb2.DataType.Name(tensor.dataType).lower()
    sizes = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return dtype, sizes


def _constant(proto: Any, weights: _Weights) -> Constant:
    dtype, sizes = _tensor_type(proto.type)
    shape = tuple(size for size in sizes if size is not None)
    if proto.WhichOneof("value") == "blobFileValue":
        blob = proto.blobFileValue
        return weights.read(blob.fileName, blob.offset, dtype, shape)
    tensor = proto.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind is None:
        raise ValueError(f"a constant of kind {proto.immediateValue.WhichOneof('value')} is not supported")
    values: Iterable[Any] = getattr(tensor, kind).values
    if dtype == "string":
        return str(next(iter(values)))
    if kind == "bytes" and dtype in (*_AS_BYTES, "uint32"):
        return np.frombuffer(bytes(tensor.bytes.values), dtype).reshape(shape)
    return np.array(list(values), dtype).reshape(shape)


def _bounds(proto: Any) -> tuple[tuple[int, int], ...]:
    return tuple((r.lowerBound, r.upperBound) for r in proto.shapeRange.sizeRanges)
