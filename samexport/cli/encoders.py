"""``samexport compare-encoders``: models side by side, exported, verified and timed here."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.bench import plain_export
from samexport.cli.options import DEFAULT_SEED, GRAPHS, OUTPUT, Threads, format_names
from samexport.cli.terminal import print_written
from samexport.errors import SamExportError
from samexport.installation import need_matplotlib

if TYPE_CHECKING:
    from samexport.benchmarks.results.encoders import EncoderRow
    from samexport.models.spec import ModelSpec


def compare_encoders(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Which; all if none is named.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="NAME,NAME", help="onnx, tflite, coreml.", rich_help_panel=GRAPHS)
    ] = "onnx",
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Repeats.", show_default="what runs here", rich_help_panel=GRAPHS),
    ] = None,
    threads: Threads = 2,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="NUMBER", help="How long to time each.", rich_help_panel=GRAPHS)
    ] = 10,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Gets the table, its data and a plot.", rich_help_panel=OUTPUT)
    ] = Path("encoders"),
) -> None:
    """Export models with random weights, check them, and time encoder and click: one table and a plot.

    A table that is there gets the rows of this run; those of the same model, format and runtime are replaced. One
    model is made after the other and removed again; what was measured before an interruption stays.
    """
    from samexport.benchmarks.results.encoders import JSON, PLOT, TABLE, merged, page, plot, read, text_of
    from samexport.files import new_file, write_text
    from samexport.models.catalog import MODELS, find_model

    specs = [find_model(name) for name in models or [m.name for m in MODELS.values() if not m.hidden]]
    names = format_names(formats)
    rows = read(out / JSON) if (out / JSON).exists() else []
    need_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    for spec in specs:
        for name in names:
            print(f"{spec.name}, {name}", file=sys.stderr)
            try:
                rows = merged(rows, _measured(spec, name, tuple(runtime or ()), threads or 2, seconds))
            except SamExportError as error:
                problems.append(error)
                print(f"{spec.name}, {name}: {error}", file=sys.stderr)
                continue
            write_text(out / JSON, text_of(rows), force=True)
            write_text(out / TABLE, page(rows, shlex.join(["samexport", *sys.argv[1:]])), force=True)
            with new_file(out / PLOT, force=True) as file:
                file.write_bytes(plot(rows))
    print_written([out])
    if problems:
        raise problems[0]


def _measured(
    spec: ModelSpec, file_format: str, runtimes: tuple[str, ...], threads: int, seconds: float
) -> list[EncoderRow]:
    from samexport.benchmarks.command import BenchRequest, run_bench
    from samexport.benchmarks.results.encoders import ANSWER, RIVALS, rows_of
    from samexport.exporter.formats import FORMATS
    from samexport.exporter.pipeline import ExportOptions, export_bundle
    from samexport.models.catalog import find_family

    with TemporaryDirectory(prefix="samexport-encoders-", ignore_cleanup_errors=True) as folder:
        target = FORMATS[file_format].options()
        bundle, _ = export_bundle(
            ExportOptions(spec.name, Path(folder) / "bundle", random_seed=DEFAULT_SEED, target=target)
        )
        first = (find_family(spec.family).first,)
        request = BenchRequest(
            (bundle.folder,), Path(folder) / "results", runtimes, first, (ANSWER,), (1,), threads=(threads,),
            rivals=RIVALS if file_format == "onnx" else (), seconds=seconds, repeat=5,
        )  # fmt: skip
        return rows_of(bundle, run_bench(request, partial(plain_export, names=first)))
