"""The command line: parse, call, print, exit code. Heavy imports are inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli import bundles as bundle_commands
from samexport.cli import export as export_commands
from samexport.cli.guard import guarded
from samexport.cli.help import CHECK, EXPORT, LOOK, USE, GroupedCommand, GroupedCommands, examples
from samexport.cli.options import Checkpoints, Force, Json
from samexport.cli.terminal import print_table
from samexport.cli.verify import verify
from samexport.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from samexport.benchmarks.results.rows import Results
    from samexport.runtimes.bundle import Bundle

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
    sys.exit(guarded(lambda: app(prog_name="samexport", standalone_mode=False)))


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


def _command(name: str, group: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return app.command(name, cls=GroupedCommand, rich_help_panel=group, epilog=examples(name))


_command("onnx", EXPORT)(export_commands.onnx)
_command("tflite", EXPORT)(export_commands.tflite)
_command("coreml", EXPORT)(export_commands.coreml)
_command("android", EXPORT)(export_commands.android)
_command("segment", USE)(bundle_commands.segment)
_command("verify", CHECK)(verify)
_command("eval", CHECK)(bundle_commands.evaluate)


@_command("bench", CHECK)
def bench(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Bundle folders.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.json, .csv, .md, .html and the plots.")] = Path(
        "results"
    ),
    runtime: Annotated[list[str] | None, typer.Option(help="Runtimes; the default is all that run here.")] = None,
    graph: Annotated[list[str] | None, typer.Option(help="Graphs; the default is all.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Whole tasks, such as 'one click'; all: every one.")] = None,
    prompts: Annotated[str, typer.Option(help="Numbers of prompts.")] = "1,16,64",
    batch: Annotated[str, typer.Option(help="Prompts a call; the default is what an app gets.")] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "2",
    versus: Annotated[
        list[str] | None, typer.Option(help="Call in turns with: plain, single, a runtime or a bundle; repeats.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Rows for the straightforward export too.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where the time goes in ONNX Runtime.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of a row, at least.")] = 20,
    seconds: Annotated[float, typer.Option(min=0, help="Stop a row after this time, once it has its runs.")] = 20,
    timeout: Annotated[float, typer.Option(min=1, help="Give a row up after this many seconds.")] = 1800,
    photograph: Annotated[str, typer.Option(help="Size of the picture for tasks.")] = "4032x3024",
    checkpoint: Checkpoints = None,
    benchmark_model: Annotated[
        Path | None, typer.Option(help="LiteRT's benchmark_model, built for the phone that adb sees.")
    ] = None,
    serial: Annotated[str, typer.Option(help="Which phone.")] = "",
    accelerator: Annotated[list[str] | None, typer.Option(help="On the phone: cpu, gpu, npu; repeats.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Compare two results.json, OLD NEW; exit code 1 on a regression.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How much slower or larger is a regression.")] = 0.1,
    other_machine: Annotated[bool, typer.Option("--other-machine", help="Compare different machines.")] = False,
    force: Force = False,
) -> None:
    """Time every graph on every runtime that runs here, each with its parity verdict."""
    from samexport.benchmarks.command import BenchRequest, run_bench
    from samexport.benchmarks.measuring.tasks import TASKS

    if compare:
        _compare(*compare, tolerance, other_machine)
        return
    if not bundles:
        raise ConfigError("give at least one bundle folder, or --compare OLD NEW")
    request = BenchRequest(
        bundles=tuple(bundles),
        out=out,
        runtimes=tuple(runtime or ()),
        graphs=tuple(graph or ()),
        tasks=tuple(TASKS) if task == ["all"] else tuple(task or ()),
        prompts=_counts("--prompts", prompts),
        batches=_counts("--batch", batch),
        threads=_counts("--threads", threads),
        rivals=tuple(versus or ()),
        baselines=baselines,
        profile=profile,
        checkpoints=tuple(checkpoint or ()),
        photograph=_size(photograph),
        repeat=repeat,
        seconds=seconds,
        timeout=timeout,
        force=force,
        benchmark_model=benchmark_model,
        serial=serial,
        accelerators=tuple(accelerator or ("cpu",)),
    )
    _print_results(run_bench(request, lambda bundle, folder: _plain_export(bundle, folder, request.checkpoints)), out)


def _counts(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers such as 1,16,64, not {text!r}") from error


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) * int(height)):
        raise ConfigError(f"--photograph is WIDTHxHEIGHT such as 4032x3024, not {text!r}")
    return int(width), int(height)


def _plain_export(bundle: Bundle, folder: Path, checkpoints: tuple[Path, ...]) -> Bundle:
    """The straightforward export of a bundle's model: what the baselines of a benchmark run."""
    from samexport.benchmarks.contenders.baselines import write_baselines
    from samexport.exporter.to_onnx.convert import OnnxOptions, convert

    return write_baselines(
        bundle, folder, lambda graph, module, path: convert(graph, module, path, OnnxOptions()).nodes, checkpoints
    )


def _print_results(results: Results, out: Path) -> None:
    from samexport.benchmarks.results.tables import PAIR_COLUMNS, failure_lines, pair_cells, problem_lines, table

    if results.rows:
        print_table(*table(results.rows))
    if results.pairs:
        print_table(PAIR_COLUMNS, [pair_cells(pair) for pair in results.pairs])
    print(f"{out / 'results.html'} and .json, .csv, .md hold all of it")
    failures = failure_lines(results)
    for line in problem_lines(results):
        if line not in failures:
            print(line)
    if failures:
        raise ParityFailed(f"{len(failures)} rows failed", tuple(failures))


def _compare(old: Path, new: Path, tolerance: float, other_machine: bool) -> None:
    from samexport.benchmarks.results.compare import COMPARE_COLUMNS, change_cells, compare
    from samexport.benchmarks.results.rows import read_results

    changes = compare(read_results(old), read_results(new), tolerance, other_machine=other_machine)
    print_table(COMPARE_COLUMNS, [change_cells(change) for change in changes])
    if regressed := tuple(f"{c.name}: {c.regression}" for c in changes if c.regression):
        raise ParityFailed(f"{len(regressed)} of {len(changes)} rows regressed by more than {tolerance:.0%}", regressed)
    print(f"{len(changes)} rows, none regressed by more than {tolerance:.0%}")


@_command("list", LOOK)
def list_models(
    as_json: Json = False,
    hidden: Annotated[bool, typer.Option("--all", help="Also the models for tests.")] = False,
) -> None:
    """Show the models: parameters, licence, checkpoint source."""
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
