"""The command line: parse, call, print, exit code. Heavy imports are inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samexport.errors import ConfigError, ParityFailed, SamExportError

if TYPE_CHECKING:
    from samexport.exporter.writers import Target
    from samexport.runtimes.buckets import Bucket
    from samexport.runtimes.bundle import Bundle as OpenedBundle
    from samexport.runtimes.parity import ParityReport

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Export Segment-Anything models for phones, verify the files against PyTorch, and run them.",
)


def main() -> None:
    """Entry point: errors of ours become one line and their exit code."""
    try:
        app()
    except SamExportError as error:
        for line in error.details if isinstance(error, ParityFailed) else ():
            print(f"FAIL  {line}", file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(shown: bool) -> None:
    if shown:
        from samexport import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Encoder = Annotated[str, typer.Option(help="Which model; `samexport list` shows all.")]
Out = Annotated[Path | None, typer.Option(help="Bundle folder; the default is named after the model.")]
Checkpoints = Annotated[
    list[Path] | None, typer.Option("--checkpoint", help="Weights: .pt, .pth or .safetensors; may be repeated.")
]
Weights = Annotated[str, typer.Option(help="official: cache or download. random: seeded, means nothing.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random weights.")]
Split = Annotated[bool, typer.Option("--split-decoder", help="decoder_prologue + decoder_step instead of decoder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtimes.")]
RuntimeName = Annotated[str | None, typer.Option(help="Runtime; `samexport doctor` lists them.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@app.command()
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


@app.command()
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


@app.command()
def coreml(
    encoder: Encoder,
    out: Out = None,
    checkpoint: Checkpoints = None,
    weights: Weights = "official",
    seed: Seed = 7,
    precision: Annotated[str, typer.Option(help="fp16 or fp32.")] = "fp16",
    deployment_target: Annotated[str, typer.Option(help="iOS16, iOS17 or iOS18.")] = "iOS16",
    input_type: Annotated[str, typer.Option("--input", help="The encoder takes a tensor or an image.")] = "tensor",
    prompts: Annotated[str, typer.Option(help="Fixed N, such as 1,4,16 (iOS18); empty: flexible.")] = "",
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
    with _Spinner() as spinner:
        bundle, report = export_bundle(options, spinner.update)
    _print_bundle(bundle, report)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Also compare with PyTorch on these weights (needs torch).")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report: .json, .xml (JUnit) or .md.")] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
) -> None:
    """Run the parity checks of a bundle again, from its golden tensors alone."""
    from samexport.runtimes.bundle import open_bundle
    from samexport.runtimes.report import write_report
    from samexport.runtimes.verify import verify_bundle

    opened = open_bundle(bundle)
    with _Spinner() as spinner:
        found = verify_bundle(opened, runtime=runtime, threads=threads, progress=spinner.update)
        if checkpoint:
            from samexport.exporter.pipeline import verify_against_pytorch

            found = verify_against_pytorch(
                opened, found, tuple(checkpoint), runtime=runtime, threads=threads, progress=spinner.update
            )
    if report is not None:
        write_report(found, report, f"samexport verify {opened.folder.resolve().name}")
    _print_rows(found)
    if found.failures:
        lines = tuple(str(row) for row in found.failures)
        raise ParityFailed(f"{len(lines)} of {len(found.rows)} checks failed", lines)
    print(f"{opened.folder}: {len(found.rows)} checks {found.verdict.value}")


@app.command()
def segment(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    image: Annotated[Path, typer.Argument(help="Picture.")],
    point: Annotated[list[str] | None, typer.Option(help="x,y or x,y,0 for a negative click; repeats.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,x1,y1; repeats, one prompt each.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Earlier logits (.npy) to refine.")] = None,
    multimask: Annotated[bool, typer.Option("--multimask", help="Keep all candidate masks.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the picture with the masks drawn on it.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Write masks: a folder of PNGs, or a .json of COCO RLE.")] = None,
    logits: Annotated[Path | None, typer.Option(help="Write the logits as .npy, for a later --mask.")] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Segment a picture with a bundle alone (no torch); without a box all points are one prompt."""
    from samexport.exporter.segment_command import SegmentRequest, run_segment

    request = SegmentRequest(bundle, image, tuple(point or ()), tuple(box or ()), mask, multimask)
    run_segment(request, out=out, masks=masks, logits=logits, runtime=runtime, threads=threads, force=force)


@app.command("list")
def list_models(
    as_json: Json = False,
    hidden: Annotated[bool, typer.Option("--all", help="Also the models for tests.")] = False,
) -> None:
    """Show the models: parameters, licence, checkpoint source."""
    from samexport.models.catalog import MODELS

    chosen = [m for m in MODELS.values() if hidden or not m.hidden]
    if as_json:
        keys = ("name", "encoder", "summary", "parameters", "licence")
        rows = [{k: getattr(m, k) for k in keys} | {"checkpoint": m.source and vars(m.source)} for m in chosen]
        print(json.dumps(rows, indent=1))
        return
    _print_table(
        ("--encoder", "model", "parameters", "licence", "checkpoint"),
        [
            (
                m.encoder,
                m.summary,
                f"{m.parameters / 1e6:.1f} M",
                m.licence,
                m.source.url if m.source else "none",
            )
            for m in chosen
        ],
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, which runtimes can run here, and what mends those that cannot."""
    from samexport.exporter.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
        return
    _print_table(
        ("what", "state", "version", "remedy"),
        [(f.name, "ok" if f.ok else "MISSING", f.version, f.remedy) for f in findings],
    )


class _Spinner:
    """One line on a terminal that says what is going on; plain lines on stderr elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status: Any = self._console.status("") if self._console.is_terminal else None

    def update(self, message: str) -> None:
        if self._status is not None:
            self._status.update(message)
        else:
            print(message, file=sys.stderr)

    def __enter__(self) -> _Spinner:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def _print_bundle(bundle: OpenedBundle, report: ParityReport) -> None:
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
    _print_table(columns, rows)
    note = " with RANDOM weights: its masks mean nothing" if bundle.manifest.weights.kind == "random" else ""
    print(f"{bundle.folder} is complete and verified{note}")


def _print_rows(report: ParityReport) -> None:
    from samexport.runtimes.report import COLUMNS, cells

    _print_table(COLUMNS, [cells(row) for row in report.rows])


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console()
    # a file or pipe has no width; do not fold what a program will read
    Console(width=None if console.is_terminal else 240).print(table)
