"""Segment a picture with a bundle alone: encode once, decode prompts in chunks, upscale on the host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError, ParityFailed, PromptError
from samexport.runtimes.base import Runtime, Tensors, describe
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.frames import to_frame, upscale_mask
from samexport.runtimes.host.image import Picture, as_pixels
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import PADDING, check_tensors, count_tokens, has_box, pack, select_mask

# ONNX Runtime needs about 20 MB a prompt at 1024 pixels, and is no faster with larger batches.
DEFAULT_CHUNK = 16
_ANSWERS = {"low_res_masks", "iou_predictions"}


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one prompt, M masks of it.

    Attributes:
        masks: bool [M, H, W], at the picture's size.
        scores: float32 [M], the model's own estimate of each mask's IoU; may exceed 1.
        low_res_masks: float32 [M, L, L], logits; one of them can be a later prompt's ``mask_input``.
        indices: which of the model's masks 0..3 they are.
        chosen: the one that answers the prompt (:func:`samexport.runtimes.host.prompts.select_mask`).
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    low_res_masks: NDArray[np.float32]
    indices: tuple[int, ...]
    chosen: int = 0


class Segmenter:
    """A bundle's encoder and decoder, opened when first needed; use as a context manager.

    ::

        with Segmenter(open_bundle(Path("bundle"))) as segmenter:
            segmenter.set_image("photo.jpg")
            answer = segmenter.predict(Prompt.make([320, 200]))
            answer.masks[0]  # bool [H, W]

    Attributes:
        bundle: what runs.
        chunk: prompts that are decoded together, at least 1.
        timings: milliseconds of the last :meth:`set_image` ("encode": framing and the encoder) and of the last
            :meth:`predict` ("decode", "upscale"); opening files is not in them.
        opening: milliseconds that opening files took so far.

    Raises:
        ConfigError: ``chunk`` is no whole number of at least 1.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: str | None = None,
        threads: int | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        if not isinstance(chunk, int) or chunk < 1:
            raise ConfigError(f"chunk, the prompts that are decoded together, is a number of at least 1, got {chunk}")
        self.bundle, self.chunk = bundle, chunk
        self.timings: dict[str, float] = {}
        self.opening = 0.0
        self._options: dict[str, Any] = {"runtime": runtime, "threads": threads}
        self._opened: dict[str, Runtime] = {}
        self._embeddings: NDArray[np.float32] | None = None
        self._shared: Tensors = {}
        self._image_hw = (0, 0)

    def set_image(self, image: Picture) -> None:
        """Encode a picture: a path, a Pillow image, or uint8 RGB [H, W, 3].

        If that fails, no picture is set.

        Raises:
            ImageError: the picture cannot be read or used.
            ParityFailed: the encoder returned NaN or infinity, or breaks its contract.
        """
        self._embeddings, self._shared = None, {}
        pixels = as_pixels(image)
        self._open("encoder")
        start = time.perf_counter()
        embeddings = self._run("encoder", {"image": to_frame(pixels, self.bundle.manifest.frame)})["image_embeddings"]
        self.timings["encode"] = 1e3 * (time.perf_counter() - start)
        check_numbers("encoder", embeddings)
        self._embeddings, self._image_hw = embeddings, (pixels.shape[0], pixels.shape[1])

    @overload
    def predict(self, prompts: Prompt, *, multimask: bool = False) -> Segmentation: ...

    @overload
    def predict(self, prompts: Sequence[Prompt], *, multimask: bool = False) -> list[Segmentation]: ...

    def predict(
        self, prompts: Prompt | Sequence[Prompt], *, multimask: bool = False
    ) -> Segmentation | list[Segmentation]:
        """Masks for one prompt, or for every prompt of a list, in order.

        With ``multimask`` all masks that the model was trained for, else the one that answers the prompt
        (:func:`samexport.runtimes.host.prompts.select_mask`).

        Raises:
            PromptError: no picture was set, or a prompt is not valid for it.
            ParityFailed: the decoder returned NaN or infinity, or breaks its contract.
        """
        if isinstance(prompts, Prompt):
            return next(self.answers([prompts], multimask=multimask))
        return list(self.answers(prompts, multimask=multimask))

    def answers(self, prompts: Sequence[Prompt], *, multimask: bool = False) -> Iterator[Segmentation]:
        """As :meth:`predict`, one prompt after the other, so that only one has masks of the picture's size."""
        if self._embeddings is None:
            raise PromptError("no picture was set; call set_image first")
        manifest, tensors = self.bundle.manifest, self.check(prompts, self._image_hw)
        counts, boxed = count_tokens(tensors["point_labels"]), has_box(tensors["point_labels"])
        self.timings |= {"decode": 0.0, "upscale": 0.0}
        for begin in range(0, len(prompts), self.chunk):
            start = time.perf_counter()
            part = {name: value[begin : begin + self.chunk] for name, value in tensors.items()}
            logits, scores = self.decode(part)
            self.timings["decode"] += 1e3 * (time.perf_counter() - start)
            for number, (own, found) in enumerate(zip(logits, scores, strict=True), begin):
                best = select_mask(found, int(counts[number]), manifest.mask_outputs, boxed=bool(boxed[number]))
                chosen = list(manifest.mask_outputs if multimask else (best,))
                start = time.perf_counter()
                masks = upscale_mask(own[chosen], self._image_hw, manifest.frame)
                self.timings["upscale"] += 1e3 * (time.perf_counter() - start)
                yield Segmentation(masks, found[chosen], own[chosen], tuple(chosen), best)

    def check(self, prompts: Sequence[Prompt], image_hw: tuple[int, int]) -> Tensors:
        """Refuse, before a picture of height and width ``image_hw`` is encoded, prompts that cannot be decoded for it.

        Returns:
            the prompts as :func:`samexport.runtimes.host.prompts.pack` makes them.

        Raises:
            PromptError: a prompt does not fit the picture or the model, or has more points than its file takes.
        """
        tensors = dict(pack(prompts, image_hw, self.bundle.manifest.frame))
        masked = "mask_input" in tensors
        self.open_decoder(masked=masked)
        room = max((entry.points for entry in self._open(self._decoders(masked)[-1]).entry_points), default=None)
        for number, needed in enumerate(count_tokens(tensors["point_labels"])):
            if room is None or needed <= room:
                continue
            # as a user counts, without SAM's padding point
            boxed = prompts[number].box is not None
            most, beside = (room - 2, " with a box") if boxed else (room - 1, "")
            raise PromptError(
                f"prompt {number} has {len(prompts[number].points)} points{beside}; this file takes at most"
                f" {most}{beside}: give fewer, or export it with --points {needed}"
            )
        return tensors

    def decode(self, tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Raw decoder on tensors as ``pack`` makes them: logits [N, 4, L, L] and scores [N, 4], in chunks.

        Raises:
            PromptError: no picture was set, or the tensors are none that ``pack`` makes.
            ParityFailed: the decoder returned NaN or infinity, or breaks its contract.
        """
        if self._embeddings is None:
            raise PromptError("no picture was set; call set_image first")
        check_tensors(tensors["point_coords"], tensors["point_labels"])
        count = len(tensors["point_labels"])
        found: Tensors = {}
        for start in range(0, count, self.chunk):
            part = self._decode_chunk({k: v[start : start + self.chunk] for k, v in tensors.items()})
            if len(part["iou_predictions"]) == count:
                found = part
                break
            for name, value in part.items():
                whole = found.setdefault(name, np.empty((count, *value.shape[1:]), value.dtype))
                whole[start : start + self.chunk] = value
        check_numbers("decoder", found["low_res_masks"], found["iou_predictions"])
        return found["low_res_masks"], found["iou_predictions"]

    def decode_points(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One positive click a prompt, to the three multimask outputs: what a grid of points decodes.

        Args:
            points: [B, 2], x and y in pixels of the frame.

        Returns:
            logits [B, 3, L, L] and predicted IoU [B, 3].
        """
        padded = np.stack([points, np.zeros_like(points)], axis=1).astype(np.float32)
        labels = np.tile(np.array([1, PADDING], np.float32), (len(points), 1))
        logits, scores = self.decode({"point_coords": padded, "point_labels": labels})
        return logits[:, 1:], scores[:, 1:]

    def open_decoder(self, *, masked: bool = False) -> None:
        """Open the files that decode prompts (``masked``: those with an earlier mask), before time is measured."""
        for graph in self._decoders(masked):
            self._open(graph)

    def _decoders(self, masked: bool) -> tuple[str, ...]:
        if masked:
            return ("decoder_with_mask",)
        return ("decoder_prologue", "decoder_step") if "decoder_step" in self.bundle.graph_names else ("decoder",)

    def _decode_chunk(self, tensors: Tensors) -> Tensors:
        graph, image = self._decoders("mask_input" in tensors)[-1], {"image_embeddings": self._embeddings}
        if graph != "decoder_step":
            return self._run(graph, {**image, **tensors})
        if not self._shared:
            self._shared = self._run("decoder_prologue", image)
        return self._run(graph, {**self._shared, **tensors})

    def _run(self, graph: str, inputs: dict[str, Any]) -> Tensors:
        outputs = self._open(graph).run(inputs)
        wanted = {"encoder": {"image_embeddings"}, "decoder_prologue": set()}.get(graph, _ANSWERS)
        if missing := wanted - set(outputs):
            raise BundleError(f"{graph} has no output {', '.join(sorted(missing))}; export the bundle again")
        return outputs

    def _open(self, graph: str) -> Runtime:
        if graph not in self._opened:
            start = time.perf_counter()
            self._opened[graph] = self.bundle.open(graph, **self._options)
            self.opening += 1e3 * (time.perf_counter() - start)
        return self._opened[graph]

    @property
    def placement(self) -> str:
        """Where the encoder runs; opens it if need be."""
        return self._open("encoder").placement()

    @property
    def notice(self) -> str:
        """What a user should know before waiting; opens the encoder if need be."""
        return self._open("encoder").notice

    @property
    def runtime(self) -> str:
        """Name and placement of the encoder's runtime, as in :class:`samexport.runtimes.parity.compare.Row`."""
        return describe(self._open("encoder"))

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_numbers(graph: str, *outputs: NDArray[np.float32]) -> None:
    """Refuse NaN and infinity as an answer: a mask of them is empty, and looks like one.

    Raises:
        ParityFailed: an output of ``graph`` has such a number.
    """
    if not all(np.isfinite(values).all() for values in outputs):
        raise ParityFailed(f"the {graph} returned NaN or infinite numbers; run samexport verify on the bundle")
