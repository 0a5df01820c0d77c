"""Recipes: in which numbers a file stores and computes. Data; what writes files are the formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samexport.errors import ConfigError

Numbers = Literal["float32", "float16", "int8", "int4"]


@dataclass(frozen=True)
class Recipe:
    """How a file is made from a graph.

    Attributes:
        name: as it stands in manifests and in file names.
        weights: what the weights are stored as.
        compute: what most operations compute in.
        formats: that write it.
        parent: the recipe of the file that this one is quantized from; empty where the converter writes it itself.
        calibrated: whether that needs pictures.
    """

    name: str
    weights: Numbers
    compute: Numbers
    formats: tuple[str, ...]
    parent: str = ""
    calibrated: bool = False


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", "float32", "float32", ("onnx", "tflite", "coreml")),
        Recipe("fp16", "float16", "float16", ("onnx", "coreml")),
    )
}


def find_recipe(name: str, file_format: str) -> Recipe:
    """The recipe called ``name``; ConfigError names those that the format writes, if it does not."""
    if name not in RECIPES or file_format not in RECIPES[name].formats:
        known = [recipe.name for recipe in RECIPES.values() if file_format in recipe.formats]
        raise ConfigError(f"{file_format} is written as {' or '.join(known)}, not {name!r}")
    return RECIPES[name]
