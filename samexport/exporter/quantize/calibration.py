"""Pictures, and what they become as inputs of each graph, one picture in memory at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError
from samexport.files import sha256
from samexport.models.families.detector import SAMPLER
from samexport.runtimes.accuracy.agreement import Asked
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Bundle, Calibration
from samexport.runtimes.host.detector import letterbox
from samexport.runtimes.host.frames import resize_longest
from samexport.runtimes.host.image import read_image
from samexport.runtimes.parity.golden_files import FOLDER, PICTURE
from samexport.runtimes.session import OpenGraphs, Session, open_session

METHOD = "minmax"
FEW = 8
"""Fewer pictures than that are too few to trust a scale."""

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# photographs that come with packages of our extras
_SAMPLES = (
    ("skimage", ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/rocket.jpg")),
    ("sklearn", ("datasets/images/china.jpg", "datasets/images/flower.jpg")),
    ("matplotlib", ("mpl-data/sample_data/grace_hopper.jpg",)),
)


@dataclass(frozen=True)
class Pictures:
    """Files of pictures; ``own`` is False where they are those that came with a package."""

    files: tuple[Path, ...]
    own: bool = True

    def read(self, longest: int) -> Iterator[NDArray[np.uint8]]:
        """Uint8 RGB [H, W, 3], scaled down to ``longest`` pixels, beyond which no graph sees anything."""
        for file in self.files:
            pixels = read_image(file)
            yield resize_longest(pixels, longest) if max(pixels.shape[:2]) > longest else pixels

    @cached_property
    def calibration(self) -> Calibration:
        """What the manifest keeps of them."""
        return Calibration(tuple(sha256(file) for file in self.files), METHOD)


def pictures_of(folder: Path | None, bundle: Path, most: int | None = None) -> Pictures:
    """The pictures of a folder in the order of their names, spread evenly if there are more than ``most``.

    Without a folder, photographs that come with installed packages; where there are none, the bundle's own picture.

    Raises:
        ConfigError: it is no folder, or has none.
    """
    if folder is None:
        found = _samples() or [bundle / FOLDER / PICTURE]
    elif not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; --calibration takes one of pictures")
    else:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
        if not found:
            raise ConfigError(f"{folder} has no pictures ({', '.join(_ENDINGS)})")
    if most is not None and len(found) > most:
        found = [found[i * len(found) // most] for i in range(most)]
    return Pictures(tuple(found), folder is not None)


def _samples() -> list[Path]:
    found = []
    for package, names in _SAMPLES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            found += [Path(place, name) for name in names]
    return [file for file in found if file.is_file()]


class _Reached(Exception):
    """The graph that was waited for; what it would have been fed."""

    def __init__(self, inputs: Tensors) -> None:
        super().__init__()
        self.inputs = inputs


class _UpTo(OpenGraphs):
    """Runs a bundle's graphs up to one, which is not run."""

    def __init__(self, bundle: Bundle, graph: str, threads: int | None) -> None:
        super().__init__(bundle, threads=threads)
        self._graph = graph

    def run(self, graph: str, inputs: Tensors, wanted: Sequence[str] = ()) -> Tensors:
        if graph == self._graph:
            raise _Reached(inputs)
        return super().run(graph, inputs, wanted)


def fed(bundle: Bundle, graph: str, asked: Sequence[Asked], threads: int | None = None) -> Iterator[Tensors]:
    """Inputs of a graph, made by our own preprocessing and, of decoders, by the graphs before it.

    Args:
        bundle: in floats.
        graph: one of its graphs.
        asked: pictures, with the prompts for decoders.
        threads: of the runtimes.

    Raises:
        ConfigError: nothing in an app's way from picture to masks feeds the graph.
    """
    if graph == SAMPLER:
        info = bundle.manifest.sampler
        assert info is not None, "a bundle with this graph says so"
        for one in asked:
            yield {bundle.graph(SAMPLER).inputs[0].name: letterbox(one.picture, info.image_size, rgb=info.rgb)[0]}
        return
    graphs = _UpTo(bundle, graph, threads)
    session, count = open_session(graphs), 0
    try:
        for one in asked:
            for inputs in _reached(session, one):
                count += 1
                yield inputs
    finally:
        graphs.close()
    if not count:
        raise ConfigError(f"no picture or prompt feeds {graph}; it cannot be quantized")


def _reached(session: Session, one: Asked) -> Iterator[Tensors]:
    try:
        encoded = session.encode(one.picture)
    except _Reached as reached:
        yield reached.inputs
        return
    for prompts in one.prompts.values():
        try:
            session.decode(encoded, session.pack(prompts, encoded.place))
        except _Reached as reached:
            yield reached.inputs
