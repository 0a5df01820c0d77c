import pytest

from samexport.api import _target
from samexport.errors import ConfigError
from samexport.exporter.formats import FORMATS
from samexport.exporter.recipes import INT8, RECIPES, find_recipe, read_recipe, recipe_name
from samexport.runtimes.parity.compare import TIERS


def test_every_recipe_has_a_tolerance_and_formats_that_there_are():
    for recipe in RECIPES.values():
        assert recipe.name in TIERS
        assert set(recipe.formats) <= set(FORMATS)
        assert not recipe.parent or recipe.parent in RECIPES


@pytest.mark.parametrize(("name", "file_format"), [("fp16", "tflite"), ("int8", "onnx"), ("", "coreml")])
def test_a_recipe_that_a_format_does_not_write_is_refused(name, file_format):
    with pytest.raises(ConfigError, match=f"{file_format} is written as fp32"):
        find_recipe(name, file_format)
    with pytest.raises(ConfigError):
        FORMATS[file_format].options(recipe=name)


def test_int8_is_a_recipe_of_each_format():
    assert set(INT8) == set(FORMATS)
    for file_format in FORMATS:
        recipe = read_recipe("int8", file_format)
        assert (recipe.weights, recipe.name) == ("int8", recipe_name("int8", file_format))
        assert _target(file_format, "int8", {}).recipe == recipe.name
    assert recipe_name("fp16", "onnx") == "fp16"
