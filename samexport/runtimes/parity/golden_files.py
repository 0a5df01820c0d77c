"""Golden cases on the disk: a PNG, an NPZ of tensors, and a JSON that says which tensor is which.

Large outputs are stored as every seventh pixel: seven and four have no common divisor, so all positions within the
decoder's 4x4 upsampling appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import BundleError, SamExportError
from samexport.files import read_json, reason, to_json
from samexport.models.catalog import find_family
from samexport.models.families.detector import SAMPLER
from samexport.models.spec import Identifier, Preprocess
from samexport.runtimes.arrays import read_npz
from samexport.runtimes.base import Tensors
from samexport.runtimes.host.image import read_image
from samexport.runtimes.parity.clip import Clip
from samexport.runtimes.parity.golden import Case, Golden, Made, Step, picture_prompts

FOLDER = "golden"
PICTURE, _TENSORS, _CASES = "picture.png", "tensors.npz", "cases.json"
_ONE_CLIP = "clip"
_LOGITS = "low_res_masks"
_STRIDE = 7
_WHOLE = 1 << 16


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
    if golden.low_res_masks is not None:
        # close to the threshold, where they are needed, half precision is exact enough
        limit = float(np.finfo(np.float16).max)
        tensors[_LOGITS] = golden.low_res_masks.clip(-limit, limit).astype(np.float16)
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
        logits = whole.pop(_LOGITS, None)
        if logits is not None:
            if logits.shape != (len(masks), frame.low_res, frame.low_res) or logits.dtype.kind != "f":
                raise ValueError(f"{_LOGITS} are not of {len(masks)} masks of {frame.low_res}x{frame.low_res}")
            if not np.isfinite(logits).all():
                raise ValueError(f"{_LOGITS} have NaN or infinite values")
        cases = tuple(_load_case(case, whole, picture, frame) for case in stored.cases)
        only = {"video": stored.clip} if stored.clip is not None else {}
        clips = {name: _load_clip(clip, whole, picture) for name, clip in (only | stored.clips).items()}
    except (SamExportError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise BundleError(f"{source} cannot be read ({reason(error)}); export the bundle again") from error
    return Golden(picture, stored.resized_sha256, masks, cases, clips, logits)


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
