"""Recipes: in which numbers a file stores and computes. Data; what writes files are the formats.

The names decode as those of ai-edge-quantizer: ``static`` scales come from calibration, ``dynamic`` ones are found
while running; ``wi8`` is weights of 8-bit integers, ``ai8`` activations, ``afp32`` activations in single precision.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from samexport.errors import ConfigError, FileError
from samexport.files import read_json, reason
from samexport.models.spec import Name

Numbers = Literal["float32", "float16", "int16", "int8", "int4", "lut6", "lut4"]
FormatName = Literal["onnx", "tflite", "coreml"]
Pass = Literal["tanh_gelu", "even_channels"]
"""What is changed in the float graph of an ONNX file that is quantized.

tanh_gelu: GELU by its approximation with tanh, at most 5e-4 away (Hendrycks and Gimpel, arXiv 1606.08415), which is far
below a step of int8; ONNX Runtime takes two thirds of the time for it.
even_channels: channels behind a LayerNorm and the weights that read them are scaled against each other, so that none is
far above the others; exact, see :mod:`samexport.exporter.to_onnx.even`.
"""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a file is made from a graph.

    Attributes:
        name: as it stands in manifests and in file names.
        weights: what the weights are stored as; lut6 and lut4 are indices of 6 and 4 bits into a table.
        compute: what most operations compute in.
        formats: that write it.
        parent: the recipe of the file that this one is quantized from; empty where the converter writes it itself.
        calibrated: whether that needs pictures.
        search: whether layers stay in the parent's numbers until the gate is met.
        passes: over the graph before it is quantized, see :data:`Pass`.
        operations: by format, the kinds of operations that are quantized; those of the file where it is left out.
        summary: one line.
    """

    name: Name
    weights: Numbers
    compute: Numbers
    formats: tuple[FormatName, ...]
    parent: str = ""
    calibrated: bool = False
    search: bool = False
    passes: tuple[Pass, ...] = ()
    operations: dict[FormatName, tuple[str, ...]] = {}
    summary: str = ""


@cache
def _shipped() -> dict[str, Recipe]:
    text = resources.files("samexport.exporter").joinpath("recipes.json").read_bytes()
    return {recipe.name: recipe for recipe in msgspec.json.decode(text, type=tuple[Recipe, ...])}


RECIPES: dict[str, Recipe] = _shipped()


QUANTIZABLE: dict[FormatName, tuple[str, ...]] = {
    "onnx": ("Conv", "ConvTranspose", "Gemm", "MatMul"),
    "tflite": ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL"),
    "coreml": (),
}
"""The kinds of operations that a recipe may name, by format; CoreML's tools choose themselves."""

INT8: dict[str, str] = {"onnx": "mixed", "tflite": "mixed_dynamic", "coreml": "weight_only_wi8_afp16"}
"""What ``int8`` means, by format: the smallest and fastest recipe whose masks passed the gate, by measurement on a
processor. Accelerators of phones take integers with fixed scales alone: ``mixed``."""


def recipe_name(name: str, file_format: str) -> str:
    """The same name, or of ``int8`` the format's own."""
    return INT8[file_format] if name == "int8" else name


def find_recipe(name: str, file_format: str) -> Recipe:
    """The recipe called ``name``; ConfigError names those that the format writes, if it does not."""
    if name not in RECIPES or file_format not in RECIPES[name].formats:
        known = [recipe.name for recipe in RECIPES.values() if file_format in recipe.formats]
        raise ConfigError(
            f"{file_format} is written as {' or '.join(known)} (int8 is the best of integers), not {name!r}"
        )
    return RECIPES[name]


def read_recipe(name: str, file_format: str) -> Recipe:
    """The same, or the recipe in a file of the user's whose name ends in ``.json``; ConfigError says what is wrong."""
    if not name.endswith(".json"):
        return find_recipe(recipe_name(name, file_format), file_format)
    try:
        recipe = msgspec.convert(read_json(Path(name)), Recipe)
    except (FileError, msgspec.ValidationError) as error:
        raise ConfigError(f"{name} is no recipe ({reason(error)}); docs/quantization.md shows one") from error
    if recipe.name in (*RECIPES, "int8"):
        raise ConfigError(f"{name}: the name {recipe.name} is taken; give the recipe another one")
    parent = RECIPES.get(recipe.parent)
    if parent is None or parent.parent:
        raise ConfigError(f"{name}: parent is fp32 or fp16, from which the files are quantized, not {recipe.parent!r}")
    if file_format not in recipe.formats:
        raise ConfigError(f"{name} is for {' and '.join(recipe.formats)} files, not {file_format}")
    for each, kinds in recipe.operations.items():
        if each in recipe.formats and not kinds and QUANTIZABLE[each]:
            raise ConfigError(f"{name}: operations of {each} names none; known: {', '.join(QUANTIZABLE[each])}")
        if unknown := [kind for kind in kinds if kind not in QUANTIZABLE[each]]:
            known = ", ".join(QUANTIZABLE[each]) or "none, so leave it out"
            raise ConfigError(f"{name}: operations of {each}: {', '.join(unknown)} cannot be quantized; known: {known}")
    return recipe
