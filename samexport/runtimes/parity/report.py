"""Parity reports as JSON, JUnit XML or Markdown, chosen by the file's ending."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from samexport.files import check_output, write_text
from samexport.runtimes.parity.compare import ParityReport, Row, Verdict

COLUMNS = ("case", "output", "max error", "of range", "SNR dB", "mask IoU", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    """One row as text for :data:`COLUMNS`."""
    relative = row.max_error / row.value_range if row.max_error is not None and row.value_range else None
    numbers = (
        (row.max_error, "{:.1e}"),
        (relative, "{:.1e}"),
        (row.snr_db, "{:.1f}"),
        (row.mask_iou, "{:.5f}"),
    )
    text = ["" if value is None else form.format(value) for value, form in numbers]
    return row.case, row.output, *text, row.verdict.value


def where_it_ran(report: ParityReport) -> list[str]:
    """One line a runtime: what ran on it, and where."""
    ran: dict[str, dict[str, None]] = {}
    for row in report.rows:
        if row.runtime:
            # "decoder 3x2 with mask" ran the decoder, "end to end" is a case of its own
            name = row.case if row.case.startswith("end to end") else row.case.split(" ")[0].replace("+", ", ")
            ran.setdefault(row.runtime, {})[name.removesuffix(f" ({row.runtime.partition(':')[0]})")] = None
    return [f"{', '.join(names)} on {runtime}" for runtime, names in ran.items()]


ENDINGS = (".json", ".xml", ".md")


def write_report(report: ParityReport, path: Path, title: str, *, force: bool = False) -> None:
    """Write the report as its ending says; see :func:`samexport.files.check_output` for errors."""
    check_output(path, force=force, endings=ENDINGS)
    writers = dict(zip(ENDINGS, (_to_json, _to_junit, _to_markdown), strict=True))
    write_text(path, writers[path.suffix.lower()](report, title), force=force)


def _to_json(report: ParityReport, title: str) -> str:
    rows = [row.to_json() for row in report.rows]
    return json.dumps({"title": title, "verdict": report.verdict, "rows": rows}, indent=1, default=str) + "\n"


def _to_junit(report: ParityReport, title: str) -> str:
    suite = ElementTree.Element("testsuite", name=title, tests=str(len(report.rows)))
    for verdict, attribute in ((Verdict.FAIL, "failures"), (Verdict.SKIPPED, "skipped")):
        suite.set(attribute, str(sum(r.verdict is verdict for r in report.rows)))
    if ran := where_it_ran(report):
        properties = ElementTree.SubElement(suite, "properties")
        for line in ran:
            ElementTree.SubElement(properties, "property", name="ran", value=line)
    for row in report.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=row.case, name=row.output)
        if row.verdict is not Verdict.PASS:
            kind = "failure" if row.verdict is Verdict.FAIL else "skipped"
            ElementTree.SubElement(case, kind, message=row.reason)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _to_markdown(report: ParityReport, title: str) -> str:
    lines = [f"## {title}: {report.verdict}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in report.rows]
    lines += ["", *(f"- {line}" for line in where_it_ran(report))]
    lines += ["", *(f"- **{row.verdict}** {row}" for row in report.rows if row.verdict is not Verdict.PASS)]
    return "\n".join(lines).rstrip() + "\n"
