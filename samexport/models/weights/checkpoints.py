"""From weight files to a state dict with the official names that fits its model; see ``reading`` and ``layouts``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from samexport.errors import CheckpointError, ConfigError
from samexport.models.catalog import MODELS, find_family
from samexport.models.spec import ModelSpec, WeightsInfo
from samexport.models.weights.demo import demo_checkpoint
from samexport.models.weights.downloads import official_adapter, official_checkpoint
from samexport.models.weights.layouts import Dialect, few, find, official
from samexport.models.weights.pickled_models import read_model
from samexport.models.weights.random_weights import random_state_dict
from samexport.models.weights.reading import HoldsCode, WeightFile, read_weight_file, show

if TYPE_CHECKING:
    from torch import Tensor

_COUNTER = ".num_batches_tracked"
_PIXELS = {"pixel_mean": "mean", "pixel_std": "std"}
# bfloat16 has 8 bits
_PIXEL_TOLERANCE = 1 / 256


@dataclass(frozen=True)
class Weights(WeightsInfo):
    """A state dict that fits its model, and where it came from."""

    state: Mapping[str, Tensor] = field(default_factory=dict)


Files = Sequence[tuple[Path, WeightFile]]


class _Misfit(CheckpointError):
    """The files are read, but they are not this model's; ``verdict`` says which files, and whose they are not."""

    def __init__(self, verdict: str, problem: str) -> None:
        super().__init__(f"{verdict}: {problem}")
        self.verdict = verdict


def load_weights(
    spec: ModelSpec,
    expected: Mapping[str, Tensor],
    *,
    checkpoints: Sequence[Path] = (),
    decoder: Path | None = None,
    random_seed: int | None = None,
) -> Weights:
    """Weights for the model whose own state dict is ``expected``, of which only keys, shapes and dtypes count.

    ``checkpoints`` are merged in order; one that holds whole parts of the model, but not all of it, takes the place
    of these parts in earlier ones. Without any, the official file is taken from the cache or downloaded;
    so is the model's adapter where no file has it.
    ``decoder`` is a file whose prompt encoder and mask decoder, as far as it has them, take the place of theirs.
    What was taken off or left out is logged as a warning.

    Raises:
        ConfigError: both checkpoints and random weights are asked for.
        CheckpointError: a file is absent, damaged or unsafe, or together they are not this model's weights.
    """
    if random_seed is not None:
        if checkpoints or decoder:
            raise ConfigError("random weights and a checkpoint exclude each other; give one of them")
        state = _random_state(spec, expected, random_seed)
        return Weights("random", f"seed {random_seed}", None, random_seed, spec.untrained, state)
    paths = [*(checkpoints or (official_checkpoint(spec),)), *((decoder,) if decoder else ())]
    files = [(path, read_weights(path)) for path in paths]
    if spec.adapter is not None and not _has_adapter(spec.adapter.part, dialects_of(spec, expected), files):
        paths.insert(place := len(paths) - bool(decoder), own := official_adapter(spec.adapter))
        files.insert(place, (own, read_weights(own)))
    if not checkpoints and spec.source and files[0][1].sha256 != spec.source.sha256:
        raise CheckpointError(f"{paths[0]} changed after it was downloaded; try again")
    try:
        state, notes = _assemble(spec, expected, files, with_decoder=decoder is not None)
    except _Misfit as error:
        raise _with_model_that_fits(error, spec, files, decoder is not None) from error
    for note in notes:
        logging.getLogger(__name__).warning("note: %s", note)
    hashes = " + ".join(file.sha256 for _, file in files)
    kind: Literal["checkpoint", "demo"] = "checkpoint"
    if spec.demo and tuple(path.absolute() for path in paths) == demo_checkpoint(spec):
        kind = "demo"
    return Weights(kind, " + ".join(path.name for path in paths), hashes, None, spec.untrained, state)


def check_adapter(path: Path) -> None:
    """CheckpointError unless a file has the tensors of a bypass, see :class:`samexport.models.spec.Adapter`."""
    from samexport.models.architectures.sam2_sparse import Bypass

    part = "bypass."
    names = official({f"{part}{name}": tensor for name, tensor in Bypass(2).state_dict().items()})
    if not _has_adapter(part, [names], [(path, read_weights(path))]):
        raise CheckpointError(
            f"{path} holds no bypass ({', '.join(Bypass(2).state_dict())}); give its file with --adapter FILE, or"
            " --adapter identity for none"
        )


def _has_adapter(part: str, dialects: Sequence[Dialect], files: Files) -> bool:
    for _, file in files:
        with contextlib.suppress(CheckpointError):
            if any(key.startswith(part) for key in find(file.content, dialects).tensors):
                return True
    return False


def read_weights(path: Path) -> WeightFile:
    """As :func:`read_weight_file`, also of a whole pickled model, of which only the tensors are looked at."""
    try:
        return read_weight_file(path)
    except HoldsCode as error:
        try:
            return read_weight_file(path, read_model)
        except CheckpointError:
            raise error from None


def shapes_in(spec: ModelSpec, names: Collection[str], paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of each of a model's tensors in weight files; CheckpointError as :func:`load_weights`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            found = find(read_weights(path).content, dialects_of(spec, dict.fromkeys(names)))
        except CheckpointError as error:
            raise error if str(path) in str(error) else CheckpointError(f"{path} {error}") from error
        shapes |= {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    return shapes


def _random_state(spec: ModelSpec, expected: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    import torch

    wanted = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in expected.items()}
    return {key: torch.from_numpy(array) for key, array in random_state_dict(wanted, seed, spec.gains).items()}


def _assemble(
    spec: ModelSpec, expected: Mapping[str, Tensor], files: Files, *, with_decoder: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """One state dict from all files, and what is to be said about them."""
    merged: dict[str, Tensor] = {}
    unexpected: list[str] = []
    notes: list[str] = []
    encoder = find_family(spec.family).encoder_parts
    for index, (path, file) in enumerate(files):
        held = _held(spec, expected, path, file)
        notes += held.notes
        if with_decoder and index == len(files) - 1:
            of_decoder = {key: value for key, value in held.tensors.items() if not key.startswith(encoder)}
            if not of_decoder:
                raise CheckpointError(
                    f"{path} has no prompt encoder and no mask decoder; give Prompt_guided_Mask_Decoder.pt or a file"
                    " with the keys of either"
                )
            merged |= of_decoder
            unexpected += [key for key in held.unexpected if not key.startswith(encoder)]
        else:
            notes += _merge(merged, held.tensors, _needed(spec, expected), path)
            unexpected += held.unexpected
    verdict = f"{' + '.join(str(path) for path, _ in files)} does not fit {spec.name}"
    return _fit(spec, merged, unexpected, expected, verdict), notes


@dataclass(frozen=True)
class _Held:
    """The usable tensors of one file."""

    tensors: dict[str, Tensor]
    unexpected: list[str]
    notes: list[str]


def _held(spec: ModelSpec, expected: Mapping[str, Tensor], path: Path, file: WeightFile) -> _Held:
    try:
        found = find(file.content, dialects_of(spec, expected))
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    _check_pixels(path, found.unexpected, spec)
    unexpected = [key for key, value in found.unexpected.items() if key not in _PIXELS and not _counts(value)]
    tensors = {
        key: value if is_unread(spec, key) else checked(value, f"{path}: {show(key)}")
        for key, value in found.tensors.items()
    }
    return _Held(tensors, unexpected, [f"{path.name}: {'; '.join(found.notes)}"] if found.notes else [])


def dialects_of(spec: ModelSpec, expected: Mapping[str, Any]) -> list[Dialect]:
    """The official names, and the others that the family knows."""
    others = [resolve_name(path) for path in find_family(spec.family).dialects]
    return [official(expected), *(names(expected) for names in others)]


def _counts(tensor: Tensor) -> bool:
    """A lone whole number, such as an epoch or a step, computes nothing."""
    return tensor.numel() == 1 and not tensor.is_floating_point() and not tensor.is_complex()


def is_unread(spec: ModelSpec, key: str) -> bool:
    """Whether no graph reads the tensor, so that it may be absent or have another shape."""
    return key.endswith(_COUNTER) or key.startswith(spec.unread)


def _needed(spec: ModelSpec, expected: Mapping[str, Tensor]) -> list[str]:
    return [key for key in expected if not is_unread(spec, key)]


def _check_pixels(path: Path, unexpected: Mapping[str, Tensor], spec: ModelSpec) -> None:
    """Refuse buffers with another mean or std of pixels than the frame's; their scale may be 0..255 or 0..1."""
    stored = {key: [float(v) for v in unexpected[key].flatten()[:4]] for key in _PIXELS if key in unexpected}
    wanted = {key: list(getattr(spec.frame, attribute)) for key, attribute in _PIXELS.items()}
    if any(all(_near([v * scale for v in stored[key]], wanted[key]) for key in stored) for scale in (1.0, 255.0)):
        return
    shown = ", ".join(f"{key} {[round(v, 4) for v in values]}" for key, values in stored.items())
    raise CheckpointError(
        f"{path} normalises pixels with {shown}, {spec.name} with mean {wanted['pixel_mean']} and std"
        f" {wanted['pixel_std']}; if these two keys mean nothing, save the file without them"
    )


def _near(values: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(values) == len(wanted) and all(
        abs(v - w) <= w * _PIXEL_TOLERANCE for v, w in zip(values, wanted, strict=True)
    )


def checked(value: Tensor, where: str) -> Tensor:
    """``value`` as an ordinary finite tensor; floating ones become float32. CheckpointError starts with ``where``."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise CheckpointError(f"{where} is a {type(value).__name__}; give plain floating-point weights")
    tensor: Tensor = value.detach()
    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not ordinary or tensor.dtype not in (*floats, torch.int64, torch.int32):
        raise CheckpointError(f"{where} is {tensor.dtype}, {tensor.layout}; give plain floating-point weights")
    # strides of 0 let a file of a few bytes claim to be larger than memory
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{where} claims more elements than the file holds; do not use this file")
    if tensor.dtype not in floats:
        return tensor
    tensor = tensor.float()
    # NaN passes through to both ends; the whole tensor of truths would be as large as the file
    if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise CheckpointError(f"{where} has NaN or infinite values; give another checkpoint")
    return tensor


def _merge(merged: dict[str, Tensor], tensors: Mapping[str, Tensor], needed: Sequence[str], path: Path) -> list[str]:
    """Add a file's tensors to earlier ones; whole parts take their place, else equal keys need equal values."""
    parts = {key.split(".")[0] for key in needed}
    whole = sorted(part for part in parts if all(k in tensors for k in needed if k.startswith(f"{part}.")))
    is_part = len(whole) < len(parts) and all(key.split(".")[0] in whole for key in tensors)
    differing = [key for key in tensors if key in merged and key in needed and not _equal(merged[key], tensors[key])]
    if differing and not is_part:
        raise CheckpointError(
            f"{path}: {show(differing[0])} has other values than in an earlier file; give files of one model, or last"
            " the one that holds a whole part; --decoder-checkpoint takes any keys of the decoder"
        )
    merged |= tensors
    return [f"{path.name}: took its {' and '.join(whole)} instead of the other file's"] if differing else []


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.equal(other)


def _fit(
    spec: ModelSpec, state: Mapping[str, Any], unexpected: Sequence[str], expected: Mapping[str, Tensor], verdict: str
) -> dict[str, Tensor]:
    """``state`` with the expected dtypes; _Misfit with counts and a few keys if it differs."""
    import torch

    needed = _needed(spec, expected)
    missing = [key for key in needed if key not in state]
    common = [key for key in needed if key in state]
    differing = [
        f"{key} {kind_of(state[key])}, not {kind_of(expected[key])}"
        for key in common
        if kind_of(state[key]) != kind_of(expected[key])
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
    found = "; ".join(f"{len(keys)} {what} ({few(keys)})" for what, keys in problems if keys)
    if not found:
        return {
            key: state[key].to(wanted.dtype).contiguous()
            if key in state and kind_of(state[key]) == kind_of(wanted)
            else torch.zeros(wanted.shape, dtype=wanted.dtype)
            for key, wanted in expected.items()
        }
    parts = {key.split(".")[0] for key in expected}
    absent = sorted(parts - {key.split(".")[0] for key in common})
    remedy = "give this model's weights"
    if absent and len(absent) < len(parts):
        remedy = f"it has no {' and no '.join(absent)}: a second file is needed, repeat --checkpoint"
    raise _Misfit(verdict, f"{found}; {remedy}")


def kind_of(tensor: Tensor) -> str:
    """Shape and sort of number: what two tensors need in common."""
    return f"{'float' if tensor.is_floating_point() else 'integer'} {tuple(tensor.shape)}"


@cache
def own_state(spec: ModelSpec) -> dict[str, Any]:
    """The model's state dict without values."""
    return dict(resolve_name(find_family(spec.family).network)(spec).state_dict())


def _with_model_that_fits(error: _Misfit, spec: ModelSpec, files: Files, with_decoder: bool) -> CheckpointError:
    """The same error, or one that names the model whose weights the files are."""
    for other in MODELS.values():
        if other is spec or other.hidden:
            continue
        expected = own_state(other)
        if not _has_names(other, expected, files):
            continue
        with contextlib.suppress(CheckpointError):
            _assemble(other, expected, files, with_decoder=with_decoder)
            whose = f"these are weights of {other.name}; give --encoder {other.encoder}"
            return CheckpointError(f"{error.verdict}: {whose}")
    return error


def _has_names(spec: ModelSpec, expected: Mapping[str, Tensor], files: Files) -> bool:
    """Whether the files have every name that a model needs in its shape: reading their values takes seconds."""
    held: dict[str, Any] = {}
    for _, file in files:
        with contextlib.suppress(CheckpointError):
            held |= find(file.content, dialects_of(spec, expected)).tensors
    return all(key in held and held[key].shape == expected[key].shape for key in _needed(spec, expected))
