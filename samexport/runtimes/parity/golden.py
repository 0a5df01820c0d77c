"""Golden cases: inputs of graphs and what PyTorch computed for them, stored inside the bundle.

A case runs one graph, or a chain of graphs that share tensors by name (``decoder_prologue`` then
``decoder_step``). Large outputs are stored as every seventh pixel: seven and four have no common divisor, so
all positions within the decoder's 4x4 upsampling appear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import BundleError, SamExportError
from samexport.files import read_json, reason, to_json
from samexport.models.catalog import find_family
from samexport.models.families.detector import SAMPLER
from samexport.models.spec import GraphSpec, Identifier, ModelSpec, Preprocess, axis_sizes
from samexport.runtimes.adapters.entry_points import Bucket, bucket_of, choose
from samexport.runtimes.arrays import read_npz
from samexport.runtimes.base import Tensors
from samexport.runtimes.host.detector import letterbox
from samexport.runtimes.host.frames import resize, to_frame
from samexport.runtimes.host.image import read_image
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.clip import Clip

FOLDER = "golden"
PICTURE, _TENSORS, _CASES = "picture.png", "tensors.npz", "cases.json"
_ONE_CLIP = "clip"
_STRIDE = 7
_WHOLE = 1 << 16
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
    """

    name: str
    graphs: tuple[str, ...]
    inputs: Tensors
    expected: Tensors
    strides: dict[str, int] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)
    later: tuple[Step, ...] = ()

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
        return Case(name, self.graphs, inputs, expected, self.strides)


def _rows(value: NDArray[Any], count: int) -> NDArray[Any]:
    return np.resize(value, (count, *value.shape[1:]))


@dataclass(frozen=True)
class Golden:
    """A picture, the sha256 of its resized pixels, the masks of :func:`picture_prompts`, the cases, and clips.

    ``masks`` is bool [prompts, H, W]: the whole way from picture to mask, as a user goes it; ``clips`` are of the
    family's loops, by their names.
    """

    picture: NDArray[np.uint8]
    resized_sha256: str
    masks: NDArray[np.bool_]
    cases: tuple[Case, ...]
    clips: Mapping[str, Clip] = field(default_factory=dict)

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
    find_masks: Callable[[NDArray[np.uint8]], NDArray[np.bool_]],
    find_clips: Callable[[NDArray[np.uint8]], Mapping[str, Clip]] = lambda _: {},
) -> Golden:
    """A picture, what the reference makes of it, and the family's cases.

    Args:
        spec: the model.
        graphs: the names of those to cover.
        seed: of the picture and of everything that is drawn.
        make_cases: the family's.
        run: the reference for a chain of graphs.
        find_masks: the reference from a picture to the masks of :func:`picture_prompts`.
        find_clips: the reference on clips of the picture, for families with memory.
    """
    rng = np.random.default_rng(seed)
    picture = structured_picture(rng, spec.frame.size)
    cases = make_cases(Reference(spec, tuple(graphs), picture, rng, run))
    masks, clips = find_masks(picture), find_clips(picture)
    return Golden(picture, _resized_sha256(picture, spec.frame), masks, tuple(cases), clips)


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


def picture_prompts(picture: NDArray[np.uint8]) -> list[Prompt]:
    """Two clicks; a box and a click. Clear prompts, so that rounding cannot change which mask is taken."""
    height, width = picture.shape[:2]
    middle = [width // 2, height // 2]
    return [
        Prompt.make(points=[middle, [width // 4, height // 4]], labels=[1, 0]),
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


@dataclass(frozen=True)
class _StoredStep:
    """A frame in ``cases.json``: tensors by their key in ``tensors.npz``, others by how they are made."""

    inputs: dict[Identifier, str]
    expected: Annotated[dict[Identifier, str], msgspec.Meta(min_length=1)]
    strides: dict[Identifier, Annotated[int, msgspec.Meta(ge=1, le=64)]] = field(default_factory=dict)
    made: dict[Identifier, Made] = field(default_factory=dict)


@dataclass(frozen=True)
class _StoredCase:
    """A case in ``cases.json``.

    Earlier versions have no ``made``: there ``letterbox`` is the side of the detector's square, and an image that is
    not stored is the picture in the frame.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    graphs: Annotated[tuple[Identifier, ...], msgspec.Meta(min_length=1, max_length=16)]
    inputs: dict[Identifier, str]
    expected: Annotated[dict[Identifier, str], msgspec.Meta(min_length=1)]
    strides: dict[Identifier, Annotated[int, msgspec.Meta(ge=1, le=64)]]
    letterbox: Annotated[int, msgspec.Meta(ge=32, le=4096, multiple_of=32)] | None = None
    made: dict[Identifier, Made] | None = None
    later: Annotated[tuple[_StoredStep, ...], msgspec.Meta(max_length=100)] = ()

    @property
    def steps(self) -> tuple[_StoredStep, ...]:
        made = self.made
        if made is None:
            image = Made("picture") if self.letterbox is None else Made("letterbox", side=self.letterbox)
            first = self.graphs[0] in (find_family("sam").first, SAMPLER)
            made = {"image": image} if first and "image" not in self.inputs else {}
        return (_StoredStep(self.inputs, self.expected, self.strides, made), *self.later)


@dataclass(frozen=True)
class _StoredClip:
    """A clip in ``cases.json``: tensors by their key; the masks are bits of [frames, objects, H, W]."""

    seed: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    frames: Annotated[int, msgspec.Meta(ge=1, le=100)]
    objects: Annotated[int, msgspec.Meta(ge=1, le=100)]
    numbers: dict[Identifier, str]
    masks: str = _ONE_CLIP


@dataclass(frozen=True)
class _StoredGolden:
    resized_sha256: str
    cases: Annotated[tuple[_StoredCase, ...], msgspec.Meta(max_length=1000)]
    clips: dict[str, _StoredClip] = field(default_factory=dict)
    clip: _StoredClip | None = None
    """Earlier versions have one, of the loop called "video"."""


def save_golden(golden: Golden, folder: Path) -> None:
    """Write ``golden/``: a PNG, an NPZ and a JSON that says which tensor is which."""
    out = folder / FOLDER
    out.mkdir()
    Image.fromarray(golden.picture).save(out / PICTURE, optimize=True)
    tensors: dict[str, NDArray[Any]] = {}
    fed = [value for case in golden.cases for step in case.steps for value in step.inputs.values()]
    cases = []
    for case in golden.cases:
        first, *later = (_stored(step, fed, tensors) for step in case.steps)
        cases.append(
            _StoredCase(
                case.name, case.graphs, first.inputs, first.expected, first.strides, made=first.made, later=tuple(later)
            )
        )
    clips = {}
    for name, clip in golden.clips.items():
        keys = {number: _store(tensors, values) for number, values in clip.numbers.items()}
        bits = _store(tensors, np.packbits(clip.masks))
        clips[name] = _StoredClip(clip.seed, len(clip.masks), clip.masks.shape[1], keys, bits)
    np.savez_compressed(out / _TENSORS, allow_pickle=False, masks=np.packbits(golden.masks), **tensors)
    content = msgspec.to_builtins(_StoredGolden(golden.resized_sha256, tuple(cases), clips))
    (out / _CASES).write_text(to_json(content), encoding="utf-8")


def _stored(step: Step, fed: Sequence[NDArray[Any]], tensors: dict[str, NDArray[Any]]) -> _StoredStep:
    """Large outputs as samples, unless they are stored anyway because another graph is fed with them."""
    large = {n: v for n, v in step.expected.items() if v.size > _WHOLE and not any(v is one for one in fed)}
    strides = {n: _STRIDE for n, v in large.items() if v.ndim > 1 and min(v.shape[-2:]) > _STRIDE}
    sampled = Step(step.inputs, step.expected, strides)
    return _StoredStep(
        {n: _store(tensors, v) for n, v in step.inputs.items() if n not in step.made},
        {n: _store(tensors, sampled.sample(n, v)) for n, v in step.expected.items()},
        strides,
        step.made,
    )


def _store(tensors: dict[str, NDArray[Any]], value: NDArray[Any]) -> str:
    """Key of an equal tensor in ``tensors``; added if there is none. fp16 where that is exact."""
    if value.dtype.kind == "f":
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        value = half if np.array_equal(half.astype(value.dtype), value) else value
    for key, known in tensors.items():
        if known.dtype == value.dtype and np.array_equal(known, value):
            return key
    key = f"t{len(tensors)}"
    tensors[key] = np.ascontiguousarray(value)
    return key


def load_golden(folder: Path, frame: Preprocess) -> Golden:
    """The inverse of :func:`save_golden`; BundleError if the files are absent or damaged."""
    source = folder / FOLDER
    try:
        stored = msgspec.convert(read_json(source / _CASES), _StoredGolden)
        picture = read_image(source / PICTURE)
        if max(picture.shape[:2]) > 2 * frame.size:
            raise ValueError(f"{PICTURE} is larger than twice the frame")
        tensors = read_npz(source / _TENSORS)
        masks = _unpack_masks(tensors.pop("masks"), (len(picture_prompts(picture)), *picture.shape[:2]))
        # what is beyond float32 becomes infinite, and infinite is FAIL
        with np.errstate(over="ignore"):
            whole = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in tensors.items()}
        cases = tuple(_load_case(case, whole, picture, frame) for case in stored.cases)
        only = {"video": stored.clip} if stored.clip is not None else {}
        clips = {name: _load_clip(clip, whole, picture) for name, clip in (only | stored.clips).items()}
    except (SamExportError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise BundleError(f"{source} cannot be read ({reason(error)}); export the bundle again") from error
    return Golden(picture, stored.resized_sha256, masks, cases, clips)


def _load_clip(stored: _StoredClip, tensors: Tensors, picture: NDArray[np.uint8]) -> Clip:
    numbers = {name: tensors[key] for name, key in stored.numbers.items()}
    if any(values.shape[:2] != (stored.frames, stored.objects) for values in numbers.values()):
        raise ValueError("the numbers of the clip are not of its frames and objects")
    return Clip(
        stored.seed, _unpack_masks(tensors[stored.masks], (stored.frames, stored.objects, *picture.shape[:2])), numbers
    )


def _unpack_masks(packed: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if packed.dtype != np.uint8 or packed.shape != ((int(np.prod(shape)) + 7) // 8,):
        raise ValueError(f"masks are not those of a picture of {shape[1]}x{shape[2]}")
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)


def _load_case(stored: _StoredCase, tensors: Tensors, picture: NDArray[np.uint8], frame: Preprocess) -> Case:
    steps = []
    for step in stored.steps:
        inputs = {name: tensors[key] for name, key in step.inputs.items()}
        inputs |= {name: made.make(picture, frame) for name, made in step.made.items()}
        expected = {name: tensors[key] for name, key in step.expected.items()}
        for name, stride in step.strides.items():
            if stride > 1 and (name not in expected or expected[name].ndim < 2):
                raise ValueError(f"case {stored.name}: {name} has no last two axes to sample")
        steps.append(Step(inputs, expected, step.strides, step.made))
    first, *later = steps
    return Case(stored.name, stored.graphs, first.inputs, first.expected, first.strides, first.made, tuple(later))
