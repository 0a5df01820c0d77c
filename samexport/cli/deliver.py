"""``samexport deliver``: a bundle's files in the form that another program takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from samexport.cli.options import OUTPUT, Force, Json, Threads
from samexport.cli.terminal import print_table
from samexport.errors import ConfigError


def deliver(
    bundle: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="Bundle folder.")] = None,
    program: Annotated[
        str | None, typer.Option("--for", metavar="NAME", help="The program; --list shows those that there are.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the files.",
            show_default="named after the bundle and the program",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the programs: what they take, and how each was tried.")
    ] = False,
    force: Force = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a bundle's files as another program takes them: names, order, layout, configuration.

    The files compute what the bundle computes; weights are copied. They are fed as the program feeds them and the masks
    compared with the bundle's own before the folder appears.
    """
    if show:
        _list(as_json)
        return
    if bundle is None or program is None:
        raise ConfigError("deliver needs a bundle and --for NAME; `samexport deliver --list` shows the programs")
    from samexport.exporter.deliver.folder import deliver as write
    from samexport.exporter.deliver.folder import find_profile
    from samexport.runtimes.bundle import open_bundle

    opened = open_bundle(bundle)
    profile = find_profile(program, opened.manifest.family)
    target = out or Path(f"{opened.folder.resolve().name}-{profile.name}")
    compared = write(opened, profile, target, force=force, threads=threads)
    if as_json:
        print(json.dumps({"for": profile.name, "out": str(target), "compared": [vars(c) for c in compared]}, indent=1))
        return
    print_table(
        ("picture", "prompt", "mask IoU"),
        [(c.picture, prompt, f"{iou:.4f}") for c in compared for prompt, iou in c.iou.items()],
    )
    if warning := opened.manifest.weights.warning:
        print(f"this bundle has {warning}")
    print(f"wrote {target}/ for {profile.title}; README.md there says how to load it")


def _list(as_json: bool) -> None:
    from samexport.exporter.deliver.folder import profiles
    from samexport.exporter.deliver.refused import REFUSED

    keys = ("name", "title", "read", "tried", "size")
    found = [{"family": family, **{k: getattr(p, k) for k in keys}, "format": "onnx"} for family, p in profiles()]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print_table(
        ("--for", "program", "takes", "read in", "tried"),
        [(f["name"], f["title"], _takes(f["family"], f["size"]), f["read"], f["tried"]) for f in found],
    )
    for (name, family), why in REFUSED.items():
        print(f"not {name} with {family}: {why}")


def _takes(family: str, size: int | None) -> str:
    return f"{family}, ONNX, {f'{size} pixels' if size else 'any size'}"
