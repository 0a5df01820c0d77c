"""ONNX files in integers, by onnxruntime.quantization; ranges and counting are ours.

Q/DQ pairs, not operators of one runtime: OpenVINO and TensorRT read them too. Weights are int8, symmetric, a scale for
each output channel (depthwise convolutions collapse without), activations uint8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError, ExportFailed
from samexport.exporter.quantize.layers import Layer
from samexport.exporter.recipes import QUANTIZABLE, Recipe
from samexport.exporter.to_onnx.even import even_channels
from samexport.exporter.to_onnx.places import as_places
from samexport.models.spec import GraphSpec
from samexport.quiet import silent
from samexport.runtimes.adapters.onnx_ranges import extremes
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Quantized

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_KINDS = QUANTIZABLE["onnx"]
_INTEGER = ("MatMulInteger", "ConvInteger")
_CONVERTING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
# what ONNX Runtime's quantizer appends to the name of a weight
_STORED = "_quantized"
# and to the names of a Gemm that it has rewritten as a product, and of its weight
_REWRITTEN, _TURNED = "_MatMul", "_Transposed"
Ranges = dict[str, tuple[float, float]]


def layers(path: Path, graph: GraphSpec, recipe: Recipe) -> list[Layer]:
    """Operations of the recipe's kinds that have a weight."""
    model = _load(path)
    # ONNX Runtime multiplies integers by matrices alone
    weights = {w.name for w in model.graph.initializer if len(w.dims) == 2 or len(w.dims) == 4}
    kinds = recipe.operations.get("onnx", _KINDS)
    macs = _macs(model, graph)
    return [
        Layer(node.name, f"{node.op_type} {_label(node)}", macs[node.name])
        for node in model.graph.node
        if node.op_type in kinds and node.input[1] in weights
    ]


def calibrate(path: Path, graph: GraphSpec, recipe: Recipe, inputs: Iterable[Tensors]) -> Ranges:
    """Lowest and highest value of each float tensor: MinMax, since ONNX Runtime's entropy and percentile gave NaN."""
    model = _prepared(path, recipe)
    names = {layer.name for layer in layers(path, graph, recipe)}
    nodes = [node for node in model.graph.node if node.name in names]
    # a product's result needs no scale
    touched = {name for node in nodes for name in (node.input[0], *(node.output if node.op_type == "Conv" else ()))}
    given = {t.name: (t.low, t.high) for t in graph.inputs if t.low is not None and t.high is not None}
    return given | extremes(model, sorted(touched - given.keys()), inputs)


def write(
    parent: Path, target: Path, graph: GraphSpec, recipe: Recipe, ranges: Ranges | None, keep: Collection[str]
) -> None:
    """Write ``target``; see :data:`samexport.exporter.quantize.layers.Write`.

    Raises:
        ExportFailed: ONNX Runtime's quantizer refuses the graph.
    """
    import onnx

    from samexport.exporter.to_onnx.convert import tidy

    chosen = [layer.name for layer in layers(parent, graph, recipe) if layer.name not in keep]
    try:
        with silent(output=True):
            if recipe.compute == "float32" or not chosen:
                model = _weights_only(_prepared(parent, recipe), chosen)
            elif ranges is None:
                model = _dynamic(_prepared(parent, recipe), target, chosen)
            else:
                model = _static(_prepared(parent, recipe), chosen, ranges)
        if "tanh_gelu" in recipe.passes and chosen:
            _by_tanh(model)
        as_places(model)
        tidy(model, graph)
        onnx.checker.check_model(model)
    except (ValueError, onnx.checker.ValidationError, KeyError) as error:
        raise ExportFailed(f"{graph.name} cannot be quantized: {error}") from error
    target.write_bytes(model.SerializeToString(deterministic=True))


def count(parent: Path, path: Path, graph: GraphSpec, kept: Mapping[str, str]) -> Quantized:
    """What the file itself shows; a layer counts as integer if its operation gets integers on both sides."""
    before, after = _load(parent), _load(path)
    source = {output: node for node in after.graph.node for output in node.output}
    stored = {w.name for w in after.graph.initializer if w.name.endswith(_STORED) and w.data_type in _integers()}
    integer = {weight for node in after.graph.node if (weight := _integer_weight(node, source)) in stored}
    macs = _macs(before, graph)
    weighed = {node.input[1]: 0 for node in before.graph.node if node.op_type in _KINDS}
    for node in before.graph.node:
        if node.op_type in _KINDS:
            weighed[node.input[1]] += macs[node.name]
    names = [name.removesuffix(_STORED).removesuffix(_TURNED) for name in integer]
    share = sum(weighed.get(name, 0) for name in names) / max(sum(macs.values()), 1)
    pairs = sum(node.op_type in _CONVERTING for node in after.graph.node)
    ratio = path.stat().st_size / parent.stat().st_size
    return Quantized(round(share, 4), len(stored), pairs, round(ratio, 4), dict(kept))


def _load(path: Path) -> ModelProto:
    import onnx

    if path.with_name(f"{path.name}.data").exists():
        raise ConfigError(f"{path.name} is above 2 GB, which is not quantized")
    return onnx.load(path)


def _prepared(path: Path, recipe: Recipe) -> ModelProto:
    """The float graph with what the recipe changes before scales are found."""
    model = _load(path)
    if "even_channels" in recipe.passes:
        even_channels(model)
    return model


def _label(node: NodeProto) -> str:
    """The weight's name, or the bias's where the exporter has turned the weight around and named it anew."""
    named = [name for name in node.input[1:] if "." in name]
    return named[0].rpartition(".")[0] if named else node.name


def _macs(model: ModelProto, graph: GraphSpec) -> dict[str, int]:
    """Multiplications by node, at the graph's usual sizes."""
    import onnx

    sizes = graph.sizes(default="usual")
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value, spec in zip(sized.graph.input, graph.inputs, strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, spec.resolved(sizes), strict=True):
            dimension.dim_value = size
    # what the file says of them has names in place of sizes
    del sized.graph.value_info[:]
    known = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*known.value_info, *known.input, *known.output)
    }
    shapes |= {w.name: list(w.dims) for w in known.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in _KINDS:
            weight, out = shapes[node.input[1]], shapes.get(node.output[0], [])
            # a transposed convolution multiplies each pixel that it reads, the others each that they make
            made = shapes.get(node.input[0], []) if node.op_type == "ConvTranspose" else out
            inner = weight[1:] if node.op_type.startswith("Conv") else shapes.get(node.input[0], [])[-1:]
            found[node.name] = prod(made) * prod(inner)
    return found


def _by_tanh(model: ModelProto) -> None:
    from onnx import helper

    for node in model.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "tanh"))


def _static(model: ModelProto, chosen: Collection[str], ranges: Ranges) -> ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    kinds = {node.op_type for node in model.graph.node if node.name in chosen}
    # a product may end in floats, a convolution only computes in integers between two pairs
    options = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
    quantizer = QDQQuantizer(
        model, True, False, QuantType.QInt8, QuantType.QUInt8, TensorsData(CalibrationMethod.MinMax, data),
        list(chosen), [], sorted(kinds), options,
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: ModelProto = quantizer.model.model
    return result


def _dynamic(model: ModelProto, target: Path, chosen: Collection[str]) -> ModelProto:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = {node.op_type for node in model.graph.node if node.name in chosen}
    # a Gemm is rewritten as a product, which is asked for by its own kind
    kinds |= {"MatMul"} if "Gemm" in kinds else set()
    quantize_dynamic(
        model, target, op_types_to_quantize=sorted(kinds), per_channel=True, weight_type=QuantType.QInt8,
        nodes_to_quantize=[*chosen, *(name + _REWRITTEN for name in chosen)],
    )  # fmt: skip
    return onnx.load(target)


def _weights_only(model: ModelProto, chosen: Collection[str]) -> ModelProto:
    """Weights as int8 with a scale for each output channel, dequantized where they are used."""
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    axes = {node.input[1]: _channel_axis(node) for node in model.graph.node if node.name in chosen}
    nodes, made = [], []
    for name, axis in axes.items():
        values = numpy_helper.to_array(weights[name])
        integers, scales = per_channel(values, axis % values.ndim)
        made += [
            numpy_helper.from_array(integers, name + _STORED),
            numpy_helper.from_array(scales, f"{name}_scale"),
        ]
        inputs = [name + _STORED, f"{name}_scale"]
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [name], f"{name}.dequantize", axis=axis % values.ndim)
        )
        model.graph.initializer.remove(weights[name])
    model.graph.initializer.extend(made)
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def per_channel(values: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 in -127..127 and the scale of each channel along ``axis``."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return np.clip(np.rint(values / scales.reshape(shape)), -127, 127).astype(np.int8), scales


def _channel_axis(node: NodeProto) -> int:
    """The axis of a weight that counts its outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1 if node.op_type in ("Gemm", "ConvTranspose") else -1


def _integers() -> tuple[int, ...]:
    from onnx import TensorProto

    return int(TensorProto.INT8), int(TensorProto.UINT8)


def _integer_weight(node: NodeProto, source: Mapping[str, NodeProto]) -> str:
    """Name of the stored weight that a node multiplies in integers; empty if it computes in floats."""
    if node.op_type in _INTEGER:
        return str(node.input[1])
    before = [source.get(name) for name in node.input[:2]]
    if node.op_type in _KINDS and all(b is not None and b.op_type == "DequantizeLinear" for b in before):
        assert before[1] is not None
        return str(before[1].input[0])
    return ""
