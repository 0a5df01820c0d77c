"""The commands that use a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.export import print_licence_note
from samexport.cli.options import Force, RuntimeName, Threads
from samexport.cli.terminal import Spinner, print_table
from samexport.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    from samexport.runtimes.verdicts import ParityReport


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
    from samexport.runtimes.parity.gpu import require_gpu, verify_on_gpu
    from samexport.runtimes.parity.report import where_it_ran, write_report
    from samexport.runtimes.parity.verify import verify_bundle
    from samexport.runtimes.verdicts import ParityReport, Verdict

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
    if not found.proves:
        lines = tuple(str(row) for row in found.failures)
        failed = f"{len(lines)} of {len(found.rows)} checks failed" if lines else "no numbers were compared"
        raise ParityFailed(failed, lines)
    checked = [row for row in found.rows if row.verdict is not Verdict.SKIPPED]
    print(f"{opened.folder}: {len(checked)} checks {found.verdict.value}")
    for row in found.rows:
        if row.verdict is Verdict.SKIPPED:
            print(f"SKIPPED  {row}")


def segment(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    image: Annotated[Path, typer.Argument(help="Picture.")],
    point: Annotated[list[str] | None, typer.Option(help="x,y or x,y,0 for a negative click; repeats.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,x1,y1; repeats, one prompt each.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Earlier logits (.npy) to refine.")] = None,
    multimask: Annotated[bool, typer.Option("--multimask", help="Keep all candidate masks.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the picture with the masks drawn on it.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Write masks: a folder of PNGs, or a .json of COCO RLE.")] = None,
    logits: Annotated[Path | None, typer.Option(help="Write the logits as .npy, for a later --mask.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Every object; takes no prompts.")] = False,
    sampler: Annotated[
        str | None, typer.Option(help="Of --everything: object-aware, grid, hierarchical, or a .json of boxes.")
    ] = None,
    coco: Annotated[Path | None, typer.Option(help="Of --everything: write the masks as COCO RLE (.json).")] = None,
    confidence: Annotated[float | None, typer.Option(help="Boxes need a higher score; 0.4.")] = None,
    nms_iou: Annotated[float | None, typer.Option(help="Boxes that overlap more are one; 0.9.")] = None,
    max_boxes: Annotated[int | None, typer.Option(help="The best that are kept; 300 (the paper: 320).")] = None,
    sampler_rgb: Annotated[bool, typer.Option("--sampler-rgb", help="Feed the detector RGB, not BGR.")] = False,
    points_per_side: Annotated[int | None, typer.Option(help="Of the grid; 32.")] = None,
    draw_boxes: Annotated[
        bool, typer.Option("--draw-boxes", help="Of --everything: in --out, also the boxes.")
    ] = False,
    runtime: RuntimeName = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Segment a picture with a bundle alone (no torch); without a box all points are one prompt."""
    from samexport.cli.segment import SegmentRequest, run_segment

    if everything:
        from samexport.cli.everything import EverythingRequest, run_everything

        if point or box or mask or multimask or masks or logits:
            raise ConfigError("--everything takes no prompts and writes --out and --coco")
        wanted = EverythingRequest(
            bundle, image, sampler, confidence, nms_iou, max_boxes, sampler_rgb, points_per_side, draw_boxes
        )
        run_everything(wanted, out=out, coco=coco, runtime=runtime, threads=threads, force=force)
        return
    if (sampler, coco, confidence, nms_iou, max_boxes, points_per_side) != (None,) * 6 or sampler_rgb or draw_boxes:
        raise ConfigError("samplers, --coco and --draw-boxes need --everything")
    request = SegmentRequest(bundle, image, tuple(point or ()), tuple(box or ()), mask, multimask)
    run_segment(request, out=out, masks=masks, logits=logits, runtime=runtime, threads=threads, force=force)


def _print_rows(report: ParityReport) -> None:
    from samexport.runtimes.parity.report import COLUMNS, cells

    print_table(COLUMNS, [cells(row) for row in report.rows])
