"""Finds a model's tensors in what a file holds, whatever they are wrapped in and whatever they are called.

A file is one flat list of names here: dictionaries in dictionaries are dots like those inside a key. So a dictionary
around a state dict and a prefix before its keys are the same thing, which is found by looking from the end of each
name for one that the model has. A dialect is a way to name the model's tensors: the official one, or another's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samexport.errors import CheckpointError
from samexport.models.weights.reading import show

MAX_DEPTH = 8
MAX_VALUES = 100_000
# put between a module and its parameters by data parallelism, torch.compile, FSDP and activation checkpointing
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Dialect:
    """One way to name a model's tensors.

    Attributes:
        title: what the notes call it; empty for the official one.
        names: each name in this dialect to the official one. Several may lead to one.
        bare: the same without the first component, as the state dict of one part has them.
        depth: components of the longest name.
    """

    title: str
    names: Mapping[str, str]
    bare: Mapping[str, str]
    depth: int

    @classmethod
    def of(cls, title: str, names: Mapping[str, str]) -> Dialect:
        """From the whole names alone."""
        bare = {spelling.partition(".")[2]: name for spelling, name in names.items()}
        bare.pop("", None)
        return cls(title, names, bare, max(name.count(".") + 1 for name in names))


@dataclass(frozen=True)
class Found:
    """What a file holds for a model.

    Attributes:
        tensors: by official name.
        unexpected: what stands among them and has no official name, by the name that it would have.
        notes: what was taken off or left out, for people.
    """

    tensors: dict[str, Any]
    unexpected: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Entry:
    """One tensor; ``name`` is ``raw``, its dotted path in the file, without the words of wrappers."""

    folder: tuple[str, ...]
    raw: str
    name: str
    value: Any


@dataclass(eq=False)
class _Group:
    """The tensors of one part of the model that share a prefix; ``is_bare`` where keys lack the part's name."""

    prefix: str
    part: str
    is_bare: bool
    entries: dict[str, _Entry] = field(default_factory=dict)
    repeats: list[_Entry] = field(default_factory=list)
    doubles: list[_Entry] = field(default_factory=list)
    folders: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, name: str, entry: _Entry) -> None:
        """Take an entry under its official name, which may come again, but not with other values."""
        self.folders.add(entry.folder)
        known = self.entries.setdefault(name, entry)
        if known is not entry:
            (self.repeats if _same(known.value, entry.value) else self.doubles).append(entry)

    def surrounds(self, entry: _Entry) -> bool:
        """Whether an entry stands in the same dictionary, with the same prefix."""
        return entry.folder in self.folders and entry.name.startswith(self.prefix)


def official(names: Iterable[str]) -> Dialect:
    """The official names as they are."""
    return Dialect.of("", {name: name for name in names})


_TRANSFORMERS = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^(vision_encoder\.)blocks\.", r"\1layers."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.neck\.0\.", ".neck.conv1."), (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."), (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.norm(\d)\.", r".layer_norm\1."), (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."), (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."), (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."), (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
)  # fmt: skip
_IMAGE_POSITIONS = "shared_image_embedding.positional_embedding"
_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def transformers(names: Iterable[str]) -> Dialect:
    """The names of transformers' ``SamModel``; the matrix of positions is there once for the image, once for points."""
    spellings: dict[str, str] = {}
    for name in names:
        spelling = name
        for pattern, replacement in _TRANSFORMERS:
            spelling = re.sub(pattern, replacement, spelling)
        spellings[spelling] = name
        if name == _POSITIONS:
            spellings[_IMAGE_POSITIONS] = name
    return Dialect.of("transformers", spellings)


def find(content: Any, dialects: Sequence[Dialect]) -> Found:
    """The tensors in ``content`` that have a name in one of the dialects; the dialect that knows most of them counts.

    Where several prefixes fit, the one with most tensors is taken for all parts that it has, the first of equals.
    Keys without their part's name count where most of the part is there, or where the file has nothing else.

    Raises:
        CheckpointError: ``content`` holds no tensors, or no dictionary.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"holds a {type(content).__name__}; give a file with a state dict")
    entries = list(_entries(content))
    if not entries:
        raise CheckpointError("holds no tensors; give a state dict")
    grouped = [(dialect, _groups(entries, dialect)) for dialect in dialects]
    dialect, groups = max(grouped, key=lambda pair: sum(len(group.entries) for group in pair[1]))
    whole_parts = Counter(name.partition(".")[0] for name in set(dialect.names.values()))
    complete = [group for group in groups if 2 * len(group.entries) > whole_parts[group.part]]
    chosen = _choose(groups, complete, entries)
    return _sorted_out(entries, chosen, [group for group in complete if group not in chosen], dialect)


def _entries(content: Mapping[Any, Any]) -> Iterator[_Entry]:
    """Every tensor in dictionaries, outer ones first; a dictionary that appears twice counts once."""
    import torch

    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen, count = {id(content)}, 0
    for folder, inner in waiting:
        for key, value in inner.items():
            count += 1
            if count > MAX_VALUES:
                raise CheckpointError(f"holds more than {MAX_VALUES} values; save the state dict alone")
            if isinstance(value, torch.Tensor):
                raw = ".".join((*folder, str(key)))
                yield _Entry(folder, raw, ".".join(word for word in raw.split(".") if word not in _WRAPPERS), value)
            elif isinstance(value, Mapping) and id(value) not in seen and len(folder) < MAX_DEPTH:
                seen.add(id(value))
                waiting.append(((*folder, str(key)), value))


def _groups(entries: Sequence[_Entry], dialect: Dialect) -> list[_Group]:
    """The entries that have a name in the dialect, by prefix and part."""
    groups: dict[tuple[str, str, bool], _Group] = {}
    for entry in entries:
        words = entry.name.split(".")
        # from the longest: the end of a whole name is a bare one
        endings = (".".join(words[-length:]) for length in range(min(len(words), dialect.depth), 0, -1))
        spelling = next((ending for ending in endings if ending in dialect.names or ending in dialect.bare), None)
        if spelling is not None:
            is_bare = spelling not in dialect.names
            name = dialect.bare[spelling] if is_bare else dialect.names[spelling]
            key = (entry.name.removesuffix(spelling), name.partition(".")[0], is_bare)
            groups.setdefault(key, _Group(*key)).add(name, entry)
    return list(groups.values())


def _same(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.shape == other.shape and one.equal(other))


def _choose(groups: Sequence[_Group], complete: Sequence[_Group], entries: Sequence[_Entry]) -> list[_Group]:
    """The group that each part is taken from."""
    votes: Counter[str] = Counter()
    whole = [group for group in groups if not group.is_bare]
    for group in whole:
        votes[group.prefix] += len(group.entries)
    bare = [
        group
        for group in groups
        if group.is_bare
        and (group in complete or (not whole and 2 * len(group.entries) > sum(map(group.surrounds, entries))))
    ]
    chosen: dict[str, _Group] = {}
    ranked = sorted(whole, key=lambda g: -votes[g.prefix]) + sorted(bare, key=lambda g: -len(g.entries))
    for group in ranked:
        chosen.setdefault(group.part, group)
    return list(chosen.values())


def _sorted_out(
    entries: Sequence[_Entry], chosen: Sequence[_Group], rivals: Sequence[_Group], dialect: Dialect
) -> Found:
    """What is taken, what should not be there, and what is left out."""
    taken = {entry for group in chosen for entry in (*group.entries.values(), *group.repeats, *group.doubles)}
    rivalling = {entry for group in rivals for entry in group.entries.values()}
    unexpected = {f"{entry.raw} (twice)": entry.value for group in chosen for entry in group.doubles}
    left: list[str] = []
    for entry in entries:
        home = next((group for group in chosen if group.surrounds(entry)), None)
        if entry in taken:
            continue
        if chosen and (home is None or entry in rivalling):
            left.append(entry.raw.partition(".")[0])
        elif home is None:
            unexpected[entry.raw] = entry.value
        else:
            name = entry.name.removeprefix(home.prefix)
            unexpected[f"{home.part}.{name}" if home.is_bare else name] = entry.value
    tensors = {name: entry.value for group in chosen for name, entry in group.entries.items()}
    return Found(tensors, unexpected, tuple(_notes(chosen, rivals, left, dialect)))


def _notes(chosen: Sequence[_Group], rivals: Sequence[_Group], left: Sequence[str], dialect: Dialect) -> Iterator[str]:
    """What was done to a file that is not a plain state dict."""
    taken, others = (list(dict.fromkeys(filter(None, map(_shown_prefix, groups)))) for groups in (chosen, rivals))
    if taken:
        yield f"took off {few([repr(prefix) for prefix in taken])}"
    if dialect.title:
        yield f"translated the names of {dialect.title}"
    if others:
        yield f"{few([repr(prefix) for prefix in others])} would fit as well"
    rest = [name for name in dict.fromkeys(left) if f"{name}." not in others]
    if rest:
        yield f"left out {few(rest)}"


def _shown_prefix(group: _Group) -> str:
    """As the file has it, with the words of wrappers."""
    entry = next(iter(group.entries.values()))
    words, own = entry.raw.split("."), len(entry.name.removeprefix(group.prefix).split("."))
    while own:
        own -= words.pop() not in _WRAPPERS
    return ".".join([*words, ""]) if words else ""


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, fit for one line."""
    return ", ".join([*(show(name) for name in names[:most]), *(["..."] if len(names) > most else [])])
