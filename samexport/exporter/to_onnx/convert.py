"""One graph module to one ONNX file: exported by torch.onnx, slimmed, stripped of paths and traces."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from samexport.errors import ConfigError, ExportFailed, MissingDependency, SamExportError
from samexport.exporter.recipes import RECIPES, find_recipe
from samexport.exporter.to_onnx.versions import OPSETS, ir_version
from samexport.exporter.tracing import example_inputs
from samexport.files import check_room, reason
from samexport.installation import install_hint
from samexport.interrupts import interruptible, load
from samexport.models.spec import GraphSpec, Sizes
from samexport.quiet import silent
from samexport.runtimes.base import Tensors

if TYPE_CHECKING:
    import onnx
    import torch
    from numpy.typing import NDArray
    from torch import nn

Simplifier = Literal["onnxslim", "onnxsim", "none"]
SIMPLIFIERS = get_args(Simplifier)
DEFAULT_OPSET = 20
_PROTOBUF_LIMIT = 1_900_000_000
# of an output's range: what two orders of the same sums differ by
_SAME = 1e-4
# bytes by which an optimised file may be larger than the exported one, and of the constants that it gets otherwise
_GROWTH, _FOLDED = 1 << 20, 100_000


@dataclass(frozen=True)
class OnnxOptions:
    """The recipe, fp32 or fp16, the opset, and what simplifies the graph; ConfigError for others."""

    recipe: str = "fp32"
    opset: int = DEFAULT_OPSET
    simplify: Simplifier = "onnxslim"

    def __post_init__(self) -> None:
        find_recipe(self.recipe, "onnx")
        if self.opset not in OPSETS:
            raise ConfigError(f"opset {self.opset} is not supported; use {min(OPSETS)} to {max(OPSETS)}")
        if self.simplify not in SIMPLIFIERS:
            raise ConfigError(f"simplify is one of {', '.join(SIMPLIFIERS)}, not {self.simplify!r}")
        if self.simplify == "onnxsim" and importlib.util.find_spec("onnxsim") is None:
            raise MissingDependency(f"simplifying needs onnxsim: {install_hint('onnxsim')}")


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        nodes: how many the graph has.
        refused: why the simplifier's graph was not taken and the one that torch wrote was; empty where it was taken.
        kept_in_fp32: in an fp16 file the nodes that would overflow on the examples and compute in fp32 instead.
        near_limit: in an fp16 file what comes near the end of half precision on the examples, one line each.
    """

    nodes: int
    refused: str = ""
    kept_in_fp32: tuple[str, ...] = ()
    near_limit: tuple[str, ...] = ()


def convert(
    graph: GraphSpec, module: nn.Module, path: Path, options: OnnxOptions, examples: Sequence[Tensors] = ()
) -> OnnxFile:
    """Write ``path``; the named axes of the spec are dynamic.

    Args:
        graph: the contract.
        module: the graph's export form.
        path: must not exist yet.
        options: recipe and opset.
        examples: inputs of the graph, such as those of its golden cases. What overflows half precision on them
            stays in fp32; without any only the weights are looked at.

    Raises:
        ExportFailed: torch.onnx or the ONNX checker refuses the graph, or it does not run.
        OSError: the disk is full.
        KeyboardInterrupt: Ctrl-C, within seconds.
    """
    try:
        with silent(), interruptible():
            return _convert(graph, module, path, options, examples)
    except SamExportError:
        raise
    except Exception as error:
        check_room(path.parent, _size(module))
        # torch's, onnx's and onnxslim's exceptions have no common base; the first cause says most
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        why = f"{type(error).__name__}: {reason(error)}"
        raise ExportFailed(f"{graph.name} cannot be exported: {why}") from error


def convert_plainly(graph: GraphSpec, module: nn.Module, path: Path) -> int:
    """As :func:`convert` with its defaults, as baselines are written; the number of nodes."""
    return convert(graph, module, path, OnnxOptions()).nodes


def _convert(
    graph: GraphSpec, module: nn.Module, path: Path, options: OnnxOptions, examples: Sequence[Tensors]
) -> OnnxFile:
    tool = () if options.simplify == "none" else (options.simplify,)
    load("torch.onnx", "onnx", "onnxruntime", "onnxscript", *tool)
    import onnx

    from samexport.exporter.to_onnx.borders import pool_borders
    from samexport.exporter.to_onnx.maximum import name_places

    program = _export(graph, module, options.opset)
    if _size(module) > _PROTOBUF_LIMIT:
        return _write_large(program, graph, path, options)
    model, refused = program.model_proto, ""
    if options.simplify != "none":
        model, refused = optimise(model, graph, options.simplify)
    written = OnnxFile(0, refused)
    pool_borders(model)
    if graph.axes:
        # where every size is fixed, tools need no help
        name_places(model)
    if RECIPES[options.recipe].compute == "float16":
        model, written = _half(model, graph, examples, written)
    model = _clean(model, graph, options.opset)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return replace(written, nodes=len(model.graph.node))


def _size(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def _export(graph: GraphSpec, module: nn.Module, opset: int) -> torch.onnx.ONNXProgram:
    import torch

    from samexport.exporter.to_onnx.capture import TRANSLATIONS, capture

    axes = {axis.name: torch.export.Dim(axis.name, min=axis.low, max=axis.high) for axis in graph.axes}
    shapes = {t.name: {i: axes[d] for i, d in enumerate(t.shape) if isinstance(d, str)} or None for t in graph.inputs}
    given = example_inputs(graph, graph.sizes(default="traced"))
    write = partial(
        torch.onnx.export,
        args=given,
        input_names=list(graph.input_names),
        output_names=list(graph.output_names),
        dynamic_shapes=shapes,
        custom_translation_table=TRANSLATIONS,
        opset_version=opset,
        dynamo=True,
        optimize=True,
        external_data=False,
        verbose=False,
    )
    try:
        program = write(capture(module, given, shapes))
    except Exception:
        # torch.onnx has more ways to trace a module, and says best why none works
        program = write(module)
    if program is None:
        raise ExportFailed(f"torch.onnx returned nothing for {graph.name}")
    return program


def _half(
    model: onnx.ModelProto, graph: GraphSpec, examples: Sequence[Tensors], written: OnnxFile
) -> tuple[onnx.ModelProto, OnnxFile]:
    """The model in fp16 with what overflows left in fp32; ExportFailed if something overflows all the same."""
    from samexport.exporter.to_onnx.half import kept_for, to_half
    from samexport.runtimes.adapters.onnx_ranges import model_range, wide_tensors

    wide = wide_tensors(model, examples)
    half = to_half(model, wide)
    found = model_range(half, examples)
    if found.reason:
        raise ExportFailed(f"{graph.name} cannot be written in fp16: {found.reason}")
    return half, replace(written, kept_in_fp32=kept_for(model, wide), near_limit=tuple(map(str, found.near)))


def _write_large(program: torch.onnx.ONNXProgram, graph: GraphSpec, path: Path, options: OnnxOptions) -> OnnxFile:
    """Write a model above protobuf's limit: weights beside it in ``NAME.onnx.data``, the graph as exported."""
    import onnx
    import onnx_ir

    if RECIPES[options.recipe].compute != "float32":
        raise ConfigError(f"{graph.name} is above 2 GB, where only fp32 is supported; leave --precision away")
    onnx_ir.save(program.model, path, external_data=f"{path.name}.data")
    model = _clean(onnx.load(path, load_external_data=False), graph, options.opset)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(path)
    return OnnxFile(len(model.graph.node), "above 2 GB, which simplifiers do not take")


def other_sizes(graph: GraphSpec) -> Sizes:
    """Sizes of the axes that the exporter did not see: smaller ones, as attention to memories takes gigabytes.

    Not the smallest, which may be a special case.
    """
    less = {axis.name: axis.traced - 1 for axis in graph.axes if axis.traced - 1 > axis.low}
    return {axis.name: min(axis.traced + 1, axis.high) for axis in graph.axes} | less


def optimise(exported: onnx.ModelProto, graph: GraphSpec, tool: Simplifier = "onnxslim") -> tuple[onnx.ModelProto, str]:
    """The graph that ``tool`` makes if it is valid and computes the same, else ``exported`` and why."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(0)
    sizes = other_sizes(graph)
    inputs = {
        t.name: np.round(rng.uniform(t.low or 0, t.high or 1, t.resolved(sizes))).astype(t.dtype) for t in graph.inputs
    }
    expected = _run(exported, graph, inputs)
    try:
        slimmed = _simplified(exported) if tool == "onnxsim" else _slim(exported)
        onnx.checker.check_model(slimmed)
        actual = _run(slimmed, graph, inputs)
    except Exception as error:
        # whatever the optimiser broke, the exported graph is there
        return exported, f"{type(error).__name__}: {reason(error)}"
    for spec, a, b in zip(graph.outputs, expected, actual, strict=True):
        if a.shape != b.shape or not np.abs(a - b).max() <= _SAME * np.ptp(a):
            return exported, f"it computes another {spec.name}"
    return slimmed, ""


def _run(model: onnx.ModelProto, graph: GraphSpec, inputs: Tensors) -> list[NDArray[Any]]:
    import onnxruntime

    from samexport.runtimes.adapters.ort import session_options

    options = session_options(None)
    # an arena keeps all that ever was alive, and results keep the arena: 16 GB for two runs of memory attention
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(list(graph.output_names), inputs)
    return outputs


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    slimmed: onnx.ModelProto = onnxslim.slim(model)
    if slimmed.ByteSize() > model.ByteSize() + _GROWTH:
        # it has computed what a small form leaves to the runtime
        slimmed = onnxslim.slim(model, size_threshold=_FOLDED)
    return slimmed


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxsim makes; it raises where its own check fails."""
    import onnxsim

    simplified, same = onnxsim.simplify(model, tensor_size_threshold=f"{_FOLDED // 1000}KB")
    if not same:
        raise ValueError("onnxsim's own check says that its graph computes something else")
    result: onnx.ModelProto = simplified
    return result


def _clean(model: onnx.ModelProto, graph: GraphSpec, opset: int) -> onnx.ModelProto:
    """:func:`tidy`, and the format's version."""
    model.ir_version = ir_version(opset)
    tidy(model, graph)
    return model


def tidy(model: onnx.ModelProto, graph: GraphSpec) -> None:
    """Remove names, traces and metadata that differ from run to run or machine to machine."""
    del model.metadata_props[:]
    model.doc_string = graph.meaning
    model.graph.name = graph.name
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for item in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
    for value, spec in zip((*model.graph.input, *model.graph.output), (*graph.inputs, *graph.outputs), strict=True):
        value.doc_string = spec.meaning
