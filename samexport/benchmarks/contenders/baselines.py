"""The torch model behind a bundle: for PyTorch's own rows, for baselines, and to count multiply-accumulates."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from samexport.errors import ConfigError, ExportFailed
from samexport.files import sha256
from samexport.models.catalog import find_family, find_model
from samexport.models.families.detector import SAMPLER, find_sampler
from samexport.models.loading import reload_model
from samexport.models.spec import GraphSpec, ModelSpec
from samexport.runtimes.bundle import MANIFEST, Artifact, Bundle, Manifest, SamplerInfo
from samexport.runtimes.torch_bundle import TorchBundle, plain_bundle

if TYPE_CHECKING:
    from torch import nn


TORCHSCRIPT = "torchscript"
"""The converter of the second file of a baseline's graph: torch's older exporter, which official exports use."""

Convert = Callable[[GraphSpec, "nn.Module", Path], int]
"""Writes a module as an ONNX file and returns the number of nodes: ``exporter.to_onnx.convert``."""


def rebuild(manifest: Manifest, checkpoints: Sequence[Path] = ()) -> tuple[ModelSpec, nn.Module]:
    """The model with the bundle's weights, in evaluation mode.

    ``checkpoints`` and errors as :func:`samexport.models.loading.reload_model`; a decoder's own file is the last, and
    that of the bundle's detector may stand anywhere.
    """
    spec = find_model(manifest.model, manifest.frame.size)
    detector = _detector_file(manifest.sampler, checkpoints)
    return spec, reload_model(spec, manifest.weights, [file for file in checkpoints if file != detector])


def can_rebuild_detector(info: SamplerInfo | None, checkpoints: Sequence[Path] = ()) -> bool:
    """Whether :func:`detector_graph` has what it takes."""
    return info is not None and (info.weights.kind == "random" or _detector_file(info, checkpoints) is not None)


def _detector_file(info: SamplerInfo | None, checkpoints: Sequence[Path]) -> Path | None:
    """The file that a bundle's detector was made from, if it is among the checkpoints."""
    if info is None or info.weights.kind == "random":
        return None
    return next((file for file in checkpoints if file.is_file() and sha256(file) == info.weights.sha256), None)


def detector_graph(bundle: Bundle, checkpoints: Sequence[Path] = (), *, plain: bool) -> tuple[GraphSpec, nn.Module]:
    """The bundle's detector, without NMS, and its contract; its export form, or the untouched architecture.

    Raises:
        ConfigError: there is none, or its weights are neither random nor among the checkpoints.
    """
    from samexport.models.build import build_sampler
    from samexport.models.graphs.detector import count_anchors
    from samexport.models.weights.detector_checkpoint import load_detector, random_detector

    info = bundle.manifest.sampler
    if info is None or not can_rebuild_detector(info, checkpoints):
        made_from = f": {info.weights.source}" if info else ""
        raise ConfigError(f"the bundle's detector needs the file that it was made from{made_from}; give --checkpoint")
    spec, file = find_sampler(info.name), _detector_file(info, checkpoints)
    ranked = any(tensor.role == "ranked_boxes" for tensor in bundle.graph(SAMPLER).outputs)
    candidates = min(spec.candidates, count_anchors(info.image_size)) if ranked else None
    detector = load_detector(file)[0] if file else random_detector(spec, info.weights.seed or 0)
    return build_sampler(detector, info.image_size, candidates, plain=plain)


def torch_bundle(bundle: Bundle, checkpoints: Sequence[Path] = (), *, detector: bool = False) -> TorchBundle:
    """The untouched architecture in PyTorch with the bundle's weights, to be used like a bundle.

    Args:
        bundle: any format.
        checkpoints: where its weights are, unless they are random.
        detector: with the bundle's detector; the host's NMS gives what one in the graph gives.

    Raises:
        ConfigError, CheckpointError: see :func:`rebuild` and :func:`detector_graph`.
    """
    spec, network = rebuild(bundle.manifest, checkpoints)
    spec = replace(spec, mask_outputs=bundle.manifest.mask_outputs)
    plain = plain_bundle(spec, network, bundle.manifest.weights, bundle.folder)
    if not detector:
        return plain
    graph, module = detector_graph(bundle, checkpoints, plain=True)
    manifest = replace(plain.manifest, graphs=(*plain.manifest.graphs, graph), sampler=bundle.manifest.sampler)
    return replace(plain, manifest=manifest, modules={**plain.modules, SAMPLER: module})


def write_baselines(
    bundle: Bundle, folder: Path, convert: Convert, checkpoints: Sequence[Path] = (), *, trace: Convert | None = None,
    names: Collection[str] = (),
) -> Bundle:  # fmt: skip
    """Write the untouched architectures as ONNX files: the straightforward export of the same weights.

    Args:
        bundle: whose weights and golden cases to take.
        folder: an existing, empty folder; it becomes a bundle with the form "plain".
        convert: the exporter.
        checkpoints: where the bundle's weights are, unless they are random.
        trace: another exporter; what it writes stands beside, and what it refuses is left out.
        names: which graphs; empty for all.

    Raises:
        ConfigError, CheckpointError: see :func:`rebuild`.
        ExportFailed: ``convert`` failed.
    """
    from samexport.models.build import plain_graphs

    spec, network = rebuild(bundle.manifest, checkpoints)
    artifacts, graphs = [], []
    for name, (graph, module) in plain_graphs(network, spec, names).items():
        path = folder / f"{name}.plain.onnx"
        nodes = convert(graph, module, path)
        size = sum(p.stat().st_size for p in folder.glob(f"{path.name}*"))
        artifacts.append(Artifact(name, path.name, "onnx", "fp32", sha256(path), size, nodes=nodes))
        graphs.append(graph)
        traced = folder / f"{name}.torchscript.onnx"
        with suppress(ExportFailed):
            if trace is not None:
                nodes = trace(graph, module, traced)
                made = {"converter": TORCHSCRIPT}
                size = traced.stat().st_size
                artifacts.append(
                    Artifact(name, traced.name, "onnx", "fp32", sha256(traced), size, nodes=nodes, options=made)
                )
    shutil.copytree(bundle.folder / "golden", folder / "golden")
    manifest = replace(bundle.manifest, graphs=tuple(graphs), artifacts=tuple(artifacts), files={}, parity=())
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(folder, manifest)


@cache
def gmac(model: str, graph: str, form: str, prompts: int, points: int, size: int | None = None) -> float | None:
    """Multiply-accumulates (1e9) of one run, counted by torch on shapes alone; None for a graph it cannot build.

    ``size`` is the side of the frame, None the model's own.

    Counts what the graph form does (matrix products, convolutions, attention), not what a runtime fuses or skips.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from samexport.models.build import build_graph

    spec = find_model(model, size)
    with FakeTensorMode(), torch.inference_mode():
        network = resolve_name(find_family(spec.family).network)(spec).eval()
        try:
            spec_of_graph, module = build_graph(network, spec, graph, plain=form == "plain")
        except ConfigError:
            return None
        sizes = spec_of_graph.sizes({"prompts": prompts, "points": points}, default="usual")
        given = [torch.zeros(t.resolved(sizes), dtype=getattr(torch, t.dtype)) for t in spec_of_graph.inputs]
        with FlopCounterMode(display=False) as counter:
            module(*given)
    return float(counter.get_total_flops()) / 2e9
