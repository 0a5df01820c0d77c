"""Every family and every model as data. ``samexport list`` reads this and imports no torch."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Sequence
from functools import cache

from samexport.errors import ConfigError
from samexport.files import in_words
from samexport.models.families import efficient_sam, sam2_models, sam_hq, sam_models
from samexport.models.families.base import Family
from samexport.models.spec import ModelSpec

PLUGINS = "samexport.families"
"""Group of entry points that name a :class:`Family` of another package; they are looked at when a name is unknown."""

_ENDING = re.compile(r"\.(pth?|ckpt|bin|safetensors)$")


def names_of(model: ModelSpec) -> tuple[str, ...]:
    """Every name of a model: ``family.encoder``, ``encoder``, the aliases, the official file's without its ending.

    A hidden model leaves the file's name to the one that is shown.
    """
    file = (_ENDING.sub("", model.source.filename),) if model.source and not model.hidden else ()
    return tuple(dict.fromkeys((model.name, model.encoder, *model.aliases, *file)))


FAMILIES: dict[str, Family] = {}
MODELS: dict[str, ModelSpec] = {}
_BY_NAME: dict[str, ModelSpec] = {}


def register(family: Family) -> None:
    """Make a family and its models known; ValueError if a name is taken by another one."""
    if FAMILIES.get(family.name) == family:
        return
    new = [(name, model) for model in family.models for name in names_of(model)]
    taken = [name for name, _ in new if name in _BY_NAME]
    if family.name in FAMILIES or taken or len(dict(new)) < len(new):
        raise ValueError(f"the family {family.name} has a name that is taken: {taken or family.name}")
    if foreign := [model.name for model in family.models if model.family != family.name]:
        raise ValueError(f"{foreign[0]} says that it is of another family than {family.name}")
    FAMILIES[family.name] = family
    MODELS.update({model.name: model for model in family.models})
    _BY_NAME.update(new)


register(sam_models.FAMILY)
register(sam_hq.FAMILY)
register(efficient_sam.FAMILY)
register(sam2_models.FAMILY)


@cache
def load_plugins() -> None:
    """Register the families that installed packages name under :data:`PLUGINS`."""
    for point in importlib.metadata.entry_points(group=PLUGINS):
        register(point.load())


def find_family(name: str) -> Family:
    """The family called ``name``; ConfigError names those that there are."""
    if name not in FAMILIES:
        load_plugins()
    if name not in FAMILIES:
        raise ConfigError(f"no family is called {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def find_model(name: str, size: int | None = None, features: Sequence[str] = ()) -> ModelSpec:
    """The model with this name, in any case, also a weight file's, with a frame of side ``size``.

    Of a network that comes in several forms it is the one that has the ``features``, see :class:`Family`.

    The names are ``family.encoder``, just ``encoder``, and the aliases.

    Raises:
        ConfigError: no model has this name (the close matches are named), it has frames of other sizes alone, or it
            does not come with a feature.
    """
    model = _by_any_name(name)
    variants = FAMILIES[model.family].variants
    for feature in features:
        if feature in variants and model.name not in variants[feature]:
            raise ConfigError(f"{model.name} has no feature {feature!r}")
        model = MODELS[variants[feature][model.name]] if feature in variants else model
    if size is None or size == model.frame.size:
        return model
    at_size = FAMILIES[model.family].at_size
    if at_size is None:
        raise ConfigError(f"{model.name} takes pictures of {model.frame.size} pixels alone")
    return at_size(model, size)


def _by_any_name(name: str) -> ModelSpec:
    if not isinstance(name, str):
        raise ConfigError(f"a model is named by a text such as 'mobilesam', not {in_words(name)}; see `samexport list`")
    model = _look_up(name)
    if model is None:
        load_plugins()
        model = _look_up(name)
    if model is None:
        shown = {known: m for known, m in _BY_NAME.items() if not m.hidden}
        close = difflib.get_close_matches(name, shown, n=8, cutoff=0.4)
        models = list(dict.fromkeys(known if known == shown[known].name else shown[known].encoder for known in close))
        hint = f"did you mean {' or '.join(models[:3])}?" if models else "see `samexport list`"
        raise ConfigError(f"no encoder is called {name!r}; {hint}")
    return model


def _look_up(name: str) -> ModelSpec | None:
    return _BY_NAME.get(name) or _BY_NAME.get(_ENDING.sub("", name.lower()))
