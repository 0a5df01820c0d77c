"""``samexport inspect``: what a weight file is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.options import Json
from samexport.errors import CheckpointError

if TYPE_CHECKING:
    from samexport.models.weights.identify import Identity


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A weight file of PyTorch or safetensors.")],
    as_json: Json = False,
) -> None:
    """Say whose weights a file holds, what is missing or unknown, and what exports it. Nothing in it is executed."""
    from samexport.models.loading import import_torch
    from samexport.models.weights.identify import identify

    import_torch("reading a checkpoint")
    found = identify(file)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    if not found.models:
        raise CheckpointError(f"{file} holds {_content(found)}, and no model that is known has such weights")
    for title, text in _lines(found):
        print(f"{title:<10}{text}")


def _content(found: Identity) -> str:
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    return f"{found.tensors} tensors with {found.parameters / 1e6:.1f} M numbers ({kinds})"


def _lines(found: Identity) -> list[tuple[str, str]]:
    from samexport.models.catalog import find_model
    from samexport.models.weights.layouts import few

    first, *others = found.models
    spec = find_model(first)
    lines = [("file", f"{found.file}, sha256 {found.sha256}"), ("holds", _content(found))]
    lines.append(("model", f"{spec.name}: {spec.summary}"))
    if others:
        lines.append(("or", f"{', '.join(others)}: the same tensors; --encoder says which"))
    lines += [("wrapping", note) for note in found.notes]
    lines.append(("parts", ", ".join(f"{part.name} {part.present} of {part.needed}" for part in found.parts)))
    for title, names in (("missing", found.missing), ("unknown", found.unknown), ("differing", found.differing)):
        if names:
            lines.append((title, f"{len(names)} ({few(names)})"))
    lines.append(("licence", f"{found.licence}; that is of the official weights, others may have another"))
    command = found.command or "nothing exports it as it is"
    lines.append(("export", command))
    return lines
