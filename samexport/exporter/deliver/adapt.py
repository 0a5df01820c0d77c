"""ONNX files for other programs: a few nodes in ONNX's own text form around a graph of a bundle, weights unchanged.

A text is a whole graph whose header has the other program's names, order, types and sizes, and in which a line such as
``image_embeddings = samexport.encoder (image)`` stands for all nodes of the bundle's graph of that name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from samexport.errors import ExportFailed
from samexport.files import reason
from samexport.runtimes.bundle import Bundle

if TYPE_CHECKING:
    import onnx

DOMAIN = "samexport"


def write_adapted(text: str, bundle: Bundle, path: Path, metadata: dict[str, str]) -> None:
    """Write ``path``; weights that lie in a second file are copied beside it, under the name that they have.

    Args:
        text: ONNX text from the list of inputs to the closing brace.
        bundle: its graphs are what the calls stand for.
        path: must not exist yet; its folder must.
        metadata: for the file's ``metadata_props``.

    Raises:
        ExportFailed: the text is none, or does not fit the bundle.
    """
    import onnx

    try:
        model = _adapted(text, bundle)
        model.metadata_props.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in sorted(metadata.items()))
        for name in sorted({_beside(weight) for weight in model.graph.initializer} - {""}):
            shutil.copyfile(bundle.folder / name, path.parent / name)
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path)
    except OSError:
        raise
    except Exception as error:
        # the parser's and the checker's errors have no common base
        raise ExportFailed(f"{path.name} cannot be made of {bundle.folder.name}: {reason(error)}") from error


def _adapted(text: str, bundle: Bundle) -> onnx.ModelProto:
    import onnx

    from samexport.exporter.to_onnx.versions import ir_version

    name = next(name for name in bundle.graph_names if f"{DOMAIN}.{name} " in text)
    opset = bundle.artifact(name).opset or 0
    head = f'<ir_version: {ir_version(opset)}, opset_import: ["" : {opset}], producer_name: "{DOMAIN}">\n'
    model = onnx.parser.parse_model(f"{head}{name} {text}")
    calls = list(model.graph.node)
    del model.graph.node[:]
    for call in calls:
        model.graph.node.extend(_inlined(model.graph, call, bundle) if call.domain == DOMAIN else (call,))
    return model


def _inlined(graph: onnx.GraphProto, call: onnx.NodeProto, bundle: Bundle) -> list[onnx.NodeProto]:
    """The nodes that a call stands for; their weights are added to ``graph``."""
    import onnx

    path = bundle.folder / bundle.artifact(call.op_type).path
    prefix = f"{call.op_type}/"
    own = onnx.compose.add_prefix(onnx.load(path, load_external_data=False), prefix).graph
    names = dict(zip((v.name for v in own.input), call.input, strict=True))
    names |= dict(zip((v.name for v in own.output), call.output, strict=True))
    for node in own.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    graph.initializer.extend(own.initializer)
    return list(own.node)


def _beside(weight: onnx.TensorProto) -> str:
    return next((entry.value for entry in weight.external_data if entry.key == "location"), "")
