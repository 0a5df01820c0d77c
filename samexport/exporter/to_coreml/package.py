"""The files of an ``.mlpackage``, written so that equal content is equal bytes: no dates, no random identifiers."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samexport.errors import ExportFailed
from samexport.models.spec import GraphSpec
from samexport.runtimes.formats.mlpackage import read_package

if TYPE_CHECKING:
    from types import ModuleType

# CoreML itself takes no tensor of a higher rank
MAX_RANK = 5
# of the files in a package, and the name of the folder that holds them
_AUTHOR = "com.apple.CoreML"
_IDENTIFIERS = uuid.uuid5(uuid.NAMESPACE_DNS, "samexport.dev")


@dataclass(frozen=True)
class PackageTexts:
    """What Xcode shows besides the tensors; ``manifest`` becomes user-defined metadata as it is."""

    author: str
    licence: str
    version: str
    manifest: Mapping[str, str] = field(default_factory=dict)


def write_package(coremltools: ModuleType, source: Path, target: Path, graph: GraphSpec, texts: PackageTexts) -> None:
    """The package ``source`` with our texts, identifiers and order; its weights are moved, not copied."""
    inner, folder = source / "Data" / _AUTHOR, target / "Data" / _AUTHOR
    model = coremltools.proto.Model_pb2.Model.FromString((inner / "model.mlmodel").read_bytes())
    _describe(model.description, graph, texts)
    folder.mkdir(parents=True)
    (folder / "model.mlmodel").write_bytes(model.SerializeToString(deterministic=True))
    parts = {"Specification": "model.mlmodel"}
    if (inner / "weights").is_dir():
        # a graph without large constants has none
        os.rename(inner / "weights", folder / "weights")
        parts["Weights"] = "weights"
    (target / "Manifest.json").write_text(_manifest(parts), encoding="utf-8")


def rewrite_package(coremltools: ModuleType, source: Path, target: Path, parent: Path, graph: GraphSpec) -> None:
    """As :func:`write_package`, with the texts of another package of the same graph."""
    before = coremltools.proto.Model_pb2.Model.FromString((parent / "Data" / _AUTHOR / "model.mlmodel").read_bytes())
    about = before.description.metadata
    texts = PackageTexts(about.author, about.license, about.versionString, dict(about.userDefined))
    write_package(coremltools, source, target, graph, texts)


def _manifest(parts: Mapping[str, str]) -> str:
    """``Manifest.json`` of a package: what each part is and its name, with identifiers that never change."""
    identifiers = {kind: str(uuid.uuid5(_IDENTIFIERS, name)) for kind, name in parts.items()}
    entries = {
        identifiers[kind]: {
            "author": _AUTHOR,
            "description": f"CoreML Model {kind}",
            "name": name,
            "path": f"{_AUTHOR}/{name}",
        }
        for kind, name in parts.items()
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": identifiers["Specification"],
    }
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"


def _describe(description: Any, graph: GraphSpec, texts: PackageTexts) -> None:
    """Names, meanings and metadata; nothing stays of what coremltools writes about itself, such as the date."""
    meanings = {tensor.name: _meaning(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    for part in (description, *description.functions):
        for feature in (*part.input, *part.output):
            feature.shortDescription = meanings[feature.name]
    metadata = description.metadata
    metadata.Clear()
    metadata.shortDescription = f"{graph.name}: {graph.meaning}"
    metadata.author, metadata.license, metadata.versionString = texts.author, texts.licence, texts.version
    metadata.userDefined.update(texts.manifest)


def _meaning(tensor: Any) -> str:
    shape = " x ".join(str(size) for size in tensor.shape)
    values = "" if tensor.low is None else f"; values {tensor.low:g} to {tensor.high:g}"
    return f"{shape}: {tensor.meaning}{values}"


def check_package(package: Path, graph: GraphSpec) -> None:
    """What any CoreML file must hold: the names of the contract, and no tensor of too high a rank."""
    for function in read_package(package).functions.values():
        inputs = tuple(value.name for value in function.inputs)
        if sorted(inputs) != sorted(graph.input_names) or sorted(function.outputs) != sorted(graph.output_names):
            raise ExportFailed(
                f"{package.name} has the tensors {inputs}, {function.outputs}, not those of {graph.name}"
            )
        values = [value for operation in function.operations for value in operation.outputs]
        high = [value.name for value in values if len(value.shape) > MAX_RANK]
        if high:
            raise ExportFailed(f"{package.name} holds tensors above rank {MAX_RANK}: {', '.join(high[:5])}")
