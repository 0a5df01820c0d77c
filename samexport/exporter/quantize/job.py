"""Files of a bundle to quantized files, and the gate that they have to pass: the masks of the files they come from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log10
from pathlib import Path
from typing import Any

from samexport.errors import ConfigError, ExportFailed, MissingDependency, ParityFailed, SamExportError
from samexport.exporter.formats import versions
from samexport.exporter.quantize.calibration import Pictures, fed
from samexport.exporter.quantize.layers import Layer, Quantizer
from samexport.exporter.recipes import RECIPES, Recipe
from samexport.files import sha256
from samexport.installation import install_hint
from samexport.models.catalog import find_family
from samexport.models.families.detector import SAMPLER
from samexport.models.spec import GraphSpec
from samexport.runtimes.accuracy.agreement import Asked, Limits, ask, judge
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Artifact, Bundle, Gate, ModeScores
from samexport.runtimes.parity.compare import signal_to_noise

Progress = Callable[[str], None]
MAX_DROP, MOST_PICTURES = 0.01, 32
_SEARCHED = 1
"""Pictures that a layer's cost is measured on."""


@dataclass(frozen=True)
class Request:
    """What to quantize, and what it may cost.

    Attributes:
        recipe: see :mod:`samexport.exporter.recipes`.
        pictures: for calibration and for the gate.
        graphs: names; empty for those that see the picture. Decoders cost little and lose most.
        max_drop: see :class:`samexport.runtimes.accuracy.agreement.Limits`.
        threads: of the runtimes.
    """

    recipe: Recipe
    pictures: Pictures
    graphs: tuple[str, ...] = ()
    max_drop: float = MAX_DROP
    threads: int | None = None


@dataclass(frozen=True)
class Cost:
    """What it costs to quantize one layer alone.

    Attributes:
        layer: which one.
        snr_db: of the graph's outputs, in the worst picture.
        modes: of masks; empty where they were not looked at.
    """

    layer: Layer
    snr_db: float
    modes: tuple[ModeScores, ...] = ()

    @property
    def mask_iou(self) -> float | None:
        """The mean over all prompts."""
        prompts = sum(mode.prompts for mode in self.modes)
        return sum(mode.mean * mode.prompts for mode in self.modes) / prompts if prompts else None


@dataclass
class Job:
    """A bundle on its way; its folder gets the new files beside the old ones.

    Attributes:
        given: what another job of the same bundle and pictures has asked; None asks.
        learnt: by graph, what calibration found.
        made: by graph, the file that was written last.
    """

    bundle: Bundle
    request: Request
    progress: Progress = lambda _: None
    given: list[Asked] | None = None
    learnt: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Artifact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graphs = check_request(self.bundle, self.request)
        for name in self.graphs:
            self.layers(name)
        if self.given is None:
            self.progress("asking the files it comes from")
            longest = self.bundle.manifest.frame.size
            self.given = list(ask(self.bundle, self.request.pictures.read(longest), threads=self.request.threads))
        self.asked: list[Asked] = self.given
        if self.request.recipe.calibrated:
            for name in self.graphs:
                self.progress(f"calibrating {name}")
                path, graph = self._parent(name)
                inputs = fed(self.bundle, name, self.asked, self.request.threads)
                self.learnt[name] = self._quantizer(name).calibrate(path, graph, self.request.recipe, inputs)

    def layers(self, name: str) -> list[Layer]:
        """What the recipe quantizes in a graph; ExportFailed for nothing."""
        path, graph = self._parent(name)
        found = self._quantizer(name).layers(path, graph, self.request.recipe)
        if not found:
            raise ExportFailed(f"{name} has nothing that {self.request.recipe.name} quantizes")
        return found

    def write(self, name: str, kept: Mapping[str, str]) -> Artifact:
        """A graph's new file; ``kept`` says why layers, by their names, stay as they are."""
        recipe, parent = self.request.recipe, self.bundle.artifact(name)
        path, graph = self._parent(name)
        target = path.with_name(f"{name}.{recipe.name}{path.suffix}")
        quantizer = self._quantizer(name)
        quantizer.write(path, target, graph, recipe, self.learnt.get(name), kept)
        labels = {layer.name: layer.label for layer in self.layers(name)}
        found = quantizer.count(path, target, graph, {labels[layer]: why for layer, why in kept.items()})
        if not found.quantized_weights:
            raise ExportFailed(f"{target.name} holds no integers: nothing was quantized")
        calibration = self.request.pictures.calibration if recipe.calibrated else None
        made = versions(quantizer.packages)
        return replace(
            parent, path=target.name, recipe=recipe.name, sha256=sha256(target), size=_size(target),
            nodes=None, parent=parent.sha256, calibration=calibration, quantized=found, made_with=made,
        )  # fmt: skip

    def with_files(self, artifacts: Collection[Artifact]) -> Bundle:
        """The bundle with these files in place of their parents."""
        new = {artifact.graph: artifact for artifact in artifacts}
        every = tuple(new.get(name) or self.bundle.artifact(name) for name in self.bundle.graph_names)
        return Bundle(self.bundle.folder, replace(self.bundle.manifest, artifacts=every))

    def judge(self, candidate: Bundle, pictures: int | None = None) -> tuple[ModeScores, ...]:
        """Masks against the parents' masks."""
        return judge(candidate, self.asked[:pictures], threads=self.request.threads)

    def costs(self, name: str, *, masks: bool) -> list[Cost]:
        """What each layer costs alone, the costliest first."""
        layers = self.layers(name)
        inputs = list(fed(self.bundle, name, self.asked[:_SEARCHED], self.request.threads))
        with self.bundle.open(name, threads=self.request.threads) as runtime:
            wanted = [runtime.run(each) for each in inputs]
        found = []
        for number, layer in enumerate(layers, 1):
            self.progress(f"looking at layer {number} of {len(layers)} of {name}")
            others = {each.name: "" for each in layers if each.name != layer.name}
            artifact = self.write(name, others)
            candidate = self.with_files([artifact])
            with candidate.open(name, threads=self.request.threads) as runtime:
                snr = min(_snr(expected, runtime.run(each)) for each, expected in zip(inputs, wanted, strict=True))
            found.append(Cost(layer, snr, self.judge(candidate, _SEARCHED) if masks else ()))
        return sorted(found, key=lambda cost: cost.snr_db)

    def _parent(self, name: str) -> tuple[Path, GraphSpec]:
        return self.bundle.folder / self.bundle.artifact(name).path, self.bundle.graph(name)

    def _quantizer(self, name: str) -> Quantizer:
        return quantizer_of(self.bundle.artifact(name).file_format)


def check_request(bundle: Bundle, request: Request) -> tuple[str, ...]:
    """The graphs to quantize.

    Raises:
        ConfigError: the bundle has no such graph, or a file of other numbers than the recipe starts from.
        MissingDependency: what quantizes the format is not installed.
    """
    recipe = request.recipe
    # others see pictures as well, such as the parts of a sparse encoder, but the gate does not come by there
    judged = (find_family(bundle.manifest.family).first, SAMPLER)
    names = request.graphs or tuple(name for name in bundle.graph_names if name in judged)
    for name in names:
        artifact = bundle.artifact(name)
        if artifact.file_format not in recipe.formats:
            raise ConfigError(f"{recipe.name} is for {' and '.join(recipe.formats)} files, not {artifact.file_format}")
        if not recipe.parent:
            raise ConfigError(f"{recipe.name} comes from the weights: export again with --recipe {recipe.name}")
        if artifact.recipe != recipe.parent:
            raise ConfigError(f"{recipe.name} is made from {recipe.parent} files; {artifact.path} is {artifact.recipe}")
        check_packages(artifact.file_format)
    return names


def check_packages(file_format: str) -> None:
    """MissingDependency if what quantizes a format is not installed."""
    quantizer = quantizer_of(file_format)
    if missing := [package for package in quantizer.packages if not versions((package,))]:
        raise MissingDependency(f"quantizing needs {missing[0]}: {install_hint(quantizer.extra)}")


def quantize_here(bundle: Bundle, request: Request, progress: Progress) -> Bundle:
    """Quantize in the bundle's own folder: parents give way to their quantized files.

    Errors as :func:`quantize_files` and :func:`check_request`.
    """
    job = Job(bundle, request, progress)
    artifacts, gate = quantize_files(job)
    made = job.with_files(artifacts)
    kept = {artifact.path for artifact in made.manifest.artifacts}
    for artifact in bundle.manifest.artifacts:
        if artifact.path not in kept:
            path = bundle.folder / artifact.path
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Bundle(bundle.folder, replace(made.manifest, gate=gate))


def quantize_files(job: Job) -> tuple[tuple[Artifact, ...], Gate]:
    """The new files of a job, which pass the gate.

    Raises:
        ExportFailed: a file cannot be quantized.
        GateFailed: the masks are too far from the parents' masks.
    """
    gate, problems = _attempt(job, {})
    if problems and not job.request.recipe.search:
        formats = {job.bundle.artifact(name).file_format for name in job.graphs}
        searching = RECIPES["mixed" if job.request.recipe.calibrated else "mixed_dynamic"]
        named = f" (the recipe {searching.name} leaves what costs most as it is)"
        other = named if formats <= set(searching.formats) else ""
        raise GateFailed(gate, problems, other)
    if problems and sum(len(job.layers(name)) for name in job.graphs) < 2:
        raise GateFailed(gate, problems, ", and there is no other layer")
    if problems:
        gate = _search(job)
    return tuple(job.made[name] for name in job.graphs), gate


def _search(job: Job) -> Gate:
    """Leave ever more layers as they were until the gate is passed, then as few as possible.

    First those that add most noise for the multiplications that they save. Twice as many each time, then halves of
    what is between.
    """
    costs = [(name, cost) for name in job.graphs for cost in job.costs(name, masks=False)]
    costs.sort(key=lambda each: each[1].snr_db + 10 * log10(max(each[1].layer.macs, 1)))
    too_few, leave, passed = 0, 1, 0
    while True:
        gate, problems = _attempt(job, _kept(costs[:leave]))
        too_few, passed = (leave, passed) if problems else (too_few, leave)
        if problems and leave == len(costs) - 1:
            raise GateFailed(gate, problems, f" with {leave} of {len(costs)} layers left as they were")
        if not passed:
            leave = min(2 * leave, len(costs) - 1)
        elif passed - too_few > max(1, len(costs) // 20):
            leave = (too_few + passed) // 2
        else:
            break
    return gate if leave == passed and not problems else _attempt(job, _kept(costs[:passed]))[0]


def _kept(costs: Sequence[tuple[str, Cost]]) -> dict[str, dict[str, str]]:
    kept: dict[str, dict[str, str]] = {}
    for name, cost in costs:
        kept.setdefault(name, {})[cost.layer.name] = f"alone leaves {cost.snr_db:.1f} dB"
    return kept


def _attempt(job: Job, kept: Mapping[str, Mapping[str, str]]) -> tuple[Gate, list[str]]:
    """Write the files with these layers left as they were, and what the gate finds."""
    count = sum(map(len, kept.values()))
    job.progress(f"quantizing {' and '.join(job.graphs)}")
    job.made = {name: job.write(name, kept.get(name, {})) for name in job.graphs}
    job.progress("comparing masks" + (f", {count} layers left as they were" if count else ""))
    limits = Limits(job.request.max_drop)
    scores = _scores(job, tuple(job.made.values()))
    gate = Gate(limits.max_drop, job.request.pictures.calibration.pictures, scores)
    return gate, [problem for each in scores if (problem := limits.problem(each))]


def _scores(job: Job, artifacts: Sequence[Artifact]) -> tuple[ModeScores, ...]:
    try:
        return job.judge(job.with_files(artifacts))
    except SamExportError as error:
        if isinstance(error, ConfigError):
            raise
        raise ParityFailed(f"the quantized files do not work: {error}") from error


class GateFailed(ParityFailed):
    """The masks are too far from the parent's; ``gate`` has the numbers."""

    def __init__(self, gate: Gate, problems: Sequence[str], more: str) -> None:
        super().__init__(f"masks are too far from the parent's{more}; nothing was written", tuple(problems))
        self.gate = gate


TABLE = ("prompts", "number", "mean IoU", "p5", "worst", "same mask", "verdict")


def table(gate: Gate) -> list[tuple[str, ...]]:
    """What the gate found, for people."""
    limits = Limits(gate.max_drop)
    return [
        (m.mode, str(m.prompts), f"{m.mean:.4f}", f"{m.p5:.4f}", f"{m.worst:.4f}", f"{m.same_best:.3f}",
         "FAIL" if limits.problem(m) else "PASS")
        for m in gate.modes
    ]  # fmt: skip


def quantizer_of(file_format: str) -> Quantizer:
    """What quantizes files of a format."""
    from samexport.exporter.to_coreml import quantize as coreml
    from samexport.exporter.to_onnx import quantize as onnx
    from samexport.exporter.to_tflite import quantize as tflite

    return {
        "onnx": Quantizer(("onnxruntime", "onnx"), "export", onnx.layers, onnx.calibrate, onnx.write, onnx.count),
        "tflite": Quantizer(
            ("ai-edge-quantizer",), "tflite", tflite.layers, tflite.calibrate, tflite.write, tflite.count
        ),
        "coreml": Quantizer(
            ("coremltools", "torch"), "coreml", coreml.layers, coreml.calibrate, coreml.write, coreml.count
        ),
    }[file_format]


def _snr(expected: Tensors, actual: Tensors) -> float:
    return min(signal_to_noise(value, actual[name]) for name, value in expected.items())


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
