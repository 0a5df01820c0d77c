"""The whole job as stages in one list: weights, reference, files, comparison, what goes with the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import samexport
from samexport.errors import ConfigError, ParityFailed
from samexport.exporter.formats import Facts, Target, format_of, versions
from samexport.exporter.quantize.job import MAX_DROP, MOST_PICTURES, check_packages
from samexport.exporter.recipes import RECIPES
from samexport.exporter.sampler_export import (
    LoadedSampler,
    SamplerExport,
    load_sampler,
    reload_sampler,
    write_sampler,
)
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.files import check_new_folder, new_folder
from samexport.models.catalog import MODELS, find_family, find_model
from samexport.models.families.detector import SAMPLER
from samexport.models.loading import import_torch, load_model, reload_model
from samexport.models.spec import GraphSpec, ModelSpec
from samexport.models.weights.demo import demo_checkpoint
from samexport.runtimes.base import Tensors, check_threads
from samexport.runtimes.bundle import (
    CONSTANTS,
    MANIFEST,
    Artifact,
    Bundle,
    Gate,
    Manifest,
    WeightsInfo,
    not_ours,
    open_bundle,
    relative_files,
)  # fmt: skip
from samexport.runtimes.parity.clip import Clip, clip_frames, make_clip
from samexport.runtimes.parity.golden import Golden, make_golden
from samexport.runtimes.parity.golden_files import save_golden
from samexport.runtimes.parity.picture import picture_masks
from samexport.runtimes.parity.verify import compare_cases, run_frames
from samexport.runtimes.session import OpenGraphs, open_session
from samexport.runtimes.torch_bundle import constants_of, plain_bundle
from samexport.runtimes.verdicts import Check, ParityReport, Row, Verdict

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str], None]
GOLDEN_SEED = 20
ONNX = OnnxOptions()
ALL_MASKS = (0, 1, 2, 3)
_TOOLS = ("torch", "numpy", "pillow")


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    ``checkpoints`` are files of weights, merged in order; empty takes the official one, unless
    ``random_seed`` is set. ``out`` None names the folder after the model. ``target`` says format and recipe.
    ``decoder_checkpoint`` is a file whose prompt encoder and mask decoder are used instead. With ``sampler`` a
    detector that proposes boxes joins the bundle; without a checkpoint of its own it is random like the rest.
    ``image_size`` is the side of the model's frame, for models that take others than their own.
    ``features`` are what else a family can export, by its own names; ``split_decoder`` and ``small`` are two of SAM's.
    ``small`` leaves the decoders' position terms to the runtime, see :func:`samexport.models.build.build_graph`.
    ``calibration`` is a folder of pictures and ``max_drop`` the gate of recipes that quantize.
    """

    encoder: str
    out: Path | None = None
    checkpoints: tuple[Path, ...] = ()
    random_seed: int | None = None
    target: Target = ONNX
    split_decoder: bool = False
    small: bool = False
    force: bool = False
    threads: int | None = None
    decoder_checkpoint: Path | None = None
    sampler: SamplerExport | None = None
    features: tuple[str, ...] = ()
    image_size: int | None = None
    calibration: Path | None = None
    max_drop: float = MAX_DROP

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if (self.checkpoints or self.decoder_checkpoint) and self.random_seed is not None:
            raise ConfigError("random weights and a checkpoint exclude each other; give one of them")
        if self.small and not isinstance(self.target, OnnxOptions):
            raise ConfigError("--small is of ONNX files, whose runtime computes the position terms once")
        if self.sampler is not None:
            self.sampler.check(self.target, self.random_seed)
        if self.calibration is not None:
            from samexport.exporter.quantize.calibration import pictures_of

            # before the hours of a large model
            pictures_of(self.calibration, self.calibration)

    @property
    def spec(self) -> ModelSpec:
        """The model; ConfigError if there is none of that name, size and features."""
        return find_model(self.encoder, self.image_size, self.features)

    def graphs(self, spec: ModelSpec) -> tuple[str, ...]:
        """The graphs to write; ConfigError for a feature that the model's family has not."""
        asked = {"split-decoder": self.split_decoder, "small": self.small, **dict.fromkeys(self.features, True)}
        features = [name for name, wanted in asked.items() if wanted]
        family = find_family(spec.family)
        if unknown := [name for name in features if name not in family.features]:
            have = [m.encoder for m in MODELS.values() if unknown[0] in find_family(m.family).features and not m.hidden]
            others = f"such as {' or '.join(have[:3])}" if have else "of which there is none"
            raise ConfigError(f"{spec.name} has no feature {unknown[0]!r}; take a model that has it, {others}")
        own = {graph.name for graph in spec.graphs}
        return tuple(name for name in family.graphs(features) if name in own)

    def folder(self, spec: ModelSpec) -> Path:
        """Where the bundle goes; the default name tells model, format, recipe, and random or demo weights."""
        kind = "-random" if self.random_seed is not None else ""
        if spec.demo and self.checkpoints == demo_checkpoint(spec):
            kind = "-demo"
        sampler = f"-{self.sampler.name}" if self.sampler else ""
        size = "" if spec.frame.size == find_model(spec.name).frame.size else f"-{spec.frame.size}"
        return self.out or Path(
            f"{spec.name.replace('.', '-')}{size}{sampler}-{format_of(self.target).name}-{self.target.recipe}{kind}"
        )


@dataclass
class Work:
    """An export on its way: each stage reads what earlier ones left here.

    ``before`` is another export of the same graphs and weights, whose network and reference serve again. ``plain`` is
    the reference of the family's graphs, ``golden`` that with the detector's.
    """

    options: ExportOptions
    spec: ModelSpec
    folder: Path
    progress: Progress
    network: nn.Module = field(init=False)
    weights: WeightsInfo = field(init=False)
    plain: Golden = field(init=False)
    before: Work | None = None
    sampler: LoadedSampler | None = None
    golden: Golden = field(init=False)
    artifacts: tuple[Artifact, ...] = ()
    gate: Gate | None = None
    report: ParityReport = field(default_factory=lambda: ParityReport(()))

    @property
    def bundle(self) -> Bundle:
        """What is there so far, unfinished."""
        return Bundle(self.folder, _manifest(self))


def load(work: Work) -> None:
    """Weights into the network, and the detector's."""
    options = work.options
    work.progress("reading weights")
    if work.before is not None:
        work.network, work.weights = work.before.network, work.before.weights
    else:
        work.network, work.weights = load_model(
            work.spec, options.checkpoints, options.random_seed, options.decoder_checkpoint
        )
    if options.sampler is not None:
        # only ONNX files choose the best boxes themselves
        ranked = isinstance(options.target, OnnxOptions)
        work.sampler = load_sampler(options.sampler, ranked=ranked, random_seed=options.random_seed or 0)


def reference(work: Work) -> None:
    """What the untouched architecture computes, before any file is written."""
    work.progress("running the reference")
    if work.before is not None:
        work.plain = work.before.plain
    else:
        work.plain = reference_golden(work.network, work.spec, work.options.graphs(work.spec), GOLDEN_SEED)
    golden = work.plain
    if work.sampler is not None:
        golden = replace(golden, cases=(*golden.cases, work.sampler.golden(golden.picture)))
    save_golden(golden, work.folder)
    work.golden = golden


def export(work: Work) -> None:
    """A file for each graph, and one for the constants where the family has some."""
    from samexport.models.build import build_graph

    options, small = work.options, work.options.small
    target = unquantized(options.target)
    for name in options.graphs(work.spec):
        work.progress(f"exporting {name}")
        graph, module = build_graph(work.network, work.spec, name, small=small)
        facts = Facts(work.spec, work.weights, {name: work.golden.inputs_of(graph)})
        artifact = format_of(target).write(graph, module, work.folder, target, facts)
        form = {"form": "small"} if small and name != find_family(work.spec.family).first else {}
        work.artifacts += (replace(artifact, options=artifact.options | form),)
    if constants := constants_of(work.spec, work.network):
        np.savez_compressed(work.folder / CONSTANTS, allow_pickle=False, **constants)
    if work.sampler is not None:
        work.progress(f"exporting {SAMPLER}")
        work.artifacts += (write_sampler(work.sampler, work.folder, target, work.spec),)


def quantize(work: Work) -> None:
    """Files by the recipe in place of those that it starts from; GateFailed if their masks are others."""
    from samexport.exporter.quantize.calibration import pictures_of
    from samexport.exporter.quantize.job import Request, quantize_here

    options = work.options
    recipe = RECIPES[options.target.recipe]
    if recipe.parent:
        pictures = pictures_of(options.calibration, work.folder, MOST_PICTURES)
        request = Request(recipe, pictures, max_drop=options.max_drop, threads=options.threads)
        made = quantize_here(work.bundle, request, work.progress).manifest
        work.artifacts, work.gate = made.artifacts, made.gate


def compare(work: Work) -> None:
    """Every file against the reference; ParityFailed if one computes something else."""
    work.report = proven(work.bundle, work.golden, work.options.threads, work.progress)


def deliver(work: Work) -> None:
    """What :func:`finish` writes."""
    finish(work.bundle, work.report)


def proven(bundle: Bundle, golden: Golden, threads: int | None, progress: Progress) -> ParityReport:
    """The report of every case on every file; ParityFailed if a file computes something else."""
    report = ParityReport(tuple(compare_cases(bundle, golden, threads=threads, progress=progress)))
    if not report.proves:
        lines = tuple(str(row) for row in report.failures)
        failed = f"{len(lines)} of {len(report.rows)} checks failed" if lines else "no numbers were compared"
        raise ParityFailed(f"{failed}; nothing was written", lines)
    return report


def finish(bundle: Bundle, report: ParityReport) -> None:
    """The card, the code that goes with the files and, last, the manifest with the hash of every other file."""
    from samexport.exporter.deliver.card import write_card

    folder = bundle.folder
    manifest = replace(bundle.manifest, parity=tuple(row.kept() for row in report.rows))
    extras = find_family(manifest.family).extras
    formats = {artifact.file_format for artifact in manifest.artifacts}
    texts = {"README.md": write_card(manifest)}
    for path in (extras[name] for name in formats if formats == {name} and name in extras):
        texts |= resolve_name(path)(bundle)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    files = relative_files(folder, {a.path: a for a in manifest.artifacts})
    (folder / MANIFEST).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


STAGES: tuple[Callable[[Work], None], ...] = (load, reference, export, quantize, compare, deliver)
"""In this order. A stage that makes further files from files comes before ``compare``, one that judges after it."""


def export_bundle(options: ExportOptions, progress: Progress = lambda _: None) -> tuple[Bundle, ParityReport]:
    """Export a bundle; it appears complete and verified, or not at all.

    Raises:
        ConfigError: an option, the checkpoint or the target folder cannot be used.
        ExportFailed: a converter failed.
        ParityFailed: a file does not compute what PyTorch computes.
    """
    return next(export_bundles([options], progress))


def export_bundles(
    several: Sequence[ExportOptions], progress: Progress = lambda _: None
) -> Iterator[tuple[Bundle, ParityReport]]:
    """Export bundles of one model that differ in their targets alone: weights and reference are read and run once.

    Each appears, complete and verified, before the next one is begun; all folders are checked before the first.

    Raises:
        ConfigError: an option, the checkpoint or the target folder cannot be used.
        MissingDependency: a package that exports is not installed.
        ExportFailed: a converter failed.
        ParityFailed: a file does not compute what PyTorch computes.
    """
    spec = several[0].spec
    for options in several:
        options.graphs(spec)
        if unquantized(options.target) != options.target:
            check_packages(format_of(options.target).name)
        check_new_folder(options.folder(spec), force=options.force, refusal=not_ours)
    import_torch()
    for options in several:
        format_of(options.target).check_packages()
    if several[0].decoder_checkpoint is not None:
        spec = replace(spec, mask_outputs=ALL_MASKS)
    before: Work | None = None
    for options in several:
        target = options.folder(spec)
        with new_folder(target, force=options.force, refusal=not_ours) as folder:
            work = Work(options, spec, folder, progress, before=before)
            for stage in STAGES:
                stage(work)
        before = work
        yield open_bundle(target), work.report


def unquantized(target: Target) -> Target:
    """What the converter writes: the target, or for a recipe that quantizes files the one that it starts from."""
    parent = RECIPES[target.recipe].parent
    return replace(target, recipe=parent) if parent else target


def reference_golden(network: nn.Module, spec: ModelSpec, graphs: Sequence[str], seed: int) -> Golden:
    """Golden cases computed by the untouched architecture in PyTorch."""
    from samexport.models.build import build_graph
    from samexport.runtimes.adapters.pytorch import PyTorchRuntime

    family = find_family(spec.family)
    plain = plain_bundle(spec, network, WeightsInfo("random", "the reference", None, 0))
    runtimes = {name: plain.open(name) for name in plain.graph_names}
    for name in set(graphs) - set(runtimes) - set(family.equal):
        # a part of a chain has no plain form; its whole chain has one
        graph, module = build_graph(network, spec, name)
        runtimes[name] = PyTorchRuntime(module, graph)

    def run(chain: tuple[str, ...], frames: Sequence[Tensors]) -> list[Tensors]:
        whole = (family.equal[chain[-1]],) if chain[-1] in family.equal else chain
        found = run_frames(runtimes, whole, frames, family.state)
        return [outputs for _, outputs in found]

    session = open_session(OpenGraphs(plain.only(graphs)))

    def follow(picture: NDArray[np.uint8]) -> dict[str, Clip]:
        made = {
            loop.name: make_clip(resolve_name(loop.follow), session, clip_frames(picture, loop.frames))
            for loop in family.loops
            if set(loop.graphs) <= set(graphs)
        }
        return {name: clip for name, clip in made.items() if clip is not None}

    def answer(picture: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        found = picture_masks(plain, picture)
        return found.masks, found.low_res_masks

    return make_golden(spec, graphs, seed, resolve_name(family.cases), run, answer, follow)


def verify_against_pytorch(
    bundle: Bundle, report: ParityReport, checkpoints: Sequence[Path], *,
    decoder: Path | None = None, sampler: Path | None = None,
    runtime: str | None = None, threads: int | None = None, progress: Progress = lambda _: None,
) -> ParityReport:  # fmt: skip
    """Add rows to ``report`` that compare with PyTorch on fresh inputs, the weights read from ``checkpoints``.

    ``decoder`` and ``sampler`` are the other files that were used at export; a sampler whose file is not given
    is skipped.

    Raises:
        ConfigError: these are not the weights that the bundle was made from.
    """
    manifest = bundle.manifest
    spec = replace(find_model(manifest.model, manifest.frame.size), mask_outputs=manifest.mask_outputs)
    progress("running the reference")
    network = reload_model(spec, manifest.weights, checkpoints, decoder)
    graphs = [name for name in bundle.graph_names if name != SAMPLER]
    golden = reference_golden(network, spec, graphs, GOLDEN_SEED + 1)
    skipped: tuple[Row, ...] = ()
    if manifest.sampler is not None and sampler is not None:
        loaded = reload_sampler(manifest.sampler, bundle.graph(SAMPLER), sampler)
        golden = replace(golden, cases=(*golden.cases, loaded.golden(golden.picture)))
    elif manifest.sampler is not None:
        skipped = (Row(Check("case", (SAMPLER,)), "golden", Verdict.SKIPPED, "no --sampler-checkpoint was given"),)
    rows = compare_cases(bundle, golden, runtime=runtime, threads=threads, progress=progress)
    found = [r for r in rows if not (skipped and r.check.graphs == (SAMPLER,)) and r.check.kind != "lint"]
    compared = (replace(r, check=replace(r.check, against="PyTorch")) for r in (*found, *skipped))
    return ParityReport((*report.rows, *compared))


def _manifest(work: Work) -> Manifest:
    spec, sampler = work.spec, work.sampler
    graphs: tuple[GraphSpec, ...] = tuple(spec.graph(name) for name in work.options.graphs(spec))
    if sampler is not None:
        graphs += (sampler.graph,)
    tools = {"samexport": samexport.__version__, **versions(_TOOLS)}
    info = None if sampler is None else sampler.info
    return Manifest(
        spec.name, spec.summary, spec.licence, spec.frame, spec.mask_outputs, work.weights, graphs, work.artifacts, {},
        tools, (), info, spec.family, spec.scores, work.gate,
    )  # fmt: skip
