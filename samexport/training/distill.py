"""Decoupled distillation: a student's encoder learns a teacher's embeddings; the decoder stays the teacher's.

Source: MobileSAM (arXiv 2306.14289), section 3.2: the mean square error of the embeddings, no labels, no decoder.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from samexport.errors import ConfigError
from samexport.files import new_file, to_json, write_text
from samexport.models.architectures.sam import Sam
from samexport.models.spec import ModelSpec, Preprocess
from samexport.models.weights.checkpoints import is_unread
from samexport.training.cache import EmbeddingCache, Framed
from samexport.training.loop import decode, embed, fast
from samexport.training.losses import mask_ious, mask_losses
from samexport.training.prompts import INSIDE, PAD, Points, boxes
from samexport.training.storage import fill_by_ray

STUDENT = "student.safetensors"
REPORT = "report.json"


@dataclass(frozen=True)
class DistillSettings:
    """How to distil.

    Attributes:
        steps: in all.
        batch: pictures a step, of each process.
        learning_rate: its peak; it rises over a twentieth of the steps and falls along a cosine.
        decoder_weight: of the loss through the frozen decoder beside that of the embeddings; 0 leaves it out.
        coupled: train on the teacher's masks alone, and the decoder too: what the paper compares its recipe with.
        held_out: the last pictures, that are not trained on but measured.
        prompts: of each picture, through the decoder and when it is measured.
        seed: of the student's weights, the order of the pictures and the clicks.
        device: "cuda" or "cpu".
    """

    steps: int
    batch: int = 4
    learning_rate: float = 1e-3
    decoder_weight: float = 0.0
    coupled: bool = False
    held_out: int = 8
    prompts: int = 8
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Agreement:
    """How near a student comes to its teacher on the pictures that were held out.

    Attributes:
        error: mean square error of the embeddings, padding left out.
        click: mean IoU with the teacher's mask of one click, that of its masks 1..3 which the teacher scores highest.
        box: mean IoU with the teacher's mask 0 of the box around the mask of that click.
    """

    error: float
    click: float
    box: float


def check_pair(teacher: ModelSpec, student: ModelSpec) -> None:
    """ConfigError if the teacher's decoder cannot take the student's embeddings."""
    if teacher.family != "sam" or student.family != "sam":
        raise ConfigError("distill knows models of the family sam alone")
    same = [teacher.frame == student.frame, teacher.size.embed_dim == student.size.embed_dim]
    if not all((*same, teacher.size.decoder_mlp_dim == student.size.decoder_mlp_dim)):
        raise ConfigError(f"{student.name} has another frame or decoder than {teacher.name}; see `samexport list`")


def embedding_error(found: Tensor, wanted: Tensor, inside: tuple[tuple[int, int], ...], stride: int) -> Tensor:
    """Mean square error of embeddings [B, C, G, G] over the cells that show a part of the picture."""
    mask = torch.zeros_like(wanted[:, :1])
    for number, (height, width) in enumerate(inside):
        mask[number, :, : -(-height // stride), : -(-width // stride)] = 1
    return ((found.float() - wanted).square() * mask).sum() / (mask.sum() * wanted.shape[1])


def encoding(teacher: Sam, frame: Preprocess, device: str) -> Callable[[Framed], Tensor]:
    """What an :class:`EmbeddingCache` calls: pictures to the teacher's embeddings, in single precision."""
    place = torch.device(device)
    network = teacher.to(place)

    @torch.no_grad()
    def encode(framed: Framed) -> Tensor:
        return embed(network, framed.pixels.to(place), framed.ids.to(place), frame)

    return encode


class Distiller:
    """A student beside its teacher's decoder; under torchrun each process has its share of the pictures."""

    def __init__(self, teacher: Sam, spec: ModelSpec, cache: EmbeddingCache, settings: DistillSettings) -> None:
        self.spec, self.cache, self.settings = spec, cache, settings
        self.device = torch.device(settings.device)
        self.rank, self.world = _place()
        torch.manual_seed(settings.seed)
        self.student = Sam(spec)
        state = teacher.state_dict()
        kept = {key: value for key, value in state.items() if not key.startswith("image_encoder.")}
        self.student.load_state_dict(kept, strict=False)
        self.student = self.student.to(self.device).requires_grad_(False).eval()
        self.teacher = teacher.to(self.device)
        encoder = self.student.image_encoder
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(not f"image_encoder.{name}".startswith(spec.unread))
        self.trained = [p for p in encoder.parameters() if p.requires_grad]
        if settings.coupled:
            self.trained += list(self.student.mask_decoder.requires_grad_(True).parameters())
        if settings.coupled and self.world > 1:
            raise ConfigError("coupled training runs in one process; leave torchrun out")
        if self.world > 1:
            self.student.image_encoder = nn.parallel.DistributedDataParallel(encoder)
        self.encoder = encoder
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.learning_rate, weight_decay=0.01)

    def run(self) -> Iterator[tuple[int, float]]:
        """Train; the number of each step and its loss."""
        self.encoder.train()
        step, epoch = 0, 0
        while step < self.settings.steps:
            for framed, wanted in self.cache.batches(self._order(epoch), self.settings.batch):
                if step == self.settings.steps:
                    break
                for group in self.optimizer.param_groups:
                    group["lr"] = self._learning_rate(step)
                cost = self._cost(framed, wanted.to(self.device), step)
                self.optimizer.zero_grad(set_to_none=True)
                cost.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.trained, 1.0)
                self.optimizer.step()
                step += 1
                yield step, float(cost.detach())
            epoch += 1
        self.encoder.eval()

    def _order(self, epoch: int) -> list[int]:
        """The pictures of this process, as many as every other has."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        count = len(self.cache.paths) - self.settings.held_out
        order = torch.randperm(count, generator=generator).tolist()
        each = -(-count // self.world)
        return (order * self.world)[: each * self.world][self.rank :: self.world]

    def _learning_rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / max(1, self.settings.steps // 20))
        return self.settings.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.settings.steps))

    def _cost(self, framed: Framed, wanted: Tensor, step: int) -> Tensor:
        with torch.device(self.device), fast(self.device):
            found = self._embed(framed)
            cost = torch.zeros(())
            if not self.settings.coupled:
                cost = embedding_error(found, wanted, framed.inside, self.spec.frame.stride)
            if self.settings.decoder_weight or self.settings.coupled:
                points = self._clicks(framed, self.settings.seed * 1_000_003 + step * self.world + self.rank)
                with torch.no_grad():
                    target, _ = decode(self.teacher, wanted, points, None)
                logits, _ = decode(self.student, found, points, None)
                taught = mask_losses(logits.flatten(0, 1)[:, None], (target > 0).float().flatten(0, 1)).mean()
                cost = cost + (self.settings.decoder_weight or 1.0) * taught
        return cost

    def _embed(self, framed: Framed) -> Tensor:
        return embed(self.student, framed.pixels.to(self.device), framed.ids.to(self.device), self.spec.frame)

    def _clicks(self, framed: Framed, seed: int) -> Points:
        """Clicks anywhere in each picture."""
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(len(framed.inside), self.settings.prompts, 2, generator=generator)
        sides = torch.tensor([[width - 1, height - 1] for height, width in framed.inside])
        coords = (places * sides[:, None]).flatten(0, 1)[:, None]
        coords = torch.cat([coords, torch.zeros_like(coords)], dim=1)
        return Points(coords.to(self.device), torch.tensor([[INSIDE, PAD]], device=self.device).expand(len(coords), 2))

    @torch.no_grad()
    def measure(self) -> Agreement:
        """Compare with the teacher on the pictures that were held out."""
        whole = len(self.cache.paths)
        held = range(whole - self.settings.held_out, whole)
        size = self.spec.frame.size
        errors: list[Tensor] = []
        clicks: list[Tensor] = []
        by_box: list[Tensor] = []
        for framed, stored in self.cache.batches(held, 1):
            wanted = stored.to(self.device)
            with torch.device(self.device):
                found = self._embed(framed)
                points = self._clicks(framed, (1 << 31) + len(errors))
                target, scores = decode(self.teacher, wanted, points, None)
                answer, _ = decode(self.student, found, points, None)
                best = 1 + scores[:, 1:].argmax(1)
                each = torch.arange(len(best))
                mask = target[each, best] > 0
                clicks.append(mask_ious(answer[each, best][:, None], mask.float())[:, 0])
                seen = nn.functional.interpolate(mask[:, None].float(), size=size)[:, 0] > 0.5
                around = boxes(seen, None)
                asked, _ = decode(self.teacher, wanted, around, None)
                answered, _ = decode(self.student, found, around, None)
                by_box.append(mask_ious(answered[:, :1], (asked[:, 0] > 0).float())[:, 0])
            errors.append(embedding_error(found, wanted, framed.inside, self.spec.frame.stride))
        return Agreement(*(float(torch.stack(x).mean()) for x in (errors, clicks, by_box)))

    def write(self, out: Path, facts: dict[str, Any]) -> Agreement:
        """Write the checkpoint (student's encoder, its decoder) and the report; returns what was measured."""
        from safetensors.torch import save_file

        self.student.image_encoder = self.encoder
        agreement = self.measure()
        state = {
            key: value.cpu().contiguous()
            for key, value in self.student.state_dict().items()
            if not is_unread(self.spec, key)
        }
        with new_file(out / STUDENT) as private:
            save_file(state, private)
        report = {"settings": asdict(self.settings), "student": self.spec.name, "agreement": asdict(agreement)} | facts
        write_text(out / REPORT, to_json(report), force=True)
        return agreement


def distil(
    teacher: Sam,
    student: ModelSpec,
    cache: EmbeddingCache,
    settings: DistillSettings,
    out: Path,
    shown: Callable[[str, int, int], None] = lambda *_: None,
    *,
    by_ray: bool = False,
) -> Agreement | None:
    """Fill the cache, train, measure, write ``student.safetensors`` and ``report.json``.

    Under torchrun it runs in every process; the first one writes, and alone has a result. ``by_ray`` has the cache
    filled by a Ray cluster, as :func:`samexport.training.storage.fill_by_ray` does it, with its errors.
    """
    with _group(settings.device):
        distiller = Distiller(teacher, student, cache, settings)
        if distiller.rank == 0:
            cache.prepare()
        _wait()
        if by_ray and distiller.rank == 0:
            fill_by_ray(cache, teacher, settings.device, partial(shown, "the teacher's embeddings"))
        _wait()
        cache.fill(distiller.rank, distiller.world, partial(shown, "the teacher's embeddings"))
        _wait()
        curve = []
        for step, cost in distiller.run():
            shown(f"training, loss {cost:.4f}", step, settings.steps)
            if step % max(1, settings.steps // 50) == 0:
                curve.append([step, round(cost, 6)])
        facts = {"teacher": cache.identity, "pictures": len(cache.paths), "processes": distiller.world, "loss": curve}
        return distiller.write(out, facts) if distiller.rank == 0 else None


def _place() -> tuple[int, int]:
    """Number of this process and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _wait() -> None:
    if _place()[1] > 1:
        distributed.barrier()


@contextlib.contextmanager
def _group(device: str) -> Iterator[None]:
    """The group of processes that torchrun started; nothing without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # the others wait while the first one has the cache filled
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield
    finally:
        distributed.destroy_process_group()
