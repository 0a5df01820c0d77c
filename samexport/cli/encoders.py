"""``samexport compare-encoders``: models side by side, exported, verified and timed here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.bench import plain_export
from samexport.cli.options import DEFAULT_SEED, GRAPHS, OUTPUT, Threads, format_names
from samexport.cli.terminal import print_written
from samexport.errors import ConfigError, SamExportError
from samexport.installation import need_matplotlib

if TYPE_CHECKING:
    from samexport.benchmarks.results.encoders import EncoderRow
    from samexport.exporter.formats import Target
    from samexport.models.spec import ModelSpec


def compare_encoders(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Which; all if none is named.")] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="NAME,NAME", help="onnx, tflite, coreml.", rich_help_panel=GRAPHS)
    ] = "onnx",
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="In which numbers; repeats.",
            show_default="fp32; of coreml fp16",
            rich_help_panel=GRAPHS,
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Repeats.", show_default="what runs here", rich_help_panel=GRAPHS),
    ] = None,
    threads: Threads = 2,
    seconds: Annotated[
        float,
        typer.Option(
            min=0,
            max=600,
            metavar="NUMBER",
            help="How long to time each; 0 for sizes and checks alone.",
            rich_help_panel=GRAPHS,
        ),
    ] = 10,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Gets the table, its data and a plot.", rich_help_panel=OUTPUT)
    ] = Path("encoders"),
) -> None:
    """Export models with random weights, check them, and time encoder and click: one table and a plot.

    A table that is there gets the rows of this run; those of the same model, format, recipe and runtime are replaced.
    One model is made after the other and removed again; what was measured before an interruption stays. Recipes of
    integers are not judged by masks here: those of random weights mean nothing.
    """
    from samexport.benchmarks.contenders.known import find
    from samexport.benchmarks.results.encoders import JSON, PLOT, TABLE, merged, page, plot, text_of
    from samexport.exporter.formats import format_of
    from samexport.files import new_file, write_text
    from samexport.models.catalog import MODELS, find_model

    specs = [find_model(name) for name in models or [m.name for m in MODELS.values() if not m.hidden]]
    chosen = format_names(formats)
    targets = _targets(chosen, recipe or ())
    if unused := [name for name in runtime or () if find(name).file_format not in chosen]:
        raise ConfigError(f"--runtime {unused[0]} reads no {' or '.join(chosen)} files; see --format")
    rows = _known_rows(out)
    if seconds or any(row.encode_ms is not None for row in rows):
        need_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    for spec in specs:
        for target in targets:
            name = f"{spec.name}, {format_of(target).name} {target.recipe}"
            print(name, file=sys.stderr)
            try:
                rows = merged(rows, _measured(spec, target, tuple(runtime or ()), threads or 2, seconds))
            except SamExportError as error:
                problems.append(error)
                print(f"{name}: {error}", file=sys.stderr)
                continue
            write_text(out / JSON, text_of(rows), force=True)
            write_text(out / TABLE, page(rows, str(out)), force=True)
            if any(row.encode_ms is not None for row in rows):
                with new_file(out / PLOT, force=True) as file:
                    file.write_bytes(plot(rows))
    print_written([out])
    if problems:
        raise problems[0]


def _known_rows(out: Path) -> list[EncoderRow]:
    """Of an earlier run; ConfigError if the folder's files are another's, which would be lost."""
    from samexport.benchmarks.results.encoders import JSON, PLOT, TABLE, read

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give --out another name")
    if (out / JSON).exists():
        return read(out / JSON)
    if taken := [name for name in (TABLE, PLOT) if os.path.lexists(out / name)]:
        raise ConfigError(f"{out} has a {taken[0]} that compare-encoders did not write; give --out another folder")
    return []


def _targets(names: Sequence[str], recipes: Sequence[str]) -> list[Target]:
    """Each format in each recipe that it has; ConfigError for a recipe that none of them has."""
    from samexport.exporter.formats import FORMATS
    from samexport.exporter.recipes import RECIPES

    if not recipes:
        return [FORMATS[name].options() for name in names]
    for recipe in recipes:
        if recipe in RECIPES and RECIPES[recipe].search:
            raise ConfigError(
                f"{recipe} looks for layers by masks, and those of random weights mean nothing; leave it out"
            )
        if recipe not in RECIPES or not set(names) & set(RECIPES[recipe].formats):
            raise ConfigError(f"{' and '.join(names)} have no recipe {recipe!r}; see `samexport list --recipes`")
    return [FORMATS[name].options(recipe=r) for name in names for r in recipes if name in RECIPES[r].formats]


def _measured(
    spec: ModelSpec, target: Target, runtimes: tuple[str, ...], threads: int, seconds: float
) -> list[EncoderRow]:
    from samexport.benchmarks.command import BenchRequest, run_bench
    from samexport.benchmarks.contenders.known import KNOWN, find, why_not
    from samexport.benchmarks.results.encoders import ANSWER, RIVALS, rows_of, untimed
    from samexport.exporter.formats import format_of
    from samexport.exporter.pipeline import ExportOptions, export_bundle
    from samexport.models.catalog import find_family

    file_format = format_of(target).name
    chosen = tuple(name for name in runtimes if find(name).file_format == file_format) or tuple(
        c.name for c in KNOWN.values() if c.file_format == file_format and c.default and c.timed and not why_not(c)
    )
    with TemporaryDirectory(prefix="samexport-encoders-", ignore_cleanup_errors=True) as folder:
        options = ExportOptions(spec.name, Path(folder) / "bundle", random_seed=DEFAULT_SEED, target=target, max_drop=1)
        bundle, _ = export_bundle(options)
        if not chosen or not seconds:
            return [untimed(bundle)]
        first = (find_family(spec.family).first,)
        request = BenchRequest(
            (bundle.folder,), Path(folder) / "results", chosen, first, (ANSWER,), (1,), threads=(threads,),
            rivals=RIVALS if file_format == "onnx" else (), seconds=seconds, repeat=5,
        )  # fmt: skip
        return rows_of(bundle, run_bench(request, partial(plain_export, names=first)))
