"""The command ``bench``: options to a request, results to tables and an exit code."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.options import OUTPUT, Checkpoints, Force
from samexport.cli.terminal import print_table, print_written
from samexport.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from samexport.benchmarks.results.rows import Results
    from samexport.runtimes.bundle import Bundle

_WHAT, _HOW_LONG, _PHONE, _COMPARE = "What to measure", "How long", "On a phone", "Compare results"
_MOST_RUNS, _LONGEST = 100_000, 7 * 24 * 3600


def bench(
    bundles: Annotated[list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Bundle folders.")] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A runtime, or all: each that can run here; repeats. `samexport doctor` lists them.",
            show_default="those that are neither slow nor unusual",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    graph: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A graph; repeats.", show_default="all", rich_help_panel=_WHAT),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A whole task, such as 'one click', or all; repeats.",
            show_default="none",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    prompts: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Numbers of prompts.", rich_help_panel=_WHAT)
    ] = "1,16",
    batch: Annotated[
        str,
        typer.Option(metavar="NUMBERS", help="Prompts a call.", show_default="what an app gets", rich_help_panel=_WHAT),
    ] = "",
    threads: Annotated[str, typer.Option(metavar="NUMBERS", help="Numbers of threads.", rich_help_panel=_WHAT)] = "2",
    photograph: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Size of the picture for tasks.", rich_help_panel=_WHAT)
    ] = "4032x3024",
    versus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RIVAL",
            help="Call in turns with: plain, single, torchscript, a runtime or a bundle; repeats.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Rows for the straightforward export too.", rich_help_panel=_WHAT)
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Where the time goes in ONNX Runtime.", rich_help_panel=_WHAT)
    ] = False,
    checkpoint: Checkpoints = None,
    repeat: Annotated[
        int,
        typer.Option(
            min=1, max=_MOST_RUNS, metavar="NUMBER", help="Runs of a row, at least.", rich_help_panel=_HOW_LONG
        ),
    ] = 10,
    seconds: Annotated[
        float,
        typer.Option(
            min=0,
            max=_LONGEST,
            metavar="NUMBER",
            help="Stop a row after this time, once it has its runs.",
            rich_help_panel=_HOW_LONG,
        ),
    ] = 5,
    timeout: Annotated[
        float,
        typer.Option(
            min=1,
            max=_LONGEST,
            metavar="NUMBER",
            help="Give a row up after this many seconds.",
            rich_help_panel=_HOW_LONG,
        ),
    ] = 1800,
    benchmark_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="LiteRT's benchmark_model, built for the phone that adb sees.", rich_help_panel=_PHONE
        ),
    ] = None,
    serial: Annotated[str, typer.Option(metavar="SERIAL", help="Which phone.", rich_help_panel=_PHONE)] = "",
    accelerator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<cpu|gpu|npu>", help="What computes; repeats.", show_default="cpu", rich_help_panel=_PHONE
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW", help="Compare two results.json; exit code 1 on a regression.", rich_help_panel=_COMPARE
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="NUMBER",
            help="How much slower or larger is a regression, as a fraction.",
            rich_help_panel=_COMPARE,
        ),
    ] = 0.1,
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="Compare different machines.", rich_help_panel=_COMPARE)
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Where results.json, .csv, .md, .html and the plots go.", rich_help_panel=OUTPUT
        ),
    ] = Path("results"),
    force: Force = False,
) -> None:
    """Time every graph on the runtimes that run here, each with its parity verdict.

    The exit code is 1 where something that was asked for was not measured, or computes something else.
    """
    from samexport.benchmarks.command import BenchRequest, run_bench

    for name, value in (("--tolerance", tolerance), ("--seconds", seconds), ("--timeout", timeout)):
        if not math.isfinite(value):
            raise ConfigError(f"{name} {value} is not a number to count with")
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
        tasks=tuple(task or ()),
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
        accelerators=tuple(accelerator or ()),
        command=f"samexport {shlex.join(sys.argv[1:])}",
    )
    results = run_bench(
        request, lambda bundle, folder: plain_export(bundle, folder, request.checkpoints), _print_results
    )
    print_written([out])
    _conclude(results)


def _counts(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers such as 1,16,64, not {text[:80]!r}") from error


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    # no picture has more digits, and Python refuses to read thousands of them
    if not all(side.isascii() and side.isdecimal() and len(side) < 10 for side in (width, height)):
        raise ConfigError(f"--photograph is WIDTHxHEIGHT such as 4032x3024, not {text[:80]!r}")
    return int(width), int(height)


def plain_export(
    bundle: Bundle, folder: Path, checkpoints: tuple[Path, ...] = (), names: tuple[str, ...] = ()
) -> Bundle:
    """The straightforward export of a bundle's model, or of some graphs: what the baselines of a benchmark run."""
    from samexport.benchmarks.contenders.baselines import write_baselines
    from samexport.exporter.to_onnx import torchscript
    from samexport.exporter.to_onnx.convert import convert_plainly

    return write_baselines(bundle, folder, convert_plainly, checkpoints, trace=torchscript.convert, names=names)


def _print_results(results: Results) -> None:
    from samexport.benchmarks.results.tables import LOAD_NOTE, PAIR_COLUMNS, has_marks, pair_cells, short_table

    if results.rows:
        columns, rows, same = short_table(results.rows)
        print_table(columns, rows)
        if same:
            print(f"in every row: {same}")
    if results.pairs:
        print_table(PAIR_COLUMNS, [pair_cells(pair) for pair in results.pairs])
    if has_marks(results):
        print(LOAD_NOTE)


def _conclude(results: Results) -> None:
    """Say what is not right.

    Raises:
        ParityFailed: something was not measured, or computes something else.
    """
    from samexport.benchmarks.results.tables import failure_lines, problem_lines

    failures = failure_lines(results)
    for line in problem_lines(results):
        if line not in failures:
            print(line)
    if failures:
        total = len(results.rows) + len(results.pairs)
        raise ParityFailed(f"{len(failures)} of {total} were not measured or are wrong", tuple(failures))


def _compare(old: Path, new: Path, tolerance: float, other_machine: bool) -> None:
    from samexport.benchmarks.results.compare import COMPARE_COLUMNS, change_cells, compare
    from samexport.benchmarks.results.rows import read_results

    changes = compare(read_results(old), read_results(new), tolerance, other_machine=other_machine)
    print_table(COMPARE_COLUMNS, [change_cells(change) for change in changes])
    if regressed := tuple(f"{c.name}: {c.regression}" for c in changes if c.regression):
        raise ParityFailed(f"{len(regressed)} of {len(changes)} rows regressed by more than {tolerance:.0%}", regressed)
    print(f"{len(changes)} rows, none regressed by more than {tolerance:.0%}")
