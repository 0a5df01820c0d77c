import pytest
import torch

from samexport.errors import ConfigError
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from tests.models import golden

TINY = "test.tinyvit64"


@pytest.fixture(scope="module")
def tiny():
    return find_model(TINY), golden.random_sam(TINY)


def test_graph_comes_with_its_own_spec(tiny):
    model, sam = tiny
    for graph in model.graphs:
        assert build_graph(sam, model, graph.name)[0] is graph


@pytest.mark.parametrize("name", ["decoder_prologue", "decoder_step"])
def test_halves_of_the_decoder_have_no_plain_form(tiny, name):
    model, sam = tiny
    with pytest.raises(ConfigError, match=f"no plain graph '{name}'.*encoder, decoder"):
        build_graph(sam, model, name, plain=True)


def test_unknown_graph_is_one_line_with_the_known_ones(tiny):
    model, sam = tiny
    with pytest.raises(ConfigError, match=r"no graph 'decodr'; known: encoder, decoder, .*decoder_step") as caught:
        build_graph(sam, model, "decodr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plain", [False, True])
def test_modules_are_in_evaluation_mode_even_if_the_model_was_not(tiny, plain):
    model, sam = tiny
    sam.train()
    module = build_graph(sam, model, "encoder", plain=plain)[1]
    assert not any(layer.training for layer in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    sam.eval()


def test_building_and_running_leaves_the_weights_as_they_were(tiny):
    model, sam = tiny

    def weights():
        return golden.checksum({key: value.numpy() for key, value in sam.state_dict().items()})

    before = weights()
    for name in ("encoder", "decoder", "decoder_with_mask", "decoder_prologue", "decoder_step"):
        build_graph(sam, model, name)
    build_graph(sam, model, "encoder", plain=True)[1](torch.rand(1, 3, 64, 64) * 255)
    assert weights() == before


def test_two_builds_of_one_model_are_equal(tiny):
    model, sam = tiny
    image = torch.rand(1, 3, 64, 64) * 255
    first, second = (build_graph(sam, model, "encoder")[1](image) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("plain", [False, True])
def test_normalisation_is_inside_and_padding_with_the_mean_is_zero(tiny, plain):
    """An image that is the mean everywhere is the network's zero image, to the last bit."""
    model, sam = tiny
    mean = torch.tensor(model.frame.mean).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    encoded = build_graph(sam, model, "encoder", plain=plain)[1](mean)
    expected = sam.image_encoder(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(encoded, expected, rtol=0, atol=0 if plain else 1e-4)
