"""What quantizing has in common in every format: layers, what pictures taught, and the functions of a format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samexport.exporter.recipes import Recipe
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Quantized


@dataclass(frozen=True)
class Layer:
    """An operation with a weight, which may be quantized.

    Attributes:
        name: as the file has it; :data:`Write` takes it to leave the layer as it is.
        label: for people: its kind and the weight's or the operation's name.
        macs: multiplications in one run.
    """

    name: str
    label: str
    macs: int


Calibrate = Callable[[Path, GraphSpec, Recipe, Iterable[Tensors]], Any]
"""What a file's tensors reach on inputs of its graph, in the format's own terms; inputs are read once, one by one."""

Write = Callable[[Path, Path, GraphSpec, Recipe, Any, Collection[str]], None]
"""From the parent's file to a new one by a recipe, with what calibration found (None without), layers left out."""


@dataclass(frozen=True)
class Quantizer:
    """What quantizes the files of a format.

    Attributes:
        packages: what it needs, and the extra that installs them.
        layers: of a parent's file that a recipe quantizes.
        calibrate, write: see the types.
        count: what shows that the second file is quantized, the first being its parent.
    """

    packages: tuple[str, ...]
    extra: str
    layers: Callable[[Path, GraphSpec, Recipe], list[Layer]]
    calibrate: Calibrate
    write: Write
    count: Callable[[Path, Path, GraphSpec, Mapping[str, str]], Quantized]
