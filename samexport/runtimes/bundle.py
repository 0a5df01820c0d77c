"""A bundle: one folder with everything that an app or a benchmark needs, described by ``bundle.json``.

It appears complete or not at all: it is written in a private folder beside the target and renamed once.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from numpy.typing import NDArray

from samexport.errors import BundleError, FileError, SamExportError
from samexport.files import as_path, read_json, reason, sha256, to_json
from samexport.models.families.sam import with_axes
from samexport.models.spec import GraphSpec, Identifier, Name, Preprocess, Scores
from samexport.models.spec import WeightsInfo as WeightsInfo  # of the manifest
from samexport.runtimes.arrays import read_npz
from samexport.runtimes.base import Runtime
from samexport.runtimes.host.detector import SamplerOptions
from samexport.runtimes.registry import open_runtime
from samexport.runtimes.verdicts import Row

MANIFEST, CONSTANTS = "bundle.json", "constants.npz"
# what file managers leave behind
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
FilePath = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\\]+$", max_length=500)]
"""Path inside the bundle, with forward slashes."""


Nms = Literal["host", "in-graph"]


@dataclass(frozen=True)
class Calibration:
    """The pictures that a quantized file was calibrated with: sha256 of each, in order."""

    pictures: tuple[Sha256, ...]
    method: str


@dataclass(frozen=True)
class Quantized:
    """What shows that a file is quantized, counted in the file itself.

    Attributes:
        integer_macs: share of the multiplications that are of integers; 0 where weights alone are integers.
        quantized_weights: how many weights are stored as integers or as indices of a table.
        pairs: operations that quantize or dequantize; 0 where the format has none.
        size_ratio: bytes, of the parent's.
        kept: what was to be quantized and was left as it was, and why.
    """

    integer_macs: Share
    quantized_weights: Count
    pairs: Count
    size_ratio: Annotated[float, Meta(ge=0)]
    kept: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModeScores:
    """How far masks agree with those of the files that others were quantized from, for one kind of prompt.

    Attributes:
        mode: click, clicks, box, box+click, mask+click.
        prompts: how many were compared.
        mean: of the IoU of the masks that answer them.
        p5: 5th percentile.
        worst: the lowest; of a mask of a few pixels it says little.
        same_best: share of the prompts that the same of the model's masks answers.
    """

    mode: str
    prompts: Count
    mean: Share
    p5: Share
    worst: Share
    same_best: Share


@dataclass(frozen=True)
class Gate:
    """The check of masks that quantized files passed.

    Attributes:
        max_drop: by how much the mean IoU may fall below 1; the 5th percentile may five times as far.
        pictures: sha256 of each.
        modes: what was found.
    """

    max_drop: Share
    pictures: tuple[Sha256, ...]
    modes: tuple[ModeScores, ...]


@dataclass(frozen=True)
class Artifact:
    """One file that implements one graph.

    Attributes:
        graph: name of the graph.
        path: of the file, inside the bundle.
        file_format: onnx, tflite or coreml.
        recipe: which numbers are stored and computed in which precision: fp32, fp16, static_wi8_ai8.
        sha256: of the file; of a folder, of the list of its files.
        size: bytes.
        opset: of ONNX files.
        nodes: number of operations.
        options: what it was made with and does not show by itself, such as the target of a TFLite file.
        parent: sha256 of the file that this one was quantized from.
        calibration: of quantized files.
        quantized: what shows that it is quantized.
        licence: of the weights inside.
        made_with: versions of the packages that wrote it.
    """

    graph: Identifier
    path: FilePath
    file_format: Name
    recipe: Name
    sha256: Sha256
    size: Count
    opset: Count | None = None
    nodes: Count | None = None
    options: dict[str, str] = field(default_factory=dict)
    parent: Sha256 | None = None
    calibration: Calibration | None = None
    quantized: Quantized | None = None
    licence: str = ""
    made_with: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplerInfo:
    """What the host must know to use the graph ``prompt_sampler``.

    Attributes:
        name, summary, licence: of the detector.
        image_size: side of its square input.
        rgb: order of the input's channels; the released MobileSAMv2 feeds BGR.
        nms: "host", or "in-graph" where the graph returns boxes that NMS has kept (then with score 0 what fills up).
        options: thresholds of the post-processing.
        weights: where the detector's weights came from.
    """

    name: Name
    summary: str
    licence: str
    image_size: Annotated[int, Meta(ge=32, le=8192, multiple_of=32)]
    rgb: bool
    nms: Nms
    options: SamplerOptions
    weights: WeightsInfo


@dataclass(frozen=True)
class Manifest:
    """The content of ``bundle.json``; its JSON Schema is :func:`json_schema`.

    Readers ignore fields that they do not know, and check those that they know in type and range.

    Attributes:
        model: name in the catalogue.
        family: which kind of model it is; says how graphs and prompts go together.
        frame: how a picture becomes the model's input.
        files: every other file and its sha256.
        tools: versions of what made the bundle.
        parity: rows of the report at export.
        sampler: None in a bundle without ``prompt_sampler``.
        gate: of a bundle with quantized files.
        The others: as in :class:`samexport.models.spec.ModelSpec`.
    """

    model: Name
    summary: str
    licence: str
    frame: Preprocess
    mask_outputs: Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(min_length=1)]
    weights: WeightsInfo
    graphs: Annotated[tuple[GraphSpec, ...], Meta(min_length=1)]
    artifacts: Annotated[tuple[Artifact, ...], Meta(min_length=1)]
    files: dict[FilePath, Sha256]
    tools: dict[str, str]
    parity: tuple[Row, ...]
    sampler: SamplerInfo | None = None
    family: Name = "sam"
    scores: Scores = "predicted"
    gate: Gate | None = None
    schema_version: Literal[2] = 2

    def __post_init__(self) -> None:
        names = [graph.name for graph in self.graphs]
        paths = [artifact.path for artifact in self.artifacts]
        for what, given in (("graphs", names), ("artifacts", paths)):
            if len(set(given)) != len(given):
                raise ValueError(f"{what} repeat: {given}")
        if unknown := {artifact.graph for artifact in self.artifacts} - set(names):
            raise ValueError(f"artifacts of unknown graphs: {sorted(unknown)}")
        masks = [t.shape[-1] for g in self.graphs for t in g.outputs if t.role == "mask_scores"]
        if any(isinstance(count, int) and max(self.mask_outputs) >= count for count in masks):
            raise ValueError(f"mask_outputs {list(self.mask_outputs)} of {masks[0]} masks")

    def to_json(self) -> str:
        """Text of ``bundle.json``: sorted keys, no dates, so that equal content is equal bytes.

        ValueError if a reader would refuse it.
        """
        return to_json(msgspec.to_builtins(msgspec.convert(msgspec.to_builtins(self), Manifest)))


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``bundle.json``, for readers in other languages: ``bundle.schema.json`` beside this file."""
    schema: dict[str, Any] = msgspec.json.schema(Manifest)
    for definition in schema["$defs"].values():
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
    return schema


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    folder: Path
    manifest: Manifest

    def graph(self, name: str) -> GraphSpec:
        """The spec of a graph; BundleError if the bundle has none of that name."""
        for graph in self.manifest.graphs:
            if graph.name == name:
                return graph
        raise BundleError(f"{self.folder.name} has no graph {name!r}; it has {', '.join(self.graph_names)}")

    @property
    def graph_names(self) -> tuple[str, ...]:
        """Names of the graphs that have a file."""
        return tuple(dict.fromkeys(a.graph for a in self.manifest.artifacts))

    def artifact(self, graph: str) -> Artifact:
        """The file of a graph, the first one if it has several; BundleError if there is none."""
        found = [a for a in self.manifest.artifacts if a.graph == graph]
        if not found:
            raise BundleError(f"{self.folder.name} has no {graph}; it has {', '.join(self.graph_names)}")
        return found[0]

    def variants(self) -> Iterator[Bundle]:
        """The bundle with one file a graph: first the default ones, then each other file beside the default ones."""
        default = {name: self.artifact(name) for name in self.graph_names}
        yield self._only(default)
        for artifact in self.manifest.artifacts:
            if artifact != default[artifact.graph]:
                yield self._only({**default, artifact.graph: artifact})

    def _only(self, chosen: dict[str, Artifact]) -> Bundle:
        return Bundle(self.folder, replace(self.manifest, artifacts=tuple(chosen.values())))

    def open(self, graph: str, *, runtime: str | None = None, threads: int | None = None) -> Runtime:
        """Open the file of ``graph``; see :func:`samexport.runtimes.base.open_runtime` for errors."""
        artifact = self.artifact(graph)
        path = self.folder / artifact.path
        return open_runtime(path, self.graph(graph), artifact.file_format, runtime=runtime, threads=threads)

    @cached_property
    def constants(self) -> Mapping[str, NDArray[Any]]:
        """Arrays that the family's session needs besides the graphs; BundleError if the file is absent or damaged."""
        try:
            return read_npz(self.folder / CONSTANTS)
        except (SamExportError, ValueError) as error:
            raise BundleError(f"{self.folder / CONSTANTS} cannot be read ({reason(error)})") from error

    def damaged_files(self) -> dict[str, str]:
        """What is wrong with a file, by its name: it is missing, changed, or not listed in the manifest."""
        listed = self.manifest.files
        problems = {a.path: "is not listed" for a in self.manifest.artifacts if a.path not in listed}
        problems |= {
            a.path: "is listed with another sha256"
            for a in self.manifest.artifacts
            if a.path in listed and listed[a.path] != a.sha256
        }
        problems |= dict.fromkeys(sorted(unlisted(self.folder, listed)), "is not listed")
        for name, expected in sorted(listed.items()):
            path = self.folder / name
            try:
                if not path.exists():
                    problems[name] = "is missing"
                elif sha256(path) != expected:
                    problems[name] = "has another sha256 than when it was exported"
            except (OSError, FileError) as error:
                problems[name] = f"cannot be read: {reason(error)}"
        return problems


AnyBundle = Bundle | str | PathLike[str]
"""A bundle or its folder."""


def as_bundle(given: AnyBundle) -> Bundle:
    """A bundle as it is, or the one in a folder; errors as :func:`open_bundle`, ConfigError for what is neither."""
    if isinstance(given, Bundle):
        return given
    return open_bundle(as_path(given, "give a bundle or the path of its folder"))


def open_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json``.

    Raises:
        BundleError: no bundle there, a damaged manifest, one of files that were never checked, or file names that
            point outside the folder.
    """
    path = folder / MANIFEST
    if folder.is_file() and (folder.parent / MANIFEST).is_file():
        raise BundleError(f"{folder} is one file of a bundle; give the folder, {folder.parent}")
    if not path.exists():
        raise BundleError(f"{folder} is not a bundle (no {MANIFEST}); `samexport onnx` makes one")
    try:
        content = read_json(path)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if type(version) is int and version > Manifest.schema_version:
            raise BundleError(f"{path} was written by a newer samexport (schema version {version}); update this one")
        if version != Manifest.schema_version:
            raise ValueError(f"schema version {version!r}, this samexport reads {Manifest.schema_version}")
        manifest = msgspec.convert(content, Manifest)
        manifest = replace(manifest, graphs=tuple(with_axes(graph) for graph in manifest.graphs))
    except BundleError:
        raise
    except (SamExportError, ValueError, TypeError) as error:
        raise BundleError(f"{path} cannot be read as a manifest ({reason(error)}); export the bundle again") from error
    # the baselines of a benchmark list nothing; they are checked when they are measured
    if manifest.files and not manifest.parity:
        raise BundleError(f"{path} has no check in its parity: the files are not verified; export the bundle again")
    for name in (*manifest.files, *(a.path for a in manifest.artifacts)):
        if not _inside(folder, name):
            raise BundleError(f"{path} names {name!r}, which is outside the bundle; do not use it")
    return Bundle(folder, manifest)


def _inside(folder: Path, name: str) -> bool:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def unlisted(folder: Path, listed: Container[str], manifest: str = MANIFEST) -> set[str]:
    """Files in ``folder`` that are neither ``listed``, nor in a listed folder, nor the manifest."""
    found = set()
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        known = name.as_posix() == manifest or any(p.as_posix() in listed for p in (name, *name.parents) if p.parts)
        if not known and name.name not in _LITTER and (file.is_symlink() or not file.is_dir()):
            found.add(name.as_posix())
    return found


def not_ours(folder: Path, manifest: str = MANIFEST) -> str:
    """Empty if every file of ``folder`` is one that its manifest lists, so that --force may replace it."""
    try:
        listed = dict(read_json(folder / manifest)["files"])
        if foreign := unlisted(folder, listed, manifest):
            return f"it holds {min(foreign)}, which {manifest} does not list"
        # a listed folder may have got files of someone else
        changed = [n for n, known in listed.items() if (folder / n).is_dir() and sha256(folder / n) != known]
    except (FileError, OSError, KeyError, TypeError, ValueError):
        return f"samexport did not write it (no {manifest} that lists its files)"
    return f"{changed[0]} in it is not as it was exported" if changed else ""


def relative_files(folder: Path, artifacts: Mapping[str, object]) -> dict[str, str]:
    """SHA-256 of everything in ``folder``; an artifact that is a folder counts as one entry."""
    names = {
        next((a for a in artifacts if name == a or name.startswith(f"{a}/")), name)
        for name in (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    }
    return {name: sha256(folder / name) for name in sorted(names - {MANIFEST})}
