"""What is registered, and what is refused."""

from dataclasses import replace
from pkgutil import resolve_name
from unittest import mock

import pytest

from samexport.errors import ConfigError
from samexport.models import catalog
from samexport.models.catalog import FAMILIES, find_family, register
from tests.families.toy import FAMILY


@pytest.fixture(autouse=True)
def restored():
    with mock.patch.dict(FAMILIES), mock.patch.dict(catalog.MODELS), mock.patch.dict(catalog._BY_NAME):
        yield


@pytest.mark.parametrize("family", [*FAMILIES.values(), FAMILY], ids=lambda family: family.name)
def test_dotted_paths_lead_somewhere_and_graphs_fit(family):
    for path in (family.network, family.session, family.cases, family.card, *family.dialects, *family.extras.values()):
        assert callable(resolve_name(path))
    forms, plain = resolve_name(family.forms), resolve_name(family.plain)
    for features in ((), family.features):
        assert set(family.graphs(features)) <= set(forms)
    graphs = [{graph.name for graph in model.graphs} for model in family.models]
    for names in graphs:
        assert set(family.graphs(())) <= names <= set(forms)
    assert set().union(*graphs) == set(forms)
    assert set(plain) | set(family.equal.values()) <= set(forms)
    outputs = {tensor.name for model in family.models for graph in model.graphs for tensor in graph.outputs}
    inputs = {tensor.name for model in family.models for graph in model.graphs for tensor in graph.inputs}
    assert set(family.state) <= outputs
    assert set(family.state.values()) <= inputs


def test_a_registered_family_and_its_models_are_found():
    register(FAMILY)
    register(FAMILY)
    assert find_family("toy") is FAMILY
    assert catalog.find_model("blob") is FAMILY.models[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sam"}, "name that is taken"),
        ({"models": (replace(FAMILY.models[0], name="mobilesam.tinyvit"),)}, "name that is taken"),
        ({"models": (replace(FAMILY.models[0], family="sam"),)}, "of another family"),
    ],
)
def test_names_that_are_taken_and_models_of_others_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        register(replace(FAMILY, **changes))


def test_an_unknown_family_is_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no family is called 'nothing'; known: sam"):
        find_family("nothing")
