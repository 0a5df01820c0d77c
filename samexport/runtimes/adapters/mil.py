"""Runs a saved ``.mlpackage`` anywhere: an interpreter for CoreML's ML Programs.

It parses program and weights from disk, so it checks the file that an app will load and not what the
converter had in memory. It checks what was written; it says nothing about Apple's kernels, compiler or
Neural Engine, which only run on Apple's machines.

Three precisions:

- ``fp32``: all results stay float32; shows whether graph and weights are right.
- ``fp16``: every result that the program declares float16 is rounded to float16. An fp32 program runs in fp32.
- ``fp16_accumulate``: sums are formed in float16 as well, one term after the other; the worst that hardware does.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from samexport.errors import BundleError, ConfigError, ParityFailed
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.entry_points import Bucket, run_in_buckets
from samexport.runtimes.adapters.packages import buckets_of, check_names, whole_pixels
from samexport.runtimes.base import Runtime, Tensors, declared
from samexport.runtimes.formats.mil_arithmetic import Arithmetic, HalfAccumulation
from samexport.runtimes.formats.mil_ops import MOVES, OPERATIONS
from samexport.runtimes.formats.mlpackage import Function, Operation, Value, read_package

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "fp16", "fp16_accumulate"]

FP16_MAX = 65504.0
NEAR = FP16_MAX / 4
"""A result above this is reported: two more bits and it overflows."""
SQUARES = "squares in layer_norm"
"""The kind of what a LayerNorm sums inside, which no tensor of the program holds."""


@dataclass(frozen=True)
class OperationRange:
    """What one operation produced; low and high leave out what is not finite."""

    name: str
    kind: str
    dtype: str
    low: float
    high: float
    finite: bool


@dataclass(frozen=True)
class RangeReport:
    """The first operation with a NaN or infinity, and the declared-float16 results that come near 65504.

    ``every`` has all float16 results, and the sums of squares (:data:`SQUARES`) of float16 LayerNorms.
    """

    first_not_finite: OperationRange | None
    near_limit: tuple[OperationRange, ...]
    every: tuple[OperationRange, ...] = ()


Observer = Callable[[Operation, Mapping[str, Any], Value, "Tensor"], None]
"""What an operation was given and one of its results."""


class MilRuntime(Runtime):
    """An opened package. A decoder with several fixed entry points takes any number of prompts.

    Args:
        path: the ``.mlpackage``.
        graph: its contract.
        threads: of torch, None for torch's own choice.
        precision: see the module.

    Raises:
        BundleError: the package is damaged, or its inputs and outputs are not those of ``graph``.
        ConfigError: it uses operations that the interpreter does not know (all are named).
        MissingDependency: coremltools is not installed.
    """

    name = "mil"
    notice = "CoreML is not run here: the packages are interpreted, which is slow"

    def __init__(
        self, path: Path, graph: GraphSpec, *, threads: int | None = None, precision: Precision = "fp16"
    ) -> None:
        super().__init__(graph)
        if precision not in get_args(Precision):
            raise ConfigError(f"precision is one of {', '.join(get_args(Precision))}, got {precision!r}")
        self._package = read_package(path)
        check_names(self._package, graph, path.name)
        self._threads, self._precision = threads, precision
        self._functions = {n: _Executable(f, precision) for n, f in self._package.functions.items()}
        self.buckets = buckets_of(self._package, graph)

    @property
    def bounds(self) -> tuple[Bucket, ...]:
        """Of fixed and of flexible entry points."""
        return self.buckets

    def _run(self, inputs: Tensors) -> Tensors:
        outputs = self._execute(inputs)
        if all(np.isfinite(value).all() for value in outputs.values()):
            return outputs
        first = self.ranges(inputs).first_not_finite
        where = f"{first.kind} {first.name}" if first else "an output"
        raise ParityFailed(f"{self.graph.name} gives NaN or infinity; the first operation that does is {where}")

    def _execute(self, inputs: Tensors, observer: Observer | None = None) -> Tensors:
        for name in self._package.image_inputs:
            inputs[name] = whole_pixels(inputs[name])
        with _torch_threads(self._threads):
            if not self.buckets:
                found = self._functions[self._package.default].run(inputs, observer)
            else:
                found = run_in_buckets(
                    self.graph, inputs, self.buckets, lambda b, part: self._functions[b.name].run(part, observer)
                )
        return declared(self.graph, found)

    def ranges(self, inputs: Tensors) -> RangeReport:
        """Run, and say where numbers leave or come near the end of float16; inputs as for :meth:`run`."""
        seen: list[OperationRange] = []

        def observe(operation: Operation, given: Mapping[str, Any], value: Value, tensor: Tensor) -> None:
            if tensor.is_floating_point() and tensor.numel():
                seen.append(_range(operation.kind, value, tensor))
                if operation.kind == "layer_norm":
                    seen.append(_range(SQUARES, value, _squares(given)))

        self._execute({name: np.ascontiguousarray(inputs[name]) for name in self.graph.input_names}, observe)
        half = [r for r in seen if r.dtype == "float16"]
        near = [r for r in half if r.kind != SQUARES and (max(-r.low, r.high) > NEAR or not r.finite)]
        return RangeReport(next((r for r in seen if not r.finite), None), tuple(near), tuple(half))

    def operations(self) -> dict[str, int]:
        """How often each operation occurs, over all entry points, constants left out."""
        kinds = (o.kind for f in self._package.functions.values() for o in f.operations)
        return dict(Counter(kinds).most_common())

    def placement(self) -> str:
        """The precision that the program has, and what this run cannot show."""
        operations = (o for function in self._package.functions.values() for o in function.operations)
        halves = any(value.dtype == "float16" for o in operations for value in o.outputs)
        precision = self._precision if halves else "fp32"
        return f"interpreted, cpu, {precision}; shows what was written, not Apple's kernels"

    def _release(self) -> None:
        # the constants are mapped files, which Windows does not rename
        del self._functions, self._package


def _range(kind: str, value: Value, tensor: Tensor) -> OperationRange:
    finite = tensor.isfinite()
    known = tensor if bool(finite.all()) else tensor[finite]
    low, high = (float(known.min()), float(known.max())) if known.numel() else (0.0, 0.0)
    return OperationRange(value.name, kind, value.dtype, low, high, known is tensor)


def _squares(given: Mapping[str, Any]) -> Tensor:
    """What a LayerNorm divides by the count to get the variance."""
    x, axes = given["x"], [int(axis) for axis in given["axes"].flatten()]
    squares: Tensor = (x - x.mean(axes, keepdim=True)).square().sum(axes)
    return squares


@contextlib.contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


class MilSingle(MilRuntime):
    """Weights as stored, everything else in single precision."""

    name = "mil-fp32"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        super().__init__(path, graph, threads=threads, precision="fp32")


class MilAccumulate(MilRuntime):
    """Sums in half precision too, the worst that hardware may do."""

    name = "mil-accumulate"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        super().__init__(path, graph, threads=threads, precision="fp16_accumulate")


class _Executable:
    """One entry point, its constants as tensors and for each operation the values nobody needs after it."""

    def __init__(self, function: Function, precision: Precision) -> None:
        unknown = sorted({o.kind for o in function.operations} - set(OPERATIONS))
        if unknown:
            raise ConfigError(f"the interpreter does not know {', '.join(unknown)} (in {function.name})")
        self._function, self._round = function, precision != "fp32"
        self._half: Arithmetic = HalfAccumulation() if precision == "fp16_accumulate" else Arithmetic()
        self._full = Arithmetic()
        self._constants = {name: _as_tensor(value) for name, value in function.constants.items()}
        last = {
            name: step for step, o in enumerate(function.operations) for names in o.inputs.values() for name in names
        }
        self._dead: list[list[str]] = [[] for _ in function.operations]
        for name, step in last.items():
            if name not in self._constants and name not in function.outputs:
                self._dead[step].append(name)

    def run(self, inputs: Tensors, observer: Observer | None) -> Tensors:
        values = {v.name: _declared(_as_tensor(inputs[v.name]), v, self._round) for v in self._function.inputs}
        for operation, dead in zip(self._function.operations, self._dead, strict=True):
            given = self._given(operation, values)
            results = self._compute(operation, given)
            for value, tensor in zip(operation.outputs, results, strict=True):
                rounded = self._round and operation.kind not in MOVES
                values[value.name] = _declared(tensor, value, rounded)
                if observer is not None:
                    observer(operation, given, value, values[value.name])
            del results, given
            for name in dead:
                del values[name]
        return {name: values[name].contiguous().numpy() for name in self._function.outputs}

    def _given(self, operation: Operation, values: Mapping[str, Tensor]) -> dict[str, Any]:
        found = {
            parameter: tuple(self._constants[n] if n in self._constants else values[n] for n in names)
            for parameter, names in operation.inputs.items()
        }
        return {name: value[0] if len(value) == 1 else value for name, value in found.items()}

    def _compute(self, operation: Operation, given: Mapping[str, Any]) -> tuple[Tensor, ...]:
        halves = operation.outputs[0].dtype == "float16"
        try:
            result = OPERATIONS[operation.kind](self._half if halves else self._full, given)
        except Exception as error:
            # torch raises many types; all mean that the program and the interpreter disagree
            where = f"{operation.kind} {operation.outputs[0].name}"
            raise BundleError(f"the interpreter cannot run {where}: {reason(error)}") from error
        return result if isinstance(result, tuple) else (result,)


def _as_tensor(value: Any) -> Any:
    """Floats as float32, integers as int32; strings stay what they are."""
    import torch

    if isinstance(value, str):
        return value
    kind = np.asarray(value).dtype.kind
    wanted = {"f": np.float32, "b": np.bool_}.get(kind, np.int32)
    return torch.from_numpy(np.array(value, wanted))


def _declared(tensor: Tensor, value: Value, rounded: bool) -> Tensor:
    """The tensor as its declared type holds it, rounded in place; int32 stands for all integers."""
    import torch

    if value.dtype == "float16" and rounded:
        return tensor.copy_(tensor.half())
    kinds = {"float16": torch.float32, "float32": torch.float32, "bool": torch.bool}
    return tensor.to(kinds.get(value.dtype, torch.int32))
