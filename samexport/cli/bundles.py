"""The commands that use a bundle: parse, call, print. Heavy imports are inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samexport.cli.options import Force, RuntimeName, Threads
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
