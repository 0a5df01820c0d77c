"""Segment a picture with a bundle alone: encode once, decode prompts in chunks, upscale on the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from samexport.errors import PromptError
from samexport.runtimes.base import Runtime, Tensors, describe
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.image import to_frame, upscale_mask
from samexport.runtimes.host.prompts import PADDING, Prompt, check_tensors, count_tokens, pack, select_mask

# ONNX Runtime needs about 20 MB a prompt at 1024 pixels, and is no faster with larger batches.
DEFAULT_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one prompt.

    ``masks`` bool [M, H, W] at the picture's size, ``scores`` [M] predicted IoU, ``low_res_masks`` [M, L, L]
    logits that can be a later prompt's ``mask_input``, ``indices`` which of the model's masks 0..3 they are.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    low_res_masks: NDArray[np.float32]
    indices: tuple[int, ...]


class Segmenter:
    """A bundle's encoder and decoder, opened; use as a context manager.

    ``timings`` holds the milliseconds of the last :meth:`set_image` and :meth:`predict`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: str | None = None,
        threads: int | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        self.bundle, self.chunk = bundle, chunk
        self.timings: dict[str, float] = {}
        self._options: dict[str, Any] = {"runtime": runtime, "threads": threads}
        self._opened: dict[str, Runtime] = {}
        self._embeddings: NDArray[np.float32] | None = None
        self._shared: Tensors = {}
        self._image_hw = (0, 0)

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Encode a picture, uint8 RGB [H, W, 3]; ImageError if it is something else."""
        start = time.perf_counter()
        pixels = to_frame(image, self.bundle.manifest.frame)
        self._embeddings = self._run("encoder", {"image": pixels})["image_embeddings"]
        self._shared, self._image_hw = {}, (image.shape[0], image.shape[1])
        self.timings["encode"] = 1e3 * (time.perf_counter() - start)

    def predict(self, prompts: Sequence[Prompt], *, multimask: bool = False) -> list[Segmentation]:
        """Masks for every prompt, in order.

        With ``multimask`` all masks that the model was trained for, else the one that SAM's rule picks
        (:func:`samexport.runtimes.host.prompts.select_mask`).

        Raises:
            PromptError: no picture was set, or a prompt is not valid for it.
        """
        manifest = self.bundle.manifest
        tensors = pack(prompts, self._image_hw, manifest.frame) if self._embeddings is not None else {}
        start = time.perf_counter()
        logits, scores = self.decode(tensors)
        self.timings["decode"] = 1e3 * (time.perf_counter() - start)
        start = time.perf_counter()
        counts = count_tokens(tensors["point_labels"])
        results = []
        for prompt_logits, prompt_scores, tokens in zip(logits, scores, counts, strict=True):
            best = (select_mask(prompt_scores, int(tokens), manifest.mask_outputs),)
            chosen = list(manifest.mask_outputs if multimask else best)
            masks = upscale_mask(prompt_logits[chosen], self._image_hw, manifest.frame)
            results.append(Segmentation(masks, prompt_scores[chosen], prompt_logits[chosen], tuple(chosen)))
        self.timings["upscale"] = 1e3 * (time.perf_counter() - start)
        return results

    def decode(self, tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Raw decoder on tensors as ``pack`` makes them: logits [N, 4, L, L] and scores [N, 4], in chunks."""
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

    def _decode_chunk(self, tensors: Tensors) -> Tensors:
        if "mask_input" in tensors:
            return self._run("decoder_with_mask", {"image_embeddings": self._embeddings, **tensors})
        if "decoder_step" not in self.bundle.graph_names:
            return self._run("decoder", {"image_embeddings": self._embeddings, **tensors})
        if not self._shared:
            self._shared = self._run("decoder_prologue", {"image_embeddings": self._embeddings})
        return self._run("decoder_step", {**self._shared, **tensors})

    def _run(self, graph: str, inputs: dict[str, Any]) -> Tensors:
        return self._open(graph).run(inputs)

    def _open(self, graph: str) -> Runtime:
        if graph not in self._opened:
            self._opened[graph] = self.bundle.open(graph, **self._options)
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
