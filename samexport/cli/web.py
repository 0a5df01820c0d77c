"""``samexport web``: a static page that runs a bundle in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from samexport.cli.options import OUTPUT, BundleFolder, Force, Json
from samexport.cli.terminal import print_written, written_files


def web(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the site.", rich_help_panel=OUTPUT)] = Path(
        "site"
    ),
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The unpacked npm package of the pinned version: onnxruntime-web, or @litertjs/core for TFLite.",
            show_default="npm gets it",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a static page that segments pictures in a browser, with an ONNX or TFLite bundle.

    Any web server can serve the folder. Pictures stay in the browser, and nothing comes from another host.
    """
    from samexport.exporter.deliver.web import write_site
    from samexport.runtimes.bundle import open_bundle

    opened = open_bundle(bundle)
    write_site(opened, out, runtime=runtime, force=force)
    if as_json:
        print(json.dumps({"out": str(out), "files": written_files(out)}, indent=1))
        return
    if warning := opened.manifest.weights.warning:
        print(f"this bundle has {warning}")
    print(f"try it: python -m http.server --bind 127.0.0.1 --directory {out} 8000, then open http://127.0.0.1:8000")
    print_written([out])
