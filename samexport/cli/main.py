"""The command line: parse, call, print, exit code. Heavy imports are inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from samexport.cli import bundles as bundle_commands
from samexport.cli import export as export_commands
from samexport.cli.bench import bench
from samexport.cli.evaluate import evaluate
from samexport.cli.options import Json
from samexport.cli.terminal import print_table
from samexport.errors import ParityFailed, SamExportError

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


_COMMANDS: tuple[Callable[..., None], ...] = (
    export_commands.onnx, export_commands.tflite, export_commands.coreml, export_commands.android,
    bundle_commands.verify, bundle_commands.segment,
)  # fmt: skip
for _command in _COMMANDS:
    app.command()(_command)
app.command("eval")(evaluate)
app.command("bench")(bench)


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
    from samexport.benchmarks.contenders.known import variants
    from samexport.cli.doctor import Finding, examine

    findings = examine()
    findings += [Finding(f"bench: {name}", not reason, "", reason) for name, reason in variants()]
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
        return
    print_table(
        ("what", "state", "version", "remedy"),
        [(f.name, "ok" if f.ok else "MISSING", f.version, f.remedy) for f in findings],
    )
