"""Golden cases: inputs of graphs and what PyTorch computed for them, stored inside the bundle.

A case runs one graph, or a chain of graphs that share tensors by name (``decoder_prologue`` then
``decoder_step``). Large outputs are stored as every seventh pixel: seven and four have no common divisor, so
all positions within the decoder's 4x4 upsampling appear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import BundleError, SamExportError
from samexport.files import read_json, reason, to_json
from samexport.models.contracts import SAMPLER
from samexport.models.spec import Frame, GraphSpec, Identifier
from samexport.runtimes.adapters.entry_points import LABELS, Bucket, choose
from samexport.runtimes.arrays import read_npz
from samexport.runtimes.base import Tensors
from samexport.runtimes.host.detector import letterbox
from samexport.runtimes.host.image import read_image, resize_longest, to_frame, upscale_mask
from samexport.runtimes.host.prompts import Prompt, count_tokens, pack, select_mask

FOLDER = "golden"
_PICTURE, _TENSORS, _CASES = "picture.png", "tensors.npz", "cases.json"
_STRIDE = 7
_WHOLE = 1 << 16
# (prompts N, points K) around what the exporter traces, N = 3, K = 2
PROMPT_COUNTS = ((1, 1), (1, 2), (3, 2), (7, 5), (64, 1))
_PROMPT_INPUTS = ("point_coords", LABELS, "mask_input", "has_mask_input")
_RESULTS = ("low_res_masks", "iou_predictions")
MASK_PROMPT_COUNTS = ((1, 2), (4, 3), (3, 2))


@dataclass(frozen=True)
class Case:
    """Inputs and expected outputs; ``strides`` says which outputs are samples of the last two axes."""

    name: str
    graphs: tuple[str, ...]
    inputs: Tensors
    expected: Tensors
    strides: dict[str, int] = field(default_factory=dict)

    def sample(self, output: str, value: NDArray[Any]) -> NDArray[Any]:
        """The part of a computed output that the expected one can be compared with."""
        stride = self.strides.get(output, 1)
        return value[..., ::stride, ::stride] if stride > 1 else value

    def repeated(self, count: int) -> Case:
        """The case with ``count`` prompts, its own again and again: prompts do not see each other."""
        inputs = {n: v if n not in _PROMPT_INPUTS else _rows(v, count) for n, v in self.inputs.items()}
        expected = {n: _rows(v, count) for n, v in self.expected.items()}
        name = f"{count}x{inputs[LABELS].shape[1]} (repeats {self.name})"
        return Case(name, self.graphs, inputs, expected, self.strides)


def _rows(value: NDArray[Any], count: int) -> NDArray[Any]:
    return np.resize(value, (count, *value.shape[1:]))


@dataclass(frozen=True)
class Golden:
    """A picture, the sha256 of its resized pixels, the masks of :func:`picture_prompts`, and the cases.

    ``masks`` is bool [prompts, H, W]: the whole way from picture to mask, as a user goes it.
    """

    picture: NDArray[np.uint8]
    resized_sha256: str
    masks: NDArray[np.bool_]
    cases: tuple[Case, ...]

    def inputs_of(self, graph: GraphSpec) -> list[Tensors]:
        """What the cases feed to a graph; of one after another graph, as far as that one's outputs are known."""
        known: Tensors = {}
        for case in self.cases:
            known |= {name: value for name, value in case.expected.items() if name not in case.strides}
        fed = [{**known, **case.inputs} for case in self.cases if graph.name in case.graphs]
        wanted = set(graph.input_names)
        return [{name: one[name] for name in graph.input_names} for one in fed if wanted <= set(one)]


Run = Callable[[Sequence[str], Mapping[str, NDArray[Any]]], Tensors]


def make_golden(frame: Frame, graphs: Sequence[str], mask_outputs: Sequence[int], seed: int, run: Run) -> Golden:
    """Make cases for ``graphs``; ``run(chain, inputs)`` is the reference.

    Image inputs are a structured picture, prompts are seeded and in their declared ranges, embeddings are
    what the reference encoder makes of the picture.
    """
    rng = np.random.default_rng(seed)
    picture = structured_picture(rng, frame.size)
    cases = [_case("picture", ("encoder",), {"image": to_frame(picture, frame)}, run)]
    embeddings = cases[0].expected["image_embeddings"]
    decoder = ("decoder",) if "decoder" in graphs else ("decoder_prologue", "decoder_step")
    if "decoder_prologue" in graphs:
        cases.append(_case("picture", ("decoder_prologue",), {"image_embeddings": embeddings}, run))
    for count, points in PROMPT_COUNTS:
        inputs = {"image_embeddings": embeddings, **random_prompts(rng, frame, count, points)}
        cases.append(_case(f"{count}x{points}", decoder, inputs, run))
    for count, points in MASK_PROMPT_COUNTS if "decoder_with_mask" in graphs else ():
        inputs = {"image_embeddings": embeddings, **random_prompts(rng, frame, count, points)}
        inputs |= random_masks(rng, frame, count)
        cases.append(_case(f"{count}x{points} with mask", ("decoder_with_mask",), inputs, run))
    prompts: Tensors = dict(pack(picture_prompts(picture), picture.shape[:2], frame))
    outputs = run(decoder, {"image_embeddings": embeddings, **prompts})
    counts = count_tokens(prompts["point_labels"])
    chosen = [
        logits[select_mask(scores, int(tokens), mask_outputs)]
        for logits, scores, tokens in zip(*(outputs[n] for n in _RESULTS), counts, strict=True)
    ]
    masks = upscale_mask(np.stack(chosen), picture.shape[:2], frame)
    return Golden(picture, _resized_sha256(picture, frame), masks, tuple(cases))


def case_of_size(cases: Sequence[Case], buckets: Sequence[Bucket], count: int) -> Case | None:
    """A decoder's case with ``count`` prompts in the entry point that takes so many, made of the largest that fits.

    None if all of ``cases`` have more points than that entry point takes.
    """
    room = choose(buckets, count, 1).points
    fitting = [case for case in cases if case.inputs[LABELS].shape[1] <= room]
    for case in fitting:
        if len(case.inputs[LABELS]) == count:
            return case
    return max(fitting, key=lambda case: len(case.inputs[LABELS])).repeated(count) if fitting else None


def entry_point_cases(cases: Sequence[Case], buckets: Sequence[Bucket]) -> list[Case]:
    """Cases of a decoder that fill each fixed entry point, and one prompt more, where ``cases`` do neither.

    One more than an entry point holds goes to the next larger one, which it does not fill, or beyond the largest.
    """
    if LABELS not in cases[0].inputs:
        return []
    sizes = sorted({bucket.prompts + more for bucket in buckets for more in (0, 1)})
    made = [case_of_size(cases, buckets, size) for size in sizes]
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
    inputs: Tensors = {"image": letterbox(picture, image_size)[0]}
    return Case("picture", (SAMPLER,), inputs, run(inputs))


def _case(name: str, chain: tuple[str, ...], inputs: Tensors, run: Run) -> Case:
    return Case(name, chain, inputs, run(chain, inputs))


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


def random_prompts(rng: np.random.Generator, frame: Frame, count: int, points: int) -> Tensors:
    """Valid ``point_coords`` [N, K, 2] and ``point_labels`` [N, K]: clicks, boxes, padding and absent slots."""
    coords = rng.uniform(0, frame.size - 1, (count, points, 2)).round(2).astype(np.float32)
    labels = rng.integers(0, 2, (count, points)).astype(np.float32)
    if points >= 2:
        labels[::3, -2:] = (2, 3)
        labels[1::3, -1] = -1
        labels[2::3, -1] = -2
    coords[labels < 0] = 0
    return {"point_coords": coords, "point_labels": labels}


def random_masks(rng: np.random.Generator, frame: Frame, count: int) -> Tensors:
    """``mask_input`` [N, 1, L, L]: discs with soft rims, and ``has_mask_input`` [N], every third one 0."""
    side = frame.low_res
    y, x = np.mgrid[0:side, 0:side] / side
    discs = [rng.uniform(0.1, 0.4) - np.hypot(x - cx, y - cy) for cx, cy in rng.uniform(0.2, 0.8, (count, 2))]
    logits = np.clip(np.round(np.stack(discs) * 120), -16, 16).astype(np.float32)
    return {"mask_input": logits[:, None], "has_mask_input": (np.arange(count) % 3 != 2).astype(np.float32)}


def _resized_sha256(picture: NDArray[np.uint8], frame: Frame) -> str:
    return hashlib.sha256(np.ascontiguousarray(resize_longest(picture, frame.size)).tobytes()).hexdigest()


def check_resize(golden: Golden, frame: Frame) -> str:
    """Empty if this machine resizes the golden picture to the very pixels of the export, else what is wrong."""
    if _resized_sha256(golden.picture, frame) == golden.resized_sha256:
        return ""
    return "Pillow resizes the golden picture to other pixels than at export; results will differ"


@dataclass(frozen=True)
class _StoredCase:
    """A case in ``cases.json``: tensors by their key in ``tensors.npz``, pictures by how they are made.

    ``letterbox`` is the side of the detector's square, into which the golden picture is put.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    graphs: Annotated[tuple[Identifier, ...], msgspec.Meta(min_length=1, max_length=16)]
    inputs: dict[Identifier, str]
    expected: Annotated[dict[Identifier, str], msgspec.Meta(min_length=1)]
    strides: dict[Identifier, Annotated[int, msgspec.Meta(ge=1, le=64)]]
    letterbox: Annotated[int, msgspec.Meta(ge=32, le=4096, multiple_of=32)] | None = None


@dataclass(frozen=True)
class _StoredGolden:
    resized_sha256: str
    cases: Annotated[tuple[_StoredCase, ...], msgspec.Meta(max_length=1000)]


def save_golden(golden: Golden, folder: Path) -> None:
    """Write ``golden/``: a PNG, an NPZ and a JSON that says which tensor is which."""
    out = folder / FOLDER
    out.mkdir()
    Image.fromarray(golden.picture).save(out / _PICTURE, optimize=True)
    tensors: dict[str, NDArray[Any]] = {}
    cases = []
    for case in golden.cases:
        large = {n: v for n, v in case.expected.items() if v.size > _WHOLE and n != "image_embeddings"}
        strides = {n: _STRIDE for n, v in large.items() if min(v.shape[-2:]) > _STRIDE}
        sampled = Case(case.name, case.graphs, case.inputs, case.expected, strides)
        cases.append(
            _StoredCase(
                case.name,
                case.graphs,
                {n: _store(tensors, v) for n, v in case.inputs.items() if n != "image"},
                {n: _store(tensors, sampled.sample(n, v)) for n, v in case.expected.items()},
                strides,
                case.inputs["image"].shape[-1] if case.graphs == (SAMPLER,) else None,
            )
        )
    np.savez_compressed(out / _TENSORS, allow_pickle=False, masks=np.packbits(golden.masks), **tensors)
    content = msgspec.to_builtins(_StoredGolden(golden.resized_sha256, tuple(cases)))
    (out / _CASES).write_text(to_json(content), encoding="utf-8")


def _store(tensors: dict[str, NDArray[Any]], value: NDArray[Any]) -> str:
    """Key of an equal tensor in ``tensors``; added if there is none. fp16 where that is exact."""
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    value = half if np.array_equal(half.astype(value.dtype), value) else value
    for key, known in tensors.items():
        if known.dtype == value.dtype and np.array_equal(known, value):
            return key
    key = f"t{len(tensors)}"
    tensors[key] = np.ascontiguousarray(value)
    return key


def load_golden(folder: Path, frame: Frame) -> Golden:
    """The inverse of :func:`save_golden`; BundleError if the files are absent or damaged."""
    source = folder / FOLDER
    try:
        stored = msgspec.convert(read_json(source / _CASES), _StoredGolden)
        picture = read_image(source / _PICTURE)
        if max(picture.shape[:2]) > 2 * frame.size:
            raise ValueError(f"{_PICTURE} is larger than twice the frame")
        tensors = read_npz(source / _TENSORS)
        masks = _unpack_masks(tensors.pop("masks"), (len(picture_prompts(picture)), *picture.shape[:2]))
        # what is beyond float32 becomes infinite, and infinite is FAIL
        with np.errstate(over="ignore"):
            floats = {key: value.astype(np.float32) for key, value in tensors.items()}
        cases = tuple(_load_case(case, floats, picture, frame) for case in stored.cases)
    except (SamExportError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise BundleError(f"{source} cannot be read ({reason(error)}); export the bundle again") from error
    return Golden(picture, stored.resized_sha256, masks, cases)


def _unpack_masks(packed: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if packed.dtype != np.uint8 or packed.shape != ((int(np.prod(shape)) + 7) // 8,):
        raise ValueError(f"masks are not those of a picture of {shape[1]}x{shape[2]}")
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)


def _load_case(stored: _StoredCase, tensors: Tensors, picture: NDArray[np.uint8], frame: Frame) -> Case:
    inputs = {name: tensors[key] for name, key in stored.inputs.items()}
    if stored.graphs == ("encoder",):
        inputs["image"] = to_frame(picture, frame)
    elif stored.letterbox is not None:
        inputs["image"] = letterbox(picture, stored.letterbox)[0]
    expected = {name: tensors[key] for name, key in stored.expected.items()}
    for name, stride in stored.strides.items():
        if stride > 1 and (name not in expected or expected[name].ndim < 2):
            raise ValueError(f"case {stored.name}: {name} has no last two axes to sample")
    return Case(stored.name, stored.graphs, inputs, expected, stored.strides)
