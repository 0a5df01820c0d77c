"""One writer a format: a graph module to a file in the bundle, and what the manifest says of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import samexport
from samexport.errors import MissingDependency
from samexport.exporter.to_coreml.convert import KEPT, CoreMLOptions
from samexport.exporter.to_coreml.package import PackageTexts
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.files import sha256, to_json
from samexport.installation import install_hint
from samexport.models.spec import GraphSpec, ModelSpec, is_picture
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Artifact, WeightsInfo
from samexport.runtimes.formats.mlpackage import read_package

if TYPE_CHECKING:
    from torch import nn

_INTERPRETED = 3
Target = OnnxOptions | TfliteOptions | CoreMLOptions


@dataclass(frozen=True)
class Facts:
    """What a file says of itself besides its tensors, and inputs by the name of the graph, to try it on."""

    model: ModelSpec
    weights: WeightsInfo
    examples: Mapping[str, Sequence[Tensors]] = field(default_factory=dict)

    def essentials(self, graph: GraphSpec) -> dict[str, Any]:
        """The manifest's essentials, for a user who has the file alone."""
        return {
            "samexport": samexport.__version__,
            "model": self.model.name,
            "family": self.model.family,
            "licence": self.model.licence,
            "frame": asdict(self.model.frame),
            "mask_outputs": list(self.model.mask_outputs),
            "weights": asdict(self.weights),
            "graph": graph.to_json(),
        }


Write = Callable[[GraphSpec, "nn.Module", Path, Any, Facts], Artifact]


@dataclass(frozen=True)
class Format:
    """What writes files: its name in manifests, its options, its packages and their extra, and the function.

    In which numbers a file computes is the :class:`samexport.exporter.recipes.Recipe` that its options name.
    """

    name: str
    options: type
    packages: tuple[str, ...]
    extra: str
    write_file: Write

    def check_packages(self) -> None:
        """MissingDependency if a package is missing, before anything is written."""
        missing = [package for package in self.packages if not versions((package,))]
        if missing:
            raise MissingDependency(f"{self.name} files need {missing[0]}: {install_hint(self.extra)}")

    def write(self, graph: GraphSpec, module: nn.Module, folder: Path, options: Any, facts: Facts) -> Artifact:
        """Write the file of a graph, and say what wrote it under which licence of the weights."""
        artifact = self.write_file(graph, module, folder, options, facts)
        return replace(artifact, licence=facts.model.licence, made_with=versions(self.packages))


def _write_onnx(graph: GraphSpec, module: nn.Module, folder: Path, options: OnnxOptions, facts: Facts) -> Artifact:
    from samexport.exporter.to_onnx import convert as to_onnx

    path = folder / _file_name(graph, options.recipe, "onnx")
    written = to_onnx.convert(graph, module, path, options, facts.examples.get(graph.name, ()))
    made = {"simplifier": f"none: {written.refused}" if written.refused else options.simplify}
    made |= versions(["onnxsim"]) if options.simplify == "onnxsim" else {}
    if written.kept_in_fp32:
        made["kept_in_fp32"] = ", ".join(written.kept_in_fp32)
    artifact = _artifact(graph, path, "onnx", options.recipe, options.opset, written.nodes)
    return replace(artifact, options=made)


def _write_tflite(graph: GraphSpec, module: nn.Module, folder: Path, options: TfliteOptions, facts: Facts) -> Artifact:
    from samexport.exporter.to_tflite import convert as to_tflite

    path = folder / _file_name(graph, options.recipe, "tflite")
    found = to_tflite.convert(graph, module, path, options, facts.essentials(graph))
    artifact = _artifact(graph, path, "tflite", options.recipe, None, found.total)
    return replace(artifact, options=to_tflite.made_with(options))


def _write_coreml(graph: GraphSpec, module: nn.Module, folder: Path, options: CoreMLOptions, facts: Facts) -> Artifact:
    from samexport.exporter.to_coreml import convert as to_coreml

    frame = facts.model.frame
    own = graph.name in {each.name for each in facts.model.graphs}
    if options.image_input and own and any(map(is_picture, graph.inputs)) and frame.resize == "longest":
        # a stretched picture has no padding
        from samexport.models.graphs.layers import FromPicture

        module = FromPicture(module, frame)
    path = folder / _file_name(graph, options.recipe, "mlpackage")
    essentials = to_json(facts.essentials(graph))
    texts = PackageTexts("samexport", facts.model.licence, samexport.__version__, {"dev.samexport": essentials})
    # the interpreter is slow, and the checks after the export run the other examples
    examples = facts.examples.get(graph.name, ())[:_INTERPRETED]
    written = to_coreml.convert(graph, module, path, options, texts, examples)
    package = read_package(written)
    operations = sum(len(function.operations) for function in package.functions.values())
    artifact = _artifact(graph, written, "coreml", options.recipe, None, operations)
    return replace(artifact, options={"kept_in_fp32": package.metadata[KEPT]} if KEPT in package.metadata else {})


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _file_name(graph: GraphSpec, recipe: str, ending: str) -> str:
    """GRAPH.RECIPE.ENDING; fp32 needs no recipe."""
    return f"{graph.name}.{ending}" if recipe == "fp32" else f"{graph.name}.{recipe}.{ending}"


def _artifact(
    graph: GraphSpec, path: Path, file_format: str, recipe: str, opset: int | None, nodes: int | None
) -> Artifact:
    parts = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    size = sum(file.stat().st_size for file in parts if file.is_file())
    return Artifact(graph.name, path.name, file_format, recipe, sha256(path), size, opset, nodes)


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("onnx", OnnxOptions, ("onnx", "onnxruntime", "onnxscript", "onnxslim"), "export", _write_onnx),
        Format("tflite", TfliteOptions, ("litert-torch", "ai-edge-litert"), "tflite", _write_tflite),
        Format("coreml", CoreMLOptions, ("coremltools",), "coreml", _write_coreml),
    )
}


def format_of(options: Target) -> Format:
    """The format that takes these options."""
    return next(each for each in FORMATS.values() if isinstance(options, each.options))
