"""What an app does around the graphs of any family: a picture in, prompts in, masks out; of a video, frame by frame."""

from __future__ import annotations

import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError, ParityFailed
from samexport.models.catalog import find_family
from samexport.runtimes.base import Runtime, Tensors, check_threads, describe
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.prompts import Prompt

if TYPE_CHECKING:
    from samexport.runtimes.families.sam2_tracker import Tracker


class OpenGraphs:
    """The graphs of a bundle, each opened when first needed.

    Attributes:
        bundle: where they are.
        opened: runtimes by the name of the graph.
        opening: milliseconds that opening files took so far.

    Raises:
        ConfigError: ``threads`` is out of bounds.
    """

    def __init__(self, bundle: Bundle, *, runtime: str | None = None, threads: int | None = None) -> None:
        check_threads(threads)
        self.bundle = bundle
        self.opened: dict[str, Runtime] = {}
        self.opening = 0.0
        self._options: dict[str, Any] = {"runtime": runtime, "threads": threads}

    def open(self, graph: str) -> Runtime:
        """The runtime of a graph; errors as :meth:`samexport.runtimes.bundle.Bundle.open`."""
        if graph not in self.opened:
            start = time.perf_counter()
            self.opened[graph] = self.bundle.open(graph, **self._options)
            self.opening += 1e3 * (time.perf_counter() - start)
        return self.opened[graph]

    def run(self, graph: str, inputs: Tensors, wanted: Sequence[str] = ()) -> Tensors:
        """The outputs of a graph, among them ``wanted``; BundleError where a manifest promises others."""
        outputs = self.open(graph).run(inputs)
        if missing := set(wanted) - set(outputs):
            raise BundleError(f"{graph} has no output {', '.join(sorted(missing))}; export the bundle again")
        return outputs

    def close(self) -> None:
        """Close what was opened; a graph that is needed afterwards is opened again."""
        while self.opened:
            self.opened.popitem()[1].close()


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture as the decoder wants it: where it lies in the frame, and tensors that the session alone reads."""

    place: FrameMap
    tensors: Tensors


@dataclass(frozen=True, eq=False)
class Decoded:
    """The answer to N prompts: mask logits float32 [N, M, L, L] and predicted IoU float32 [N, M]."""

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]


class Session(ABC):
    """A family's graphs put together. It holds no picture: what :meth:`encode` returns is given back to it.

    Subclasses say what happens; :class:`samexport.runtimes.tasks.segment.Segmenter` calls them in chunks of prompts,
    scales the masks up and keeps the times.
    """

    multimask: slice = slice(None)
    """Which of the masks answer an ambiguous click."""
    background: bool = True
    """Whether prompts may have points outside the object."""

    def __init__(self, graphs: OpenGraphs) -> None:
        self.graphs = graphs
        self.manifest = graphs.bundle.manifest

    @property
    @abstractmethod
    def first(self) -> str:
        """The graph that sees the picture: where it runs is where the session runs."""

    @abstractmethod
    def encode(self, picture: NDArray[np.uint8]) -> Encoded:
        """Encode RGB [H, W, 3]; ParityFailed for NaN or infinity."""

    @abstractmethod
    def pack(self, prompts: Sequence[Prompt], place: FrameMap) -> Tensors:
        """Prompts as tensors whose first axis counts them; PromptError for one that cannot be."""

    @abstractmethod
    def click(self, points: NDArray[np.float64]) -> Tensors:
        """As :meth:`pack`: one click inside for each of ``points`` [N, 2], x and y in pixels of the frame."""

    @abstractmethod
    def open_decoder(self, packed: Tensors | None = None) -> None:
        """Open what :meth:`decode` will run, before time is measured."""

    def check(self, prompts: Sequence[Prompt], packed: Tensors) -> None:
        """Refuse what the opened files cannot take, such as more points than they have room for; PromptError."""

    @abstractmethod
    def decode(self, encoded: Encoded, packed: Tensors) -> Decoded:
        """Masks for packed prompts; ParityFailed for NaN or infinity."""

    @abstractmethod
    def choose(self, packed: Tensors, decoded: Decoded) -> list[int]:
        """Which of the masks answers each prompt."""

    def step(self, picture: NDArray[np.uint8], state: Any, prompts: Sequence[Prompt] = ()) -> tuple[Decoded, Any]:
        """One frame of a video: its masks, and the state for the next frame; ``state`` None begins a video.

        Raises:
            ConfigError: the family has no memory.
        """
        raise self._no_memory()

    def tracker(
        self, *, frames: int | None = None, postprocess: bool = True, sparse: Mapping[str, Any] | None = None
    ) -> Tracker:
        """What follows objects through a video on these graphs.

        Args:
            frames: length of the clip where it is known; None for a stream.
            postprocess: what the family's official predictor does to masks by default.
            sparse: what is left out, by the family's own names; None leaves out nothing.

        Raises:
            ConfigError: the family has no memory.
            BundleError: the bundle was made for pictures alone.
        """
        raise self._no_memory()

    def resume(self, path: Path) -> Tracker:
        """A tracker that was saved in a file, on these graphs; FileError, and errors as :meth:`tracker`."""
        raise self._no_memory()

    def _no_memory(self) -> ConfigError:
        return ConfigError(
            f"{self.manifest.model} follows nothing through a video; `samexport export hiera_t --video` does"
        )

    @property
    def placement(self) -> str:
        """Where the first graph runs; opens it if need be."""
        return self.graphs.open(self.first).placement()

    @property
    def notice(self) -> str:
        """What a user should know before waiting; opens the first graph if need be."""
        return self.graphs.open(self.first).notice

    @property
    def runtime(self) -> str:
        """Name and placement of the first graph's runtime, as in :class:`samexport.runtimes.verdicts.Row`."""
        return describe(self.graphs.open(self.first))


def open_session(graphs: OpenGraphs) -> Session:
    """The session of a bundle's family; BundleError if this samexport does not know the family."""
    name = graphs.bundle.manifest.family
    try:
        session: Session = pkgutil.resolve_name(find_family(name).session)(graphs)
    except ConfigError as error:
        raise BundleError(f"{graphs.bundle.folder.name}: {error}") from error
    return session


def check_numbers(graph: str, *outputs: NDArray[Any]) -> None:
    """Refuse NaN and infinity as an answer: a mask of them is empty, and looks like one.

    Raises:
        ParityFailed: an output of ``graph`` has such a number.
    """
    if not all(np.isfinite(values).all() for values in outputs):
        raise ParityFailed(f"the {graph} returned NaN or infinite numbers; run samexport verify on the bundle")
