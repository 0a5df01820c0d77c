"""The nouns that describe a model and its graphs: frozen, pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
"""A name of a graph, a tensor or an axis."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=100)]
"""A name that may become part of a file's name: it cannot leave a folder."""

Hashes = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}( \+ [0-9a-f]{64})*$")]
"""The sha256 of one file, or of several."""

Dim = Annotated[int, Meta(ge=1, le=1 << 24)] | Identifier
DType = Literal["float32", "float16", "int64", "int32", "uint8", "bool"]
Role = Literal["tensor", "mask_logits", "mask_scores", "ranked_boxes", "ranked_scores"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a name, a shape of ints and named axes, a range and a one-line meaning.

    ``role`` tells parity checks what else to compare: thresholded masks, the ranking of the scores, or boxes
    and their scores that come by falling score, where near-ties may change places.
    """

    name: Identifier
    shape: Annotated[tuple[Dim, ...], Meta(max_length=8)]
    meaning: str
    low: float | None = None
    high: float | None = None
    role: Role = "tensor"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"tensor name {self.name!r} is not an identifier")
        if any(isinstance(d, int) and d < 1 for d in self.shape):
            raise ValueError(f"tensor {self.name}: sizes must be positive, got {self.shape}")


@dataclass(frozen=True)
class GraphSpec:
    """One exportable graph: ordered inputs and outputs. The only place where their names are written."""

    name: Identifier
    meaning: str
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        names = [t.name for t in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError(f"graph {self.name}: tensor names repeat: {names}")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Input names in call order."""
        return tuple(t.name for t in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Output names in result order."""
        return tuple(t.name for t in self.outputs)

    @property
    def axes(self) -> tuple[str, ...]:
        """The named (dynamic) axes, in order of first appearance."""
        found = [d for t in self.inputs for d in t.shape if isinstance(d, str)]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``bundle.json``."""
        return asdict(self)


Mean = Annotated[float, Meta(ge=-1024, le=1024)]
Std = Annotated[float, Meta(gt=0, le=1024)]


@dataclass(frozen=True)
class Frame:
    """The square that a model sees: the long side of an image is scaled to ``size``, the rest is padded.

    ``mean`` and ``std`` are RGB on the 0..255 scale; the padding colour is ``mean``.
    """

    size: Annotated[int, Meta(ge=16, le=8192, multiple_of=16)]
    mean: tuple[Mean, Mean, Mean] = (123.675, 116.28, 103.53)
    std: tuple[Std, Std, Std] = (58.395, 57.12, 57.375)

    @property
    def grid(self) -> int:
        """Side of the embedding grid (one cell is 16 pixels)."""
        return self.size // 16

    @property
    def low_res(self) -> int:
        """Side of the low-resolution masks (one pixel is 4 pixels of the frame)."""
        return self.size // 4


@dataclass(frozen=True)
class CheckpointSource:
    """Where the official weights are: ``filename`` in the cache, ``url`` and the full ``sha256``.

    ``sha256`` is None where nobody published it; then the file must be given by hand.
    """

    filename: str
    url: str
    sha256: str | None


@dataclass(frozen=True)
class ModelSpec:
    """One model of the catalogue, named ``family.encoder``.

    ``image_encoder`` and ``encoder_graph`` are dotted paths ``package.module:name``: a function without
    arguments that builds the encoder, and the class that turns it into its export form.
    ``mask_outputs`` lists the mask tokens that the weights were trained for (of 0..3).
    ``aliases`` are other names that people use. ``unread`` are beginnings of state-dict names that checkpoints may
    have and no graph reads.
    """

    name: str
    summary: str
    image_encoder: str
    encoder_graph: str
    frame: Frame
    graphs: tuple[GraphSpec, ...]
    parameters: int
    licence: str
    source: CheckpointSource | None = None
    embed_dim: int = 256
    decoder_mlp_dim: int = 2048
    mask_outputs: tuple[int, ...] = (0, 1, 2, 3)
    hidden: bool = False
    aliases: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def encoder(self) -> str:
        """The part of the name that ``--encoder`` takes."""
        return self.name.split(".", 1)[1]

    def graph(self, name: str) -> GraphSpec:
        """The graph called ``name``; KeyError if this model has none."""
        return {g.name: g for g in self.graphs}[name]


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights came from: kind "checkpoint" (file names, sha256) or "random" (seed).

    ``source`` has the name of each file, without its folder, in the order of merging; ``sha256`` has the hash of
    each. Both are joined by " + ". Random weights have a ``seed`` instead of a hash.
    """

    kind: Literal["checkpoint", "random"]
    source: str
    sha256: Hashes | None
    seed: int | None


@dataclass(frozen=True)
class SamplerSpec:
    """A detector that proposes boxes, as ``--sampler`` names it.

    Attributes:
        name: what the command line takes.
        summary: one line.
        size: dotted path of the detector's numbers, ``package.module:name``.
        image_size: side of its square input, unless another is asked for.
        candidates: boxes that a graph with top-K returns.
        licence: of the weights, printed when a checkpoint is used.
        score_gain: multiplies the last layer of the score branch of random weights, so that scores spread.
        hidden: for tests.
    """

    name: str
    summary: str
    size: str
    image_size: int
    candidates: int
    licence: str
    score_gain: float = 1.0
    hidden: bool = False


def axis_sizes(tensors: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Match shapes against specs and return the size of each named axis; ValueError on a mismatch."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        shape = tuple(shapes[tensor.name])
        wanted = tuple(
            sizes.setdefault(d, s) if isinstance(d, str) else d for d, s in zip(tensor.shape, shape, strict=False)
        )
        if len(shape) != len(tensor.shape) or shape != wanted:
            raise ValueError(f"{tensor.name} has shape {shape}, expected {tensor.shape} with {sizes}")
    return sizes
