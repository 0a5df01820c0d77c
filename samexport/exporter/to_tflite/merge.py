"""Files of one entry point each, as converters of ONNX write them, to one file with several that share the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samexport.errors import ExportFailed
from samexport.exporter.to_tflite.graph import Graph
from samexport.models.spec import GraphSpec

_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def merge(parts: Mapping[str, Any]) -> Any:
    """One ``ModelT`` with an entry point of each name; weights that are equal are still stored several times.

    Args:
        parts: by the name of the entry point, each with one subgraph and one signature. They are used up.
    """
    from ai_edge_litert import schema_py_generated as schema

    merged = schema.ModelT()
    merged.version, merged.buffers, merged.operatorCodes = 3, [schema.BufferT()], []
    merged.subgraphs, merged.signatureDefs = [], []
    codes: dict[tuple[Any, ...], int] = {}
    for name, part in parts.items():
        subgraph, signature = part.subgraphs[0], part.signatureDefs[0]
        for operator in subgraph.operators:
            code = part.operatorCodes[operator.opcodeIndex]
            known = (code.builtinCode, code.deprecatedBuiltinCode, code.customCode, code.version)
            if known not in codes:
                codes[known] = len(merged.operatorCodes)
                merged.operatorCodes.append(code)
            operator.opcodeIndex = codes[known]
        for tensor in subgraph.tensors:
            merged.buffers.append(part.buffers[tensor.buffer])
            tensor.buffer = len(merged.buffers) - 1
        signature.signatureKey, signature.subgraphIndex = name.encode(), len(merged.subgraphs)
        subgraph.name = name.encode()
        merged.subgraphs.append(subgraph)
        merged.signatureDefs.append(signature)
    return merged


def keep_layout(model: Any, graph: GraphSpec, name: str) -> None:
    """Give the entry point ``name`` the tensors of the spec, in place: an output with channels last is transposed.

    Marks of dynamic sizes go, which onnx2tf leaves on what a SPLIT makes although every size is known.

    Args:
        model: ``ModelT``.
        graph: a contract without named axes.
        name: of the entry point.

    Raises:
        ExportFailed: a tensor is missing, one too many, or has a shape that no such transposition explains.
    """
    signature = next(s for s in model.signatureDefs if s.signatureKey == name.encode())
    edited = Graph(model, model.subgraphs[signature.subgraphIndex])
    for tensor in edited.subgraph.tensors:
        tensor.shapeSignature = None
    for kind, found, specs in (("input", signature.inputs, graph.inputs), ("output", signature.outputs, graph.outputs)):
        names, wanted = {entry.name.decode(): entry for entry in found}, {spec.name: spec.shape for spec in specs}
        if set(names) != set(wanted):
            raise ExportFailed(f"{graph.name}: the converter wrote the {kind}s {sorted(names)}, not {sorted(wanted)}")
        for tensor_name, shape in wanted.items():
            entry = names[tensor_name]
            has = edited.shape(entry.tensorIndex)
            if has == shape:
                continue
            if kind == "input" or len(shape) != len(has) or has != tuple(shape[i] for i in _TO_CHANNELS_LAST):
                raise ExportFailed(f"{graph.name}: the converter gave {tensor_name} the shape {has}, not {shape}")
            _transpose_output(edited, entry, tuple(map(int, shape)))


def _transpose_output(graph: Graph, entry: Any, shape: tuple[int, ...]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    old = entry.tensorIndex
    new = graph.tensor_like(old, shape)
    order = graph.integer_constant(_TO_CHANNELS_FIRST)
    kind = schema.BuiltinOptions.TransposeOptions
    graph.subgraph.operators.append(graph.operator("TRANSPOSE", kind, schema.TransposeOptionsT(), [old, order], [new]))
    graph.subgraph.outputs = [new if int(t) == old else int(t) for t in graph.subgraph.outputs]
    entry.tensorIndex = new
