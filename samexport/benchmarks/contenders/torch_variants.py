"""PyTorch as users run it: eager, compiled, half precision, CUDA graphs; built from the bundle's weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samexport.benchmarks.contenders.baselines import detector_graph, rebuild
from samexport.benchmarks.results.rows import Job
from samexport.errors import ConfigError, ParityFailed
from samexport.models.families.detector import SAMPLER
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors
from samexport.runtimes.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from torch import Tensor, nn

Outputs = tuple["Tensor", ...]
Call = Callable[..., Outputs]


@dataclass(frozen=True)
class Mode:
    """How a module is run; ``autocast`` is the name of a torch type, or empty."""

    device: str = "cpu"
    autocast: str = ""
    compiled: bool = False
    cuda_graph: bool = False


MODES = {
    "pytorch": Mode(),
    "pytorch-compile": Mode(compiled=True),
    "pytorch-bf16": Mode(autocast="bfloat16"),
    "pytorch-cuda": Mode("cuda"),
    "pytorch-cuda-compile": Mode("cuda", compiled=True),
    "pytorch-cuda-graph": Mode("cuda", cuda_graph=True),
    "pytorch-cuda-fp16": Mode("cuda", "float16"),
    "pytorch-cuda-bf16": Mode("cuda", "bfloat16"),
}


class TorchVariant(Runtime):
    """A module run in a :class:`Mode`; copying to the device and back is part of a run."""

    def __init__(self, module: nn.Module, graph: GraphSpec, mode: Mode, name: str) -> None:
        super().__init__(graph)
        self.name, self._mode = name, mode
        self._module = module.to(mode.device)
        self._call: Call = self._forward
        if mode.compiled:
            import torch

            self._call = torch.compile(self._forward)
        self._graphs: dict[tuple[tuple[int, ...], ...], _Captured] = {}

    def _forward(self, *inputs: Tensor) -> Outputs:
        import torch

        mode = self._mode
        dtype = getattr(torch, mode.autocast or "bfloat16")
        with torch.autocast(mode.device, dtype=dtype, enabled=bool(mode.autocast)):
            result = self._module(*inputs)
        return result if isinstance(result, tuple) else (result,)

    def _run(self, inputs: Tensors) -> Tensors:
        import torch

        given = [torch.from_numpy(inputs[name]).to(self._mode.device) for name in self.graph.input_names]
        try:
            with torch.inference_mode():
                values = self._captured(given)(*given) if self._mode.cuda_graph else self._call(*given)
        except torch.OutOfMemoryError as error:
            raise ParityFailed(f"{self.graph.name} does not fit the device: {error}") from error
        found = {
            n: v.float() if v.is_floating_point() else v for n, v in zip(self.graph.output_names, values, strict=True)
        }
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _captured(self, inputs: list[Tensor]) -> _Captured:
        """One CUDA graph for each set of shapes."""
        shapes = tuple(tuple(i.shape) for i in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = _Captured(self._call, inputs)
        return self._graphs[shapes]

    def placement(self) -> str:
        """Device, compilation, type."""
        import torch

        mode = self._mode
        device = torch.cuda.get_device_name() if mode.device == "cuda" else "CPU"
        how = "compiled" if mode.compiled else "CUDA graph" if mode.cuda_graph else "eager"
        return f"{device}, {how}, {mode.autocast or 'float32'}"


class _Captured:
    """A call recorded as a CUDA graph with fixed inputs and outputs."""

    def __init__(self, call: Call, inputs: list[Tensor]) -> None:
        import torch

        self._inputs = [i.clone() for i in inputs]
        # the first calls choose kernels and allocate, which cannot be recorded
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for _ in range(3):
                call(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = call(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Outputs:
        for fixed, value in zip(self._inputs, inputs, strict=True):
            fixed.copy_(value)
        self._graph.replay()
        return self._outputs


@cache
def _model(folder: Path, checkpoints: tuple[str, ...]) -> tuple[Any, Any]:
    """The weights are read once for all graphs of a process."""
    return rebuild(open_bundle(folder).manifest, [Path(c) for c in checkpoints])


def open_variant(job: Job, bundle: Bundle) -> Runtime:
    """Build ``job.graph`` and run it as ``job.runtime`` says.

    Raises:
        ConfigError: there is no GPU for a CUDA mode, or the model has no such graph.
    """
    import torch

    from samexport.models.build import build_graph

    mode = MODES[job.runtime]
    if mode.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{job.runtime} needs a GPU and a PyTorch built for it; none is here")
    # PyTorch lets convolutions drop to ten bits, which leaves 72 dB of an embedding: that is not fp32
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(job.threads)
    plain = job.form == "plain"
    if job.graph == SAMPLER:
        graph, module = detector_graph(bundle, [Path(c) for c in job.checkpoints], plain=plain)
    else:
        spec, sam = _model(bundle.folder, job.checkpoints)
        graph, module = build_graph(sam, spec, job.graph, plain=plain)
    return TorchVariant(module, graph, mode, job.runtime)
