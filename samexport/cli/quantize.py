"""``samexport quantize`` and ``samexport sensitivity``: smaller numbers, judged by masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samexport.cli.options import CHECKS, GRAPHS, OUTPUT, BundleFolder, CalibrationFolder, Force, Json, MaxDrop, Threads
from samexport.cli.terminal import Steps, print_table, print_written, written_files
from samexport.errors import ConfigError

if TYPE_CHECKING:
    from samexport.exporter.quantize.calibration import Pictures
    from samexport.exporter.quantize.job import Cost, Request
    from samexport.exporter.quantize.table import Outcome
    from samexport.runtimes.accuracy.annotations import AnnotatedImage
    from samexport.runtimes.bundle import Artifact, Bundle

_SHOWN = 12
"""Tensors of a graph in the table of half precision's range."""

RecipeName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="int8, one of `samexport list --recipes`, or a .json file of yours.",
        rich_help_panel=GRAPHS,
    ),
]
MaxPictures = Annotated[
    int, typer.Option("--pictures", min=1, metavar="NUMBER", help="Most pictures.", rich_help_panel=GRAPHS)
]
Graphs = Annotated[
    list[str] | None,
    typer.Option(
        "--graph",
        metavar="NAME",
        help="Quantize this graph; repeats.",
        show_default="those that see the picture",
        rich_help_panel=GRAPHS,
    ),
]


def quantize(
    bundle: BundleFolder,
    recipe: RecipeName = "int8",
    calibration: CalibrationFolder = None,
    pictures: MaxPictures = 32,
    graph: Graphs = None,
    max_drop: MaxDrop = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Bundle folder.", show_default="BUNDLE-RECIPE", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Quantize a bundle's files; it appears only if its masks are those of the files before.

    Needs no PyTorch. Masks are compared for clicks, boxes, both, and earlier masks; exit code 1 and the table if
    they differ by more than --max-drop.
    """
    from samexport.exporter.quantize.bundle import quantize_bundle
    from samexport.exporter.quantize.job import check_request
    from samexport.files import to_json

    opened, request = _request(bundle, recipe, calibration, pictures, graph, max_drop, threads)
    target = out or opened.folder.with_name(f"{opened.folder.absolute().name}-{request.recipe.name}")
    check_request(opened, request)
    with Steps(None) as steps, gate_shown(as_json):
        made, _ = quantize_bundle(opened, request, target, force=force, progress=steps.update)
    if as_json:
        files = [asdict(a) for a in made.manifest.artifacts if a.quantized]
        print(to_json({**_written(target), "gate": asdict(_gate(made)), "quantized": files}), end="")
        return
    print_gate(made)
    warning = made.manifest.weights.warning
    print(f"{made.folder} is complete and verified{f' with {warning}' if warning else ''}")
    print_written([target])


def sensitivity(
    bundle: BundleFolder,
    recipe: RecipeName = "static_wi8_ai8",
    calibration: CalibrationFolder = None,
    pictures: MaxPictures = 8,
    graph: Graphs = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot: .png, .svg or .pdf (extra [bench]).", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Quantize one layer at a time, and show what that costs: SNR of the graph's outputs, IoU of the masks.

    The costliest layers come first; `quantize --recipe mixed` leaves them as they are. With --recipe fp16: how far
    each tensor is from the end of half precision.
    """
    import tempfile

    from samexport.exporter.quantize.sensitivity import PLOTS, layer_costs, plot
    from samexport.files import check_output, to_json
    from samexport.installation import need_matplotlib

    if out is not None:
        need_matplotlib()
        check_output(out, force=force, endings=PLOTS)
    opened, request = _request(bundle, recipe, calibration, pictures, graph, None, threads)
    if request.recipe.compute == "float16" and not request.recipe.parent:
        if out is not None:
            raise ConfigError("--recipe fp16 draws no plot; take --json for every tensor")
        _show_headroom(opened, request, as_json)
        return
    with tempfile.TemporaryDirectory() as folder, Steps(None) as steps:
        costs = layer_costs(opened, request, Path(folder) / "bundle", steps.update)
    if out is not None:
        plot(costs, out, force=force)
    if as_json:
        print(to_json({name: [_cost(c) for c in found] for name, found in costs.items()}), end="")
        return
    for name, found in costs.items():
        print_table(
            (f"{name}: layer quantized alone", "multiplications", "SNR dB", "mask IoU"),
            [
                (c.layer.label, f"{c.layer.macs / 1e6:.1f} M", f"{c.snr_db:.1f}", f"{c.mask_iou or 0:.4f}")
                for c in found
            ],
        )
    if out is not None:
        print_written([out])


def _show_headroom(bundle: Bundle, request: Request, as_json: bool) -> None:
    from samexport.exporter.quantize.headroom import headroom, times
    from samexport.files import to_json
    from samexport.runtimes.adapters.onnx_ranges import HALF_MAX

    with Steps(1 + len(bundle.graph_names)) as steps:
        found = headroom(bundle, request, steps.update)
    if as_json:
        print(to_json({name: [asdict(peak) for peak in peaks] for name, peaks in found.items()}), end="")
        return
    for name, peaks in found.items():
        print_table(
            (f"{name}: {_SHOWN} of {len(peaks)} values", "largest", f"of {HALF_MAX:.0f}", "activations may grow"),
            [
                (p.source, f"{p.largest:.4g}", f"{p.largest / HALF_MAX:.4f}", f"{times(p):.3g} x")
                for p in peaks[:_SHOWN]
            ],
        )


def compare_recipes(
    bundle: BundleFolder,
    recipes: Annotated[
        str,
        typer.Option("--recipes", metavar="NAME,NAME", help="Which.", show_default="all that start from its files"),
    ] = "",
    calibration: CalibrationFolder = None,
    pictures: MaxPictures = 16,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO's instances .json: also accuracy.", rich_help_panel=CHECKS)
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Its pictures.", rich_help_panel=CHECKS)] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Take so many of them.", rich_help_panel=CHECKS)
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(min=0, metavar="NUMBER", help="How often every file is timed.", rich_help_panel=CHECKS),
    ] = 9,
    graph: Graphs = None,
    max_drop: MaxDrop = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables: .md.", rich_help_panel=OUTPUT)
    ] = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Apply every recipe to a bundle, and show masks, accuracy, size and time side by side; nothing else is kept.

    The file of --out appears after the first recipe and grows, so that what is known outlives an interruption.
    """
    import shlex
    import tempfile

    from samexport.exporter.quantize.table import compare_recipes as compare
    from samexport.exporter.quantize.table import page
    from samexport.exporter.recipes import RECIPES, read_recipe
    from samexport.files import check_output, write_text
    from samexport.runtimes.accuracy.annotations import read_annotations
    from samexport.runtimes.bundle import open_bundle

    if out is not None:
        check_output(out, force=force, endings=(".md",))
    if (annotations is None) != (images is None):
        raise ConfigError("--annotations and --images go together")
    first = open_bundle(bundle).manifest.artifacts[0]
    names = [name for name in recipes.split(",") if name] or [
        r.name for r in RECIPES.values() if r.parent == first.recipe and first.file_format in r.formats
    ]
    if not names:
        raise ConfigError(f"no recipe starts from {first.recipe} files of {first.file_format}")
    opened, request = _request(bundle, names[0], calibration, pictures, graph, max_drop, threads)
    chosen = [read_recipe(name, first.file_format) for name in names]
    annotated: tuple[AnnotatedImage, ...] = ()
    if annotations is not None and images is not None:
        annotated = read_annotations(annotations, images, max_images=max_images).images
    command = shlex.join(["samexport", *sys.argv[1:]])

    def keep(outcomes: Sequence[Outcome]) -> None:
        if out is not None:
            known = page(outcomes, opened, request, command)
            write_text(out, f"{known}\nNot finished: more was to come.\n", force=True)

    with tempfile.TemporaryDirectory() as folder, Steps(None) as steps:
        found = compare(opened, chosen, request, Path(folder) / "bundle", annotated, rounds, steps.update, keep)
    text = page(found, opened, request, command)
    print(text, end="")
    if out is not None:
        write_text(out, text, force=True)
        print_written([out])


def list_recipes(as_json: bool) -> None:
    """Every recipe that comes with the package."""
    import msgspec

    from samexport.exporter.recipes import INT8, RECIPES
    from samexport.files import to_json

    if as_json:
        print(to_json([msgspec.to_builtins(recipe) for recipe in RECIPES.values()]), end="")
        return
    needs = {True: "pictures", False: ""}
    print_table(
        ("--recipe", "weights", "computes in", "formats", "made from", "needs", "what"),
        [
            (r.name, r.weights, r.compute, ", ".join(r.formats), r.parent, needs[r.calibrated], r.summary)
            for r in RECIPES.values()
        ],
    )
    print("int8 is " + ", ".join(f"{name} of {file_format}" for file_format, name in INT8.items()))


@contextmanager
def gate_shown(as_json: bool) -> Iterator[None]:
    """Print what a gate found that was not passed, before the error goes on."""
    from samexport.exporter.quantize.job import TABLE, GateFailed, table
    from samexport.files import to_json

    try:
        yield
    except GateFailed as error:
        if as_json:
            print(to_json({"gate": asdict(error.gate), "verdict": "FAIL"}), end="")
        else:
            print_table(TABLE, table(error.gate))
        raise


def print_gate(made: Bundle) -> None:
    """The tables of a quantized bundle: its masks, its files, what stayed as it was."""
    from samexport.exporter.quantize.job import TABLE, table

    print_table(TABLE, table(_gate(made)))
    print()
    files = [a for a in made.manifest.artifacts if a.quantized]
    print_table(
        ("file", "size", "of parent", "integer multiplications", "integer weights", "Q/DQ", "left as it was"),
        [_file_row(a) for a in files],
    )
    for artifact in files:
        for layer, why in (artifact.quantized.kept if artifact.quantized else {}).items():
            print(f"{artifact.path}: {layer} is left as it was: {why}")


def _file_row(artifact: Artifact) -> tuple[str, ...]:
    found = artifact.quantized
    assert found is not None
    return (
        artifact.path, f"{artifact.size / 1e6:.1f} MB", f"{found.size_ratio:.2f}", f"{100 * found.integer_macs:.0f} %",
        str(found.quantized_weights), str(found.pairs), str(len(found.kept)),
    )  # fmt: skip


def _request(
    bundle: Path,
    recipe: str,
    calibration: Path | None,
    pictures: int,
    graphs: list[str] | None,
    max_drop: float | None,
    threads: int | None,
) -> tuple[Bundle, Request]:
    from samexport.exporter.quantize.calibration import pictures_of
    from samexport.exporter.quantize.job import MAX_DROP, Request
    from samexport.exporter.recipes import read_recipe
    from samexport.runtimes.bundle import open_bundle

    opened = open_bundle(bundle)
    file_format = opened.manifest.artifacts[0].file_format
    found = pictures_of(calibration, bundle, pictures)
    warn_of(found)
    chosen = read_recipe(recipe, file_format)
    return opened, Request(chosen, found, tuple(graphs or ()), MAX_DROP if max_drop is None else max_drop, threads)


def warn_of(found: Pictures | None) -> None:
    """Say where the pictures may be unlike the user's; None stands for those of installed packages."""
    from samexport.exporter.quantize.calibration import FEW

    if found is None or not found.own:
        print(
            "note: scales and masks are those of a few photographs that came with installed packages;"
            " give pictures like yours with --calibration FOLDER",
            file=sys.stderr,
        )
    elif len(found.files) < FEW:
        print(f"note: {len(found.files)} pictures are few; {FEW} or more make scales safer", file=sys.stderr)


def _gate(made: Bundle) -> Any:
    assert made.manifest.gate is not None
    return made.manifest.gate


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "layer": cost.layer.label,
        "macs": cost.layer.macs,
        "snr_db": round(cost.snr_db, 2),
        "mask_iou": cost.mask_iou,
        "modes": [asdict(mode) for mode in cost.modes],
    }


def _written(path: Path) -> dict[str, Any]:
    files = written_files(path)
    return {"path": str(path), "size": sum(files.values())}
