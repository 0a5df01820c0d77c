"""What a check says: verdict, what was checked, the numbers. Plain data, kept in reports and manifests."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal


class Verdict(StrEnum):
    """The only three results of a check; SKIPPED is never counted as PASS."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIPPED = "SKIPPED"


Kind = Literal["files", "golden", "resize", "case", "end_to_end", "half", "lint", "gpu", "limits"]
"""What kind of check it was.

files: the folder is what was exported. golden: the golden files can be read. resize: this machine resizes as the
exporting one. case: outputs of a golden case. end_to_end: from picture to masks. half: no half precision tensor
overflows. lint: operations that leave a delegate. gpu: the GPU against the CPU. limits: what a check cannot show.
"""

NUMERIC: tuple[Kind, ...] = ("case",)
"""Only these kinds prove that a file computes what the reference computes."""


@dataclass(frozen=True)
class Check:
    """What was checked.

    Attributes:
        kind: see :data:`Kind`.
        graphs: names of the graphs that ran, in order.
        case: name of the golden case.
        artifacts: the files that ran, as named in the manifest.
        runtime: name of the runtime of the last graph.
        placement: where that one computed; tells of the machine and is not kept in manifests.
        against: what was the reference: golden (values in the bundle), PyTorch, cpu, or another bundle's name.
    """

    kind: Kind
    graphs: tuple[str, ...] = ()
    case: str = ""
    artifacts: tuple[str, ...] = ()
    runtime: str = ""
    placement: str = ""
    against: str = "golden"

    def __str__(self) -> str:
        """What was checked, in a few words."""
        words = ["+".join(self.graphs)] if self.graphs and self.kind != "end_to_end" else []
        if self.kind == "case":
            words.append(self.case)
        elif self.kind == "gpu":
            words += [self.case, "on GPU"] if self.case else ["on GPU"]
        else:
            words += [self.kind.replace("_", " "), self.case]
        if self.against == "PyTorch":
            words.append("(PyTorch)")
        elif self.against not in ("golden", "cpu"):
            words.append(f"(against {self.against})")
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Row:
    """One output of one check. Errors are absolute; ``value_range`` is max - min of the reference.

    ``snr_db`` is None where nothing differs at all.
    """

    check: Check
    output: str
    verdict: Verdict
    reason: str = ""
    max_error: float | None = None
    mean_error: float | None = None
    value_range: float | None = None
    snr_db: float | None = None
    mask_iou: float | None = None
    boundary_flips: int | None = None

    def __str__(self) -> str:
        """What was checked, the output and what is wrong, in one line."""
        return f"{self.check}, {self.output}: {self.reason or self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, numbers rounded to four digits so that noise of the last bits is not a difference."""
        return {k: _rounded(v) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def kept(self) -> Row:
        """The row as a manifest keeps it: rounded, and silent about this machine."""
        numbers: dict[str, Any] = {k: _rounded(v) for k, v in vars(self).items() if isinstance(v, float)}
        return replace(self, check=replace(self.check, placement=""), **numbers)


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class ParityReport:
    """Rows and their joint verdict: FAIL if any row fails, SKIPPED if nothing was checked, else PASS.

    ::

        report = samexport.verify("bundle")
        if report.verdict is samexport.Verdict.FAIL:
            print([str(row) for row in report.failures])
    """

    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the rows."""
        verdicts = {r.verdict for r in self.rows}
        if Verdict.FAIL in verdicts:
            return Verdict.FAIL
        return Verdict.PASS if Verdict.PASS in verdicts else Verdict.SKIPPED

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that failed."""
        return tuple(r for r in self.rows if r.verdict is Verdict.FAIL)

    @property
    def proves(self) -> bool:
        """Whether nothing failed and numbers were compared: the only state in which files count as verified."""
        numeric = any(r.check.kind in NUMERIC and r.verdict is Verdict.PASS for r in self.rows)
        return self.verdict is Verdict.PASS and numeric
