"""Says what a weight file is: whose weights, in which wrapping, and what is missing or unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samexport.errors import CheckpointError, ConfigError
from samexport.models.catalog import MODELS, find_model
from samexport.models.loading import empty_network
from samexport.models.spec import ModelSpec
from samexport.models.weights.checkpoints import dialects_of, is_unread, kind_of, own_state, read_weights
from samexport.models.weights.layouts import find
from samexport.models.weights.reading import WeightFile

_FEW = 0.05
"""A model of whose tensors fewer are there, or more are of another shape, is not what the file is."""


@dataclass(frozen=True)
class Part:
    """How much of a part of the model (encoder, prompt encoder, decoder) a file has."""

    name: str
    present: int
    needed: int


@dataclass(frozen=True)
class Identity:
    """What a weight file is.

    Attributes:
        file, sha256: which file.
        tensors, parameters: what is in it, the state of an optimizer too.
        dtypes: how many tensors of each.
        models: names of the encoders whose weights these are, the likeliest first; several have the same network.
        complete: whether nothing is missing, unknown or of another shape.
        parts: of the first model.
        missing, unknown, differing: names of tensors, by the first model's.
        notes: what has to be taken off or left out.
        licence: of the first model's official weights.
        command: what exports it; empty where nothing does.
    """

    file: str
    sha256: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    models: tuple[str, ...] = ()
    complete: bool = False
    parts: tuple[Part, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    licence: str = ""
    command: str = ""


@dataclass(frozen=True)
class _Fit:
    spec: ModelSpec
    right: int
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    differing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def wrong(self) -> int:
        """Tensors that speak against this model."""
        return len(self.unknown) + len(self.differing)

    @property
    def complete(self) -> bool:
        """Whether nothing speaks against it and nothing is missing."""
        return not self.wrong and not self.missing


def identify(path: Path) -> Identity:
    """Look at a weight file; nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read, or holds no tensors.
    """
    file = read_weights(path)
    tensors = list(_tensors(file.content))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; give a state dict")
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    identity = Identity(
        path.name, file.sha256, len(tensors), sum(t.numel() for t in tensors), dict(dtypes.most_common())
    )
    fits = [fit for model in MODELS.values() if not model.hidden and (fit := _fit(model, path, file)) is not None]
    if not fits:
        return identity
    best = min(_rank(fit) for fit in fits)
    chosen = sorted((fit for fit in fits if _rank(fit) == best), key=lambda fit: not _is_named(path, file, fit.spec))
    first = chosen[0]
    return replace(
        identity,
        models=tuple(fit.spec.encoder for fit in chosen),
        complete=first.complete,
        parts=first.parts,
        missing=first.missing,
        unknown=first.unknown,
        differing=first.differing,
        notes=first.notes,
        licence=first.spec.licence,
        command=_command(first, path),
    )


def encoder_of(path: Path) -> str:
    """The name of the model whose weights a file holds, all of them.

    Raises:
        CheckpointError: it cannot be read, or is no whole model that is known.
    """
    identity = identify(path)
    if not identity.models or not identity.command:
        raise CheckpointError(
            f"{path} is not recognised as the weights of a model; `samexport inspect` says more, --encoder names one"
        )
    return identity.models[0]


def _tensors(content: Any, depth: int = 0) -> Any:
    import torch

    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping) and depth < 8:
        for value in content.values():
            yield from _tensors(value, depth + 1)


def _fit(spec: ModelSpec, path: Path, file: WeightFile) -> _Fit | None:
    """How well a file fits a model; None where it does not."""
    try:
        pruned = getattr(spec.size, "from_shapes", "")
        expected = empty_network(spec, (path,)).state_dict() if pruned else own_state(spec)
        found = find(file.content, dialects_of(spec, expected))
    except CheckpointError:
        return None
    needed = [name for name in expected if not is_unread(spec, name)]
    present = [name for name in needed if name in found.tensors]
    differing = tuple(name for name in present if kind_of(found.tensors[name]) != kind_of(expected[name]))
    right = len(present) - len(differing)
    unknown = tuple(name for name, tensor in found.unexpected.items() if tensor.numel() > 1)
    unknown = tuple(name for name in unknown if name not in ("pixel_mean", "pixel_std"))
    if right < _FEW * len(needed) or len(differing) > right:
        return None
    missing = tuple(name for name in needed if name not in found.tensors)
    names = dict.fromkeys(name.partition(".")[0] for name in needed)
    here = Counter(name.partition(".")[0] for name in present)
    whole = Counter(name.partition(".")[0] for name in needed)
    parts = tuple(Part(name, here[name], whole[name]) for name in names)
    return _Fit(spec, right, parts, missing, unknown, differing, found.notes)


def _rank(fit: _Fit) -> tuple[bool, int, bool, int]:
    """The best fit has the least: whole models first, most right and fewest wrong tensors, widths that are known."""
    pruned = bool(getattr(fit.spec.size, "from_shapes", ""))
    lacking = sum(part.needed - part.present for part in fit.parts if part.present)
    return not fit.complete, 2 * fit.wrong - fit.right, pruned, lacking


def _is_named(path: Path, file: WeightFile, spec: ModelSpec) -> bool:
    """Whether the hash or the name of a file is that of a model's official one."""
    if spec.source and spec.source.sha256 == file.sha256:
        return True
    try:
        return find_model(path.name) is spec
    except ConfigError:
        return False


def _command(fit: _Fit, path: Path) -> str:
    export = f"samexport export {fit.spec.encoder} --format onnx"
    if fit.complete:
        return f"{export} --checkpoint {path}"
    absent = [part.name for part in fit.parts if not part.present]
    whole = all(part.present in (0, part.needed) for part in fit.parts)
    if fit.wrong or not whole or not absent:
        return ""
    if absent == ["image_encoder"]:
        return f"{export} --decoder-checkpoint {path}"
    return f"{export} --checkpoint {path} --checkpoint FILE_WITH_{'_AND_'.join(absent).upper()}"
