"""The commands that make a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from samexport.cli.options import (
    Checkpoints,
    DecoderCheckpoint,
    Encoder,
    Force,
    Out,
    Sampler,
    SamplerCheckpoint,
    SamplerSize,
    Seed,
    Split,
    Threads,
    Weights,
)
from samexport.cli.terminal import Spinner, print_table
from samexport.errors import ConfigError

if TYPE_CHECKING:
    from samexport.exporter.formats import Target
    from samexport.exporter.sampler_export import SamplerExport
    from samexport.runtimes.adapters.entry_points import Bucket
    from samexport.runtimes.bundle import Bundle
    from samexport.runtimes.verdicts import ParityReport


def onnx(
    encoder: Encoder,
    out: Out = None,
    checkpoint: Checkpoints = None,
    weights: Weights = "official",
    seed: Seed = 7,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 23.")] = 20,
    split_decoder: Split = False,
    sampler: Sampler = None,
    sampler_checkpoint: SamplerCheckpoint = None,
    sampler_size: SamplerSize = None,
    nms: Annotated[str, typer.Option(help="Of the sampler: on the host, or in-graph (NonMaxSuppression).")] = "host",
    decoder_checkpoint: DecoderCheckpoint = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Export encoder and decoders as ONNX, verified against PyTorch."""
    from samexport.exporter.to_onnx.convert import OnnxOptions

    target = OnnxOptions(precision, opset)
    chosen = _sampler_of(sampler, sampler_checkpoint, sampler_size, nms)
    _export(encoder, out, checkpoint, weights, seed, target, split_decoder, force, threads, chosen, decoder_checkpoint)


def tflite(
    encoder: Encoder,
    out: Out = None,
    checkpoint: Checkpoints = None,
    weights: Weights = "official",
    seed: Seed = 7,
    target: Annotated[str, typer.Option(help="cpu, or gpu: refuse what would leave the GPU.")] = "cpu",
    prompts: Annotated[str, typer.Option(help="N of each decoder entry point.")] = "1,4,16",
    points: Annotated[str, typer.Option(help="K of each; the default leaves room for 8 where N is smallest.")] = "",
    converter: Annotated[
        str, typer.Option(help="litert-torch, or onnx2tf in an environment of its own.")
    ] = "litert-torch",
    python: Annotated[
        Path | None, typer.Option(help="Python 3.12 or 3.13 that makes the environment of onnx2tf.")
    ] = None,
    split_decoder: Split = False,
    sampler: Sampler = None,
    sampler_checkpoint: SamplerCheckpoint = None,
    sampler_size: SamplerSize = None,
    decoder_checkpoint: DecoderCheckpoint = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Export encoder and decoders as TFLite (LiteRT), verified against PyTorch."""
    from samexport.exporter.to_tflite.convert import TfliteOptions

    buckets = plan_of(prompts, points)
    options = TfliteOptions(
        prompt_buckets=tuple(b.prompts for b in buckets),
        points=tuple(b.points for b in buckets),
        target=target,  # type: ignore[arg-type]
        converter=converter,  # type: ignore[arg-type]
        python=python,
    )
    chosen = _sampler_of(sampler, sampler_checkpoint, sampler_size)
    _export(encoder, out, checkpoint, weights, seed, options, split_decoder, force, threads, chosen, decoder_checkpoint)


def coreml(
    encoder: Encoder,
    out: Out = None,
    checkpoint: Checkpoints = None,
    weights: Weights = "official",
    seed: Seed = 7,
    precision: Annotated[str, typer.Option(help="fp16 or fp32.")] = "fp16",
    deployment_target: Annotated[str, typer.Option(help="iOS16, iOS17 or iOS18.")] = "iOS16",
    input_type: Annotated[str, typer.Option("--input", help="The encoder takes a tensor or an image.")] = "tensor",
    prompts: Annotated[str, typer.Option(help="Fixed N, such as 1,4,16; empty: flexible.")] = "",
    points: Annotated[str, typer.Option(help="K of each fixed N.")] = "",
    split_decoder: Split = False,
    sampler: Sampler = None,
    sampler_checkpoint: SamplerCheckpoint = None,
    sampler_size: SamplerSize = None,
    decoder_checkpoint: DecoderCheckpoint = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Export encoder and decoders as CoreML packages, verified by interpreting them here."""
    from samexport.exporter.to_coreml.convert import CoreMLOptions

    if input_type not in ("tensor", "image"):
        raise ConfigError(f"--input is tensor or image, not {input_type!r}")
    fixed = tuple(b.prompts for b in plan_of(prompts, points)) if prompts else None
    options = CoreMLOptions(
        precision=precision,  # type: ignore[arg-type]
        deployment_target=deployment_target,  # type: ignore[arg-type]
        image_input=input_type == "image",
        prompt_buckets=fixed,
        points=tuple(b.points for b in plan_of(prompts, points)) if prompts else (),
    )
    chosen = _sampler_of(sampler, sampler_checkpoint, sampler_size)
    _export(encoder, out, checkpoint, weights, seed, options, split_decoder, force, threads, chosen, decoder_checkpoint)


def android(
    bundle: Annotated[Path, typer.Argument(help="TFLite bundle, as `samexport tflite` writes it.")],
    out: Annotated[Path, typer.Option(help="The demo's folder; it is written first if there is none.")] = Path(
        "android_demo_assets"
    ),
    force: Force = False,
) -> None:
    """Put a TFLite bundle into the Android demo: models, manifest, and PyTorch's masks to check a phone with."""
    from samexport.exporter.deliver.android import fill_demo
    from samexport.runtimes.bundle import open_bundle

    opened = open_bundle(bundle)
    filled = fill_demo(opened, out, force=force)
    rows = []
    for name, entries in filled.entries.items():
        path = filled.folder / opened.artifact(name).path
        size, places = f"{path.stat().st_size / 1e6:.1f} MB", ", ".join(e.name for e in entries)
        rows.append((path.name, size, places, ", ".join(str(e.points) for e in entries if e.name != name)))
    print_table(("file", "size", "entry points", "points a prompt"), rows)
    note = " with RANDOM weights: its masks mean nothing" if opened.manifest.weights.kind == "random" else ""
    print(f"{filled.folder} is complete{note}")
    print(f"{'wrote the demo; ' if filled.new_demo else ''}{out / 'README.md'} says how to build it")


def plan_of(prompts: str, points: str) -> tuple[Bucket, ...]:
    """The entry points that ``--prompts`` and ``--points`` ask for; ConfigError if they are no numbers."""
    from samexport.runtimes.adapters.entry_points import plan

    try:
        counts, rooms = ([int(part) for part in text.split(",") if part] for text in (prompts, points))
    except ValueError as error:
        raise ConfigError(f"--prompts and --points are numbers such as 1,4,16: {error}") from error
    return plan(counts, rooms)


def print_licence_note() -> None:
    """Say under which licence the weights of a sampler may be."""
    from samexport.models.weights.detector_checkpoint import LICENCE_NOTE

    print(f"note: {LICENCE_NOTE}", file=sys.stderr)


def _sampler_of(
    name: str | None, checkpoint: Path | None, image_size: int | None, nms: str = "host"
) -> SamplerExport | None:
    from samexport.exporter.sampler_export import SamplerExport
    from samexport.runtimes.bundle import Nms

    if name is None:
        if checkpoint is not None or image_size is not None or nms != "host":
            raise ConfigError("--sampler-checkpoint, --sampler-size and --nms need --sampler object-aware")
        return None
    if nms not in get_args(Nms):
        raise ConfigError(f"--nms is one of {', '.join(get_args(Nms))}, not {nms!r}")
    return SamplerExport(name, checkpoint, image_size, cast(Nms, nms))


def _export(
    encoder: str,
    out: Path | None,
    checkpoint: list[Path] | None,
    weights: str,
    seed: int,
    target: Target,
    split_decoder: bool,
    force: bool,
    threads: int | None,
    sampler: SamplerExport | None,
    decoder_checkpoint: Path | None,
) -> None:
    from samexport.exporter.pipeline import ExportOptions, export_bundle
    from samexport.models.catalog import find_model
    from samexport.models.weights.downloads import official_checkpoint

    if weights not in ("official", "random"):
        raise ConfigError(f"--weights is official or random, not {weights!r}")
    options = ExportOptions(
        encoder=encoder,
        out=out,
        checkpoints=tuple(checkpoint or ()),
        random_seed=seed if weights == "random" else None,
        target=target,
        split_decoder=split_decoder,
        force=force,
        threads=threads,
        decoder_checkpoint=decoder_checkpoint,
        sampler=sampler,
    )
    if sampler is not None and sampler.checkpoint is not None:
        print_licence_note()
    if not options.checkpoints and options.random_seed is None:
        # before the spinner, which would hide the progress of the download
        official_checkpoint(find_model(encoder))
    with Spinner() as spinner:
        bundle, report = export_bundle(options, spinner.update)
    _print_bundle(bundle, report)


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
        size, worst = f"{artifact.size / 1e6:.1f} MB", f"{max(errors):.1e}"
        worst_iou = f"{min(iou):.5f}" if iou else ""
        counts = *(str(n or "") for n in (artifact.opset, artifact.nodes)), str(len(checks))
        last = (*(["; ".join(lint)] if linted else []), report.verdict.value)
        rows.append((artifact.path, size, *counts, worst, f"{min(snr):.0f}", worst_iou, *last))
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
    note = " with RANDOM weights: its masks mean nothing" if bundle.manifest.weights.kind == "random" else ""
    print(f"{bundle.folder} is complete and verified{note}")
