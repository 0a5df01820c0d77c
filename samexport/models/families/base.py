"""What a family of models is to everything outside this folder: one frozen object, pure data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from samexport.models.spec import ModelSpec

DottedPath = str
"""``package.module:name``, imported when it is needed: reading a family imports neither torch nor a runtime."""


@dataclass(frozen=True)
class Loop:
    """How objects are followed through a video.

    Attributes:
        name: of the case.
        graphs: those that it needs.
        follow: dotted path of a ``samexport.runtimes.parity.clip.Follow``: objects on a golden clip.
        frames: of that clip.
    """

    name: str
    graphs: tuple[str, ...]
    follow: DottedPath
    frames: int = 5


@dataclass(frozen=True)
class Family:
    """Models whose graphs, pictures and prompts go together in one way.

    Outputs feed the inputs of later graphs that have their names; ``state`` has those that feed a later frame.

    Attributes:
        name: as it stands in models and manifests.
        models: its part of the catalogue.
        graphs: the names of the graphs to export for a set of features, in the order in which they run.
        features: the names that ``graphs`` knows. A model is exported with those of the graphs that it has.
        variants: by feature, the model that has it by the name of the model that is asked for; a feature that is
            missing here needs no other one.
        network: dotted path of ``ModelSpec -> nn.Module``, with the official state-dict names, without values
            (:func:`samexport.models.architectures.layers.no_values`).
        forms: dotted path of {graph: ``(network, spec, small) -> nn.Module``}, what is exported.
        plain: the same of the untouched architecture, the reference; graphs that are missing there are judged in a
            chain that equals another graph, see ``equal``.
        equal: a graph that ends a chain to the one graph that the whole chain computes.
        state: outputs to the inputs of the next frame that they become.
        session: dotted path of the :class:`samexport.runtimes.session.Session` that does what an app does.
        cases: dotted path of a ``samexport.runtimes.parity.golden.MakeCases``: what is compared.
        at_size: a model with a frame of another side, for models whose weights do not depend on it; it raises
            ConfigError for others, and for sides that a network cannot have. None where no model can.
        loops: for families with memory, what is compared of whole videos.
        encoder_parts: beginnings of the state-dict names that a decoder's own checkpoint leaves as they are.
        dialects: dotted paths of functions from the official state-dict names to
            :class:`samexport.models.weights.layouts.Dialect`: other names that checkpoints may have.
        constants: dotted path of ``network -> {name: array}``: what the session needs besides the graphs.
        card: dotted path of ``Manifest -> samexport.exporter.deliver.card.About``: how to use a bundle, for its README.
        extras: by format, dotted path of ``Bundle -> {file name: text}``: code that goes with the files.
        consumers: dotted path of :class:`samexport.exporter.deliver.profile.Profile` objects: programs that take the
            files in a form of their own.
    """

    name: str
    models: tuple[ModelSpec, ...]
    graphs: Callable[[Collection[str]], tuple[str, ...]]
    network: DottedPath
    forms: DottedPath
    plain: DottedPath
    session: DottedPath
    cases: DottedPath
    card: DottedPath
    features: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    constants: DottedPath = ""
    at_size: Callable[[ModelSpec, int], ModelSpec] | None = None
    loops: tuple[Loop, ...] = ()
    encoder_parts: tuple[str, ...] = ()
    dialects: tuple[DottedPath, ...] = ()
    extras: Mapping[str, DottedPath] = field(default_factory=dict)
    consumers: DottedPath = ""

    @property
    def first(self) -> str:
        """The graph that sees the picture; every bundle of the family has it."""
        return self.graphs(())[0]
