"""Whether the tensors of a half-precision ONNX file fit into half precision, on given inputs.

ONNX Runtime computes much of a half-precision graph in float32 and joins nodes, so a file whose tensors are infinite
inside may give finite results on a CPU; a GPU gives NaN. Therefore nothing is run in half precision here: a copy of
the graph in float32 computes the same, every half tensor's extremes are read, and compared with what a half can hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, FileError, MissingDependency
from samexport.files import read_bytes, reason
from samexport.runtimes.base import Tensors

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

HALF_MAX = 65504.0
NEAR = 0.5
"""The share of ``HALF_MAX`` above which another picture might overflow."""

_LIMIT = 2**31
_EXTREMES = ("ReduceMax", "ReduceMin", "ReduceL1")


@dataclass(frozen=True)
class Peak:
    """The largest absolute value of a tensor over all inputs, and what makes it: ``"Gelu node_gelu_3"``."""

    source: str
    tensor: str
    largest: float

    @property
    def overflows(self) -> bool:
        """Whether a half cannot hold it."""
        return overflows(self.largest)

    def __str__(self) -> str:
        return f"{self.source} reaches {self.largest:.3g}"


@dataclass(frozen=True)
class HalfRange:
    """The half tensors of a file that overflow, and those above :data:`NEAR`, in the order of computing."""

    overflows: tuple[Peak, ...]
    near: tuple[Peak, ...]

    @property
    def reason(self) -> str:
        """One line that names the first one; empty if nothing overflows."""
        if not self.overflows:
            return ""
        several = f", and {len(self.overflows) - 1} more" if len(self.overflows) > 1 else ""
        return f"half precision ends at {HALF_MAX:.0f}: {self.overflows[0]}{several}"


def half_range(path: Path, examples: Iterable[Tensors], *, threads: int | None = None) -> HalfRange:
    """What inputs reach in the half-precision tensors of an ONNX file; nothing for a file without any.

    Args:
        path: of the file; its weights are inside.
        examples: inputs of the graph, such as those of the golden cases.
        threads: of ONNX Runtime; None for its own choice.

    Raises:
        BundleError: the file cannot be read or run.
        MissingDependency: the package onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingDependency(f"looking into an ONNX file needs {error.name}: pip install onnx") from error
    try:
        model = onnx.load_from_string(read_bytes(path, limit=_LIMIT))
        return model_range(model, examples, threads=threads)
    except (FileError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{path.name} cannot be read: {reason(error)}") from error


def model_range(model: ModelProto, examples: Iterable[Tensors], *, threads: int | None = None) -> HalfRange:
    """The same for a model in memory."""
    from onnx import TensorProto, numpy_helper, shape_inference

    graph = model.graph
    known = shape_inference.infer_shapes(model, strict_mode=True).graph
    half = {
        value.name
        for value in (*known.value_info, *known.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    found = [
        Peak(f"weight {weight.name}", weight.name, _largest(numpy_helper.to_array(weight)))
        for weight in graph.initializer
        if weight.data_type == TensorProto.FLOAT16
    ]
    sources = {name: f"{node.op_type} {node.name}" for node in graph.node for name in node.output if name in half}
    largest = peaks(_in_float(model), sources, examples, threads=threads) if sources else {}
    found += [Peak(sources[name], name, value) for name, value in largest.items()]
    near = [peak for peak in found if not peak.overflows and peak.largest > NEAR * HALF_MAX]
    return HalfRange(tuple(peak for peak in found if peak.overflows), tuple(near))


def wide_tensors(model: ModelProto, examples: Iterable[Tensors]) -> list[str]:
    """The float32 tensors and weights of a model that half precision cannot hold, on these inputs."""
    from onnx import TensorProto, numpy_helper, shape_inference

    known = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name for v in (*known.value_info, *known.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    weights = (w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT)
    found = {weight.name: _largest(numpy_helper.to_array(weight)) for weight in weights}
    found |= peaks(model, [name for node in model.graph.node for name in node.output if name in values], examples)
    return [name for name, largest in found.items() if overflows(largest)]


def file_peaks(path: Path, examples: Iterable[Tensors], *, threads: int | None = None) -> list[Peak]:
    """What inputs reach in every tensor of an ONNX file that is float or half, and what LayerNorms add up inside.

    The latter are the sums of squares around the mean, which no tensor holds: a kernel that adds in half precision
    fails where they do not fit, whatever the tensors hold.

    Raises:
        BundleError: the file cannot be run.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    model = _in_float(onnx.load(path))
    known = shape_inference.infer_shapes(model, strict_mode=True).graph
    floats = {v.name for v in (*known.value_info, *known.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    sources = {o: f"{node.op_type} {node.name}" for node in model.graph.node for o in node.output if o in floats}
    widths = {w.name: numpy_helper.to_array(w).size for w in model.graph.initializer}
    sums: dict[str, tuple[Peak, int]] = {}
    for node in [n for n in model.graph.node if n.op_type == "LayerNormalization"]:
        inverse, deviation = (f"{node.output[0]}.{part}" for part in ("inverse", "deviation"))
        node.output.extend(["", "", inverse][len(node.output) :])
        model.graph.node.append(helper.make_node("Reciprocal", [inverse], [deviation], deviation))
        # half precision weights are widened under their own name
        width = widths.get(node.input[1]) or widths[f"{node.input[1]}.half"]
        sums[deviation] = Peak(f"squares in {node.op_type} {node.name}", deviation, 0), width
    found = peaks(model, [*sources, *sums], examples, threads=threads)
    inside = [replace(peak, largest=width * found[name] ** 2) for name, (peak, width) in sums.items()]
    return [*(Peak(source, name, found[name]) for name, source in sources.items()), *inside]


def overflows(value: float) -> bool:
    """Whether a half cannot hold a number: it is NaN, infinite, or rounds to infinity."""
    with np.errstate(over="ignore"):
        return not np.isfinite(np.float16(value))


def peaks(
    model: ModelProto, tensors: Collection[str], examples: Iterable[Tensors], *, threads: int | None = None
) -> dict[str, float]:
    """The largest absolute value of each tensor over all inputs; NaN or infinity where it holds one.

    Raises:
        BundleError: ONNX Runtime refuses the graph or the inputs.
    """
    found = extremes(model, tensors, examples, threads=threads)
    return {name: float(np.maximum(abs(low), abs(high))) for name, (low, high) in found.items()}


def extremes(
    model: ModelProto, tensors: Collection[str], examples: Iterable[Tensors], *, threads: int | None = None
) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of each tensor over all inputs and 0; NaN or infinity where it holds one.

    They are formed inside the graph, so that memory holds no more tensors at a time than a normal run.

    Raises:
        BundleError: ONNX Runtime refuses the graph or the inputs.
    """
    import onnxruntime

    from samexport.runtimes.adapters.ort import session_options

    options = session_options(threads)
    # no node may be joined with another, and no weight be held twice
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = dict.fromkeys(tensors, (0.0, 0.0))
    names = [f"{kind}.{name}" for name in tensors for kind in _EXTREMES]
    try:
        session = onnxruntime.InferenceSession(
            _with_extremes(model, tensors).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for inputs in examples:
            values = np.array(session.run(names, inputs), np.float64).reshape(-1, len(_EXTREMES))
            for name, (high, low, total) in zip(tensors, values, strict=True):
                # the extremes of a tensor with NaN may be numbers, the sum is not
                ends = (low, high) if np.isfinite(total) else (total, total)
                before = found[name]
                found[name] = float(np.minimum(before[0], ends[0])), float(np.maximum(before[1], ends[1]))
    except Exception as error:
        # ONNX Runtime has no common base class for its exceptions
        raise BundleError(f"{model.graph.name} cannot be run to see its range: {reason(error)}") from error
    return found


def _with_extremes(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """A copy that returns maximum, minimum and sum of the absolute values of each tensor, and nothing else."""
    from onnx import ModelProto, TensorProto, helper

    probed = ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for name in tensors:
        for kind in _EXTREMES:
            probed.graph.node.append(helper.make_node(kind, [name], [f"{kind}.{name}"], keepdims=0))
            probed.graph.output.append(helper.make_tensor_value_info(f"{kind}.{name}", TensorProto.FLOAT, ()))
    return probed


def _in_float(model: ModelProto) -> ModelProto:
    """A copy that computes in float32; weights stay half, each is widened where it is used."""
    from onnx import ModelProto, TensorProto, helper

    wide = ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    del graph.value_info[:]
    widened = []
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            name, weight.name = weight.name, f"{weight.name}.half"
            widened.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        _widen(node)
    nodes = [*widened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return wide


def _widen(node: NodeProto) -> None:
    """Let a node make float32 where it says that it makes half: in casts and constants."""
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            tensor = numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32), attribute.t.name)
            attribute.t.CopyFrom(tensor)


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0))
