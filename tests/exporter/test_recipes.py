import pytest

from samexport.errors import ConfigError
from samexport.exporter.formats import FORMATS
from samexport.exporter.recipes import RECIPES, find_recipe
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
