"""One graph module to one .tflite: converted by litert-torch or onnx2tf, rewritten for the delegates, with metadata."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from samexport.errors import ConfigError, ExportFailed, MissingDependency, SamExportError
from samexport.exporter.recipes import find_recipe
from samexport.exporter.to_tflite import onnx2tf_process as onnx2tf
from samexport.exporter.tracing import example_inputs
from samexport.files import check_room, reason
from samexport.installation import install_hint
from samexport.interrupts import interruptible, load
from samexport.models.spec import GraphSpec
from samexport.quiet import silent
from samexport.runtimes.adapters.entry_points import Bucket, entry_points, is_sized, plan
from samexport.runtimes.formats.tflite import append_metadata, parse_model, write_model
from samexport.runtimes.formats.tflite_lint import Lint, lint

if TYPE_CHECKING:
    from torch import Tensor, nn

Target = Literal["cpu", "gpu"]
Converter = Literal["litert-torch", "onnx2tf"]
# offsets in a flatbuffer are 32 bits with a sign
_LARGEST = 2**31 - 2**20


@dataclass(frozen=True)
class TfliteOptions:
    """What to write.

    Decoders get an entry point ``decode_<N>`` for each N of ``prompt_buckets``, with room for as many points as
    ``points`` says at the same place; what reads memories has its own (``entry_points.MEMORY_ROOMS``). Both targets
    run on CPU and GPU; ``gpu`` adds what phones' GPUs need, which compute in half precision (LayerNorm that cannot
    overflow), and refuses a file with an operation that would leave the GPU. ``python`` is the interpreter that makes
    the environment of onnx2tf, if not the one on PATH.
    """

    prompt_buckets: tuple[int, ...] = (1, 4, 16)
    points: tuple[int, ...] = (8, 2, 2)
    target: Target = "cpu"
    recipe: str = "fp32"
    converter: Converter = "litert-torch"
    python: Path | None = None

    def __post_init__(self) -> None:
        find_recipe(self.recipe, "tflite")
        if self.converter not in get_args(Converter):
            raise ConfigError(f"--converter is {' or '.join(get_args(Converter))}, not {self.converter!r}")
        if self.target not in get_args(Target):
            raise ConfigError(f"--target is cpu or gpu, not {self.target!r}")
        plan(self.prompt_buckets, self.points)
        if self.converter == "onnx2tf":
            # before the weights are read, which takes long
            onnx2tf.find_python(self.python)


def signatures(graph: GraphSpec, options: TfliteOptions) -> tuple[Bucket, ...]:
    """The entry points of the graph's file; a graph without prompts has one, with the graph's name."""
    if is_sized(graph):
        return entry_points(graph, plan(options.prompt_buckets, options.points))
    return (Bucket(graph.name, 1, 1),)


def made_with(options: TfliteOptions) -> dict[str, str]:
    """What the manifest says of a file besides its precision."""
    version = onnx2tf.VERSION if options.converter == "onnx2tf" else importlib.metadata.version(options.converter)
    return {"target": options.target, "converter": f"{options.converter} {version}"}


def convert(
    graph: GraphSpec,
    module: nn.Module,
    path: Path,
    options: TfliteOptions = TfliteOptions(),
    metadata: Mapping[str, Any] | None = None,
) -> Lint:
    """Write ``path``: float32, tensors named as in the spec, entry points as :func:`signatures` says.

    Args:
        graph: the contract.
        module: the graph's export form.
        path: must not exist yet; ends in ``.tflite``.
        options: entry points and target.
        metadata: JSON for the ZIP at the end of the file; None appends none.

    Returns:
        what the linter saw in the file.

    Raises:
        ConfigError: the weights do not fit into a TFLite file.
        MissingDependency: the converter is not installed, or its environment cannot be made.
        ExportFailed: the converter refuses the graph, or ``target`` is gpu and an operation would leave it, or is known
            to give something else on some phones (``tflite_traps``).
        OSError: the disk is full.
        KeyboardInterrupt: Ctrl-C, within seconds.
    """
    size = sum(weight.numel() * weight.element_size() for weight in module.state_dict().values())
    if size > _LARGEST:
        raise ConfigError(f"{graph.name} has {size / 1e9:.1f} GB of weights, a TFLite file holds 2.1; use ONNX")
    if options.target == "gpu" and (whole := [t.name for t in graph.inputs if not t.dtype.startswith("float")]):
        picks = f"{graph.name} picks rows by whole numbers ({', '.join(whole)})"
        raise ExportFailed(f"{picks}, which GPU delegates do not; leave out --target gpu")
    try:
        with silent(output=True), interruptible():
            _write(graph, module, path, options)
    except SamExportError:
        raise
    except ModuleNotFoundError as error:
        raise MissingDependency(f"TFLite export needs {error.name}: {install_hint('tflite')}") from error
    except Exception as error:
        check_room(path.parent, size)
        # exceptions of torch.export, JAX and MLIR have no common base
        why = f"{type(error).__name__}: {reason(error)}"
        raise ExportFailed(f"{graph.name} cannot be converted to TFLite: {why}") from error
    found = lint(path)
    if options.target == "gpu" and (refused := found.of("gpu")):
        raise ExportFailed(f"{graph.name}: {len(refused)} operations would leave the GPU, first {refused[0]}")
    if options.target == "gpu" and found.traps:
        traps = f"{len(found.traps)} places may be wrong on some phones' GPUs, first {found.traps[0]}"
        raise ExportFailed(f"{graph.name}: {traps}")
    if metadata is not None:
        append_metadata(path, metadata)
    return found


def _write(graph: GraphSpec, module: nn.Module, path: Path, options: TfliteOptions) -> None:
    import torch

    from samexport.exporter.to_tflite.forms import TfliteForms
    from samexport.exporter.to_tflite.passes import improve

    with TfliteForms(half_safe=options.target == "gpu"), torch.no_grad():
        if options.converter == "onnx2tf":
            model = onnx2tf.write(graph, module, signatures(graph, options), options.python)
        else:
            model = _litert_torch(graph, module, signatures(graph, options))
    improve(model, gpu=options.target == "gpu")
    write_model(model, path)


def _litert_torch(graph: GraphSpec, module: nn.Module, entries: Sequence[Bucket]) -> Any:
    """The graph as ``ModelT``."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    load("litert_torch")
    import litert_torch

    named = _named(graph, module)
    converter: Any = None
    for entry in entries:
        add = litert_torch.signature if converter is None else converter.signature
        converter = add(entry.name, named, sample_kwargs=_example(graph, entry))
    # it could write a file as well, but ends the process when the disk is full
    return parse_model(converter.convert().model_content(), graph.name)


def _example(graph: GraphSpec, entry: Bucket) -> dict[str, Tensor]:
    """Inputs of one entry point."""
    return dict(zip(graph.input_names, example_inputs(graph, entry.sizes(graph)), strict=True))


def _named(graph: GraphSpec, module: nn.Module) -> nn.Module:
    """The module with keyword arguments and a dict of outputs, whose names the converter takes over."""
    from torch import nn

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            outputs = self.module(*(inputs[name] for name in graph.input_names))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return dict(zip(graph.output_names, outputs, strict=True))

    return Named().eval()
