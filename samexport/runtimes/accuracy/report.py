"""Scores of a bundle and of PyTorch side by side: the difference, its gate, a table, a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from samexport.errors import ParityFailed
from samexport.runtimes.accuracy.evaluate import Scores, Values

Cells = tuple[str, ...]


def difference(bundle: Scores, reference: Scores) -> dict[str, Values]:
    """Bundle minus reference by metric and size class; None where one of them has no value."""
    return {
        metric: {
            label: None if (here := bundle.values[metric][label]) is None or there is None else here - there
            for label, there in values.items()
        }
        for metric, values in reference.values.items()
    }


def judge(drops: Mapping[str, Values], max_drop: float) -> None:
    """The gate, over objects of all sizes: size classes may hold a handful.

    Raises:
        ParityFailed: a metric fell by more than ``max_drop``, or was not measured, or none was.
    """
    if not drops:
        raise ParityFailed("nothing was measured, so that nothing can be said about a drop")
    failed = []
    for metric, values in drops.items():
        change = values.get("all")
        if change is None or not math.isfinite(change):
            failed.append(f"{metric} was not measured")
        elif not -change <= max_drop:
            failed.append(f"{metric} is {-change:.4f} below PyTorch")
    if failed:
        lines = tuple(failed)
        raise ParityFailed(f"{len(lines)} of {len(drops)} metrics fell by more than --max-drop {max_drop:g}", lines)


def table(
    objects: Mapping[str, int], scores: Mapping[str, Scores], change: Mapping[str, Values]
) -> tuple[Cells, list[Cells]]:
    """Columns and rows of text: objects a size class, then every metric for every model, then the difference."""
    rows: list[Cells] = [("objects", "", *map(str, objects.values()))]
    for metric in next(iter(scores.values())).values:
        rows += [(metric, name, *_cells(found.values[metric], "{:.4f}")) for name, found in scores.items()]
        if change:
            rows.append((metric, "difference", *_cells(change[metric], "{:+.4f}")))
    return ("metric", "model", *objects), rows


def _cells(values: Values, form: str) -> list[str]:
    return ["-" if value is None else form.format(value) for value in values.values()]


def to_markdown(report: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Cells]) -> str:
    """The report as a page; ``report`` is what the .json holds."""
    lines = [f"## Accuracy on {report['images']} images of {_cell(report['annotations'])}", ""]
    if not report["complete"]:
        lines += ["**Not complete**: the evaluation still runs, or was ended.", ""]
    lines += [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
        "",
    ]
    for name, model in report["models"].items():
        proposals = "" if model["proposals"] is None else f", {model['proposals']:.1f} proposals an image"
        where = f"{model['model']}, {model['weights']['source']}, {model['placement']}"
        lines.append(f"- {_cell(name)}: {where}, {model['images']} images{proposals}")
    lines += [f"- {note}" for note in report["notes"]]
    lines += [f"- not measured: {problem}" for problem in report["problems"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
