"""The loop that trains a SAM on drawn scenes: stages of growing size, resumable, with an average of the weights."""

from __future__ import annotations

import copy
import math
import pickle
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from samexport.errors import ConfigError, FileError
from samexport.files import new_file, reason
from samexport.models.architectures.sam import Sam
from samexport.models.families.sam import SamSize
from samexport.models.graphs.tiny_vit import TinyViTEncoder
from samexport.models.spec import ModelSpec, Preprocess
from samexport.training.losses import Losses, losses
from samexport.training.prompts import Points, Targets, choose_targets, corrections, first_prompts
from samexport.training.quick import quicken
from samexport.training.scenes import HELD_OUT, Scenes, SceneSettings, draw

EMA = 0.998


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        share: of the whole time or number of steps.
        size: side of the pictures.
        batch: pictures a step.
        prompts: prompts a picture.
        rounds: most answers to one prompt: the first, then with a correction and the mask so far.
        texture: as in ``SceneSettings``.
        objects: likewise.
    """

    share: float
    size: int
    batch: int
    prompts: int
    rounds: int
    texture: float
    objects: int


GPU_STAGES = (
    Stage(0.06, 128, 128, 16, 1, 0.1, 6),
    Stage(0.12, 256, 96, 16, 2, 0.6, 16),
    Stage(0.27, 256, 96, 16, 3, 1.0, 24),
    Stage(0.25, 512, 48, 16, 2, 1.0, 40),
    Stage(0.30, 1024, 16, 16, 2, 1.0, 40),
)
CPU_STAGES = (
    Stage(0.45, 128, 32, 16, 1, 0.1, 6),
    Stage(0.30, 128, 32, 16, 2, 1.0, 12),
    Stage(0.20, 256, 8, 16, 2, 1.0, 20),
    Stage(0.05, 512, 2, 16, 2, 1.0, 40),
)


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        stages: in order; their shares add up to 1.
        seconds: of training in all, or None to count ``steps``.
        steps: in all, or None to go by ``seconds``.
        seed: of weights, scenes and prompts.
        learning_rate: its peak; it rises over the first 100 steps and falls to a hundredth along a cosine.
        device: "cuda" or "cpu".
    """

    stages: tuple[Stage, ...]
    seconds: float | None = None
    steps: int | None = None
    seed: int = 0
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.02
    device: str = "cpu"


def settings_for(
    size: int, device: str, seconds: float | None, steps: int | None, seed: int, *, further: bool = False
) -> TrainSettings:
    """The recipe of a device, as far as a model's frame of ``size`` pixels goes; larger pictures become that size.

    Weights that are trained already go ``further``: the last two stages alone, at half the learning rate.
    """
    stages: tuple[Stage, ...] = GPU_STAGES if device == "cuda" else CPU_STAGES
    rate = TrainSettings.learning_rate
    if further:
        stages, rate = stages[-2:], rate / 2
    whole = sum(stage.share for stage in stages)
    fitted = tuple(replace(stage, size=min(stage.size, size), share=stage.share / whole) for stage in stages)
    return TrainSettings(fitted, seconds, steps, seed, rate, device=device)


@dataclass(frozen=True)
class Progress:
    """After a step: how far, how fast, what it cost."""

    step: int
    share: float
    seconds: float
    stage: Stage
    losses: dict[str, float]
    pictures: int


def new_model(spec: ModelSpec, seed: int) -> Sam:
    """A SAM as training starts it: torch's own starting values, random Fourier features of the seed.

    Raises:
        ConfigError: its encoder holds terms for one size of frame.
    """
    if not isinstance(spec.size, SamSize) or resolve_name(spec.size.encoder_graph) is not TinyViTEncoder:
        raise ConfigError(f"{spec.name} cannot see small pictures, as training does; give --encoder tinyvit")
    torch.manual_seed(seed)
    sam = Sam(spec)
    pe = sam.prompt_encoder.pe_layer
    pe.positional_encoding_gaussian_matrix.copy_(torch.randn(pe.positional_encoding_gaussian_matrix.shape))
    return sam


def fast(device: torch.device) -> torch.autocast:
    """bf16 where the device computes it; processors that only imitate it are ten times slower with it."""
    able = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


def set_size(sam: Sam, size: int) -> None:
    """Let the model see frames of another size; no weight depends on it."""
    sam.prompt_encoder.image_size, sam.prompt_encoder.grid = size, size // 16


def embed(sam: Sam, pictures: Tensor, ids: Tensor, frame: Preprocess) -> Tensor:
    """Embeddings [B, C, S / 16, S / 16] of pictures [B, 3, S, S], 0..255; outside of a picture is the mean."""
    mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (frame.mean, frame.std))
    normalised = (pictures - mean) / std * (ids >= 0)[:, None]
    layout = torch.channels_last if pictures.is_cuda else torch.contiguous_format
    out: Tensor = sam.image_encoder(normalised.contiguous(memory_format=layout))
    return out


def decode(sam: Sam, embeddings: Tensor, points: Points, mask_input: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [M, 4, L, L] and scores [M, 4] of M prompts, the same number for each of the embeddings [B, ...].

    ``mask_input`` is [M, 1, L, L], logits of an earlier answer, or None.
    """
    prompt_encoder = sam.prompt_encoder
    # half precision cannot tell neighbouring pixels apart
    with torch.autocast(embeddings.device.type, enabled=False):
        sparse = prompt_encoder.embed_points(points.coords, points.labels)
        dense_pe = prompt_encoder.dense_pe()
    if mask_input is None:
        dense = prompt_encoder.no_mask_dense()[None]
    else:
        dense = prompt_encoder.mask_downscaling(mask_input).unflatten(0, (len(embeddings), -1))
    prompts = len(points.coords) // len(embeddings)
    source = embeddings[:, None] + dense
    if torch.is_autocast_enabled(source.device.type):
        half = torch.get_autocast_dtype(source.device.type)
        source, dense_pe = source.to(half), dense_pe.to(half)
    # channels last, as the decoder's attention reads them
    each = source.permute(0, 1, 3, 4, 2).expand(-1, prompts, -1, -1, -1).flatten(0, 1).permute(0, 3, 1, 2)
    bias = torch.zeros(sparse.shape[:2], device=each.device)
    out: tuple[Tensor, Tensor] = sam.mask_decoder(each, dense_pe, sparse, bias)
    return out


class Trainer:
    """Weights, optimizer and average; ``run`` yields after each step, ``save`` and ``load`` carry on elsewhere."""

    def __init__(self, spec: ModelSpec, settings: TrainSettings, start: Mapping[str, Tensor] | None = None) -> None:
        """``start`` is the state dict of the weights to start from; None for new ones of the seed."""
        self.spec, self.settings = spec, settings
        self.device = torch.device(settings.device)
        # convolutions of GPUs are made for this layout
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self.sam = new_model(spec, settings.seed).to(self.device)
        if start is not None:
            self.sam.load_state_dict(start)
        self.sam = self.sam.to(memory_format=layout).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.sam).eval().requires_grad_(False)
        if self.device.type == "cuda":
            quicken(self.sam)
        # drawing asks the GPU for numbers all the time, and would wait for training's work each time
        self._side: Any = torch.cuda.Stream() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.step, self.share, self.seconds, self.pictures = 0, 0.0, 0.0, 0
        named = dict(self.sam.named_parameters())
        matrices = [p for p in named.values() if p.ndim > 1]
        others = [p for p in named.values() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        pairs = zip(self.average.state_dict().values(), self.sam.state_dict().values(), strict=True)
        self._averaged = [(old, new) for old, new in pairs if old.is_floating_point()]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)

    def _stage(self, step: int) -> Stage:
        """The stage that a step belongs to; by the clock the one that training is in."""
        reached, share = 0.0, self._share(step)
        for stage in self.settings.stages:
            reached += stage.share
            if share < reached:
                return stage
        return self.settings.stages[-1]

    def run(self) -> Iterator[Progress]:
        """Train to the end, a step at a time; the next scenes are drawn meanwhile."""
        with ThreadPoolExecutor(1) as artist:
            drawn = artist.submit(self._draw, self.step, self._stage(self.step))
            while self.share < 1:
                started = time.monotonic()
                stage, scenes, targets = drawn.result()
                drawn = artist.submit(self._draw, self.step + 1, self._stage(self.step + 1))
                for group in self.optimizer.param_groups:
                    group["lr"] = self._learning_rate()
                cost = self._one_step(stage, scenes, targets)
                found = (
                    {name: float(value.detach()) for name, value in vars(cost).items()} if self.step % 10 == 0 else {}
                )
                self.step += 1
                self.pictures += stage.batch
                self.seconds += time.monotonic() - started
                self.share = self._share(self.step)
                yield Progress(self.step, self.share, self.seconds, stage, found, self.pictures)

    def _share(self, step: int) -> float:
        """Of the whole training, how much lies before a step; by the clock how much is done."""
        if self.settings.steps is not None:
            return step / self.settings.steps
        return self.seconds / float(self.settings.seconds or 1)

    def _draw(self, step: int, stage: Stage) -> tuple[Stage, Scenes, Targets]:
        generator = self._generator(2 * step)
        with torch.cuda.stream(self._side):
            scenes = draw(stage.batch, SceneSettings(stage.size, stage.objects, stage.texture), generator)
            targets = choose_targets(scenes, stage.prompts, generator)
        if self._side:
            self._side.synchronize()
            for tensor in (scenes.pictures, scenes.ids, targets.masks, targets.soft):
                tensor.record_stream(torch.cuda.default_stream())
        return stage, scenes, targets

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed((self.settings.seed * 1_000_000_007 + number) % HELD_OUT)

    def _learning_rate(self) -> float:
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.share)))
        return self.settings.learning_rate * min(1.0, (self.step + 1) / 100) * falling

    def _one_step(self, stage: Stage, scenes: Scenes, targets: Targets) -> Losses:
        generator = self._generator(2 * self.step + 1)
        set_size(self.sam, stage.size)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.device(self.device):
            cost = self._answers(scenes, targets, stage.rounds, generator)
        # a step whose gradients are not finite changes nothing
        if nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0).isfinite():
            self.optimizer.step()
        self._update_average()
        return cost

    def _answers(self, scenes: Scenes, targets: Targets, most: int, generator: torch.Generator) -> Losses:
        """The first answer and its corrections, each with its loss, and their gradients.

        An answer is forgotten as soon as it has told the embeddings their gradient: memory holds one at a time.
        """
        masks, soft = targets.masks.flatten(0, 1), targets.soft.flatten(0, 1)
        points, _ = first_prompts(masks, generator)
        rounds = 1 + self.step % most
        with fast(self.device):
            embeddings = embed(self.sam, scenes.pictures, scenes.ids, self.spec.frame)
        leaf = embeddings.detach().requires_grad_()
        earlier, costs = None, []
        for number in range(rounds):
            with fast(self.device):
                logits, scores = decode(self.sam, leaf, points, earlier)
                costs.append(losses(logits, scores, soft))
            (costs[-1].total / rounds).backward()  # type: ignore[no-untyped-call]
            if number + 1 < rounds:
                with torch.no_grad():
                    found = logits[torch.arange(len(logits)), scores.argmax(1)].float()
                    points = points.with_point(*corrections(found, soft, generator))
                    earlier = found[:, None].clamp(-32, 32)
        embeddings.backward(leaf.grad)  # type: ignore[no-untyped-call]
        first = costs[0]
        total = torch.stack([cost.total.detach() for cost in costs]).mean()
        return Losses(total, first.mask, first.score, first.single, first.best)

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(EMA, (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_([old for old, _ in self._averaged], [new for _, new in self._averaged], 1 - keep)

    @torch.no_grad()
    def settle(self, pictures: int = 128) -> None:
        """Measure the average's BatchNorm statistics again: those of a moving average belong to no weights."""
        stage = self.settings.stages[-1]
        norms = [m for m in self.average.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        generator = self._generator((1 << 30) - 1)
        batch = min(stage.batch, 8)
        for _ in range(max(1, pictures // batch)):
            scenes = draw(batch, SceneSettings(stage.size, stage.objects, stage.texture), generator)
            with torch.device(self.device), fast(self.device):
                embed(self.average, scenes.pictures, scenes.ids, self.spec.frame)
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()

    def save(self, path: Path) -> None:
        """Write everything that carrying on needs; FileError if the disk is full."""
        state = {
            "sam": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": asdict(self.settings),
            "at": {"step": self.step, "seconds": self.seconds, "pictures": self.pictures},
        }
        with new_file(path, force=True) as private:
            torch.save(state, private)

    def load(self, path: Path) -> None:
        """Carry on from a file of ``save``, by its recipe and seed; FileError if it is none, or of another model."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            self.sam.load_state_dict(state["sam"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            at, was = state["at"], state["settings"]
            stages = tuple(Stage(**stage) for stage in was["stages"])
            self.settings = replace(self.settings, stages=stages, seed=was["seed"], learning_rate=was["learning_rate"])
            self.step, self.seconds, self.pictures = int(at["step"]), float(at["seconds"]), int(at["pictures"])
        except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
            raise FileError(f"{path} is no state of this model: {reason(error)}; leave --resume out") from error
        self.share = self._share(self.step)
