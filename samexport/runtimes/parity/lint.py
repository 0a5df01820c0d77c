"""What the TFLite linter found, as rows of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samexport.errors import BundleError, MissingDependency
from samexport.installation import install_hint
from samexport.runtimes.bundle import Artifact
from samexport.runtimes.formats.tflite_lint import TITLES, Finding, lint
from samexport.runtimes.verdicts import Check, Row, Verdict

_NAMED = 10


def lint_rows(artifact: Artifact, path: Path) -> tuple[Row, ...]:
    """The linter's result as rows of a report: one a delegate, each operation that would leave it named.

    Operations that leave the GPU fail a file made for it (option ``target`` "gpu"). Otherwise they are a row that
    is SKIPPED, since a file for the CPU promises nothing there, and XNNPACK only gets slower. A file for the GPU has
    one row more, of what single phones compute wrongly.
    """
    check = Check("lint", (artifact.graph,), artifacts=(artifact.path,))
    try:
        found = lint(path)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"the linter needs {error.name}: {install_hint('litert')}") from error
    except BundleError as error:
        return (Row(check, "operations", Verdict.FAIL, str(error)),)
    rows = []
    for delegate, title in TITLES.items():
        leaving = found.leaving(delegate)
        made_for_it = artifact.options.get("target") == delegate
        verdict = Verdict.PASS if not leaving else Verdict.FAIL if made_for_it else Verdict.SKIPPED
        text = f"{leaving} of {found.total} leave {title}, rank {found.max_rank}"
        rows.append(Row(check, text, verdict, _listed(found.of(delegate))))
    if artifact.options.get("target") == "gpu":
        known = (*found.traps, *found.warnings)
        verdict = Verdict.FAIL if found.traps else Verdict.SKIPPED if known else Verdict.PASS
        places = len({(each.signature, each.operator) for each in known})
        text = f"{places} of {found.total} may be wrong on some phones' GPUs"
        rows.append(Row(check, text, verdict, _listed(known)))
    return tuple(rows)


def _listed(findings: Sequence[Finding]) -> str:
    """All of them, of many the first."""
    more = [f"and {len(findings) - _NAMED} more"] if len(findings) > _NAMED else []
    return "; ".join([*map(str, findings[:_NAMED]), *more])
