"""The export of a module by torch's older exporter, as the official repositories do it: a baseline, never shipped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from samexport.errors import ExportFailed
from samexport.exporter.tracing import example_inputs
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.quiet import silent

if TYPE_CHECKING:
    from torch import nn

OPSET = 17
"""Of the official exports of Segment Anything."""


def convert(graph: GraphSpec, module: nn.Module, path: Path) -> int:
    """Write ``path`` and return the number of nodes; ExportFailed for flexible sizes and for what torch refuses."""
    import onnx
    import torch

    if graph.axes:
        raise ExportFailed(f"{graph.name} has flexible sizes, which are not traced here")
    try:
        with silent(output=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, example_inputs(graph, graph.sizes(default="traced")), str(path),
                input_names=list(graph.input_names), output_names=list(graph.output_names),
                opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except Exception as error:
        # torch raises internal types of all kinds
        raise ExportFailed(f"{graph.name} cannot be traced: {reason(error)}") from error
    return len(onnx.load(path, load_external_data=False).graph.node)
