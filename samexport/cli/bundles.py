"""The commands that use a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samexport.cli.options import (
    Checkpoints,
    DecoderCheckpoint,
    Force,
    RuntimeName,
    SamplerCheckpoint,
    Threads,
    Weights,
)
from samexport.errors import ConfigError


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
