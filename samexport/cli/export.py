"""The commands that make a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from samexport.cli.options import (
    BOXES,
    GRAPHS,
    OUTPUT,
    BundleFolder,
    ExportArguments,
    Force,
    Json,
    ModelArguments,
    format_names,
    takes,
)
from samexport.cli.terminal import Steps, print_table, print_written, written_files
from samexport.errors import ConfigError

if TYPE_CHECKING:
    from samexport.exporter.formats import Target
    from samexport.exporter.pipeline import ExportOptions
    from samexport.exporter.sampler_export import SamplerExport
    from samexport.runtimes.adapters.entry_points import Bucket
    from samexport.runtimes.bundle import Bundle
    from samexport.runtimes.verdicts import ParityReport

Nms = Literal["host", "in-graph"]
_FLEXIBLE = "flexible"
_MAX_PROMPTS, _MAX_POINTS = 1024, 128


@takes(ExportArguments)
def onnx(
    shared: ExportArguments,
    precision: Annotated[
        Literal["fp32", "fp16"] | None,
        typer.Option(help="Of weights and computing.", show_default="fp32", rich_help_panel=GRAPHS),
    ] = None,
    opset: Annotated[
        int, typer.Option(min=18, max=23, metavar="NUMBER", help="ONNX opset.", rich_help_panel=GRAPHS)
    ] = 20,
    simplify: Annotated[
        Literal["onnxslim", "onnxsim", "none"],
        typer.Option(help="What simplifies the graph; each result is checked.", rich_help_panel=GRAPHS),
    ] = "onnxslim",
    nms: Annotated[
        Nms | None,
        typer.Option(
            help="Of the boxes: on the host, or in the graph (NonMaxSuppression).",
            show_default="host",
            rich_help_panel=BOXES,
        ),
    ] = None,
) -> None:
    """Export encoder and decoders as ONNX, verified against PyTorch."""
    from samexport.exporter.to_onnx.convert import OnnxOptions

    _export(shared, OnnxOptions(shared.recipe_or(precision, "fp32", "onnx"), opset, simplify), nms=nms)


@takes(ExportArguments)
def tflite(
    shared: ExportArguments,
    target: Annotated[
        Literal["cpu", "gpu"], typer.Option(help="gpu refuses what would leave the GPU.", rich_help_panel=GRAPHS)
    ] = "cpu",
    prompts: Annotated[
        str, typer.Option(metavar="N,N", help="N of each decoder entry point.", rich_help_panel=GRAPHS)
    ] = "1,4,16",
    points: Annotated[
        str,
        typer.Option(
            metavar="K,K",
            help="K of each entry point.",
            show_default="8 where N is smallest, else 2",
            rich_help_panel=GRAPHS,
        ),
    ] = "",
    converter: Annotated[
        Literal["litert-torch", "onnx2tf"],
        typer.Option(help="onnx2tf runs in an environment of its own.", rich_help_panel=GRAPHS),
    ] = "litert-torch",
    python: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Python 3.12 or 3.13 that makes the environment of onnx2tf.", rich_help_panel=GRAPHS
        ),
    ] = None,
) -> None:
    """Export encoder and decoders as TFLite (LiteRT), verified against PyTorch."""
    from samexport.exporter.to_tflite.convert import TfliteOptions

    if python is not None and converter != "onnx2tf":
        raise ConfigError("--python is for the environment of onnx2tf; it needs --converter onnx2tf")
    buckets = plan_of(prompts, points)
    options = TfliteOptions(
        prompt_buckets=tuple(b.prompts for b in buckets),
        points=tuple(b.points for b in buckets),
        target=target,
        recipe=shared.recipe_or(None, "fp32", "tflite"),
        converter=converter,
        python=python,
    )
    _export(shared, options)


@takes(ExportArguments)
def coreml(
    shared: ExportArguments,
    precision: Annotated[
        Literal["fp16", "fp32"] | None,
        typer.Option(help="Of weights and computing.", show_default="fp16", rich_help_panel=GRAPHS),
    ] = None,
    deployment_target: Annotated[
        Literal["iOS16", "iOS17", "iOS18"],
        typer.Option(help="The oldest system that loads the packages.", rich_help_panel=GRAPHS),
    ] = "iOS16",
    input_type: Annotated[
        Literal["tensor", "image"],
        typer.Option("--input", help="What the encoder takes.", rich_help_panel=GRAPHS),
    ] = "tensor",
    prompts: Annotated[
        str, typer.Option(metavar="N,N", help="Fixed N of each entry point, such as 1,4,16.", rich_help_panel=GRAPHS)
    ] = _FLEXIBLE,
    points: Annotated[
        str,
        typer.Option(
            metavar="K,K",
            help="K of each fixed N.",
            show_default="8 where N is smallest, else 2",
            rich_help_panel=GRAPHS,
        ),
    ] = "",
) -> None:
    """Export encoder and decoders as CoreML packages, verified by interpreting them here."""
    from samexport.exporter.to_coreml.convert import CoreMLOptions

    if prompts in ("", _FLEXIBLE) and points:
        raise ConfigError("--points needs --prompts: without it the number of points is flexible")
    buckets = () if prompts in ("", _FLEXIBLE) else plan_of(prompts, points)
    options = CoreMLOptions(
        recipe=shared.recipe_or(precision, "fp16", "coreml"),
        deployment_target=deployment_target,
        image_input=input_type == "image",
        prompt_buckets=tuple(b.prompts for b in buckets) or None,
        points=tuple(b.points for b in buckets),
    )
    _export(shared, options)


@takes(ModelArguments)
def export(
    shared: ModelArguments,
    formats: Annotated[
        str, typer.Option("--format", metavar="NAME,NAME", help="onnx, tflite, coreml.", rich_help_panel=GRAPHS)
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16"] | None,
        typer.Option(
            help="Of weights and computing.", show_default="fp16 for coreml, else fp32", rich_help_panel=GRAPHS
        ),
    ] = None,
) -> None:
    """Export a model in several formats from one reading of its weights, a bundle each.

    Options of one format are those of its own command.
    """
    from samexport.exporter.formats import FORMATS

    names = format_names(formats)
    recipes = {name: shared.recipe_or(precision, FORMATS[name].options().recipe, name) for name in names}
    _export(shared, *(FORMATS[name].options(recipe=recipe) for name, recipe in recipes.items()), within=True)


def android(
    bundle: BundleFolder,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="The demo's folder; it is written first if there is none.", rich_help_panel=OUTPUT
        ),
    ] = Path("android_demo_assets"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Put a TFLite bundle into the Android demo: models, manifest, masks to check a phone with."""
    from samexport.exporter.deliver.android import fill_demo
    from samexport.files import to_json
    from samexport.runtimes.bundle import open_bundle

    opened = open_bundle(bundle)
    filled = fill_demo(opened, out, force=force)
    written = out if filled.new_demo else filled.folder
    if as_json:
        print(to_json(_written(written) | {"models": str(filled.folder)}), end="")
        return
    rows = []
    for name, entries in filled.entries.items():
        path = filled.folder / opened.artifact(name).path
        size, places = f"{path.stat().st_size / 1e6:.1f} MB", ", ".join(e.name for e in entries)
        rows.append((path.name, size, places, ", ".join(str(e.points) for e in entries if e.name != name)))
    print_table(("file", "size", "entry points", "points a prompt"), rows)
    warning = opened.manifest.weights.warning
    note = f" with {warning}" if warning else ""
    print(f"{filled.folder} is complete{note}")
    print(f"{'wrote the demo; ' if filled.new_demo else ''}{out / 'README.md'} says how to build it")
    print_written([written])


def plan_of(prompts: str, points: str) -> tuple[Bucket, ...]:
    """The entry points that ``--prompts`` and ``--points`` ask for; ConfigError for anything but bounded numbers."""
    from samexport.files import reason
    from samexport.runtimes.adapters.entry_points import plan

    try:
        counts, rooms = ([int(part) for part in text.split(",") if part] for text in (prompts, points))
    except ValueError as error:
        raise ConfigError(f"--prompts and --points are numbers such as 1,4,16: {reason(error)}") from error
    for option, numbers, most in (("--prompts", counts, _MAX_PROMPTS), ("--points", rooms, _MAX_POINTS)):
        if max(numbers, default=1) > most:
            raise ConfigError(f"{option} takes numbers up to {most}, got {max(numbers)}")
    return plan(counts, rooms)


def print_licence_note() -> None:
    """Say under which licence the weights of a sampler may be."""
    from samexport.models.weights.detector_checkpoint import LICENCE_NOTE

    print(f"note: {LICENCE_NOTE}", file=sys.stderr)


def _sampler_of(shared: ExportArguments, nms: Nms | None) -> SamplerExport | None:
    from samexport.exporter.sampler_export import SamplerExport

    if shared.sampler_size is not None and shared.sampler_size % 32:
        raise ConfigError(f"--sampler-size is a multiple of 32, not {shared.sampler_size}")
    if shared.sampler is not None:
        return SamplerExport(shared.sampler, shared.sampler_checkpoint, shared.sampler_size, nms or "host")
    if (shared.sampler_checkpoint, shared.sampler_size, nms) != (None,) * 3:
        raise ConfigError("--sampler-checkpoint, --sampler-size and --nms need --sampler object-aware")
    return None


def _options(shared: ExportArguments, target: Target, nms: Nms | None, within: bool) -> ExportOptions:
    """For one bundle; ``within``: ``--out`` is the folder around it."""
    from samexport.exporter.pipeline import ExportOptions
    from samexport.exporter.quantize.job import MAX_DROP

    options = ExportOptions(
        encoder=shared.model,
        out=None if within else shared.out,
        checkpoints=shared.files,
        random_seed=shared.random_seed,
        target=target,
        split_decoder=shared.split_decoder,
        small=shared.small,
        force=shared.force,
        threads=shared.threads,
        decoder_checkpoint=shared.decoder_checkpoint,
        sampler=_sampler_of(shared, nms),
        image_size=shared.image_size,
        features=shared.features,
        calibration=shared.calibration,
        max_drop=MAX_DROP if shared.max_drop is None else shared.max_drop,
    )
    if within and shared.out is not None:
        return replace(options, out=shared.out / options.folder(options.spec).name)
    return options


def _export(shared: ExportArguments, *targets: Target, nms: Nms | None = None, within: bool = False) -> None:
    from samexport.cli.quantize import gate_shown, warn_of
    from samexport.exporter.formats import format_of
    from samexport.exporter.pipeline import export_bundles, unquantized
    from samexport.files import check_new_folder, to_json
    from samexport.models.loading import import_torch
    from samexport.models.weights.downloads import official_adapter, official_checkpoint
    from samexport.runtimes.bundle import not_ours

    if shared.encoder is None and shared.checkpoint:
        import_torch()
    several = [_options(shared, target, nms, within) for target in targets]
    options = several[0]
    spec = options.spec
    graphs = len(options.graphs(spec)) + (options.sampler is not None)
    folders = [each.folder(spec) for each in several]
    for folder in folders:
        check_new_folder(folder, force=options.force, refusal=not_ours)
    if options.sampler is not None and options.sampler.checkpoint is not None:
        print_licence_note()
    print(f"exporting {spec.name} to {' and '.join(map(str, folders))}", file=sys.stderr)
    import_torch()
    for target in targets:
        format_of(target).check_packages()
    if not options.checkpoints and options.random_seed is None:
        # before the steps, which would hide the progress of the download
        official_checkpoint(spec)
        if spec.adapter is not None:
            official_adapter(spec.adapter)
    if options.calibration is None and any(unquantized(target) != target for target in targets):
        warn_of(None)
    told = []
    exported = export_bundles(several, lambda step: steps.update(step))
    for target in targets:
        # how often a quantized file is tried is not known before
        with Steps(3 + 2 * graphs if unquantized(target) == target else None) as steps, gate_shown(shared.as_json):
            bundle, report = next(exported)
        if shared.as_json:
            told.append(_written(bundle.folder) | _told(bundle, report))
        else:
            _print_bundle(bundle, report)
            print_written([bundle.folder])
    if told:
        print(to_json({"bundles": told} if within else told[0]), end="")


def _written(folder: Path) -> dict[str, Any]:
    files = written_files(folder)
    return {
        "path": str(folder),
        "size": sum(files.values()),
        "files": [{"path": name, "size": size} for name, size in files.items()],
    }


def _told(bundle: Bundle, report: ParityReport) -> dict[str, Any]:
    about = {"model": bundle.manifest.model, "weights": asdict(bundle.manifest.weights)}
    return {**about, "verdict": report.verdict.value, "checks": len(report.rows)}


def _print_bundle(bundle: Bundle, report: ParityReport) -> None:
    rows = []
    linted = any(r.check.kind == "lint" for r in report.rows)
    for artifact in bundle.manifest.artifacts:
        about = [r for r in report.rows if r.check.artifacts[-1:] == (artifact.path,)]
        lint = [r.output for r in about if r.check.kind == "lint"]
        checks = [r for r in report.rows if r.check.kind == "case" and artifact.path in r.check.artifacts]
        errors = [r.max_error / r.value_range for r in checks if r.max_error is not None and r.value_range]
        snr = [r.snr_db for r in checks if r.snr_db is not None]
        iou = [r.mask_iou for r in checks if r.mask_iou is not None]
        size, worst = f"{artifact.size / 1e6:.1f} MB", f"{max(errors):.1e}" if errors else ""
        worst_iou = f"{min(iou):.5f}" if iou else ""
        counts = *(str(n or "") for n in (artifact.opset, artifact.nodes)), str(len(checks))
        last = (*(["; ".join(lint)] if linted else []), report.verdict.value)
        rows.append((artifact.path, size, *counts, worst, f"{min(snr):.0f}" if snr else "", worst_iou, *last))
    columns = (
        "graph",
        "size",
        "opset",
        "nodes",
        "checks",
        "max error / range",
        "min SNR dB",
        "min mask IoU",
        *(["linter"] if linted else []),
        "verdict",
    )
    print_table(columns, rows)
    warning = bundle.manifest.weights.warning
    note = f" with {warning}" if warning else ""
    if bundle.manifest.gate is not None:
        from samexport.cli.quantize import print_gate

        print()
        print_gate(bundle)
    print(f"{bundle.folder} is complete and verified{note}")
