"""How good weights are on scenes that were never trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samexport.models.architectures.sam import Sam
from samexport.models.spec import Preprocess
from samexport.training.loop import decode, embed, fast, set_size
from samexport.training.losses import mask_ious
from samexport.training.prompts import boxes, choose_targets, first_clicks
from samexport.training.scenes import HELD_OUT, Scenes, SceneSettings, draw


@dataclass(frozen=True)
class Quality:
    """Mean IoU over held-out prompts, by what was asked and which mask was taken.

    Attributes:
        box: mask 0 of an exact box.
        click: of one click, the best of masks 1..3 (an oracle chooses).
        scored: of one click, the one of masks 1..3 with the highest predicted IoU.
    """

    box: float
    click: float
    scored: float


def held_out(index: int, settings: SceneSettings, device: torch.device, count: int = 1) -> Scenes:
    """The ``index``-th batch of held-out scenes; on one kind of device always the same."""
    return draw(count, settings, torch.Generator(device).manual_seed(HELD_OUT + index))


@torch.no_grad()
def measure(sam: Sam, frame: Preprocess, size: int, scenes: int, device: torch.device, prompts: int = 16) -> Quality:
    """Measure weights in evaluation mode on ``scenes`` held-out pictures of ``size`` pixels."""
    set_size(sam, size)
    found: list[Tensor] = []
    for index in range(scenes):
        batch = held_out(index, SceneSettings(size), device)
        generator = torch.Generator(device).manual_seed(index)
        targets = choose_targets(batch, prompts, generator)
        masks, soft = targets.masks.flatten(0, 1), targets.soft.flatten(0, 1)
        with torch.device(device), fast(device):
            embeddings = embed(sam, batch.pictures, batch.ids, frame)
            by_box, _ = decode(sam, embeddings, boxes(masks, None), None)
            by_click, scores = decode(sam, embeddings, first_clicks(masks, generator), None)
        ious = mask_ious(by_click, soft)[:, 1:]
        chosen = ious.gather(1, scores[:, 1:].argmax(1, keepdim=True))[:, 0]
        found.append(torch.stack([mask_ious(by_box, soft)[:, 0], ious.amax(1), chosen]))
    box, click, scored = torch.cat(found, dim=1).mean(1).tolist()
    return Quality(box, click, scored)
