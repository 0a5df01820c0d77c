"""Results as one HTML file that needs nothing else: pictures inside, tables that sort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from samexport.benchmarks.results.plots import Plot
from samexport.benchmarks.results.rows import Results
from samexport.benchmarks.results.tables import (
    NOTES,
    PAGE_COLUMNS,
    PAIR_COLUMNS,
    PLACEMENT_COLUMNS,
    PROFILE_COLUMNS,
    Cells,
    machine_lines,
    pair_cells,
    placements,
    problem_lines,
    profile_sections,
    sections,
    short_table,
)  # fmt: skip

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #f3f4f6; margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { margin: 8px 0 16px; } h2 { margin: 36px 0 12px; font-size: 20px; }
section, figure { background: #fff; border-radius: 10px; padding: 16px 20px; margin: 0 0 16px;
  box-shadow: 0 1px 3px #0002; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; width: 100%; }
th { text-align: left; cursor: pointer; border-bottom: 2px solid #d1d5db; white-space: nowrap; padding: 6px 10px; }
th:hover { color: #2563eb; }
td { border-bottom: 1px solid #f0f1f3; padding: 5px 10px; white-space: nowrap; }
td.n { text-align: right; } th.n { text-align: right; }
tr:hover td { background: #f8fafc; }
.PASS { color: #047857; } .FAIL, .FAILED { color: #b91c1c; font-weight: 600; } .SKIPPED { color: #b45309; }
figcaption { font-weight: 600; margin-bottom: 8px; }
figure svg { display: block; margin: 0 auto; max-width: 100%; height: auto; }
ul { margin: 0; padding-left: 20px; } li { overflow-wrap: anywhere; } .small { font-size: 13px; color: #4b5563; }
"""
# numbers sort as numbers, whatever mark stands after them
_SCRIPT = """
for (const th of document.querySelectorAll('th')) th.onclick = () => {
  const body = th.closest('table').tBodies[0], column = th.cellIndex, up = th.dataset.up !== '1';
  th.dataset.up = up ? '1' : '';
  const value = row => { const t = row.cells[column].textContent, n = parseFloat(t); return isNaN(n) ? t : n; };
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === 'number' ? -1 : 1) * (up ? 1 : -1);
  });
  body.append(...rows);
};
"""
_TEXT_COLUMNS = (
    "model", "bundle", "graph", "runtime", "device", "precision", "parity", "prompts", "A", "B", "parity A, B",
    "placement", "operator", "stages, ms", "picture",
)  # fmt: skip


def to_html(results: Results, plots: Sequence[Plot] = ()) -> str:
    """The page."""
    parts = ["<h1>Benchmark results</h1>", _list(machine_lines(results)), _command(results)]
    if results.pairs:
        parts += ["<h2>Ratios of calls in turns</h2>", _table(PAIR_COLUMNS, map(pair_cells, results.pairs))]
    if problems := problem_lines(results):
        parts += ["<h2>Not measured, or not right</h2>", _list(problems)]
    for title, rows in sections(results):
        columns, lines, same = short_table(rows, PAGE_COLUMNS[title])
        parts += [f"<h2>{title}</h2>", _table(columns, lines), f'<p class="small">in every row: {escape(same)}</p>']
    parts += [f"<figure><figcaption>{escape(p.caption)}</figcaption>{_svg(p.svg)}</figure>" for p in plots]
    for title, profiled in profile_sections(results):
        parts += [f"<h2>{escape(title)}</h2>", _table(PROFILE_COLUMNS, profiled)]
    if placed := placements(results):
        parts += ["<h2>Where it ran</h2>", _table(PLACEMENT_COLUMNS, placed)]
    parts += ["<h2>How to read this</h2>", _list(NOTES)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>samexport bench</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _command(results: Results) -> str:
    return f'<p class="small">{escape(results.created)}: <code>{escape(results.command)}</code></p>'


def _svg(text: str) -> str:
    """The picture without the XML declaration, which HTML does not know."""
    return text[text.index("<svg") :]


def _list(lines: Iterable[str]) -> str:
    return f'<section class="small"><ul>{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul></section>'


def _table(columns: Cells, rows: Iterable[Cells]) -> str:
    kinds = ["" if name in _TEXT_COLUMNS else ' class="n"' for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = []
    for row in rows:
        cells = []
        for kind, cell in zip(kinds, row, strict=True):
            verdict = next((word for word in ("FAILED", "FAIL", "SKIPPED", "PASS") if cell.startswith(word)), "")
            attribute = f' class="{verdict}"' if verdict else kind
            cells.append(f"<td{attribute}>{escape(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<section><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></section>"
