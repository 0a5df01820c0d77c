"""Training the demo weights: the job around the loop, with its log, its pictures and its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samexport.files import new_file, write_text
from samexport.models.architectures.sam import Sam
from samexport.models.loading import load_model
from samexport.models.spec import ModelSpec
from samexport.models.weights.checkpoints import is_unread
from samexport.training.loop import Progress, Trainer, TrainSettings, decode, embed, fast, set_size
from samexport.training.measure import Quality, held_out, measure
from samexport.training.prompts import boxes, choose_targets, first_clicks
from samexport.training.scenes import SceneSettings

STATE = "state.pt"
LOG = "log.jsonl"
PART = 15 << 20
"""Most bytes of one file of weights, so that they pass where files are limited to 16 MB."""
_EVERY = 45.0


def train(
    spec: ModelSpec,
    settings: TrainSettings,
    out: Path,
    *,
    shown: Callable[[Progress], None] = lambda _: None,
    start: Sequence[Path] = (),
    blend: float = 0.0,
    resume: Path | None = None,
    keep_state: bool = True,
) -> Quality:
    """Train, and leave in ``out``: weights in fp16, the log, curves and samples; returns the quality at the end.

    Args:
        spec: of a model whose frame may have any size.
        settings: how.
        out: a folder that exists.
        shown: called after each step.
        start: files of the weights to start from; none for new weights.
        blend: share of those weights in what is left; what was learnt before is kept so (arXiv 2109.01903).
        resume: a ``state.pt`` to carry on from.
        keep_state: write ``state.pt`` at intervals.
    """
    before = load_model(spec, start)[0].state_dict() if start else None
    trainer = Trainer(spec, settings, before)
    if resume:
        trainer.load(resume)
        _forget_after(trainer.step, out / LOG)
    due = trainer.seconds + _EVERY
    for progress in trainer.run():
        shown(progress)
        if progress.losses:
            _log(out, {"step": progress.step, "seconds": progress.seconds, "size": progress.stage.size}
                 | {"pictures": progress.pictures} | progress.losses)  # fmt: skip
        if progress.seconds >= due:
            due = progress.seconds + _EVERY
            quality = measure(trainer.average, spec.frame, progress.stage.size, 8, trainer.device)
            _log(out, {"step": progress.step, "seconds": progress.seconds, "size": progress.stage.size}
                 | {f"held_out_{k}": v for k, v in asdict(quality).items()})  # fmt: skip
            write_weights(trainer.average, spec, out)
            if keep_state:
                trainer.save(out / STATE)
    trainer.settle()
    if keep_state:
        trainer.save(out / STATE)
    if before is not None:
        _blend(trainer.average, before, blend)
    write_weights(trainer.average, spec, out)
    size = settings.stages[-1].size
    quality = measure(trainer.average, spec.frame, size, 32, trainer.device)
    _log(out, {"step": trainer.step, "seconds": trainer.seconds, "size": size, "final": True}
         | {f"held_out_{k}": v for k, v in asdict(quality).items()})  # fmt: skip
    draw_samples(trainer.average, spec, size, trainer.device, out / "samples.png")
    draw_curves(out / LOG, out / "curves.png")
    return quality


@torch.no_grad()
def _blend(sam: Sam, other: Mapping[str, Tensor], share: float) -> None:
    """Move weights and statistics by ``share`` of the way to others."""
    for key, value in sam.state_dict().items():
        if value.is_floating_point():
            value.lerp_(other[key].to(value.device, value.dtype), share)


def _log(out: Path, row: Mapping[str, Any]) -> None:
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded) + "\n")


def _forget_after(step: int, log: Path) -> None:
    """Take what was logged between the last state and the stop out of the log: it is done again."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step and "final" not in json.loads(line)]
    write_text(log, "".join(f"{line}\n" for line in kept), force=True)


def write_weights(sam: Sam, spec: ModelSpec, out: Path) -> list[Path]:
    """What graphs read of the state dict, fp16, as ``demo.N.safetensors``: whole tensors, ``PART`` bytes a file."""
    from safetensors.torch import save_file

    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, value in sam.state_dict().items():
        if is_unread(spec, key):
            continue
        half = (value.half() if value.is_floating_point() else value).cpu().contiguous()
        if parts[-1] and filled + half.nbytes > PART:
            parts.append({})
            filled = 0
        parts[-1][key] = half
        filled += half.nbytes
    paths = [out / f"demo.{index}.safetensors" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        with new_file(path, force=True) as private:
            save_file(part, private)
    return paths


@torch.no_grad()
def draw_samples(sam: Sam, spec: ModelSpec, size: int, device: torch.device, path: Path, scenes: int = 6) -> None:
    """Held-out scenes in a row each: the picture, then the answers to a click and to a box, green over the target."""
    from PIL import Image

    set_size(sam, size)
    rows = []
    for index in range(scenes):
        batch = held_out(1000 + index, SceneSettings(size), device)
        generator = torch.Generator(device).manual_seed(index)
        targets = choose_targets(batch, 4, generator)
        masks = targets.masks.flatten(0, 1)
        with torch.device(device), fast(device):
            embeddings = embed(sam, batch.pictures, batch.ids, spec.frame)
            by_click, scores = decode(sam, embeddings, first_clicks(masks, generator), None)
            by_box, _ = decode(sam, embeddings, boxes(masks, None), None)
        best = by_click[torch.arange(len(scores)), 1 + scores[:, 1:].argmax(1)]
        small = torch.nn.functional.avg_pool2d(batch.pictures, 4)[0]
        tiles = [small]
        for wanted, click, box in zip(targets.soft[0], best, by_box[:, 0], strict=True):
            tiles += [_over(small, wanted, click), _over(small, wanted, box)]
        rows.append(torch.cat(tiles, dim=2))
    picture = torch.cat(rows, dim=1).permute(1, 2, 0).clamp(0, 255).byte().cpu().numpy()
    Image.fromarray(picture).save(path)


def _over(picture: Tensor, wanted: Tensor, found: Tensor) -> Tensor:
    """Right pixels green, pixels too many red, missing ones blue, over the darkened picture."""
    hit, asked = found > 0, wanted > 0.5
    colours = torch.stack([hit & ~asked, hit & asked, asked & ~hit]).float()
    return 0.35 * picture + 150 * colours


def draw_curves(log: Path, path: Path) -> None:
    """Loss and IoU over time, from the log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "mask" in row]
    checks = [row for row in rows if "held_out_box" in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    minutes = [row["seconds"] / 60 for row in steps]
    left.plot(minutes, [row["mask"] for row in steps], linewidth=0.8, label="20 x focal + dice, two answers")
    left.plot(minutes, [row["score"] for row in steps], linewidth=0.8, label="error of the predicted IoU")
    left.set_yscale("log")
    right.plot(minutes, [row["single"] for row in steps], linewidth=0.5, alpha=0.5, label="training, mask 0")
    right.plot(minutes, [row["best"] for row in steps], linewidth=0.5, alpha=0.5, label="training, best of 1..3")
    for key, name in (("box", "held out, box"), ("click", "held out, click"), ("scored", "held out, click, by score")):
        right.plot(
            [row["seconds"] / 60 for row in checks], [row[f"held_out_{key}"] for row in checks], "o-", label=name
        )
    right.set_ylim(0, 1)
    right.set_ylabel("mean IoU")
    for axes in (left, right):
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
