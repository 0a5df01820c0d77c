"""The command line: parse, call, print, exit code. Heavy imports are inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.errors import ParityFailed, SamExportError
from samexport.exporter import export_commands
from samexport.exporter.options import Force, Json, RuntimeName, Threads
from samexport.exporter.terminal import Spinner, print_table

if TYPE_CHECKING:
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


for _command in (export_commands.onnx, export_commands.tflite, export_commands.coreml):
    app.command()(_command)


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
    from samexport.runtimes.report import where_it_ran, write_report
    from samexport.runtimes.verify import verify_bundle

    opened = open_bundle(bundle)
    with Spinner() as spinner:
        found = verify_bundle(opened, runtime=runtime, threads=threads, progress=spinner.update)
        if checkpoint:
            from samexport.exporter.pipeline import verify_against_pytorch

            found = verify_against_pytorch(
                opened, found, tuple(checkpoint), runtime=runtime, threads=threads, progress=spinner.update
            )
    if report is not None:
        write_report(found, report, f"samexport verify {opened.folder.resolve().name}")
    _print_rows(found)
    for line in where_it_ran(found):
        print(line)
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
    print_table(
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
    print_table(
        ("what", "state", "version", "remedy"),
        [(f.name, "ok" if f.ok else "MISSING", f.version, f.remedy) for f in findings],
    )


def _print_rows(report: ParityReport) -> None:
    from samexport.runtimes.report import COLUMNS, cells

    print_table(COLUMNS, [cells(row) for row in report.rows])
