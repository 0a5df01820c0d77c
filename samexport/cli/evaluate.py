"""The command ``eval``: options to a request. What it does is in ``cli/evaluation.py``, whose imports take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from samexport.cli.options import (
    CHECKS,
    OUTPUT,
    WEIGHTS,
    Checkpoints,
    DecoderCheckpoint,
    Force,
    RuntimeName,
    SamplerCheckpoint,
    Threads,
    Weights,
    sparse_switches,
    weight_files,
)
from samexport.errors import ConfigError

_PICTURES, _PROMPTS, _VIDEO = "Pictures", "Prompts", "Clips: J and F of objects that are followed"


def evaluate(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Bundle folder; none: PyTorch alone."),
    ] = None,
    *,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO's or LVIS's instances .json.", rich_help_panel=_PICTURES)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the annotated pictures.", rich_help_panel=_PICTURES)
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Instead: annotated clips in the layout of DAVIS.", rich_help_panel=_VIDEO),
    ] = None,
    sequences: Annotated[
        str, typer.Option(metavar="NAMES", help="Take these clips, with commas between.", rich_help_panel=_VIDEO)
    ] = "",
    sparse: Annotated[
        Literal["off", "swr", "smr", "both"],
        typer.Option(help="What is left out; see samexport track.", rich_help_panel=_VIDEO),
    ] = "off",
    max_images: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="NUMBER", help="Take so many; without --seed the first.", rich_help_panel=_PICTURES
        ),
    ] = None,
    prompts: Annotated[
        str, typer.Option(metavar="NAMES", help="What to measure, with commas between.", rich_help_panel=_PROMPTS)
    ] = "click,box,everything",
    click: Annotated[
        Literal["interior", "random"],
        typer.Option(help="interior: farthest from the outside. random: seeded.", rich_help_panel=_PROMPTS),
    ] = "interior",
    sampler: Annotated[
        Literal["grid", "detector", "boxes"],
        typer.Option(
            help="What proposes: a grid of clicks, the bundle's detector, or the annotated boxes.",
            rich_help_panel=_PROMPTS,
        ),
    ] = "grid",
    points_per_side: Annotated[
        int,
        typer.Option(
            min=1, max=1024, metavar="NUMBER", help="Grid of proposals; the papers use 64.", rich_help_panel=_PROMPTS
        ),
    ] = 32,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="NUMBER",
            help="Seed of images, random clicks, random weights.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    pytorch: Annotated[
        bool, typer.Option("--pytorch", help="PyTorch too, with the bundle's weights.", rich_help_panel=WEIGHTS)
    ] = False,
    checkpoint: Checkpoints = None,
    decoder_checkpoint: DecoderCheckpoint = None,
    sampler_checkpoint: SamplerCheckpoint = None,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The model of PyTorch alone; `samexport list` shows all.", rich_help_panel=WEIGHTS
        ),
    ] = "",
    weights: Weights = "official",
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="NUMBER",
            help="Fail if the bundle falls further below PyTorch, objects of all sizes.",
            rich_help_panel=CHECKS,
        ),
    ] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report: .json or .md.", rich_help_panel=OUTPUT)
    ] = None,
    force: Force = False,
) -> None:
    """Measure accuracy on annotated pictures: AR of object proposals, mIoU of clicks and boxes; or on annotated clips.

    A picture that cannot be read, or that a model fails on, is left out and told; the exit code is then 2, or 1.
    """
    if video is not None:
        from samexport.cli.evaluate_video import VideoRequest, run_eval_video

        if bundle is None or annotations is not None or images is not None:
            raise ConfigError("--video takes a bundle, and neither --annotations nor --images")
        names = tuple(name for name in sequences.split(",") if name)
        clips = VideoRequest(bundle, video, names, sparse_switches(sparse))
        run_eval_video(clips, out=out, runtime=runtime, threads=threads, force=force)
        return
    if annotations is None or images is None:
        raise ConfigError("what to measure on? give --annotations and --images, or --video")
    if sequences or sparse != "off":
        raise ConfigError("--sequences and --sparse are of --video; give it")
    from samexport.cli.evaluation import EvalRequest, run_eval

    request = EvalRequest(
        annotations,
        images,
        bundle=bundle,
        pytorch=pytorch or bool(checkpoint),
        encoder=encoder,
        checkpoints=weight_files(weights, checkpoint, encoder),
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
