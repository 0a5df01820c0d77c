"""``samexport train-demo`` and ``samexport draw-scenes``: train weights on drawn scenes, and measure them there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samexport.cli.options import OUTPUT
from samexport.cli.terminal import ProgressBar
from samexport.errors import ConfigError, FileError, MissingDependency
from samexport.installation import install_hint

if TYPE_CHECKING:
    from samexport.training.loop import Progress

_UNITS = {"s": 1, "m": 60, "h": 3600}
TRAINING = "Training"
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cuda or cpu.", show_default="cuda where there is one", rich_help_panel=TRAINING),
]


def train_demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Weights, log, curves.", rich_help_panel=OUTPUT)],
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long to train, such as 9m or 2h.", rich_help_panel=TRAINING),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="NUMBER", help="How many steps to train, instead of a time.", rich_help_panel=TRAINING
        ),
    ] = None,
    device: Device = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**32 - 1, metavar="NUMBER", help="Of weights, scenes and prompts.", rich_help_panel=TRAINING
        ),
    ] = 0,
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="What is trained.", rich_help_panel=TRAINING)
    ] = "tinyvit",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Weights to go on from; repeats.", rich_help_panel=TRAINING),
    ] = None,
    blend: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of --checkpoint's weights in the result.", rich_help_panel=TRAINING
        ),
    ] = 0.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Carry on from the folder's state.pt.", rich_help_panel=TRAINING)
    ] = False,
) -> None:
    """Train a model from nothing on scenes that are drawn on the way, with exact masks.

    Needs the extra [train]. Sizes grow from 128 to 1024 pixels on a GPU, to 512 on a CPU; weights that --checkpoint
    names see the two largest alone. The folder gets the weights in fp16 (demo.0.safetensors, ...: give each as
    --checkpoint), log.jsonl, curves.png, samples.png, and state.pt, from which --resume carries on after any stop.
    """
    if (budget is None) == (steps is None):
        raise ConfigError("give how long to train: --budget 9m or --steps 1000, one of them")
    if blend and not checkpoint:
        raise ConfigError("--blend mixes the result with the weights that --checkpoint names; give some")
    seconds = None if budget is None else _seconds(budget)
    _check_folder(out, resume, bool(checkpoint))
    require("torch", "skimage", "matplotlib")
    from samexport.models.catalog import find_model
    from samexport.training.demo import LOG, STATE, train
    from samexport.training.loop import settings_for

    spec = find_model(encoder)
    if spec.family != "sam":
        raise ConfigError(f"only models of the family sam are trained here; {spec.name} is another kind")
    chosen = torch_device(device)
    out.mkdir(parents=True, exist_ok=True)
    settings = settings_for(spec.frame.size, chosen, seconds, steps, seed, further=bool(checkpoint))
    state = out / STATE if resume else None
    with _Bar() as bar:
        quality = train(spec, settings, out, shown=bar.show, start=checkpoint or (), blend=blend, resume=state)
    print(
        f"on held-out scenes: box IoU {quality.box:.3f}, one click {quality.click:.3f} (best of three masks),"
        f" {quality.scored:.3f} (by its own score)"
    )
    print(f"wrote {out} ({LOG} has how it went)")


def draw_scenes(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder to make.", rich_help_panel=OUTPUT)],
    count: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="How many.", rich_help_panel=TRAINING)] = 200,
    size: Annotated[
        int, typer.Option(min=64, max=4096, metavar="PIXELS", help="Their long side.", rich_help_panel=TRAINING)
    ] = 1024,
    objects: Annotated[
        int, typer.Option(min=1, max=200, metavar="NUMBER", help="Most objects in one.", rich_help_panel=TRAINING)
    ] = 40,
    first: Annotated[
        int,
        typer.Option(min=0, max=1 << 30, metavar="NUMBER", help="Number of the first one.", rich_help_panel=TRAINING),
    ] = 0,
) -> None:
    """Draw scenes that train-demo never sees, as PNG files with COCO annotations for `samexport eval`.

    Needs the extra [train].
    """
    from samexport.files import new_folder

    require("torch", "skimage")
    with new_folder(out) as folder, ProgressBar() as bar:
        from samexport.training.dataset import ANNOTATIONS, write_scenes
        from samexport.training.scenes import SceneSettings

        def done(number: int) -> None:
            bar.update("drawing", number, count)

        objects_drawn = write_scenes(folder, count, SceneSettings(size, objects), first, done)
    print(f"wrote {out}: {count} scenes with {objects_drawn} objects; {ANNOTATIONS} has their masks")


def require(*packages: str) -> None:
    """MissingDependency for the first that is not installed, before any work."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"training needs {package}: {install_hint('train')}")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found or float(found[1]) == 0:
        raise ConfigError(f"--budget is a time such as 90s, 9m or 2h, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def _check_folder(out: Path, resume: bool, started: bool) -> None:
    if resume and started:
        raise ConfigError("--resume has the weights of the folder's state.pt; leave --checkpoint out")
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; --out names a folder")
    if resume and not (out / "state.pt").is_file():
        raise FileError(f"{out} has no state.pt to carry on from; leave --resume out")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise FileError(f"{out} is not empty; carry on with --resume or name another folder")


class _Bar(ProgressBar):
    """Share done, size, pictures a second and the IoU; elsewhere than on a terminal a line every half minute."""

    def __init__(self) -> None:
        super().__init__()
        self._iou, self._said = "", -30.0

    def show(self, progress: Progress) -> None:
        if progress.losses:
            self._iou = f"IoU {progress.losses['single']:.2f}"
        rate = progress.pictures / max(progress.seconds, 1e-9)
        label = f"step {progress.step}, {progress.stage.size} pixels, {rate:.0f} pictures/s, {self._iou}"
        self.update(label, round(1000 * min(1.0, progress.share)), 1000)
        if progress.seconds - self._said >= 30 and not sys.stderr.isatty():
            self._said = progress.seconds
            print(f"{progress.seconds:.0f} s: {label}", file=sys.stderr, flush=True)


def torch_device(wanted: str | None) -> str:
    """Where to train: ``wanted``, or a GPU where there is one; ConfigError if PyTorch cannot."""
    import torch

    chosen = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen not in ("cuda", "cpu"):
        raise ConfigError(f"--device is cuda or cpu, not {chosen!r}")
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PyTorch sees no CUDA device; give --device cpu")
    return chosen
