"""The command ``verify``: check the request, run the checks, print and write what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.export import print_licence_note
from samexport.cli.options import CHECKS, OUTPUT, BundleFolder, Force, Json, RuntimeName, Threads
from samexport.cli.terminal import Steps, print_table, print_written
from samexport.errors import ConfigError, ParityFailed, SamExportError

if TYPE_CHECKING:
    from samexport.runtimes.bundle import Bundle
    from samexport.runtimes.verdicts import ParityReport, Row


def verify(
    bundle: BundleFolder,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also compare with PyTorch on these weights (needs torch); may be repeated.",
            rich_help_panel=CHECKS,
        ),
    ] = None,
    decoder_checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --checkpoint: the other decoder.", rich_help_panel=CHECKS),
    ] = None,
    sampler_checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --checkpoint: the detector's file.", rich_help_panel=CHECKS),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Also compare with another bundle of the same model, any format.",
            rich_help_panel=CHECKS,
        ),
    ] = None,
    gpu: Annotated[
        bool,
        typer.Option(
            "--gpu", help="Also run a TFLite bundle strictly on LiteRT's GPU accelerator.", rich_help_panel=CHECKS
        ),
    ] = False,
    arm: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also run ONNX and TFLite files on ARM's kernels, emulated; tools/arm_root makes the folder.",
            rich_help_panel=CHECKS,
        ),
    ] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report: .json, .xml (JUnit) or .md.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run the parity checks of a bundle again, from its golden tensors alone."""
    from samexport.runtimes.bundle import open_bundle
    from samexport.runtimes.verdicts import ParityReport

    if (decoder_checkpoint or sampler_checkpoint) and not checkpoint:
        raise ConfigError("--decoder-checkpoint and --sampler-checkpoint go with --checkpoint")
    if sampler_checkpoint:
        print_licence_note()
    request = _Request(
        open_bundle(bundle),
        None if against is None else open_bundle(against),
        tuple(checkpoint or ()),
        decoder_checkpoint,
        sampler_checkpoint,
        gpu,
        arm,
        runtime,
        threads,
    )
    _check_report(report, force, request)
    request.check()
    rows, problem = _run(request)
    found = ParityReport(tuple(rows))
    _print(found, request.bundle, as_json)
    if report is not None:
        problem = _write(found, report, force, request.bundle, as_json) or problem
    _conclude(found, problem)


@dataclass(frozen=True)
class _Request:
    """What is to be checked; the fields are the options."""

    bundle: Bundle
    other: Bundle | None
    checkpoints: tuple[Path, ...]
    decoder: Path | None
    sampler: Path | None
    gpu: bool
    arm: Path | None
    runtime: str | None
    threads: int | None

    def check(self) -> None:
        """Refuse, before anything runs, what would fail at the end."""
        from samexport.runtimes.parity.against import check_comparable
        from samexport.runtimes.parity.arm import require_arm
        from samexport.runtimes.parity.gpu import require_gpu
        from samexport.runtimes.registry import check_runtime

        check_runtime(self.runtime, {artifact.file_format for artifact in self.bundle.manifest.artifacts})
        if self.sampler is not None and self.bundle.manifest.sampler is None:
            raise ConfigError(f"--sampler-checkpoint: {self.bundle.folder.name} has no detector")
        if self.other is not None:
            check_comparable(self.bundle, self.other)
        if self.gpu:
            require_gpu(self.bundle)
        if self.arm is not None:
            require_arm(self.bundle, self.arm)

    @property
    def steps(self) -> int:
        """How many steps the checks tell of: a step a graph and one from picture to masks, on each runtime."""
        from samexport.runtimes.registry import checkers

        formats = dict.fromkeys(artifact.file_format for artifact in self.bundle.manifest.artifacts)
        runtimes = 1 if self.runtime else sum(len(checkers(each)) for each in formats)
        graphs = len(self.bundle.graph_names)
        once = runtimes * (graphs + 1)
        torch = 1 + once if self.checkpoints else 0
        other = 0 if self.other is None else 1 + 2 * len({*self.bundle.graph_names} & {*self.other.graph_names})
        return once + torch + other + (graphs if self.gpu else 0) + (2 if self.arm else 0)

    def parts(self, progress: Callable[[str], None]) -> Iterator[tuple[Row, ...]]:
        """The rows of each check that was asked for."""
        from samexport.runtimes.parity.against import verify_against
        from samexport.runtimes.parity.arm import verify_on_arm
        from samexport.runtimes.parity.gpu import verify_on_gpu
        from samexport.runtimes.parity.verify import verify_bundle
        from samexport.runtimes.verdicts import ParityReport

        yield verify_bundle(self.bundle, runtime=self.runtime, threads=self.threads, progress=progress).rows
        if self.checkpoints:
            from samexport.exporter.pipeline import verify_against_pytorch

            yield verify_against_pytorch(
                self.bundle, ParityReport(()), self.checkpoints, decoder=self.decoder, sampler=self.sampler,
                runtime=self.runtime, threads=self.threads, progress=progress,
            ).rows  # fmt: skip
        if self.other is not None:
            yield verify_against(self.bundle, self.other, runtime=self.runtime, threads=self.threads, progress=progress)
        if self.gpu:
            yield verify_on_gpu(self.bundle, progress=progress)
        if self.arm is not None:
            yield verify_on_arm(self.bundle, self.arm, progress=progress)


def _check_report(report: Path | None, force: bool, request: _Request) -> None:
    from samexport.files import check_output
    from samexport.runtimes.parity.report import ENDINGS

    if report is None:
        if force:
            raise ConfigError("--force is for an existing report; it needs --report FILE")
        return
    check_output(report, force=force, endings=ENDINGS, inputs=request.checkpoints)


def _run(request: _Request) -> tuple[list[Row], SamExportError | None]:
    """All rows, or those that were there before a check could not go on, and why it could not."""
    rows: list[Row] = []
    try:
        with Steps(request.steps) as steps:
            for part in request.parts(steps.update):
                rows += part
    except SamExportError as error:
        if not rows:
            raise
        return rows, error
    return rows, None


def _print(found: ParityReport, bundle: Bundle, as_json: bool) -> None:
    from samexport.files import to_json
    from samexport.runtimes.parity.report import COLUMNS, cells, where_it_ran
    from samexport.runtimes.verdicts import Verdict

    if as_json:
        rows = [row.to_json() for row in found.rows]
        print(to_json({"bundle": str(bundle.folder), "verdict": found.verdict, "rows": rows}), end="")
        return
    print_table(COLUMNS, [cells(row) for row in found.rows])
    for line in where_it_ran(found):
        print(line)
    skipped = [row for row in found.rows if row.verdict is Verdict.SKIPPED]
    if not found.failures:
        print(f"{bundle.folder}: {len(found.rows) - len(skipped)} checks {found.verdict.value}")
    for row in skipped:
        print(f"SKIPPED  {row}")


def _write(found: ParityReport, path: Path, force: bool, bundle: Bundle, as_json: bool) -> SamExportError | None:
    """Write the report; why it could not be written comes back, so that the verdict is not lost."""
    from samexport.runtimes.parity.report import write_report

    try:
        write_report(found, path, f"samexport verify {bundle.folder.resolve().name}", force=force)
    except SamExportError as error:
        return error
    if not as_json:
        print_written([path])
    return None


def _conclude(found: ParityReport, problem: SamExportError | None) -> None:
    """Return only where everything that was asked for was checked and passed."""
    if found.failures:
        lines = [*map(str, found.failures), *([f"not finished: {problem}"] if problem else [])]
        raise ParityFailed(f"{len(found.failures)} of {len(found.rows)} checks failed", tuple(lines))
    if problem is not None:
        raise problem
    if not found.proves:
        raise ParityFailed("no numbers were compared")
