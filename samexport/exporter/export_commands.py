"""The commands that make a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.errors import ConfigError
from samexport.exporter.options import Checkpoints, Encoder, Force, Out, Seed, Split, Threads, Weights
from samexport.exporter.terminal import Spinner, print_table

if TYPE_CHECKING:
    from samexport.exporter.writers import Target
    from samexport.runtimes.buckets import Bucket
    from samexport.runtimes.bundle import Bundle
    from samexport.runtimes.parity import ParityReport


def onnx(
    encoder: Encoder,
    out: Out = None,
    checkpoint: Checkpoints = None,
    weights: Weights = "official",
    seed: Seed = 7,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 23.")] = 20,
    split_decoder: Split = False,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Export encoder and decoders as ONNX, verified against PyTorch."""
    from samexport.exporter.to_onnx import OnnxOptions

    target = OnnxOptions(precision, opset)
    _export(encoder, out, checkpoint, weights, seed, target, split_decoder, force, threads)


def tflite(
    encoder: Encoder,
    out: Out = None,
    checkpoint: Checkpoints = None,
    weights: Weights = "official",
    seed: Seed = 7,
    target: Annotated[str, typer.Option(help="cpu, or gpu: refuse what would leave the GPU.")] = "cpu",
    prompts: Annotated[str, typer.Option(help="N of each decoder entry point.")] = "1,4,16",
    points: Annotated[str, typer.Option(help="K of each; the default leaves room for 8 where N is smallest.")] = "",
    split_decoder: Split = False,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Export encoder and decoders as TFLite (LiteRT), verified against PyTorch."""
    from samexport.exporter.to_tflite import TfliteOptions

    buckets = plan_of(prompts, points)
    options = TfliteOptions(tuple(b.prompts for b in buckets), tuple(b.points for b in buckets), target)  # type: ignore[arg-type]
    _export(encoder, out, checkpoint, weights, seed, options, split_decoder, force, threads)


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
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Export encoder and decoders as CoreML packages, verified by interpreting them here."""
    from samexport.exporter.to_coreml import CoreMLOptions

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
    _export(encoder, out, checkpoint, weights, seed, options, split_decoder, force, threads)


def plan_of(prompts: str, points: str) -> tuple[Bucket, ...]:
    """The entry points that ``--prompts`` and ``--points`` ask for; ConfigError if they are no numbers."""
    from samexport.runtimes.buckets import plan

    try:
        counts, rooms = ([int(part) for part in text.split(",") if part] for text in (prompts, points))
    except ValueError as error:
        raise ConfigError(f"--prompts and --points are numbers such as 1,4,16: {error}") from error
    return plan(counts, rooms)


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
) -> None:
    from samexport.exporter.pipeline import ExportOptions, export_bundle
    from samexport.models.catalog import find_model
    from samexport.models.checkpoints import official_checkpoint

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
    )
    if not options.checkpoints and options.random_seed is None:
        # before the spinner, which would hide the progress of the download
        official_checkpoint(find_model(encoder))
    with Spinner() as spinner:
        bundle, report = export_bundle(options, spinner.update)
    _print_bundle(bundle, report)


def _print_bundle(bundle: Bundle, report: ParityReport) -> None:
    rows = []
    for artifact in bundle.manifest.artifacts:
        checks = [r for r in report.rows if artifact.graph in r.case.split(" ")[0].split("+")]
        errors = [r.max_error / r.value_range for r in checks if r.max_error is not None and r.value_range]
        snr = [r.snr_db for r in checks if r.snr_db is not None]
        iou = [r.mask_iou for r in checks if r.mask_iou is not None]
        size, worst = f"{artifact.size / 1e6:.1f} MB", f"{max(errors):.1e}"
        worst_iou = f"{min(iou):.5f}" if iou else ""
        counts = *(str(n or "") for n in (artifact.opset, artifact.nodes)), str(len(checks))
        rows.append((artifact.path, size, *counts, worst, f"{min(snr):.0f}", worst_iou, report.verdict.value))
    columns = (
        "graph",
        "size",
        "opset",
        "nodes",
        "checks",
        "max error / range",
        "min SNR dB",
        "min mask IoU",
        "verdict",
    )
    print_table(columns, rows)
    note = " with RANDOM weights: its masks mean nothing" if bundle.manifest.weights.kind == "random" else ""
    print(f"{bundle.folder} is complete and verified{note}")
