"""CoreML packages with smaller weights, by coremltools.optimize; what they compute in stays the parent's.

Weights alone: what integers as activations do on Apple's hardware cannot be seen here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from samexport.errors import ConfigError, ExportFailed
from samexport.exporter.quantize.layers import Layer
from samexport.exporter.recipes import Recipe
from samexport.exporter.to_coreml.convert import load_coremltools
from samexport.exporter.to_coreml.package import check_package, rewrite_package
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.quiet import silent
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Quantized
from samexport.runtimes.formats.mlpackage import Function, Operation, read_package

_PRODUCTS = {"linear": "weight", "conv": "weight", "conv_transpose": "weight", "matmul": "y"}
_STORED = "constexpr_"
# weights with fewer numbers are left alone: their scales would cost what they save
_SMALLEST = 512
_TABLES = {"lut6": 6, "lut4": 4}


def layers(path: Path, graph: GraphSpec, recipe: Recipe) -> list[Layer]:
    """Products and convolutions with a weight that is not small."""
    if path.suffix != ".mlpackage":
        raise ConfigError(f"{path.name} has several packages; quantize a graph with one entry point")
    found = []
    for function in read_package(path).functions.values():
        for operation in function.operations:
            weight = operation.inputs.get(_PRODUCTS.get(operation.kind, ""), ("",))[0]
            if weight in function.constants and _numbers(function, weight) >= _SMALLEST:
                macs = prod(size or 1 for size in operation.outputs[0].shape) * _inner(operation, function, weight)
                found.append(Layer(weight, f"{operation.kind} {weight}", macs))
    return list({layer.name: layer for layer in found}.values())


def calibrate(path: Path, graph: GraphSpec, recipe: Recipe, inputs: Iterable[Tensors]) -> Any:
    """Weights need no pictures."""
    return None


def write(parent: Path, target: Path, graph: GraphSpec, recipe: Recipe, learnt: Any, keep: Collection[str]) -> None:
    """Write ``target``; see :data:`samexport.exporter.quantize.layers.Write`.

    Raises:
        ExportFailed: coremltools refuses the package.
        ConfigError, MissingDependency: as :func:`samexport.exporter.to_coreml.convert.load_coremltools`.
    """
    coremltools = load_coremltools("coremltools.optimize.coreml")
    coreml = coremltools.optimize.coreml
    if recipe.weights in _TABLES:
        config = coreml.OpPalettizerConfig(
            nbits=_TABLES[recipe.weights], mode="kmeans", weight_threshold=_SMALLEST, num_kmeans_workers=1
        )
        shrink = coreml.palettize_weights
    else:
        config = coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", granularity="per_channel", weight_threshold=_SMALLEST
        )
        shrink = coreml.linear_quantize_weights
    try:
        with silent(output=True), tempfile.TemporaryDirectory(prefix=".samexport-", dir=target.parent) as private:
            model = coremltools.models.MLModel(str(parent), skip_model_load=True)
            left = dict.fromkeys(keep)
            made = shrink(model, coreml.OptimizationConfig(global_config=config, op_name_configs=left))
            source = Path(private) / "made.mlpackage"
            made.save(str(source))
            rewrite_package(coremltools, source, target, parent, graph)
    except (ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise ExportFailed(f"{graph.name} cannot be quantized: {reason(error)}") from error
    check_package(target, graph)


def count(parent: Path, path: Path, graph: GraphSpec, kept: Mapping[str, str]) -> Quantized:
    """Weights that are put together from integers or tables when the package is loaded; nothing multiplies integers."""
    stored = sum(
        operation.kind.startswith(_STORED)
        for function in read_package(path).functions.values()
        for operation in function.operations
    )
    return Quantized(0, stored, stored, round(_size(path) / _size(parent), 4), dict(kept))


def _numbers(function: Function, weight: str) -> int:
    value = function.constants[weight]
    return 0 if isinstance(value, str) else value.size


def _inner(operation: Operation, function: Function, weight: str) -> int:
    """How many multiplications make one number of the output."""
    value = function.constants[weight]
    assert not isinstance(value, str)
    return prod(value.shape[1:]) if operation.kind in ("linear", "conv") else value.shape[-2]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
