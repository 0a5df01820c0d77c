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


AxisRole = Literal["prompts", "points", "memories", "pointers", "windows", "kept"]
"""What an axis counts. Prompts do not see each other, so they are cut, filled up and joined; slots of other axes are
filled up. A file of fixed sizes has entry points for several numbers of prompts and points; others are ``usual``."""


Sizes = dict[str, int]
"""Of axes, by their names."""


@dataclass(frozen=True)
class Axis:
    """A size of a graph's tensors that a call decides.

    Attributes:
        name: as it stands in the shapes.
        role: what it counts.
        traced: the size that exporters see; 1 would be frozen into the graph.
        usual: the size where a file has one default.
        low, high: what the graph is good for.
    """

    name: Identifier
    role: AxisRole
    traced: Annotated[int, Meta(ge=2, le=1 << 16)]
    usual: Annotated[int, Meta(ge=1, le=1 << 16)]
    low: Annotated[int, Meta(ge=1, le=1 << 16)] = 1
    high: Annotated[int, Meta(ge=1, le=1 << 16)] = 1 << 16

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError(f"axis {self.name}: high {self.high} is below low {self.low}")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a name, a shape of ints and named axes, a range and a one-line meaning.

    ``role`` tells parity checks what else to compare: thresholded masks, the ranking of the scores, or boxes
    and their scores that come by falling score, where near-ties may change places. ``fill`` is the value of slots
    that are filled up along a named axis; where it is not 0, it marks them, and the graph does not see them.
    """

    name: Identifier
    shape: Annotated[tuple[Dim, ...], Meta(max_length=8)]
    meaning: str
    low: float | None = None
    high: float | None = None
    role: Role = "tensor"
    dtype: DType = "float32"
    fill: float = 0.0

    def resolved(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with ``sizes`` of the axes by their names."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"tensor name {self.name!r} is not an identifier")
        if any(isinstance(d, int) and d < 1 for d in self.shape):
            raise ValueError(f"tensor {self.name}: sizes must be positive, got {self.shape}")
        if self.low is not None and self.high is not None and self.high < self.low:
            raise ValueError(f"tensor {self.name}: high {self.high:g} is below low {self.low:g}")


@dataclass(frozen=True)
class GraphSpec:
    """One exportable graph: ordered inputs and outputs. The only place where their names are written."""

    name: Identifier
    meaning: str
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    axes: Annotated[tuple[Axis, ...], Meta(max_length=8)] = ()

    def __post_init__(self) -> None:
        names = [t.name for t in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError(f"graph {self.name}: tensor names repeat: {names}")
        known = [axis.name for axis in self.axes]
        if self.axes and (sorted(known) != sorted(self.named_sizes) or len({a.role for a in self.axes}) < len(known)):
            raise ValueError(
                f"graph {self.name}: the axes {known} are not its named sizes {self.named_sizes}, one a role"
            )

    @property
    def input_names(self) -> tuple[str, ...]:
        """Input names in call order."""
        return tuple(t.name for t in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Output names in result order."""
        return tuple(t.name for t in self.outputs)

    @property
    def named_sizes(self) -> tuple[str, ...]:
        """The names in the shapes of the inputs, in order of first appearance."""
        found = [d for t in self.inputs for d in t.shape if isinstance(d, str)]
        return tuple(dict.fromkeys(found))

    def axis(self, role: AxisRole) -> Axis | None:
        """The axis that counts ``role``, if there is one."""
        return next((axis for axis in self.axes if axis.role == role), None)

    def sizes(self, chosen: Mapping[AxisRole, int] | None = None, *, default: Literal["traced", "usual"]) -> Sizes:
        """The size of each axis by its name: that of its role in ``chosen``, else its ``default``."""
        return {axis.name: (chosen or {}).get(axis.role, getattr(axis, default)) for axis in self.axes}

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``bundle.json``."""
        return asdict(self)


Mean = Annotated[float, Meta(ge=-1024, le=1024)]
Std = Annotated[float, Meta(gt=0, le=1024)]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the square that a model sees, its frame; the arithmetic is ``runtimes.host.frames``.

    Attributes:
        size: side of the frame in pixels.
        mean, std: RGB on the 0..255 scale.
        resize: the long side becomes ``size`` and the rest is padded right and below, or each side becomes ``size``.
        rounding: of the short side then, to the nearest pixel or down.
        filter: Pillow's bilinear or bicubic on 8 bits, which widen when they shrink, or bilinear on floats, as
            torch's with ``antialias``, or as torch's without it.
        padding: the colour of the rest, ``mean`` (0 once normalised) or black.
        white: what 255 becomes in the graph's input; normalisation is inside the graph.
        stride: pixels of the frame that one cell of the embedding covers, along a side.
        mask_stride: the same of a pixel of the low-resolution masks.
        prompt_size: side of the square in which points are given and masks are placed, where that is another than the
            frame: the same picture, scaled to it.
    """

    size: Annotated[int, Meta(ge=16, le=8192, multiple_of=16)]
    mean: tuple[Mean, Mean, Mean] = (123.675, 116.28, 103.53)
    std: tuple[Std, Std, Std] = (58.395, 57.12, 57.375)
    resize: Literal["longest", "stretch"] = "longest"
    filter: Literal["bilinear", "bicubic", "bilinear_float", "bilinear_plain"] = "bilinear"
    padding: Literal["mean", "black"] = "mean"
    white: Annotated[float, Meta(gt=0, le=65535)] = 255.0
    stride: Annotated[int, Meta(ge=1, le=64)] = 16
    mask_stride: Annotated[int, Meta(ge=1, le=64)] = 4
    rounding: Literal["nearest", "down"] = "nearest"
    prompt_size: Annotated[int, Meta(ge=16, le=8192)] | None = None

    @property
    def prompts(self) -> int:
        """Side of the square in which points are given."""
        return self.prompt_size or self.size

    @property
    def is_sams(self) -> bool:
        """Whether pictures are placed as SAM does, but for size and colours; the apps' code knows no other way."""
        return self == Preprocess(self.size, self.mean, self.std)

    @property
    def grid(self) -> int:
        """Side of the embedding grid."""
        return self.size // self.stride

    @property
    def low_res(self) -> int:
        """Side of the low-resolution masks."""
        return self.size // self.mask_stride


Scores = Literal["predicted", "stability"]
"""What ranks masks: the graph's own scores, or how little a mask changes with its threshold."""


@dataclass(frozen=True)
class CheckpointSource:
    """Where the official weights are: ``filename`` in the cache, ``url`` and the full ``sha256``.

    ``sha256`` is None where nobody published it; then the file must be given by hand.
    """

    filename: str
    url: str
    sha256: str | None


@dataclass(frozen=True)
class Adapter(CheckpointSource):
    """The official weights of a part that no checkpoint has: of names that begin with ``part``."""

    part: str


@dataclass(frozen=True)
class ModelSpec:
    """One model of the catalogue, named ``family.encoder``.

    Attributes:
        name, summary, licence: for people.
        frame: how a picture becomes its input.
        graphs: every graph that it can be exported as.
        parameters: how many.
        size: the network's numbers, a record that its family alone reads.
        family: name of the :class:`samexport.models.families.base.Family`.
        source: the official weights.
        mask_outputs: the masks of a prompt that the weights were trained for.
        hidden: for tests.
        aliases: other names that people use.
        unread: beginnings of state-dict names that checkpoints may have and no graph reads.
        demo: files of this package beside ``models/weights/demo.py`` with weights trained on drawn scenes.
        scores: which number ranks the masks of a prompt: the predicted IoU, or, where the head that predicts it was not
            trained with the encoder, the stability of the low-resolution mask.
        gains: of random weights, as in :func:`samexport.models.weights.random_weights.random_state_dict`.
        adapter: weights that are a file of their own, where somebody published them.
        untrained: what of it no weights were trained for, as :attr:`WeightsInfo.warning` names it.
    """

    name: str
    summary: str
    frame: Preprocess
    graphs: tuple[GraphSpec, ...]
    parameters: int
    licence: str
    size: Any = None
    family: Name = "sam"
    source: CheckpointSource | None = None
    mask_outputs: tuple[int, ...] = (0, 1, 2, 3)
    hidden: bool = False
    aliases: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    demo: tuple[str, ...] = ()
    scores: Scores = "predicted"
    gains: tuple[tuple[str, float], ...] = ()
    adapter: Adapter | None = None
    untrained: str = ""

    @property
    def encoder(self) -> str:
        """The part of the name that ``--encoder`` takes."""
        return self.name.split(".", 1)[1]

    def graph(self, name: str) -> GraphSpec:
        """The graph called ``name``; KeyError if this model has none."""
        return {g.name: g for g in self.graphs}[name]


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights came from: kind "checkpoint" or "demo" (file names, sha256), or "random" (seed).

    ``source`` has the name of each file, without its folder, in the order of merging; ``sha256`` has the hash of
    each. Both are joined by " + ". Random weights have a ``seed`` instead of a hash. ``untrained`` is a part of the
    model that no weights were trained for.
    """

    kind: Literal["checkpoint", "demo", "random"]
    source: str
    sha256: Hashes | None
    seed: int | None
    untrained: str = ""

    @property
    def warning(self) -> str:
        """What everything that is made from them says, after "has" or "with"; empty for weights of a user's file."""
        told = {
            "random": "RANDOM weights: its masks mean nothing",
            "demo": "DEMO weights, trained on drawn scenes: no substitute for the official ones",
        }
        return "; and ".join(part for part in (told.get(self.kind, ""), self.untrained) if part)

    @property
    def remark(self) -> str:
        """The same in two words, for titles."""
        return f"{self.kind} weights" if self.kind != "checkpoint" else "not trained" if self.untrained else ""


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
            known = f" with {sizes}" if sizes else ""
            raise ValueError(f"{tensor.name} has shape {shape}, expected {tensor.shape}{known}")
    return sizes


def is_picture(tensor: TensorSpec) -> bool:
    """Whether an input is a whole picture, which some formats can take as one."""
    return tensor.name == "image"
