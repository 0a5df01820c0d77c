"""The command line: parse, call, print, exit code. Heavy imports are inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from samexport.cli import export as export_commands
from samexport.cli.bench import bench
from samexport.cli.deliver import deliver
from samexport.cli.distill import distill
from samexport.cli.encoders import compare_encoders
from samexport.cli.evaluate import evaluate
from samexport.cli.everything import everything, old_spelling
from samexport.cli.guard import guarded
from samexport.cli.help import CHECK, EXPORT, LOOK, TRAIN, USE, GroupedCommand, GroupedCommands, examples
from samexport.cli.inspection import inspect
from samexport.cli.options import Json
from samexport.cli.quantize import compare_recipes, list_recipes, quantize, sensitivity
from samexport.cli.segment import segment
from samexport.cli.terminal import print_table
from samexport.cli.track import OrderedCommand, track
from samexport.cli.train import draw_scenes, train_demo
from samexport.cli.verify import verify
from samexport.cli.web import web

app = typer.Typer(
    cls=GroupedCommands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # typer's own help is made with rich, whose import takes longer than all the rest
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Export Segment-Anything models for phones, verify the files against PyTorch, and run them.",
    epilog=examples(),
)


def main() -> None:
    """Entry point; see :mod:`samexport.cli.guard` for errors and exit codes."""
    sys.exit(guarded(lambda: app(old_spelling(sys.argv[1:]), prog_name="samexport", standalone_mode=False)))


def _version(shown: bool) -> None:
    if shown:
        from samexport import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _command(
    name: str, group: str, cls: type[GroupedCommand] = GroupedCommand
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return app.command(name, cls=cls, rich_help_panel=group, epilog=examples(name))


_command("export", EXPORT)(export_commands.export)
_command("onnx", EXPORT)(export_commands.onnx)
_command("tflite", EXPORT)(export_commands.tflite)
_command("coreml", EXPORT)(export_commands.coreml)
_command("quantize", EXPORT)(quantize)
_command("android", EXPORT)(export_commands.android)
_command("deliver", EXPORT)(deliver)
_command("web", EXPORT)(web)
_command("segment", USE)(segment)
_command("everything", USE)(everything)
_command("track", USE, OrderedCommand)(track)
_command("verify", CHECK)(verify)
_command("eval", CHECK)(evaluate)
_command("sensitivity", CHECK)(sensitivity)
_command("compare-recipes", CHECK)(compare_recipes)
_command("bench", CHECK)(bench)
_command("compare-encoders", CHECK)(compare_encoders)
_command("train-demo", TRAIN)(train_demo)
_command("draw-scenes", TRAIN)(draw_scenes)
_command("distill", TRAIN)(distill)
_command("inspect", LOOK)(inspect)


@_command("list", LOOK)
def list_models(
    as_json: Json = False,
    hidden: Annotated[bool, typer.Option("--all", help="Also the models for tests.")] = False,
    recipes: Annotated[bool, typer.Option("--recipes", help="The recipes: what is in which numbers, where.")] = False,
) -> None:
    """Show the models: parameters, licence, checkpoint source; or the recipes."""
    if recipes:
        list_recipes(as_json)
        return
    from samexport.models.catalog import MODELS

    chosen = [m for m in MODELS.values() if hidden or not m.hidden]
    if as_json:
        keys = ("name", "encoder", "aliases", "summary", "parameters", "licence")
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
    print("also known: aliases such as mobilesam or sam_vit_b (--json has all), and the names of the official files")


@_command("doctor", LOOK)
def doctor(as_json: Json = False) -> None:
    """Show what is installed, which runtimes can run here, and what mends those that cannot."""
    from samexport.cli.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
        return
    print_table(
        ("what", "state", "version", "remedy"),
        [(f.name, f.state, f.version, f.remedy) for f in findings],
    )
