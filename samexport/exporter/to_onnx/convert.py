"""One graph module to one ONNX file: exported by torch.onnx, slimmed, stripped of paths and traces."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samexport.errors import ConfigError, ExportFailed, SamExportError
from samexport.models.spec import GraphSpec

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import Tensor, nn

DEFAULT_OPSET = 20
OPSETS = range(18, 24)
_PROTOBUF_LIMIT = 1_900_000_000
# Sizes that torch.export sees: 1 would be frozen into the graph.
TRACED_SIZES = {"N": 3, "K": 2}


@dataclass(frozen=True)
class OnnxOptions:
    """Precision "fp32" or "fp16", and the opset; ConfigError for others."""

    precision: str = "fp32"
    opset: int = DEFAULT_OPSET

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "fp16"):
            raise ConfigError(f"--precision of ONNX is fp32 or fp16, not {self.precision!r}")
        if self.opset not in OPSETS:
            raise ConfigError(f"opset {self.opset} is not supported; use {OPSETS.start} to {OPSETS[-1]}")


def example_inputs(graph: GraphSpec) -> tuple[Tensor, ...]:
    """Inputs for tracing, with ``TRACED_SIZES`` on the named axes; the values do not matter."""
    import torch

    sizes = [[TRACED_SIZES[d] if isinstance(d, str) else d for d in t.shape] for t in graph.inputs]
    return tuple(torch.zeros(*size) for size in sizes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's progress prints and its warnings about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def convert(graph: GraphSpec, module: nn.Module, path: Path, options: OnnxOptions) -> int:
    """Write ``path``; the named axes of the spec are dynamic.

    Returns:
        the number of nodes.

    Raises:
        ExportFailed: torch.onnx or the ONNX checker refuses the graph.
    """
    import onnx
    import torch

    from samexport.exporter.to_onnx.half import to_half

    axes = {d: torch.export.Dim(d, min=1, max=65536) for d in graph.axes}
    shapes = {t.name: {i: axes[d] for i, d in enumerate(t.shape) if isinstance(d, str)} or None for t in graph.inputs}
    try:
        with quiet():
            program = torch.onnx.export(
                module,
                example_inputs(graph),
                input_names=list(graph.input_names),
                output_names=list(graph.output_names),
                dynamic_shapes=shapes,
                opset_version=options.opset,
                dynamo=True,
                optimize=True,
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise ExportFailed(f"torch.onnx returned nothing for {graph.name}")
        if sum(p.nbytes for p in module.parameters()) > _PROTOBUF_LIMIT:
            return _write_large(program, graph, path, options.precision)
        model = optimise(program.model_proto, graph)
        model = _clean(to_half(model) if options.precision == "fp16" else model, graph)
        onnx.checker.check_model(model)
    except SamExportError:
        raise
    except Exception as error:
        # torch's, onnx's and onnxslim's exceptions have no common base
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ExportFailed(f"{graph.name} cannot be exported: {reason}") from error
    path.write_bytes(model.SerializeToString(deterministic=True))
    return len(model.graph.node)


def _write_large(program: torch.onnx.ONNXProgram, graph: GraphSpec, path: Path, precision: str) -> int:
    """Write a model above protobuf's limit: weights beside it in ``NAME.onnx.data``, the graph as exported."""
    import onnx
    import onnx_ir

    if precision != "fp32":
        raise ConfigError(f"{graph.name} is above 2 GB, where only fp32 is supported; leave --precision away")
    onnx_ir.save(program.model, path, external_data=f"{path.name}.data")
    model = _clean(onnx.load(path, load_external_data=False), graph)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(path)
    return len(model.graph.node)


def optimise(exported: onnx.ModelProto, graph: GraphSpec) -> onnx.ModelProto:
    """The graph that onnxslim makes if it is valid and computes the same, else ``exported`` as it came."""
    import numpy as np
    import onnx
    import onnxruntime

    rng = np.random.default_rng(0)
    sizes = {"N": 4, "K": 3}
    inputs = {
        t.name: rng.uniform(t.low or 0, t.high or 1, [sizes[d] if isinstance(d, str) else d for d in t.shape])
        for t in graph.inputs
    }
    inputs = {name: np.round(value).astype(np.float32) for name, value in inputs.items()}

    def run(model: onnx.ModelProto) -> list[Any]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs: list[Any] = session.run(list(graph.output_names), inputs)
        return outputs

    try:
        slimmed = _slim(exported)
        onnx.checker.check_model(slimmed)
        pairs = list(zip(run(exported), run(slimmed), strict=True))
    except Exception as error:
        # whatever the optimiser broke, the exported graph is there
        logging.getLogger(__name__).warning("%s is not optimised: %s", graph.name, error)
        return exported
    same = all(a.shape == b.shape and np.abs(a - b).max() <= 1e-4 * np.ptp(a) for a, b in pairs)
    return slimmed if same else exported


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    with quiet():
        slimmed: onnx.ModelProto = onnxslim.slim(model)
    return slimmed


def _clean(model: onnx.ModelProto, graph: GraphSpec) -> onnx.ModelProto:
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
    return model
