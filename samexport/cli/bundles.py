"""The commands that use a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.export import print_licence_note
from samexport.cli.options import (
    Checkpoints,
    DecoderCheckpoint,
    Force,
    RuntimeName,
    SamplerCheckpoint,
    Threads,
    Weights,
)
from samexport.cli.terminal import Spinner, print_table
from samexport.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from samexport.runtimes.parity.compare import ParityReport


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Also compare with PyTorch on these weights (needs torch).")
    ] = None,
    decoder_checkpoint: Annotated[Path | None, typer.Option(help="With --checkpoint: the other decoder.")] = None,
    sampler_checkpoint: Annotated[Path | None, typer.Option(help="With --checkpoint: the detector's file.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Also compare with another bundle of the same model, any format.")
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Also run a TFLite bundle strictly on LiteRT's GPU accelerator.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report: .json, .xml (JUnit) or .md.")] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
) -> None:
    """Run the parity checks of a bundle again, from its golden tensors alone."""
    from samexport.runtimes.bundle import open_bundle
    from samexport.runtimes.parity.against import verify_against
    from samexport.runtimes.parity.compare import ParityReport, Verdict
    from samexport.runtimes.parity.gpu import require_gpu, verify_on_gpu
    from samexport.runtimes.parity.report import where_it_ran, write_report
    from samexport.runtimes.parity.verify import verify_bundle

    if (decoder_checkpoint or sampler_checkpoint) and not checkpoint:
        raise ConfigError("--decoder-checkpoint and --sampler-checkpoint go with --checkpoint")
    if sampler_checkpoint:
        print_licence_note()
    opened, other = open_bundle(bundle), None if against is None else open_bundle(against)
    if gpu:
        require_gpu(opened)
    with Spinner() as spinner:
        found = verify_bundle(opened, runtime=runtime, threads=threads, progress=spinner.update)
        if checkpoint:
            from samexport.exporter.pipeline import verify_against_pytorch

            found = verify_against_pytorch(
                opened, found, tuple(checkpoint), decoder=decoder_checkpoint, sampler=sampler_checkpoint,
                runtime=runtime, threads=threads, progress=spinner.update,
            )  # fmt: skip
        if other is not None:
            compared = verify_against(opened, other, threads=threads, progress=spinner.update)
            found = ParityReport((*found.rows, *compared))
        if gpu:
            found = ParityReport((*found.rows, *verify_on_gpu(opened, progress=spinner.update)))
    if report is not None:
        write_report(found, report, f"samexport verify {opened.folder.resolve().name}")
    _print_rows(found)
    for line in where_it_ran(found):
        print(line)
    if found.failures:
        lines = tuple(str(row) for row in found.failures)
        raise ParityFailed(f"{len(lines)} of {len(found.rows)} checks failed", lines)
    checked = [row for row in found.rows if row.verdict is not Verdict.SKIPPED]
    print(f"{opened.folder}: {len(checked)} checks {found.verdict.value}")
    for row in found.rows:
        if row.verdict is Verdict.SKIPPED:
            print(f"SKIPPED  {row}")


def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; none: PyTorch alone.")] = None,
    *,
    annotations: Annotated[Path, typer.Option(help="COCO's or LVIS's instances .json.")],
    images: Annotated[Path, typer.Option(help="Folder of the annotated pictures.")],
    prompts: Annotated[str, typer.Option(help="What to measure: click,box,everything.")] = "click,box,everything",
    click: Annotated[str, typer.Option(help="interior: farthest from the outside. random: seeded.")] = "interior",
    sampler: Annotated[str, typer.Option(help="What proposes: grid, or detector, the bundle's own.")] = "grid",
    points_per_side: Annotated[int, typer.Option(min=1, help="Grid of proposals; the papers use 64.")] = 32,
    max_images: Annotated[int | None, typer.Option(min=1, help="Take so many; without --seed the first.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of images, random clicks, random weights.")] = None,
    pytorch: Annotated[bool, typer.Option("--pytorch", help="PyTorch too, with the bundle's weights.")] = False,
    checkpoint: Checkpoints = None,
    decoder_checkpoint: DecoderCheckpoint = None,
    sampler_checkpoint: SamplerCheckpoint = None,
    encoder: Annotated[str, typer.Option(help="The model of PyTorch alone; `samexport list` shows all.")] = "",
    weights: Weights = "official",
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Fail if the bundle falls further below PyTorch, all sizes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report: .json or .md.")] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Measure accuracy on annotated pictures: AR of object proposals, mIoU of clicks and boxes."""
    from samexport.cli.evaluate import EvalRequest, run_eval

    if weights not in ("official", "random"):
        raise ConfigError(f"--weights is official or random, not {weights!r}")
    request = EvalRequest(
        annotations,
        images,
        bundle=bundle,
        pytorch=pytorch or bool(checkpoint),
        encoder=encoder,
        checkpoints=tuple(checkpoint or ()),
        random_weights=weights == "random",
        prompts=tuple(dict.fromkeys(name for name in prompts.split(",") if name)),
        click=click,
        sampler=sampler,
        decoder_checkpoint=decoder_checkpoint,
        sampler_checkpoint=sampler_checkpoint,
        points_per_side=points_per_side,
        max_images=max_images,
        seed=seed,
        max_drop=max_drop,
    )
    run_eval(request, out=out, runtime=runtime, threads=threads, force=force)


def _print_rows(report: ParityReport) -> None:
    from samexport.runtimes.parity.report import COLUMNS, cells

    print_table(COLUMNS, [cells(row) for row in report.rows])
