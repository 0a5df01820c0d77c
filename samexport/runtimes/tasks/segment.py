"""Segment a picture with a bundle alone: encode once, decode prompts in chunks, upscale on the host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError, PromptError
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import AnyBundle, as_bundle
from samexport.runtimes.host.frames import FrameMap, upscale_mask
from samexport.runtimes.host.image import Picture, as_pixels
from samexport.runtimes.host.prompts import Prompt, as_prompts
from samexport.runtimes.session import Encoded, OpenGraphs, open_session

# ONNX Runtime needs about 20 MB a prompt at 1024 pixels, and is no faster with larger batches.
DEFAULT_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to one prompt, M masks of it.

    ::

        answer = segmenter.predict(samexport.Prompt.make([320, 200]), multimask=True)
        best = answer.masks[answer.scores.argmax()]  # bool [H, W]

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
    """A bundle's graphs, opened when first needed; use as a context manager.

    ::

        with samexport.Segmenter("bundle") as segmenter:
            segmenter.set_image("photo.jpg")
            answer = segmenter.predict(samexport.Prompt.make([320, 200]))
            answer.masks[0]  # bool [H, W]

    Args:
        bundle: what :func:`samexport.open` returns, or its folder.
        runtime: see ``samexport doctor``.
        threads: of the runtime.
        chunk: as below.

    Attributes:
        bundle: what runs.
        chunk: prompts that are decoded together, at least 1.
        timings: milliseconds of the last :meth:`set_image` ("encode": framing and the encoder) and of the last
            :meth:`predict` ("decode", "upscale"); opening files is not in them.
        graphs: the bundle's, as far as they are opened.
        session: what its family does with them.

    Raises:
        ConfigError: ``bundle`` is neither, ``chunk`` is no whole number of at least 1, or ``threads`` is out of bounds.
        BundleError: the folder is no bundle.
    """

    def __init__(
        self,
        bundle: AnyBundle,
        *,
        runtime: str | None = None,
        threads: int | None = None,
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        if not isinstance(chunk, int) or chunk < 1:
            raise ConfigError(f"chunk, the prompts that are decoded together, is a number of at least 1, got {chunk}")
        self.bundle, self.chunk = as_bundle(bundle), chunk
        self.timings: dict[str, float] = {}
        self.graphs = OpenGraphs(self.bundle, runtime=runtime, threads=threads)
        self.session = open_session(self.graphs)
        self._encoded: Encoded | None = None

    @property
    def opening(self) -> float:
        """Milliseconds that opening files took so far."""
        return self.graphs.opening

    def set_image(self, image: Picture) -> None:
        """Encode a picture: a path, a Pillow image, or uint8 RGB [H, W, 3].

        If that fails, no picture is set.

        Raises:
            ImageError: the picture cannot be read or used.
            ParityFailed: the encoder returned NaN or infinity, or breaks its contract.
        """
        self._encoded = None
        pixels = as_pixels(image)
        self.graphs.open(self.session.first)
        start = time.perf_counter()
        encoded = self.session.encode(pixels)
        self.timings["encode"] = 1e3 * (time.perf_counter() - start)
        self._encoded = encoded

    @overload
    def predict(self, prompts: Prompt, *, multimask: bool = False) -> Segmentation: ...

    @overload
    def predict(self, prompts: Iterable[Prompt], *, multimask: bool = False) -> list[Segmentation]: ...

    def predict(
        self, prompts: Prompt | Iterable[Prompt], *, multimask: bool = False
    ) -> Segmentation | list[Segmentation]:
        """Masks for one prompt, or for every prompt of a list or anything else iterable, in order.

        With ``multimask`` all masks that the model was trained for, else the one that answers the prompt
        (:func:`samexport.runtimes.host.prompts.select_mask`).

        Raises:
            PromptError: no picture was set, what is given is no prompt, or a prompt is not valid for the picture.
            ParityFailed: the decoder returned NaN or infinity, or breaks its contract.
        """
        if isinstance(prompts, Prompt):
            return next(self.answers([prompts], multimask=multimask))
        return list(self.answers(prompts, multimask=multimask))

    def answers(self, prompts: Iterable[Prompt], *, multimask: bool = False) -> Iterator[Segmentation]:
        """As :meth:`predict`, one prompt after the other, so that only one has masks of the picture's size."""
        encoded, prompts = self._require_picture(), as_prompts(prompts)
        tensors = self.check(prompts, encoded.place.image_hw)
        self.timings |= {"decode": 0.0, "upscale": 0.0}
        for begin in range(0, len(prompts), self.chunk):
            start = time.perf_counter()
            part = {name: value[begin : begin + self.chunk] for name, value in tensors.items()}
            found = self.session.decode(encoded, part)
            answers = self.session.choose(part, found)
            self.timings["decode"] += 1e3 * (time.perf_counter() - start)
            for own, scores, best in zip(found.logits, found.scores, answers, strict=True):
                chosen = list(self.bundle.manifest.mask_outputs) if multimask else [best]
                start = time.perf_counter()
                masks = upscale_mask(own[chosen], encoded.place)
                self.timings["upscale"] += 1e3 * (time.perf_counter() - start)
                yield Segmentation(masks, scores[chosen], own[chosen], tuple(chosen), best)

    def _require_picture(self) -> Encoded:
        if self._encoded is None:
            raise PromptError("no picture was set; call set_image first")
        return self._encoded

    def check(self, prompts: Sequence[Prompt], image_hw: tuple[int, int]) -> Tensors:
        """Refuse, before a picture of height and width ``image_hw`` is encoded, prompts that cannot be decoded for it.

        Returns:
            the prompts as :meth:`samexport.runtimes.session.Session.pack` makes them.

        Raises:
            PromptError: a prompt does not fit the picture or the model, or has more points than its file takes.
        """
        packed = self.session.pack(prompts, FrameMap(image_hw, self.bundle.manifest.frame))
        self.session.open_decoder(packed)
        self.session.check(prompts, packed)
        return packed

    def decode(self, tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Packed prompts to logits [N, M, L, L] and scores [N, M], in chunks.

        Raises:
            PromptError: no picture was set, or the tensors are none that ``pack`` makes.
            ParityFailed: the decoder returned NaN or infinity, or breaks its contract.
        """
        encoded = self._require_picture()
        count = len(next(iter(tensors.values())))
        whole: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        for start in range(0, max(count, 1), self.chunk):
            place = slice(start, start + self.chunk)
            found = self.session.decode(encoded, {name: value[place] for name, value in tensors.items()})
            if len(found.scores) == count:
                return found.logits, found.scores
            if whole is None:
                empty = (np.empty((count, *part.shape[1:]), part.dtype) for part in (found.logits, found.scores))
                whole = next(empty), next(empty)
            whole[0][place], whole[1][place] = found.logits, found.scores
        assert whole is not None
        return whole

    def decode_points(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One positive click a prompt, to the masks that answer an ambiguous one: what a grid of points decodes.

        Args:
            points: [B, 2], x and y in pixels of the frame.

        Returns:
            logits [B, M, L, L] and predicted IoU [B, M].
        """
        logits, scores = self.decode(self.session.click(points))
        return logits[:, self.session.multimask], scores[:, self.session.multimask]

    def open_decoder(self) -> None:
        """Open the files that decode prompts without masks, before time is measured."""
        self.session.open_decoder()

    @property
    def placement(self) -> str:
        """Where the picture is encoded; opens that file if need be."""
        return self.session.placement

    @property
    def notice(self) -> str:
        """What a user should know before waiting."""
        return self.session.notice

    @property
    def runtime(self) -> str:
        """Name and placement of the runtime that encodes the picture."""
        return self.session.runtime

    def close(self) -> None:
        """Close the files that are open, and free their memory; the picture stays set.

        The segmenter can still be used: a file that is needed again is opened again.
        """
        self.graphs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
