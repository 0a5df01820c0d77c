"""The command line: parse, call, print, exit code. Heavy imports are inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.errors import ConfigError, ParityFailed, SamExportError
from samexport.exporter import export_commands
from samexport.exporter.options import (
    Checkpoints,
    DecoderCheckpoint,
    Force,
    Json,
    RuntimeName,
    SamplerCheckpoint,
    Threads,
    Weights,
)
from samexport.exporter.terminal import Spinner, print_table

if TYPE_CHECKING:
    from samexport.benchmarks.rows import Results
    from samexport.runtimes.bundle import Bundle
    from samexport.runtimes.parity import ParityReport

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Export Segment-Anything models for phones, verify the files against PyTorch, and run them.",
)


def main() -> None:
    """Entry point: errors of ours become one line and their exit code."""
    try:
        app()
    except SamExportError as error:
        for line in error.details if isinstance(error, ParityFailed) else ():
            print(f"FAIL  {line}", file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(shown: bool) -> None:
    if shown:
        from samexport import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _command in (export_commands.onnx, export_commands.tflite, export_commands.coreml, export_commands.android):
    app.command()(_command)


@app.command()
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
    from samexport.runtimes.parity import ParityReport, Verdict
    from samexport.runtimes.report import where_it_ran, write_report
    from samexport.runtimes.verify import verify_bundle
    from samexport.runtimes.verify_against import verify_against
    from samexport.runtimes.verify_gpu import require_gpu, verify_on_gpu

    if (decoder_checkpoint or sampler_checkpoint) and not checkpoint:
        raise ConfigError("--decoder-checkpoint and --sampler-checkpoint go with --checkpoint")
    if sampler_checkpoint:
        export_commands.print_licence_note()
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


@app.command()
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
    from samexport.exporter.segment_command import SegmentRequest, run_segment

    if everything:
        from samexport.exporter.everything_command import EverythingRequest, run_everything

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


@app.command()
def bench(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Bundle folders.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.json, .csv, .md, .html and the plots.")] = Path(
        "results"
    ),
    runtime: Annotated[list[str] | None, typer.Option(help="Runtimes; the default is all that run here.")] = None,
    graph: Annotated[list[str] | None, typer.Option(help="Graphs; the default is all.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Whole tasks, such as 'one click'; all: every one.")] = None,
    prompts: Annotated[str, typer.Option(help="Numbers of prompts.")] = "1,16,64",
    batch: Annotated[str, typer.Option(help="Prompts a call; the default is what an app gets.")] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "2",
    versus: Annotated[
        list[str] | None, typer.Option(help="Call in turns with: plain, single, a runtime or a bundle; repeats.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Rows for the straightforward export too.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where the time goes in ONNX Runtime.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of a row, at least.")] = 20,
    seconds: Annotated[float, typer.Option(min=0, help="Stop a row after this time, once it has its runs.")] = 20,
    timeout: Annotated[float, typer.Option(min=1, help="Give a row up after this many seconds.")] = 1800,
    photograph: Annotated[str, typer.Option(help="Size of the picture for tasks.")] = "4032x3024",
    checkpoint: Checkpoints = None,
    benchmark_model: Annotated[
        Path | None, typer.Option(help="LiteRT's benchmark_model, built for the phone that adb sees.")
    ] = None,
    serial: Annotated[str, typer.Option(help="Which phone.")] = "",
    accelerator: Annotated[list[str] | None, typer.Option(help="On the phone: cpu, gpu, npu; repeats.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Compare two results.json, OLD NEW; exit code 1 on a regression.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How much slower or larger is a regression.")] = 0.1,
    other_machine: Annotated[bool, typer.Option("--other-machine", help="Compare different machines.")] = False,
    force: Force = False,
) -> None:
    """Time every graph on every runtime that runs here, each with its parity verdict."""
    from samexport.benchmarks.command import BenchRequest, run_bench
    from samexport.benchmarks.tasks import TASKS

    if compare:
        _compare(*compare, tolerance, other_machine)
        return
    if not bundles:
        raise ConfigError("give at least one bundle folder, or --compare OLD NEW")
    request = BenchRequest(
        bundles=tuple(bundles),
        out=out,
        runtimes=tuple(runtime or ()),
        graphs=tuple(graph or ()),
        tasks=tuple(TASKS) if task == ["all"] else tuple(task or ()),
        prompts=_counts("--prompts", prompts),
        batches=_counts("--batch", batch),
        threads=_counts("--threads", threads),
        rivals=tuple(versus or ()),
        baselines=baselines,
        profile=profile,
        checkpoints=tuple(checkpoint or ()),
        photograph=_size(photograph),
        repeat=repeat,
        seconds=seconds,
        timeout=timeout,
        force=force,
        benchmark_model=benchmark_model,
        serial=serial,
        accelerators=tuple(accelerator or ("cpu",)),
    )
    _print_results(run_bench(request, lambda bundle, folder: _plain_export(bundle, folder, request.checkpoints)), out)


def _counts(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers such as 1,16,64, not {text!r}") from error


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) * int(height)):
        raise ConfigError(f"--photograph is WIDTHxHEIGHT such as 4032x3024, not {text!r}")
    return int(width), int(height)


def _plain_export(bundle: Bundle, folder: Path, checkpoints: tuple[Path, ...]) -> Bundle:
    """The straightforward export of a bundle's model: what the baselines of a benchmark run."""
    from samexport.benchmarks.rebuild import write_baselines
    from samexport.exporter.to_onnx import OnnxOptions, convert

    return write_baselines(
        bundle, folder, lambda graph, module, path: convert(graph, module, path, OnnxOptions()), checkpoints
    )


def _print_results(results: Results, out: Path) -> None:
    from samexport.benchmarks.tables import PAIR_COLUMNS, failure_lines, pair_cells, problem_lines, table

    if results.rows:
        print_table(*table(results.rows))
    if results.pairs:
        print_table(PAIR_COLUMNS, [pair_cells(pair) for pair in results.pairs])
    print(f"{out / 'results.html'} and .json, .csv, .md hold all of it")
    failures = failure_lines(results)
    for line in problem_lines(results):
        if line not in failures:
            print(line)
    if failures:
        raise ParityFailed(f"{len(failures)} rows failed", tuple(failures))


def _compare(old: Path, new: Path, tolerance: float, other_machine: bool) -> None:
    from samexport.benchmarks.compare import COMPARE_COLUMNS, change_cells, compare
    from samexport.benchmarks.rows import read_results

    changes = compare(read_results(old), read_results(new), tolerance, other_machine=other_machine)
    print_table(COMPARE_COLUMNS, [change_cells(change) for change in changes])
    if regressed := tuple(f"{c.name}: {c.regression}" for c in changes if c.regression):
        raise ParityFailed(f"{len(regressed)} of {len(changes)} rows regressed by more than {tolerance:.0%}", regressed)
    print(f"{len(changes)} rows, none regressed by more than {tolerance:.0%}")


@app.command("eval")
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
    from samexport.exporter.eval_command import EvalRequest, run_eval

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


@app.command("list")
def list_models(
    as_json: Json = False,
    hidden: Annotated[bool, typer.Option("--all", help="Also the models for tests.")] = False,
) -> None:
    """Show the models: parameters, licence, checkpoint source."""
    from samexport.models.catalog import MODELS

    chosen = [m for m in MODELS.values() if hidden or not m.hidden]
    if as_json:
        keys = ("name", "encoder", "summary", "parameters", "licence")
        rows = [{k: getattr(m, k) for k in keys} | {"checkpoint": m.source and vars(m.source)} for m in chosen]
        print(json.dumps(rows, indent=1))
        return
    print_table(
        ("--encoder", "model", "parameters", "licence", "checkpoint"),
        [
            (
                m.encoder,
                m.summary,
                f"{m.parameters / 1e6:.1f} M",
                m.licence,
                m.source.url if m.source else "none",
            )
            for m in chosen
        ],
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, which runtimes can run here, and what mends those that cannot."""
    from samexport.benchmarks.contenders import variants
    from samexport.exporter.doctor import Finding, examine

    findings = examine()
    findings += [Finding(f"bench: {name}", not reason, "", reason) for name, reason in variants()]
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
        return
    print_table(
        ("what", "state", "version", "remedy"),
        [(f.name, "ok" if f.ok else "MISSING", f.version, f.remedy) for f in findings],
    )


def _print_rows(report: ParityReport) -> None:
    from samexport.runtimes.report import COLUMNS, cells

    print_table(COLUMNS, [cells(row) for row in report.rows])
