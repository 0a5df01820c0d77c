"""The whole job, in order: weights, reference, files, parity, card, bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

import samexport
from samexport.errors import ConfigError, ParityFailed
from samexport.exporter.formats import WRITERS, Facts, Target, versions
from samexport.exporter.sampler_export import (
    LoadedSampler,
    SamplerExport,
    load_sampler,
    reload_sampler,
    write_sampler,
)
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.files import new_folder
from samexport.models.catalog import find_model
from samexport.models.families.detector import SAMPLER
from samexport.models.loading import load_model, reload_model
from samexport.models.spec import GraphSpec, ModelSpec
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import (
    MANIFEST,
    Artifact,
    Bundle,
    Manifest,
    WeightsInfo,
    not_ours,
    open_bundle,
    relative_files,
)  # fmt: skip
from samexport.runtimes.parity.golden import Golden, make_golden, save_golden
from samexport.runtimes.parity.verify import compare_cases, run_chain
from samexport.runtimes.verdicts import Check, ParityReport, Row, Verdict

if TYPE_CHECKING:
    from samexport.models.architectures.sam import Sam

Progress = Callable[[str], None]
GOLDEN_SEED = 20
ONNX = OnnxOptions()
ALL_MASKS = (0, 1, 2, 3)
_TOOLS = ("torch", "numpy", "pillow")


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    ``checkpoints`` are files of weights, merged in order; empty takes the official one, unless
    ``random_seed`` is set. ``out`` None names the folder after the model. ``target`` says format and precision.
    ``decoder_checkpoint`` is a file whose prompt encoder and mask decoder are used instead. With ``sampler`` a
    detector that proposes boxes joins the bundle; without a checkpoint of its own it is random like the rest.
    ``small`` leaves the decoders' position terms to the runtime, see :func:`samexport.models.build.build_graph`.
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

    def __post_init__(self) -> None:
        if (self.checkpoints or self.decoder_checkpoint) and self.random_seed is not None:
            raise ConfigError("random weights and a checkpoint exclude each other; give one of them")
        if self.small and not isinstance(self.target, OnnxOptions):
            raise ConfigError("--small is of ONNX files, whose runtime computes the position terms once")
        if self.sampler is not None:
            self.sampler.check(self.target, self.random_seed)

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graphs to write."""
        decoder = ("decoder_prologue", "decoder_step") if self.split_decoder else ("decoder",)
        return ("encoder", *decoder, "decoder_with_mask")

    def folder(self, spec: ModelSpec) -> Path:
        """Where the bundle goes; the default name tells model, format, precision and random weights."""
        random = "-random" if self.random_seed is not None else ""
        writer = WRITERS[type(self.target)]
        sampler = f"-{self.sampler.name}" if self.sampler else ""
        return self.out or Path(
            f"{spec.name.replace('.', '-')}{sampler}-{writer.file_format}-{self.target.precision}{random}"
        )


def export_bundle(options: ExportOptions, progress: Progress = lambda _: None) -> tuple[Bundle, ParityReport]:
    """Export a bundle; it appears complete and verified, or not at all.

    Raises:
        ConfigError: an option, the checkpoint or the target folder cannot be used.
        ExportFailed: a converter failed.
        ParityFailed: a file does not compute what PyTorch computes.
    """
    from samexport.models.build import build_graph

    spec = find_model(options.encoder)
    if options.decoder_checkpoint is not None:
        spec = replace(spec, mask_outputs=ALL_MASKS)
    target, writer = options.folder(spec), WRITERS[type(options.target)]
    with new_folder(target, force=options.force, refusal=not_ours) as folder:
        progress("reading weights")
        sam, weights = load_model(spec, options.checkpoints, options.random_seed, options.decoder_checkpoint)
        sampler = None if options.sampler is None else _load_sampler(options.sampler, options)
        progress("running the reference")
        golden = reference_golden(sam, spec, options.graphs, GOLDEN_SEED)
        if sampler is not None:
            golden = replace(golden, cases=(*golden.cases, sampler.golden(golden.picture)))
        save_golden(golden, folder)
        artifacts = []
        for name in options.graphs:
            progress(f"exporting {name}")
            graph, module = build_graph(sam, spec, name, small=options.small)
            facts = Facts(spec, weights, {name: golden.inputs_of(graph)})
            artifact = writer.write(graph, module, folder, options.target, facts)
            form = {"form": "small"} if options.small and name != "encoder" else {}
            artifacts.append(replace(artifact, options=artifact.options | form))
        if sampler is not None:
            progress(f"exporting {SAMPLER}")
            artifacts.append(write_sampler(sampler, folder, options.target, spec))
        bundle = Bundle(folder, _manifest(spec, weights, tuple(artifacts), options, sampler))
        rows = tuple(compare_cases(bundle, golden, threads=options.threads, progress=progress))
        report = ParityReport(rows)
        if not report.proves:
            lines = tuple(str(row) for row in report.failures)
            failed = f"{len(lines)} of {len(rows)} checks failed" if lines else "no numbers were compared"
            raise ParityFailed(f"{failed}; nothing was written", lines)
        _finish(bundle, report)
    return open_bundle(target), report


def reference_golden(sam: Sam, spec: ModelSpec, graphs: Sequence[str], seed: int) -> Golden:
    """Golden cases computed by the untouched architecture in PyTorch."""
    from samexport.models.build import build_graph
    from samexport.runtimes.adapters.pytorch import PyTorchRuntime

    plain = ("encoder", "decoder", "decoder_with_mask")
    modules = {name: build_graph(sam, spec, name, plain=True) for name in plain}
    # the prologue alone has no plain form; prologue and step together are the plain decoder
    modules["decoder_prologue"] = build_graph(sam, spec, "decoder_prologue")
    runtimes = {name: PyTorchRuntime(module, graph) for name, (graph, module) in modules.items()}

    def run(chain: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        whole = ("decoder",) if chain[-1] == "decoder_step" else chain
        return run_chain(runtimes, whole, inputs)

    return make_golden(spec.frame, graphs, spec.mask_outputs, seed, run)


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
    spec = replace(find_model(manifest.model), mask_outputs=manifest.mask_outputs)
    progress("running the reference")
    sam = reload_model(spec, manifest.weights, checkpoints, decoder)
    graphs = [name for name in bundle.graph_names if name != SAMPLER]
    golden = reference_golden(sam, spec, graphs, GOLDEN_SEED + 1)
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


def _manifest(
    spec: ModelSpec,
    weights: WeightsInfo,
    artifacts: tuple[Artifact, ...],
    options: ExportOptions,
    sampler: LoadedSampler | None,
) -> Manifest:
    tools = {
        "samexport": samexport.__version__,
        **versions(_TOOLS),
    }
    graphs: tuple[GraphSpec, ...] = tuple(spec.graph(name) for name in options.graphs)
    if sampler is not None:
        graphs += (sampler.graph,)
    return Manifest(
        spec.name,
        spec.summary,
        spec.licence,
        spec.frame,
        spec.mask_outputs,
        weights,
        graphs,
        artifacts,
        {},
        tools,
        (),
        None if sampler is None else sampler.info,
    )


def _load_sampler(export: SamplerExport, options: ExportOptions) -> LoadedSampler:
    return load_sampler(export, ranked=isinstance(options.target, OnnxOptions), random_seed=options.random_seed or 0)


def _finish(bundle: Bundle, report: ParityReport) -> None:
    """Write the card, the code that goes with the files and, last, the manifest with the hash of every other file."""
    from samexport.exporter.deliver.card import write_card
    from samexport.exporter.to_coreml.swift import FILE_NAME, swift_source

    manifest = replace(bundle.manifest, parity=tuple(row.kept() for row in report.rows))
    if all(a.file_format == "coreml" for a in manifest.artifacts):
        (bundle.folder / FILE_NAME).write_text(swift_source(bundle), encoding="utf-8")
    (bundle.folder / "README.md").write_text(write_card(manifest), encoding="utf-8")
    files = relative_files(bundle.folder, {a.path: a for a in manifest.artifacts})
    (bundle.folder / MANIFEST).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
