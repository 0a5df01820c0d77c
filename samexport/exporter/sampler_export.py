"""The sampler's part of an export: which detector, its weights, its reference, its graph, what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from samexport.errors import CheckpointError, ConfigError
from samexport.exporter.formats import Facts, Target, format_of
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.files import sha256
from samexport.models.families.detector import find_sampler, sampler_graph
from samexport.models.loading import require_same
from samexport.models.spec import GraphSpec, ModelSpec, SamplerSpec
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Artifact, Nms, SamplerInfo, WeightsInfo
from samexport.runtimes.host.detector import SamplerOptions, check_size, nms
from samexport.runtimes.parity.golden import Case, sampler_case

if TYPE_CHECKING:
    from torch import nn

    from samexport.models.architectures.object_detector import ObjectDetector


@dataclass(frozen=True)
class SamplerExport:
    """Which sampler joins a bundle.

    Attributes:
        name: of the catalogue.
        checkpoint: the detector's weights; None takes random ones, which the caller must have asked for.
        image_size: side of the input; None takes the sampler's own.
        nms: "host", or "in-graph" (ONNX, fp32).
    """

    name: str
    checkpoint: Path | None = None
    image_size: int | None = None
    nms: Nms = "host"

    def __post_init__(self) -> None:
        find_sampler(self.name)
        if self.nms not in ("host", "in-graph"):
            raise ConfigError(f"--nms is host or in-graph, not {self.nms!r}")
        if self.image_size is not None:
            check_size(self.image_size)

    def check(self, target: Target, random_seed: int | None) -> None:
        """Refuse, before anything is read, a format or a lack of weights that cannot go with it.

        Raises:
            CheckpointError: there is neither a file nor a seed.
            ConfigError: NMS is to be in a graph that cannot have it.
        """
        if self.nms == "in-graph" and not (isinstance(target, OnnxOptions) and target.recipe == "fp32"):
            raise ConfigError("--nms in-graph needs ONNX in fp32: other runtimes leave NMS to the host")
        if self.checkpoint is None and random_seed is None:
            raise CheckpointError(
                "the detector's weights are not downloaded for you: give ObjectAwareModel.pt of MobileSAMv2 with"
                " --sampler-checkpoint FILE, or use --weights random"
            )


@dataclass(frozen=True)
class LoadedSampler:
    """A detector with its weights, and how it is exported: ``candidates`` None means all boxes, unsorted."""

    spec: SamplerSpec
    detector: ObjectDetector
    weights: WeightsInfo
    image_size: int
    candidates: int | None
    nms: Nms
    options: SamplerOptions = field(default_factory=SamplerOptions)

    @property
    def info(self) -> SamplerInfo:
        """What the manifest says."""
        spec = self.spec
        return SamplerInfo(
            spec.name, spec.summary, spec.licence, self.image_size, False, self.nms, self.options, self.weights
        )

    @property
    def graph(self) -> GraphSpec:
        """The contract of the file."""
        from samexport.models.graphs.detector import count_anchors

        every = self.candidates or count_anchors(self.image_size)
        boxes = self._kept if self.nms == "in-graph" else every
        return sampler_graph(self.image_size, boxes, ranked=self.candidates is not None)

    @property
    def _kept(self) -> int:
        return min(self.options.max_boxes, self.candidates or self.options.max_boxes)

    def build(self, *, plain: bool = False) -> tuple[GraphSpec, nn.Module]:
        """The network without NMS, and its contract."""
        from samexport.models.build import build_sampler

        return build_sampler(self.detector, self.image_size, self.candidates, plain=plain)

    def golden(self, picture: NDArray[np.uint8]) -> Case:
        """The golden case, computed by the untouched architecture in PyTorch (and NMS by the host's code)."""
        from samexport.runtimes.adapters.pytorch import PyTorchRuntime

        graph, module = self.build(plain=True)
        run: Callable[[Tensors], Tensors] = PyTorchRuntime(module, graph).run
        return sampler_case(picture, self.image_size, lambda inputs: self._suppressed(run(inputs)))

    def _suppressed(self, found: Tensors) -> Tensors:
        if self.nms == "host":
            return found
        kept = nms(found["boxes"], found["scores"], self.options.nms_iou, self._kept)
        missing = self._kept - len(kept)
        return {
            "boxes": np.pad(found["boxes"][kept], ((0, missing), (0, 0))),
            "scores": np.pad(found["scores"][kept], (0, missing)),
        }


def load_sampler(export: SamplerExport, *, ranked: bool, random_seed: int = 0) -> LoadedSampler:
    """Read or draw the weights; prefers the checkpoint.

    Args:
        export: what is asked for.
        ranked: the file chooses the best candidates itself, else it returns all. Only ONNX files choose: GPU
            delegates and the Neural Engine have no top-K, and sorting costs the host 2 ms.
        random_seed: of random weights, drawn where there is no checkpoint.

    Raises:
        CheckpointError: the file cannot be used.
        ConfigError: the image size cannot be.
    """
    from samexport.models.graphs.detector import count_anchors
    from samexport.models.weights.detector_checkpoint import load_detector, random_detector

    spec = find_sampler(export.name)
    image_size = export.image_size or spec.image_size
    candidates = min(spec.candidates, count_anchors(image_size)) if ranked else None
    if export.checkpoint is not None:
        detector, sha256 = load_detector(export.checkpoint)
        weights = WeightsInfo("checkpoint", export.checkpoint.name, sha256, None)
    else:
        detector = random_detector(spec, random_seed)
        weights = WeightsInfo("random", f"seed {random_seed}", None, random_seed)
    return LoadedSampler(spec, detector, weights, image_size, candidates, export.nms)


def reload_sampler(info: SamplerInfo, graph: GraphSpec, checkpoint: Path) -> LoadedSampler:
    """The sampler of a bundle again, its weights read from ``checkpoint``.

    Errors as :func:`load_sampler`; ConfigError where the bundle's are of another file.
    """
    ranked = any(tensor.role == "ranked_boxes" for tensor in graph.outputs)
    loaded = load_sampler(SamplerExport(info.name, checkpoint, info.image_size, info.nms), ranked=ranked)
    if info.weights.kind == "checkpoint":
        require_same(info.weights, loaded.weights, "--sampler-checkpoint")
    return loaded


def write_sampler(sampler: LoadedSampler, folder: Path, target: Target, model: ModelSpec) -> Artifact:
    """Write the file of the graph ``prompt_sampler`` of a model's bundle; errors as the format's writer."""
    graph, module = sampler.build()
    facts = Facts(replace(model, licence=sampler.spec.licence), sampler.weights)
    artifact = format_of(target).write(graph, module, folder, target, facts)
    if sampler.nms == "host":
        return artifact
    import onnx

    from samexport.exporter.to_onnx.nms import append_nms

    path = folder / artifact.path
    model = onnx.load(path)
    append_nms(model, sampler.graph, sampler.options.nms_iou)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    nodes = len(model.graph.node)
    return replace(artifact, sha256=sha256(path), size=path.stat().st_size, nodes=nodes)
