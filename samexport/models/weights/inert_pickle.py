"""Interprets the pickle inside a torch file without running anything from it.

Only the opcodes that ``torch.save`` writes are known, only allow-listed names pass, and no name is ever
looked up. Containers become plain containers; classes, storages and tensors become the records below.
``rehearse`` goes through a pickle that torch is to read, and refuses what would exhaust the machine.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from samexport.errors import CheckpointError

MAX_OPCODES = 400_000
"""A file built like ObjectAwareModel.pt has 63,000, one of SAM ViT-H with its optimizer 100,000."""

_DTYPES = {"torch.HalfStorage": "<f2", "torch.FloatStorage": "<f4", "torch.LongStorage": "<i8"}
_CALLABLE = (
    "collections.OrderedDict", "builtins.set", "builtins.getattr",
    "torch.device", "torch.Size", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
)  # fmt: skip
_HASHING = ("builtins.set", "__builtin__.set", "collections.OrderedDict", "collections.Counter")
_INERT_CLASSES = (
    "torch.nn.modules.", "torch.nn.parallel.data_parallel.", "ultralytics.",
    # SAM's own package, and those that people copied it to
    "segment_anything.", "segment_anything_kd.", "mobile_sam.",
)  # fmt: skip


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; it stays a name."""

    path: str


@dataclass(eq=False)
class Instance:
    """An object of a class that is only known by name, and the state it was pickled with."""

    path: str
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """A raw file of the zip: its number, element type and length."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class View:
    """A tensor: a strided window on a storage, all numbers in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Machine:
    """A pickle interpreter that builds plain containers and the records above, and nothing else."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes | BinaryIO) -> Any:
        """The object that the pickle describes; a stream stands behind the pickle afterwards."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise CheckpointError(f"the pickle has more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            if not (self._push(opcode.name, argument) or self._combine(opcode.name)):
                raise CheckpointError(
                    f"the pickle uses the opcode {opcode.name}, which torch.save never writes: no weight file"
                )
        raise CheckpointError("the pickle has no end")

    def _push(self, name: str, argument: Any) -> bool:
        """Opcodes that put one value on the stack, and those of the memo."""
        match name:
            case "PROTO":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "GLOBAL":
                self.stack.append(self._named(argument.replace(" ", ".")))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(self.stack))
            case _:
                return False
        return True

    def _combine(self, name: str) -> bool:
        """Opcodes that take values from the stack."""
        match name:
            case "TUPLE":
                self.stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "APPEND" | "APPENDS":
                values = self._pop(1) if name == "APPEND" else self._above_mark()
                self._append(self.stack[-1], values)
            case "SETITEM" | "SETITEMS":
                values = self._pop(2) if name == "SETITEM" else self._above_mark()
                self._set(self.stack[-1], values[::2], values[1::2])
            case "REDUCE":
                called, arguments = self._pop(2)
                self.stack.append(self._called(called, expect(arguments, tuple)))
            case "NEWOBJ":
                self.stack.append(self._made(self._pop(2)[0]))
            case "BUILD":
                (state,) = self._pop(1)
                # a dict here is an OrderedDict that carries attributes, which no tensor needs
                if isinstance(expect(self.stack[-1], Instance, dict), Instance):
                    self.stack[-1].state = state
            case "BINPERSID":
                self.stack.append(self._stored(expect(self._pop(1)[0], tuple)))
            case _:
                return False
        return True

    def _named(self, path: str) -> _Name:
        return _allowed(path)

    def _append(self, target: Any, values: list[Any]) -> None:
        expect(target, list).extend(values)

    def _set(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        # a tuple as key could be nested so deeply that hashing it overflows the stack
        keys = [expect(key, str, int, float) for key in keys]
        expect(target, dict).update(zip(keys, values, strict=True))

    def _called(self, called: Any, arguments: tuple[Any, ...]) -> Any:
        return _call(expect(called, _Name).path, arguments)

    def _made(self, called: Any) -> Instance:
        return _instance(expect(called, _Name).path)

    def _stored(self, persistent_id: tuple[Any, ...]) -> Any:
        return _storage(persistent_id)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise CheckpointError("the pickle takes more from its stack than is there")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _above_mark(self) -> list[Any]:
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken


class _Rehearsal(_Machine):
    """Goes through a pickle that torch will read; which names that may have is torch's business."""

    def _push(self, name: str, argument: Any) -> bool:
        if name in ("SHORT_BINSTRING", "EMPTY_SET"):
            self.stack.append("")
            return True
        return super()._push(name, argument)

    def _named(self, path: str) -> _Name:
        return _Name(path)

    def _append(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)

    def _set(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        _check_hashable(keys)

    def _called(self, called: Any, arguments: tuple[Any, ...]) -> Any:
        path = called.path if isinstance(called, _Name) else ""
        if path in _HASHING:
            for argument in arguments:
                _check_hashable(argument if isinstance(argument, tuple | list) else ())
        return {} if path == "collections.OrderedDict" else Instance(path)

    def _made(self, called: Any) -> Instance:
        return Instance("")

    def _stored(self, persistent_id: tuple[Any, ...]) -> Any:
        return Instance("storage")


def _check_hashable(values: Iterable[Any]) -> None:
    """Tuples in tuples can take forever to hash, or overflow the stack."""
    for value in values:
        if isinstance(value, tuple | list):
            raise CheckpointError(f"the pickle has a {type(value).__name__} where str belongs")


def expect(value: Any, *kinds: type) -> Any:
    """``value`` if it is of one of these kinds, else CheckpointError."""
    if not isinstance(value, kinds):
        raise CheckpointError(f"the pickle has a {type(value).__name__} where {kinds[0].__name__} belongs")
    return value


def _allowed(path: str) -> _Name:
    path = path.replace("__builtin__.", "builtins.")  # its name in protocol 2
    if path in _CALLABLE or path in _DTYPES or path.startswith(_INERT_CLASSES):
        return _Name(path)
    raise CheckpointError(f"the file asks for {path}, which no such model needs; it may be malicious: do not use it")


def _instance(path: str) -> Instance:
    if not path.startswith(_INERT_CLASSES):
        raise CheckpointError(f"the pickle makes an object of {path}")
    return Instance(path)


def _call(path: str, arguments: tuple[Any, ...]) -> Any:
    """What an allow-listed call stands for; ``getattr`` stands for a function that nobody will call."""
    match path, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "builtins.set", (list() as members,):
            return members
        case "builtins.getattr", (_Name() | Instance(), str()):
            return _Name("")
        case "torch.device", (str(), *_):
            return None
        case "torch.Size", (tuple() as shape,):
            return shape
        case "torch._utils._rebuild_parameter", (View() as view, *_):
            return view
        case "torch._utils._rebuild_tensor_v2", (
            Storage() as storage,
            int() as offset,
            tuple() as shape,
            tuple() as strides,
            *_,
        ):
            return _checked(View(storage, offset, shape, strides))
    if arguments == ():
        return _instance(path)
    raise CheckpointError(f"the pickle calls {path} in a way that torch.save does not")


def _storage(persistent_id: tuple[Any, ...]) -> Storage:
    match persistent_id:
        case ("storage", _Name(path), str() as key, str(), int() as length) if path in _DTYPES:
            if key.isascii() and key.isdigit() and length >= 0:
                return Storage(key, _DTYPES[path], length)
    raise CheckpointError("the pickle refers to data that is no storage")


def _checked(view: View) -> View:
    """Refuse a window that leaves its storage, or that reads elements twice to look larger than it is."""
    numbers = (view.offset, *view.shape, *view.strides)
    sound = len(view.shape) == len(view.strides) <= 8 and all(type(n) is int and n >= 0 for n in numbers)
    if sound and math.prod(view.shape) > 0:
        last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
        sound = last < view.storage.length and math.prod(view.shape) <= view.storage.length
    if not sound:
        raise CheckpointError("a tensor of the file reaches outside its data")
    return view


def interpret(data: bytes) -> Any:
    """What the pickle of a torch file holds, made of plain containers, :class:`Instance` and :class:`View`.

    Raises:
        CheckpointError: a name, an opcode or a call that such files do not have; a tensor outside its data.
        ValueError, IndexError, KeyError: the pickle is damaged.
    """
    return _Machine().run(data)


def rehearse(stream: BinaryIO) -> None:
    """Go through one pickle of ``stream`` without making anything; the stream stands behind it afterwards.

    Raises:
        CheckpointError: more opcodes than such files have, or tuples as keys.
        ValueError, IndexError, KeyError: the pickle is damaged.
    """
    _Rehearsal().run(stream)
