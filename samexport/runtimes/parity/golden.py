"""Golden cases: inputs of graphs and what PyTorch computed for them.

A case runs one graph, or a chain of graphs that share tensors by name (``decoder_prologue`` then ``decoder_step``).
How they lie in a bundle is in :mod:`samexport.runtimes.parity.golden_files`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from samexport.models.families.detector import SAMPLER
from samexport.models.spec import GraphSpec, ModelSpec, Preprocess, axis_sizes
from samexport.runtimes.adapters.entry_points import Bucket, bucket_of, choose
from samexport.runtimes.base import Tensors
from samexport.runtimes.host.detector import letterbox
from samexport.runtimes.host.frames import resize, to_frame
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.clip import Clip

_MOST_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Made:
    """An input that a bundle does not store, because it can be made again.

    Attributes:
        kind: the golden picture in the model's frame, or letterboxed for a detector; or seeded numbers.
        side: of the letterbox.
        shift: pixels by which the picture is moved to the right, around its edge: frames of a video.
        seed, shape, low, high: of the numbers; normal ones have the mean ``low`` and the deviation ``high``.
    """

    kind: Literal["picture", "letterbox", "uniform", "normal"]
    side: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    shift: Annotated[int, msgspec.Meta(ge=0, le=8192)] = 0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 16)], ...], msgspec.Meta(max_length=8)] = ()
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if math.prod(self.shape) > _MOST_NUMBERS or (self.kind == "letterbox" and (self.side < 32 or self.side % 32)):
            raise ValueError(f"{self} cannot be made")

    def make(self, picture: NDArray[np.uint8], frame: Preprocess) -> NDArray[Any]:
        """The input again, float32."""
        if self.kind == "picture":
            return to_frame(np.roll(picture, self.shift, axis=1) if self.shift else picture, frame)
        if self.kind == "letterbox":
            return letterbox(picture, self.side)[0]
        rng = np.random.default_rng(self.seed)
        draw = rng.uniform if self.kind == "uniform" else rng.normal
        return draw(self.low, self.high, self.shape).astype(np.float32)


@dataclass(frozen=True)
class Step:
    """One frame of a case: inputs and expected outputs.

    ``strides`` says which outputs are samples of the last two axes, ``made`` which inputs are not stored.
    """

    inputs: Tensors
    expected: Tensors
    strides: dict[str, int] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)

    def sample(self, output: str, value: NDArray[Any]) -> NDArray[Any]:
        """The part of a computed output that the expected one can be compared with."""
        stride = self.strides.get(output, 1)
        return value[..., ::stride, ::stride] if stride > 1 else value


@dataclass(frozen=True)
class Case:
    """A chain of graphs on one frame, or on several: what the family calls state goes on from frame to frame.

    Attributes:
        name: unique among the cases of its graphs.
        graphs: run in order, each fed by name.
        inputs, expected, strides, made: of the first frame, see :class:`Step`.
        later: the other frames.
        spans: of a case that is a part of another one, the ranges of that one's outputs: two scores alone may be close.
    """

    name: str
    graphs: tuple[str, ...]
    inputs: Tensors
    expected: Tensors
    strides: dict[str, int] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)
    later: tuple[Step, ...] = ()
    spans: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every frame."""
        return (Step(self.inputs, self.expected, self.strides, self.made), *self.later)

    def sample(self, output: str, value: NDArray[Any]) -> NDArray[Any]:
        """As :meth:`Step.sample`, of the first frame."""
        return self.steps[0].sample(output, value)

    def counts(self, graph: GraphSpec) -> tuple[int, int]:
        """How many prompts and points the last graph of the case is given; 1 where it has no such axis."""
        given = [t for t in graph.inputs if t.name in self.inputs]
        bucket = bucket_of("", graph, axis_sizes(given, {t.name: self.inputs[t.name].shape for t in given}))
        return bucket.prompts, bucket.points

    def repeated(self, graph: GraphSpec, count: int) -> Case:
        """The case with ``count`` prompts, its own again and again: prompts do not see each other."""
        axis = graph.axis("prompts")
        prompts = {t.name for t in graph.inputs if axis and t.shape[0] == axis.name}
        inputs = {n: _rows(v, count) if n in prompts else v for n, v in self.inputs.items()}
        expected = {n: _rows(v, count) for n, v in self.expected.items()}
        name = f"{count}x{self.counts(graph)[1]} (repeats {self.name})"
        spans = {n: float(np.ptp(v)) for n, v in self.expected.items()}
        return Case(name, self.graphs, inputs, expected, self.strides, spans=spans)


def _rows(value: NDArray[Any], count: int) -> NDArray[Any]:
    return np.resize(value, (count, *value.shape[1:]))


@dataclass(frozen=True)
class Golden:
    """A picture, the sha256 of its resized pixels, the masks of :func:`picture_prompts`, the cases, and clips.

    ``masks`` is bool [prompts, H, W]: the whole way from picture to mask, as a user goes it; ``low_res_masks``
    [prompts, L, L] their logits, None in earlier bundles; ``clips`` are of the family's loops, by their names.
    """

    picture: NDArray[np.uint8]
    resized_sha256: str
    masks: NDArray[np.bool_]
    cases: tuple[Case, ...]
    clips: Mapping[str, Clip] = field(default_factory=dict)
    low_res_masks: NDArray[np.float32] | None = None

    def inputs_of(self, graph: GraphSpec) -> list[Tensors]:
        """What the cases feed to a graph; of one after another graph, as far as that one's outputs are known."""
        known: Tensors = {}
        for case in self.cases:
            known |= {name: value for name, value in case.expected.items() if name not in case.strides}
        fed = [{**known, **step.inputs} for case in self.cases if graph.name in case.graphs for step in case.steps]
        wanted = set(graph.input_names)
        return [{name: one[name] for name in graph.input_names} for one in fed if wanted <= set(one)]


Run = Callable[[tuple[str, ...], Sequence[Tensors]], list[Tensors]]
"""Runs a chain of graphs frame by frame in the reference: the outputs of all graphs, for each frame."""


@dataclass(frozen=True)
class Reference:
    """What a family makes its cases with.

    Attributes:
        spec: the model.
        graphs: the names of those to cover.
        picture: the golden picture.
        rng: for everything that is drawn.
        run: the untouched architecture.
    """

    spec: ModelSpec
    graphs: tuple[str, ...]
    picture: NDArray[np.uint8]
    rng: np.random.Generator
    run: Run

    def case(
        self,
        name: str,
        chain: tuple[str, ...],
        *frames: Mapping[str, NDArray[Any] | Made],
        also: Collection[str] = (),
    ) -> Case:
        """A case that compares what the last graph of a chain computes.

        Args:
            name: unique among the cases of its chain.
            chain: graphs, run in order.
            frames: inputs of each frame but for what graphs and earlier frames give; a :class:`Made` is not stored.
            also: names of other graphs' outputs to compare.
        """
        compared = {*self.spec.graph(chain[-1]).output_names, *also}
        made = [{n: v for n, v in inputs.items() if isinstance(v, Made)} for inputs in frames]
        given: list[Tensors] = [
            {n: v.make(self.picture, self.spec.frame) if isinstance(v, Made) else v for n, v in inputs.items()}
            for inputs in frames
        ]
        first, *later = (
            Step(inputs, {n: v for n, v in outputs.items() if n in compared}, {}, seeds)
            for inputs, outputs, seeds in zip(given, self.run(chain, given), made, strict=True)
        )
        return Case(name, chain, first.inputs, first.expected, {}, first.made, tuple(later))


MakeCases = Callable[[Reference], list[Case]]
"""A family's cases; the name of the function is in :class:`samexport.models.families.base.Family`."""


def make_golden(
    spec: ModelSpec,
    graphs: Sequence[str],
    seed: int,
    make_cases: MakeCases,
    run: Run,
    find_masks: Callable[[NDArray[np.uint8]], tuple[NDArray[np.bool_], NDArray[np.float32]]],
    find_clips: Callable[[NDArray[np.uint8]], Mapping[str, Clip]] = lambda _: {},
) -> Golden:
    """A picture, what the reference makes of it, and the family's cases.

    Args:
        spec: the model.
        graphs: the names of those to cover.
        seed: of the picture and of everything that is drawn.
        make_cases: the family's.
        run: the reference for a chain of graphs.
        find_masks: the reference from a picture to the masks of :func:`picture_prompts`, and their logits.
        find_clips: the reference on clips of the picture, for families with memory.
    """
    rng = np.random.default_rng(seed)
    picture = structured_picture(rng, spec.frame.size)
    cases = make_cases(Reference(spec, tuple(graphs), picture, rng, run))
    (masks, low_res_masks), clips = find_masks(picture), find_clips(picture)
    return Golden(picture, _resized_sha256(picture, spec.frame), masks, tuple(cases), clips, low_res_masks)


def case_of_size(cases: Sequence[Case], graph: GraphSpec, buckets: Sequence[Bucket], count: int) -> Case | None:
    """A case of ``graph`` with ``count`` prompts in the entry point that takes so many, made of the largest that fits.

    None if all of ``cases`` have more points than that entry point takes.
    """
    room = choose(buckets, count, 1).points
    fitting = [case for case in cases if case.counts(graph)[1] <= room]
    for case in fitting:
        if case.counts(graph)[0] == count:
            return case
    return max(fitting, key=lambda case: case.counts(graph)[0]).repeated(graph, count) if fitting else None


def entry_point_cases(cases: Sequence[Case], graph: GraphSpec, buckets: Sequence[Bucket]) -> list[Case]:
    """Cases of a decoder that fill each fixed entry point, and one prompt more, where ``cases`` do neither.

    One more than an entry point holds goes to the next larger one, which it does not fill, or beyond the largest.
    """
    if graph.axis("prompts") is None:
        return []
    sizes = sorted({bucket.prompts + more for bucket in buckets for more in (0, 1)})
    made = [case_of_size(cases, graph, buckets, size) for size in sizes]
    return [case for case in made if case is not None and not any(case is known for known in cases)]


def picture_prompts(picture: NDArray[np.uint8], *, background: bool = True) -> list[Prompt]:
    """Two clicks; a box and a click. Clear prompts, so that rounding cannot change which mask is taken.

    The second click is outside, or without ``background`` inside as well.
    """
    height, width = picture.shape[:2]
    middle = [width // 2, height // 2]
    return [
        Prompt.make(points=[middle, [width // 4, height // 4]], labels=[1, int(not background)]),
        Prompt.make(points=[middle], labels=[1], box=[width // 4, height // 4, 3 * width // 4, 3 * height // 4]),
    ]


def sampler_case(picture: NDArray[np.uint8], image_size: int, run: Callable[[Tensors], Tensors]) -> Case:
    """The detector on the golden picture, letterboxed; ``run(inputs)`` is the reference."""
    made = Made("letterbox", side=image_size)
    inputs: Tensors = {"image": letterbox(picture, image_size)[0]}
    return Case("picture", (SAMPLER,), inputs, run(inputs), {}, {"image": made})


def structured_picture(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A 3:2 picture of gradients, discs and stripes, uint8 [H, W, 3], a little smaller than the frame."""
    height, width = size * 5 // 12 + 1, size * 5 // 8
    y, x = np.mgrid[0:height, 0:width] / size
    picture = np.stack([255 * x, 255 * y, 128 + 60 * np.sin(18 * (x + y))], axis=-1)
    for _ in range(6):
        centre, radius = rng.uniform(0, 0.6, 2), rng.uniform(0.03, 0.12)
        disc = np.hypot(x - centre[0], y - centre[1]) < radius
        picture[disc] = rng.uniform(0, 255, 3) + 30 * np.sin(200 * x[disc])[:, None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def _resized_sha256(picture: NDArray[np.uint8], frame: Preprocess) -> str:
    return hashlib.sha256(np.ascontiguousarray(resize(picture, frame)).tobytes()).hexdigest()


def check_resize(golden: Golden, frame: Preprocess) -> str:
    """Empty if this machine resizes the golden picture to the very pixels of the export, else what is wrong."""
    if _resized_sha256(golden.picture, frame) == golden.resized_sha256:
        return ""
    return "Pillow resizes the golden picture to other pixels than at export; results will differ"
