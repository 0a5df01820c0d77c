"""A bundle: one folder with everything that an app or a benchmark needs, described by ``bundle.json``.

It appears complete or not at all: it is written in a private folder beside the target and renamed once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samexport.errors import BundleError, FileError
from samexport.files import read_json, sha256
from samexport.models.spec import Frame, GraphSpec
from samexport.models.spec import WeightsInfo as WeightsInfo  # of the manifest
from samexport.runtimes.base import Runtime, open_runtime
from samexport.runtimes.host.detector import SamplerOptions

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"


@dataclass(frozen=True)
class Artifact:
    """One file that implements one graph; ``path`` is its name inside the bundle.

    ``options`` are what it was made with and does not show by itself, such as the target of a TFLite file.
    """

    graph: str
    path: str
    file_format: str
    precision: str
    sha256: str
    size: int
    opset: int | None = None
    nodes: int | None = None
    options: dict[str, str] = field(default_factory=dict)


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

    name: str
    summary: str
    licence: str
    image_size: int
    rgb: bool
    nms: str
    options: SamplerOptions
    weights: WeightsInfo

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SamplerInfo:
        """The inverse of ``dataclasses.asdict``."""
        parts = {"options": SamplerOptions(**data["options"]), "weights": WeightsInfo(**data["weights"])}
        return cls(**{**data, **parts})


@dataclass(frozen=True)
class Manifest:
    """The content of ``bundle.json``.

    ``files`` maps every other file to its sha256. ``parity`` holds the rows of the report at export, plain data.
    ``sampler`` is None in a bundle without ``prompt_sampler``.
    """

    model: str
    summary: str
    licence: str
    frame: Frame
    mask_outputs: tuple[int, ...]
    weights: WeightsInfo
    graphs: tuple[GraphSpec, ...]
    artifacts: tuple[Artifact, ...]
    files: dict[str, str]
    tools: dict[str, str]
    parity: tuple[dict[str, Any], ...]
    sampler: SamplerInfo | None = None

    def to_json(self) -> str:
        """Text of ``bundle.json``: sorted keys, no dates, so that equal content is equal bytes."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of :meth:`to_json`; KeyError, TypeError or ValueError where the text is not a manifest."""
        data = json.loads(text)
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {data['schema_version']}, this samexport reads {SCHEMA_VERSION}")
        return cls(
            model=data["model"],
            summary=data["summary"],
            licence=data["licence"],
            frame=Frame.from_json(data["frame"]),
            mask_outputs=tuple(data["mask_outputs"]),
            weights=WeightsInfo(**data["weights"]),
            graphs=tuple(GraphSpec.from_json(g) for g in data["graphs"]),
            artifacts=tuple(Artifact(**a) for a in data["artifacts"]),
            files=dict(data["files"]),
            tools=dict(data["tools"]),
            parity=tuple(data["parity"]),
            sampler=SamplerInfo.from_json(data["sampler"]) if data.get("sampler") else None,
        )


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
        """The first file of a graph; BundleError if there is none."""
        found = [a for a in self.manifest.artifacts if a.graph == graph]
        if not found:
            raise BundleError(f"{self.folder.name} has no {graph}; it has {', '.join(self.graph_names)}")
        return found[0]

    def open(self, graph: str, *, runtime: str | None = None, threads: int | None = None) -> Runtime:
        """Open the file of ``graph``; see :func:`samexport.runtimes.base.open_runtime` for errors."""
        artifact = self.artifact(graph)
        path = self.folder / artifact.path
        return open_runtime(path, self.graph(graph), artifact.file_format, runtime=runtime, threads=threads)

    def damaged_files(self) -> list[str]:
        """One line for each file that is missing or is not the file that was exported."""
        problems = []
        for name, expected in sorted(self.manifest.files.items()):
            path = self.folder / name
            if not path.exists():
                problems.append(f"{name} is missing")
            elif sha256(path) != expected:
                problems.append(f"{name} has another sha256 than when it was exported")
        return problems


def open_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json``.

    Raises:
        BundleError: no bundle there, a damaged manifest, or file names that point outside the folder.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle (no {MANIFEST}); `samexport onnx` makes one") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise BundleError(f"{path} cannot be read as a manifest ({reason}); export the bundle again") from error
    root = folder.resolve()
    for name in (*manifest.files, *(a.path for a in manifest.artifacts)):
        if not (folder / name).resolve().is_relative_to(root):
            raise BundleError(f"{path} names {name!r}, which is outside the bundle; do not use it")
    return Bundle(folder, manifest)


def not_ours(folder: Path) -> str:
    """Empty if every file of ``folder`` is one that its manifest lists, so that --force may replace it."""
    try:
        listed = read_json(folder / MANIFEST)["files"]
        known = [folder / name for name in listed] + [folder / MANIFEST]
    except (FileError, KeyError, TypeError):
        return "it is not a bundle"
    for file in folder.rglob("*"):
        if not file.is_dir() and not any(file == k or k in file.parents for k in known):
            return f"it holds {file.relative_to(folder)}, which the bundle does not list"
    return ""


def relative_files(folder: Path, artifacts: Mapping[str, object]) -> dict[str, str]:
    """SHA-256 of everything in ``folder``; an artifact that is a folder counts as one entry."""
    names = {
        next((a for a in artifacts if name == a or name.startswith(f"{a}/")), name)
        for name in (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    }
    return {name: sha256(folder / name) for name in sorted(names - {MANIFEST})}
