"""Parity reports as JSON, JUnit XML or Markdown, chosen by the file's ending."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from samexport.files import to_json, write_text
from samexport.runtimes.verdicts import ParityReport, Row, Verdict

ENDINGS = (".json", ".xml", ".md")
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
    return str(row.check), row.output, *text, row.verdict.value


def where_it_ran(report: ParityReport) -> list[str]:
    """One line a runtime: what ran on it, and where."""
    ran: dict[str, dict[str, None]] = {}
    for check in (row.check for row in report.rows):
        if check.runtime:
            what = ("end to end",) if check.kind == "end_to_end" else check.graphs
            ran.setdefault(f"{check.runtime}: {check.placement}", {}).update(dict.fromkeys(what))
    return [f"{', '.join(names)} on {runtime}" for runtime, names in ran.items()]


def write_report(report: ParityReport, path: Path, title: str, *, force: bool = False) -> None:
    """Write the report, in the form of the file's ending (:data:`ENDINGS`); FileError if it cannot be written."""
    writers = {".json": _to_json, ".xml": _to_junit, ".md": _to_markdown}
    write_text(path, writers[path.suffix.lower()](report, title), force=force)


def _to_json(report: ParityReport, title: str) -> str:
    rows = [row.to_json() for row in report.rows]
    return to_json({"title": title, "verdict": report.verdict, "rows": rows})


def _to_junit(report: ParityReport, title: str) -> str:
    suite = ElementTree.Element("testsuite", name=_xml(title), tests=str(len(report.rows)))
    for verdict, attribute in ((Verdict.FAIL, "failures"), (Verdict.SKIPPED, "skipped")):
        suite.set(attribute, str(sum(r.verdict is verdict for r in report.rows)))
    if ran := where_it_ran(report):
        properties = ElementTree.SubElement(suite, "properties")
        for line in ran:
            ElementTree.SubElement(properties, "property", name="ran", value=_xml(line))
    for row in report.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(str(row.check)), name=_xml(row.output))
        if row.verdict is not Verdict.PASS:
            kind = "failure" if row.verdict is Verdict.FAIL else "skipped"
            ElementTree.SubElement(case, kind, message=_xml(row.reason))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """XML 1.0 has no way to write control characters and lone surrogates."""
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _to_markdown(report: ParityReport, title: str) -> str:
    lines = [f"## {_markdown(title)}: {report.verdict}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(map(_markdown, cells(row)))} |" for row in report.rows]
    lines += ["", *(f"- {line}" for line in where_it_ran(report))]
    lines += ["", *(f"- **{row.verdict}** {row}" for row in report.rows if row.verdict is not Verdict.PASS)]
    return "\n".join(lines).rstrip() + "\n"
