"""One graph module to CoreML packages: torch.export, coremltools, then written anew so that bytes never differ.

coremltools saves with random identifiers, a date and unordered maps, and its ``save`` deletes a folder that is
in the way. So it only ever writes into a private folder here; the package itself is written by :mod:`package`.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from samexport.errors import ConfigError, ExportFailed, MissingDependency
from samexport.exporter.recipes import RECIPES, find_recipe
from samexport.exporter.to_coreml.package import PackageTexts, check_package, write_package
from samexport.exporter.tracing import example_inputs
from samexport.files import check_room, reason
from samexport.installation import install_hint
from samexport.interrupts import interruptible, load
from samexport.models.spec import GraphSpec, Sizes, TensorSpec, axis_sizes, is_picture
from samexport.quiet import silent
from samexport.runtimes.adapters.entry_points import Bucket, bucket_of, entry_points, is_sized, plan
from samexport.runtimes.base import Tensors
from samexport.runtimes.formats.mlpackage import SEVERAL

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

DeploymentTarget = Literal["iOS16", "iOS17", "iOS18"]

# what coremltools appends to the name of an operation that it turns to fp16
_HALF_NAME = "_cast_fp16"
_NUMPY_LIMIT = (2, 4)


@dataclass(frozen=True)
class CoreMLOptions:
    """How to write CoreML packages.

    Attributes:
        recipe: of computing and weights; inputs and outputs stay float32.
        deployment_target: the oldest system that can load the package.
        image_input: the encoder takes a picture (RGB, 8 bits) instead of a tensor.
        prompt_buckets: N of each fixed-shape entry point; None for one with flexible N and K.
        points: K of each, see :func:`samexport.runtimes.adapters.entry_points.plan`.
        maximum_prompts, maximum_points: the bounds of a flexible entry point.

    Raises:
        ConfigError: a value is not one of those allowed.
    """

    recipe: str = "fp16"
    deployment_target: DeploymentTarget = "iOS16"
    image_input: bool = False
    prompt_buckets: tuple[int, ...] | None = None
    points: tuple[int, ...] = ()
    maximum_prompts: int = 64
    maximum_points: int = 16

    def __post_init__(self) -> None:
        find_recipe(self.recipe, "coreml")
        if self.deployment_target not in get_args(DeploymentTarget):
            raise ConfigError(f"{self.deployment_target!r} is not one of {', '.join(get_args(DeploymentTarget))}")
        if self.prompt_buckets is not None:
            plan(self.prompt_buckets, self.points)
        elif self.points:
            raise ConfigError("--points needs --prompts: without it the number of points is flexible")
        if min(self.maximum_prompts, self.maximum_points) < 2:
            raise ConfigError("a flexible package needs bounds of at least 2 prompts and 2 points")


KEPT = "dev.samexport.kept_in_fp32"
"""Metadata of an fp16 package: the operations that would overflow on the examples and compute in fp32 instead."""

# a sum of more terms, formed in half precision, may lose its last terms: 2048 + 1 is 2048
_MANY_TERMS = 1000
_MOST_TERMS = 2048


def convert(
    graph: GraphSpec,
    module: nn.Module,
    out: Path,
    options: CoreMLOptions,
    texts: PackageTexts,
    examples: Sequence[Tensors] = (),
) -> Path:
    """Write ``out``, an ``.mlpackage`` that does not exist yet.

    Fixed entry points share one multifunction package from iOS 18 on. Older systems know no functions: then
    ``<stem>.mlpackages`` is written instead, a folder with a package for each that has its own weights.

    What overflows half precision on ``examples``, inputs of the graph, or comes near inside a LayerNorm, stays in fp32
    and is named in the metadata :data:`KEPT`.

    Returns:
        what was written: ``out`` or that folder.

    Raises:
        ConfigError: ``out`` exists or has another ending, or the versions installed do not work together.
        MissingDependency: coremltools is not installed.
        ExportFailed: coremltools refuses the graph, or wrote something that CoreML would not load.
        OSError: the disk is full.
        KeyboardInterrupt: Ctrl-C, within seconds.
    """
    counts = options.prompt_buckets if is_sized(graph) else None
    buckets = entry_points(graph, plan(counts, options.points)) if counts else ()
    joined = len(buckets) == 0 or options.deployment_target == "iOS18"
    target = out if joined else out.with_suffix(SEVERAL)
    if out.suffix != ".mlpackage" or os.path.lexists(target):
        raise ConfigError(f"{target.name} must be a new path that ends in {'.mlpackage' if joined else SEVERAL}")
    coremltools = load_coremltools()
    with (
        tempfile.TemporaryDirectory(prefix=".samexport-", dir=out.parent) as private,
        silent(output=True),
        interruptible(),
    ):
        folder = Path(private)
        sources = [_convert_one(coremltools, graph, module, folder, options, b) for b in buckets or (None,)]
        half = RECIPES[options.recipe].compute == "float16"
        wide = _overflows(graph, sources, examples) if half else _Wide()
        if wide.names:
            again = folder / "again"
            again.mkdir()
            sources = [_convert_one(coremltools, graph, module, again, options, b, wide) for b in buckets or (None,)]
            if left := _overflows(graph, sources, examples).names:
                raise ExportFailed(f"{graph.name} cannot be written in fp16: {', '.join(sorted(left)[:5])} overflow")
            texts = replace(texts, manifest={**texts.manifest, KEPT: ", ".join(sorted(wide.names))})
        if buckets and joined:
            sources = [_join(coremltools, sources, buckets, folder / "joined.mlpackage")]
        finished = folder / "finished" / target.name
        packages = [finished] if joined else [finished / f"{out.stem}.{b.name}.mlpackage" for b in buckets]
        for source, package in zip(sources, packages, strict=True):
            write_package(coremltools, source, package, graph, texts)
            check_package(package, graph)
        os.rename(finished, target)
    return target


def load_coremltools(*parts: str) -> ModuleType:
    """coremltools, and modules of its own, without what they print while they are imported.

    Raises:
        ConfigError: it does not work with this numpy.
        MissingDependency: it is not installed.
    """
    if tuple(int(part) for part in np.__version__.split(".")[:2]) >= _NUMPY_LIMIT:
        raise ConfigError(f"coremltools does not work with numpy {np.__version__}: pip install 'numpy<2.4'")
    try:
        with silent(output=True), interruptible():
            load("coremltools", *parts)
            import coremltools
    except ModuleNotFoundError as error:
        raise MissingDependency(f"CoreML export needs coremltools: {install_hint('coreml')}") from error
    module: ModuleType = coremltools
    return module


def _convert_one(
    coremltools: ModuleType,
    graph: GraphSpec,
    module: nn.Module,
    folder: Path,
    options: CoreMLOptions,
    bucket: Bucket | None,
    wide: _Wide | None = None,
) -> Path:
    """A package of coremltools' own in ``folder``; ``bucket`` None means flexible axes; ``wide`` stays in fp32."""
    name = bucket.name if bucket else "main"
    precision = coremltools.precision.FLOAT32
    if RECIPES[options.recipe].compute == "float16":
        precision = coremltools.transform.FP16ComputePrecision(op_selector=_Half(wide or _Wide()))
    path = folder / f"{name}.mlpackage"
    try:
        coremltools.convert(
            _export(graph, module, options, bucket),
            inputs=[_input_type(coremltools, graph, tensor, options, bucket) for tensor in graph.inputs],
            outputs=[coremltools.TensorType(name=tensor.name, dtype=_type(tensor)) for tensor in graph.outputs],
            minimum_deployment_target=getattr(coremltools.target, options.deployment_target),
            compute_precision=precision,
            convert_to="mlprogram",
            package_dir=str(path),
            skip_model_load=True,
        )
    except Exception as error:
        check_room(folder, sum(weight.nbytes for weight in module.parameters()))
        # torch.export and coremltools raise internal types of all kinds
        raise ExportFailed(f"{graph.name} cannot be converted to CoreML: {reason(error)}") from error
    return path


def _sizes(graph: GraphSpec, bucket: Bucket | None) -> Sizes:
    return bucket.sizes(graph) if bucket else graph.sizes(default="traced")


def _bounds(graph: GraphSpec, options: CoreMLOptions) -> Sizes:
    """The largest size of each axis of a flexible entry point."""
    asked = {"prompts": options.maximum_prompts, "points": options.maximum_points}
    return {axis.name: asked.get(axis.role, axis.high) for axis in graph.axes}


def _type(tensor: TensorSpec) -> type[np.generic]:
    """CoreML knows floats of 32 bits and integers of 32 bits."""
    return np.float32 if tensor.dtype.startswith("float") else np.int32


def _export(graph: GraphSpec, module: nn.Module, options: CoreMLOptions, bucket: Bucket | None) -> Any:
    """The module as a program of core ATen operations, as coremltools wants it."""
    import torch

    bounds, example = _bounds(graph, options), example_inputs(graph, _sizes(graph, bucket))
    axes = {} if bucket else {a.name: torch.export.Dim(a.name, min=a.low, max=bounds[a.name]) for a in graph.axes}
    shapes = tuple({i: axes[str(d)] for i, d in enumerate(t.shape) if d in axes} or None for t in graph.inputs)
    program = torch.export.export(module, example, dynamic_shapes=shapes if axes else None).run_decompositions(
        {torch.ops.aten.gelu.default: _gelu}
    )
    nodes = program.graph_module.graph
    for node in [n for n in nodes.nodes if n.target is torch.ops.aten.alias.default]:
        # what an expand to the same size becomes; coremltools 9.0 does not know it
        node.replace_all_uses_with(node.args[0])
        nodes.erase_node(node)
    return program


def _gelu(x: Tensor, approximate: str = "none") -> Any:
    """The approximation by tanh in its parts: coremltools reads no keyword of an operation and takes erf for both."""
    if approximate == "none":
        return NotImplemented
    return x * 0.5 * (1 + (x * (1 + x * x * 0.044715) * math.sqrt(2 / math.pi)).tanh())


def _input_type(
    coremltools: ModuleType, graph: GraphSpec, tensor: TensorSpec, options: CoreMLOptions, bucket: Bucket | None
) -> Any:
    if options.image_input and is_picture(tensor):
        return coremltools.ImageType(name=tensor.name, shape=tensor.shape, color_layout=coremltools.colorlayout.RGB)
    bounds, usual = _bounds(graph, options), graph.sizes(default="usual")
    if bucket:
        shape: Sequence[Any] = tensor.resolved(bucket.sizes(graph))
    else:
        shape = [
            d if isinstance(d, int) else coremltools.RangeDim(1, bounds[d], default=usual[d]) for d in tensor.shape
        ]
    return coremltools.TensorType(name=tensor.name, shape=tuple(shape), dtype=_type(tensor))


@dataclass(frozen=True)
class _Wide:
    """Operations that half precision is too small for, by the names that they have before they become fp16.

    Attributes:
        results: what they make overflows, so what reads it is fp32 too.
        inside: what they add up inside comes near; their results are small.
    """

    results: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        return self.results | self.inside


class _Half:
    """Which operations compute in fp16: all but the path from the pixels to their sine and cosine, long sums, ``wide``.

    An angle of the position encoding reaches 50, where the steps of fp16 are 1/32; these few operations
    on N x K points cost nothing in fp32. Nor does the attention of a few tokens to thousands of pixels, whose sums
    in half precision alone left 34 dB of the decoder.
    """

    def __init__(self, wide: _Wide) -> None:
        self._exact: set[int] | None = None
        self._wide = wide

    def __call__(self, operation: Any) -> bool:
        if self._exact is None:
            # asked before the first operation is changed, so the graph is still whole
            self._exact = {id(o) for o in _upstream(operation.enclosing_block, ("sin", "cos"))}
        before = [value.op for value in operation.get_flattened_inputs() if value.op is not None]
        touched = {each.name for each in (operation, *before)} & self._wide.results
        known = touched or operation.name in self._wide.inside
        long = _long_convolution(operation) and _source(operation.x) in self._wide.inside
        return id(operation) not in self._exact and not known and not long and not _adds_many(operation)


def _long_convolution(operation: Any) -> bool:
    """One whose sums half precision cannot count: 2048 + 1 is 2048. SAM's neck has one of 2304 terms.

    Behind a LayerNorm that is fp32 it costs no way back to half precision, and alone it left 44 dB of the embedding.
    """
    return operation.op_type == "conv" and int(np.prod(operation.weight.shape[1:])) > _MOST_TERMS


def _source(value: Any) -> str:
    """The name of the operation that a tensor comes from, past what only turns it; empty for an input."""
    made = value.op
    while made is not None and made.op_type in ("transpose", "reshape", "cast"):
        made = made.x.op
    return "" if made is None else str(made.name)


def _adds_many(operation: Any) -> bool:
    """Attention of few tokens to many: its softmax, and its product with the values.

    Where there are many on both sides, as in an image encoder, fp32 would double the largest tensor of all.
    """
    if operation.op_type not in ("softmax", "matmul"):
        return False
    shape, turned = operation.x.shape, operation.op_type == "matmul" and bool(operation.transpose_x.val)
    rows, terms = (shape[-1], shape[-2]) if turned else (shape[-2], shape[-1])
    return _above(terms) and not _above(rows)


def _above(size: Any) -> bool:
    """Flexible sizes are of prompts, which are few."""
    return isinstance(size, int | np.integer) and bool(size > _MANY_TERMS)


def _overflows(graph: GraphSpec, sources: Sequence[Path], examples: Sequence[Tensors]) -> _Wide:
    """What half precision cannot hold on the examples."""
    from samexport.runtimes.adapters.mil import FP16_MAX, NEAR, SQUARES, MilRuntime

    results: set[str] = set()
    inside: set[str] = set()
    for source in sources if examples else ():
        with MilRuntime(source, graph, precision="fp32") as runtime:
            for inputs in examples:
                sizes = axis_sizes(graph.inputs, {name: value.shape for name, value in inputs.items()})
                size = bucket_of("", graph, sizes)
                if runtime.buckets and not any(bucket.holds(size.points, size.slots) for bucket in runtime.buckets):
                    continue
                for seen in runtime.ranges(inputs).every:
                    largest = max(-seen.low, seen.high) if seen.finite else np.inf
                    if largest > (NEAR if seen.kind == SQUARES else FP16_MAX):
                        (inside if seen.kind == SQUARES else results).add(seen.name.removesuffix(_HALF_NAME))
    return _Wide(frozenset(results), frozenset(inside))


def _upstream(block: Any, kinds: tuple[str, ...]) -> list[Any]:
    """All operations of ``kinds`` and those that they depend on."""
    waiting = [operation for operation in block.operations if operation.op_type in kinds]
    found: list[Any] = []
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.append(operation)
            waiting += [value.op for value in operation.get_flattened_inputs() if value.op is not None]
    return found


def _join(coremltools: ModuleType, sources: list[Path], buckets: tuple[Bucket, ...], target: Path) -> Path:
    """One package with a function for each bucket, the weights shared; the first is the default."""
    descriptor = coremltools.utils.MultiFunctionDescriptor()
    for bucket, source in zip(buckets, sources, strict=True):
        descriptor.add_function(str(source), src_function_name="main", target_function_name=bucket.name)
    descriptor.default_function_name = buckets[0].name
    try:
        coremltools.utils.save_multifunction(descriptor, str(target))
    except Exception as error:
        check_room(target.parent, sum(file.stat().st_size for file in sources[0].rglob("*") if file.is_file()))
        # coremltools raises internal types of all kinds
        raise ExportFailed(f"coremltools cannot join the entry points: {reason(error)}") from error
    return target
