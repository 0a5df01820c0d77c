"""TFLite files in integers, by ai-edge-quantizer; which layers and how they are counted is ours.

Only layers with weights are quantized: what lies between them (LayerNorm, softmax, GELU) stays in single precision.
Weights are int8, symmetric, a scale for each output channel.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from samexport.errors import ConfigError, ExportFailed
from samexport.exporter.quantize.layers import Layer
from samexport.exporter.recipes import QUANTIZABLE, Recipe
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.quiet import silent
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Quantized
from samexport.runtimes.formats.tflite import (
    METADATA_NAME,
    append_metadata,
    constant_bytes,
    operator_names,
    pack_model,
    parse_model,
    read_model,
    shape_of,
    write_model,
)

_KINDS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
_CONVERTING = ("QUANTIZE", "DEQUANTIZE")
_ENDS = {"min": np.minimum, "max": np.maximum}
_BITS = {"int8": 8, "int16": 16}
_AND = "\n"
"""Between the names of a layer's operations."""


def layers(path: Path, graph: GraphSpec, recipe: Recipe) -> list[Layer]:
    """Operations of the recipe's kinds, of all entry points; those that share a weight are one layer."""
    kinds = recipe.operations.get("tflite", _KINDS)
    model = _read(path)
    found: dict[int, Layer] = {}
    for subgraph, operation, kind in _operations(model):
        weight = subgraph.tensors[operation.inputs[1]] if kind in kinds else None
        if weight is not None and constant_bytes(model, weight) is not None:
            name, macs = _name(subgraph, operation), _macs(subgraph, operation, kind)
            known = found.get(weight.buffer)
            label = known.label if known else f"{kind} {len(found)} of {list(shape_of(weight))}"
            names, more = (f"{known.name}{_AND}{name}", known.macs) if known else (name, 0)
            found[weight.buffer] = Layer(names, label, macs + more)
    return list(found.values())


def calibrate(path: Path, graph: GraphSpec, recipe: Recipe, inputs: Iterable[Tensors]) -> Any:
    """The extremes of each tensor that the recipe quantizes.

    Raises:
        ConfigError: the graph's entry points have fixed sizes, which pictures and prompts do not.
    """
    if graph.axes:
        raise ConfigError(f"{graph.name} has entry points of fixed size; take a recipe without calibration")
    merged: dict[str, dict[str, Any]] = {}
    with silent(output=True):
        quantizer = _quantizer(path, recipe, ())
        for each in inputs:
            # one by one: it would first count them all, and then average their extremes
            for name, found in quantizer.calibrate({graph.name: [dict(each)]}).items():
                known = merged.setdefault(name, found)
                merged[name] = {**known, **{k: ends(known[k], found[k]) for k, ends in _ENDS.items() if k in found}}
    return merged


def write(parent: Path, target: Path, graph: GraphSpec, recipe: Recipe, learnt: Any, keep: Collection[str]) -> None:
    """Write ``target`` with the parent's metadata; see :data:`samexport.exporter.quantize.layers.Write`.

    Raises:
        ExportFailed: ai-edge-quantizer refuses the graph.
    """
    try:
        with silent(output=True):
            found = _quantizer(parent, recipe, keep).quantize(learnt)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ExportFailed(f"{graph.name} cannot be quantized: {reason(error)}") from error
    content = bytes(found.quantized_model)
    model = parse_model(content, target.name)
    for buffer in model.buffers:
        if buffer.offset and buffer.size:
            # the quantizer puts weights behind the flatbuffer, where few readers look
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    write_model(model, target)
    if zipfile.is_zipfile(parent):
        with zipfile.ZipFile(parent) as archive:
            append_metadata(target, json.loads(archive.read(METADATA_NAME)))


def count(parent: Path, path: Path, graph: GraphSpec, kept: Mapping[str, str]) -> Quantized:
    """What the file itself shows; an operation multiplies integers where its weight comes as int8."""
    model = read_model(path)
    total = integer = pairs = 0
    stored: set[int] = set()
    computed: set[int] = set()
    for subgraph, operation, kind in _operations(model):
        pairs += kind in _CONVERTING
        given = [subgraph.tensors[index] for index in operation.inputs if index >= 0]
        stored |= {t.buffer for t in given if t.type == _int8()}
        computed |= {subgraph.tensors[index].buffer for index in operation.outputs}
        if kind in QUANTIZABLE["tflite"]:
            macs = _macs(subgraph, operation, kind)
            total += macs
            integer += macs if subgraph.tensors[operation.inputs[1]].type == _int8() else 0
    ratio = path.stat().st_size / parent.stat().st_size
    return Quantized(round(integer / max(total, 1), 4), len(stored - computed), pairs, round(ratio, 4), dict(kept))


def _quantizer(path: Path, recipe: Recipe, keep: Collection[str]) -> Any:
    from ai_edge_quantizer import quantizer

    made = quantizer.Quantizer(pack_model(_read(path)))
    made.load_quantization_recipe(_entries(recipe, keep))
    return made


def _read(path: Path) -> Any:
    """The model with a name for each tensor that no other has, which the quantizer needs."""
    model = read_model(path)
    seen: dict[bytes, int] = {}
    for tensor in (tensor for subgraph in model.subgraphs for tensor in subgraph.tensors):
        name = tensor.name if isinstance(tensor.name, bytes) else str(tensor.name or "").encode()
        seen[name] = seen.get(name, 0) + 1
        tensor.name = name if seen[name] == 1 else name + f".{seen[name]}".encode()
    return model


def _entries(recipe: Recipe, keep: Collection[str]) -> list[dict[str, Any]]:
    """The recipe in ai-edge-quantizer's JSON: one entry for each kind, then one for each layer that is left out."""
    weight = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    integer = recipe.compute in _BITS
    config: dict[str, Any] = {
        "weight_tensor_config": weight,
        "compute_precision": "INTEGER" if integer else "FLOAT",
        "explicit_dequantize": not integer,
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    if recipe.calibrated:
        bits = _BITS[recipe.compute]
        config["activation_tensor_config"] = {
            "num_bits": bits, "symmetric": bits == 16, "granularity": "TENSORWISE", "dtype": "INT",
        }  # fmt: skip
    kinds = recipe.operations.get("tflite", _KINDS)
    wanted = [
        {"regex": ".*", "operation": kind, "algorithm_key": "min_max_uniform_quantize", "op_config": config}
        for kind in kinds
    ]
    # the quantizer ends the name of each output with a semicolon
    left = [f"(^|;){re.escape(name)};" for layer in keep for name in layer.split(_AND)]
    return wanted + [{"regex": each, "operation": "*", "algorithm_key": "no_quantize"} for each in left]


def _operations(model: Any) -> Iterator[tuple[Any, Any, str]]:
    """Every operation with its subgraph and kind."""
    names = operator_names()
    kinds = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    for subgraph in model.subgraphs:
        for operation in subgraph.operators:
            yield subgraph, operation, kinds[operation.opcodeIndex]


def _name(subgraph: Any, operation: Any) -> str:
    name = subgraph.tensors[operation.outputs[0]].name
    return name.decode() if isinstance(name, bytes) else str(name)


def _macs(subgraph: Any, operation: Any, kind: str) -> int:
    first, second = (shape_of(subgraph.tensors[index]) for index in operation.inputs[:2])
    made = prod(shape_of(subgraph.tensors[operation.outputs[0]]))
    if kind == "CONV_2D":
        return made * prod(second[1:])
    if kind == "DEPTHWISE_CONV_2D":
        return made * prod(second[1:3])
    if kind == "TRANSPOSE_CONV":
        return prod(shape_of(subgraph.tensors[operation.inputs[2]])[:3]) * prod(second)
    return made * (second[-1] if kind == "FULLY_CONNECTED" else first[-1])


def _int8() -> int:
    from ai_edge_litert import schema_py_generated as schema

    return int(schema.TensorType.INT8)
