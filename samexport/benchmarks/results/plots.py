"""Pictures of results, drawn with matplotlib (the extra ``bench``): PNG files, and SVG for the page."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samexport.benchmarks.contenders.known import KNOWN
from samexport.benchmarks.plan import is_graph
from samexport.benchmarks.results.rows import BenchRow, Results, Status
from samexport.installation import need_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_FILES = ("latency.png", "prompts.png", "accuracy.png", "tasks.png")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.dpi": 144,
}


_MARGIN_DB = 10
_MARKS = "os^Dv<>P"


@dataclass(frozen=True)
class Plot:
    """A drawn picture; ``file`` is the name of its PNG."""

    file: str
    caption: str
    png: bytes
    svg: str


def draw(results: Results) -> list[Plot]:
    """Every picture that the results have numbers for.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    need_matplotlib()
    import matplotlib

    rows = [r for r in results.rows if r.status is Status.DONE and r.measured.p50_ms is not None]
    graphs = [r for r in rows if is_graph(r.job)]
    tasks = [r for r in rows if not is_graph(r.job)]
    drawings: tuple[tuple[str, str, Callable[[list[BenchRow]], Figure | None], list[BenchRow]], ...] = (
        ("latency.png", "Median time of a call by graph and runtime", _latency, graphs),
        ("prompts.png", "Time for each prompt against the number of prompts", _prompts, graphs),
        ("accuracy.png", "Accuracy against time; the area is the size of the file", _accuracy, graphs),
        ("tasks.png", "Whole tasks on a photograph", _latency, tasks),
    )
    plots = []
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "samexport"}), warnings.catch_warnings():
        # matplotlib's font has no Chinese; the names stand in the tables
        warnings.filterwarnings("ignore", "Glyph")
        for file, caption, drawing, chosen in drawings:
            figure = drawing(chosen) if chosen else None
            if figure is not None:
                plots.append(Plot(file, caption, saved(figure, "png"), saved(figure, "svg").decode()))
    return plots


def saved(figure: Figure, kind: str) -> bytes:
    """A drawn figure as ``png`` or ``svg``, the same bytes each time."""
    out = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(out, format=kind, bbox_inches="tight", metadata=metadata)
    return out.getvalue()


def new_figure(width: float, height: float, ratios: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Panels below each other, their heights in proportion."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)
    return figure, list(grid.flat)


def _colour(runtime: str) -> str:
    """Always the same for a runtime: strong colours for those that take part on any machine, then light ones."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    usual = sorted(KNOWN.values(), key=lambda c: not c.default or c.device != "cpu")
    names = [c.name for c in usual]
    place = (names.index(runtime) if runtime in names else len(names)) % 20
    return to_hex(colormaps["tab20"](2 * place if place < 10 else 2 * place - 19))


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _line_names(rows: Sequence[BenchRow], *, batch: bool = True) -> list[str]:
    """What to call the way each row was run: the runtime, and all else that is not the same in all of them."""
    parts = [
        (
            row.job.runtime,
            row.job.kind,
            row.job.form,
            f"{row.job.batch} a call" if batch and 0 < row.job.batch < row.job.prompts else "",
            row.job.source.model,
            row.job.source.label,
            f"{row.job.threads} thread{'s' * (row.job.threads > 1)}",
            row.device,
        )
        for row in rows
    ]
    differ = [True, *(len(set(column)) > 1 for column in list(zip(*parts, strict=True))[1:])]
    # the usual form and device go without saying
    silent = {"", "export", "cpu"}
    return [
        " ".join(_verbatim(text) for text, show in zip(texts, differ, strict=True) if show and text not in silent)
        for texts in parts
    ]


def _verbatim(text: str) -> str:
    """Names of folders may have dollar signs, between which matplotlib reads formulas, and what is no text at all."""
    readable = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in readable).replace("$", r"\$")


def _markers(runtimes: Sequence[str]) -> list[str]:
    """A mark for each line or point: those of the same runtime, which have one colour, differ."""
    seen: Counter[str] = Counter()
    found = []
    for runtime in runtimes:
        found.append(_MARKS[seen[runtime] % len(_MARKS)])
        seen[runtime] += 1
    return found


def _latency(rows: list[BenchRow]) -> Figure:
    """Bars, a panel for each graph and number of prompts."""
    panels: dict[str, list[tuple[BenchRow, str]]] = {}
    for row, name in zip(rows, _line_names(rows), strict=True):
        prompts = (
            f", {row.job.prompts} prompt{'s' * (row.job.prompts > 1)}" if is_graph(row.job) and row.job.prompts else ""
        )
        panels.setdefault(f"{row.job.graph}{prompts}", []).append((row, name))
    height = 0.3 * len(rows) + 0.62 * len(panels)
    figure, axes = new_figure(9, height, ratios=[len(p) + 1.6 for p in panels.values()])
    for axis, (title, named) in zip(axes, panels.items(), strict=True):
        named.sort(key=lambda pair: -(pair[0].measured.p50_ms or 0))
        panel, names = [row for row, _ in named], [name for _, name in named]
        times = [r.measured.p50_ms or 0 for r in panel]
        bars = axis.barh(range(len(panel)), times, color=[_colour(r.job.runtime) for r in panel], height=0.72)
        for bar, row in zip(bars, panel, strict=True):
            bar.set_alpha(0.45 if row.job.form == "plain" else 0.95)
        axis.bar_label(
            bars, [f"{_ms(t)}{' *' if r.loaded else ''}" for t, r in zip(times, panel, strict=True)], size=9, padding=4
        )
        axis.set_yticks(range(len(panel)), names)
        axis.set_title(title)
        axis.set_xlim(0, max(times) * 1.16)
        axis.grid(visible=False, axis="y")
        axis.tick_params(length=0)
    loaded = any(row.loaded for row in rows)
    axes[-1].set_xlabel("ms (* other programs kept the processor busy)" if loaded else "ms")
    return figure


def _prompts(rows: list[BenchRow]) -> Figure | None:
    """Milliseconds a prompt over N, a panel for each graph, a line for each way to run it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    graphs: dict[str, dict[tuple[str, str], list[BenchRow]]] = {}
    for row, name in zip(rows, _line_names(rows, batch=False), strict=True):
        if row.job.prompts:
            lines = graphs.setdefault(row.job.graph, {})
            lines.setdefault((name, row.job.runtime), []).append(row)
    graphs = {
        g: lines for g, lines in graphs.items() if any(len({r.job.prompts for r in c}) > 1 for c in lines.values())
    }
    if not graphs:
        return None
    figure, axes = new_figure(9, 3.3 * len(graphs), ratios=[1.0] * len(graphs))
    for axis, (graph, lines) in zip(axes, graphs.items(), strict=True):
        marks = _markers([runtime for _, runtime in lines])
        for ((name, runtime), line), mark in zip(lines.items(), marks, strict=True):
            plain = line[0].job.form == "plain"
            best: dict[int, float] = {}
            for row in line:
                best[row.job.prompts] = min(best.get(row.job.prompts, 1e9), row.ms_per_prompt or 1e9)
            xs = sorted(best)
            style, alpha = (f"{mark}--", 0.6) if plain else (f"{mark}-", 1.0)
            ys = [best[x] for x in xs]
            axis.plot(xs, ys, style, color=_colour(runtime), label=name, markersize=4, alpha=alpha)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        every = sorted({r.job.prompts for line in lines.values() for r in line})
        axis.set_xticks(every, [str(x) for x in every])
        axis.set_title(graph)
        axis.set_ylabel("ms a prompt")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    axes[-1].set_xlabel("prompts")
    return figure


def _accuracy(rows: list[BenchRow]) -> Figure | None:
    """Signal to noise over the median time, a panel for each graph at its smallest number of prompts."""
    from matplotlib.collections import PathCollection

    known = [r for r in rows if r.measured.parity.snr_db is not None and r.job.batch != 1]
    if not known:
        return None
    graphs: dict[str, list[tuple[BenchRow, str]]] = {}
    for row, name in zip(known, _line_names(known), strict=True):
        if row.job.prompts == min(r.job.prompts for r in known if r.job.graph == row.job.graph):
            graphs.setdefault(row.job.graph, []).append((row, name))
    figure, axes = new_figure(9, 2.9 * len(graphs), ratios=[1.0] * len(graphs))
    for axis, (graph, panel) in zip(axes, graphs.items(), strict=True):
        marks = _markers([row.job.runtime for row, _ in panel])
        for (row, name), mark in zip(panel, marks, strict=True):
            size, alpha = 30 + 8 * (row.size_mb or 5), 0.35 if row.job.form == "plain" else 0.8
            place = [row.measured.p50_ms or 0], [row.measured.parity.snr_db or 0]
            axis.scatter(*place, s=size, label=name, marker=mark, color=_colour(row.job.runtime), alpha=alpha)
        axis.set_title(graph)
        axis.set_ylabel("SNR, dB")
        # a few dB are noise, and should not look like a difference
        levels = [row.measured.parity.snr_db or 0 for row, _ in panel]
        axis.set_ylim(min(levels) - _MARGIN_DB, max(levels) + _MARGIN_DB)
        axis.margins(x=0.12)
        axis.set_xlim(left=0)
        legend = axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([40])
    axes[-1].set_xlabel("median time, ms")
    return figure
