import pytest
import torch
from torch import nn
from torch.nn import functional as F

from samexport.exporter.to_tflite.forms import TfliteForms, half_safe_layer_norm, layer_norm


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("form", [layer_norm, half_safe_layer_norm])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_layer_norm_is_the_one_of_pytorch(form, scale):
    x, weight, bias = normal(2, 5, 64) * scale + 3 * scale, normal(64), normal(64)
    for given in ((None, None), (weight, None), (weight, bias)):
        torch.testing.assert_close(
            form(x, (64,), *given, 1e-6), F.layer_norm(x, (64,), *given, 1e-6), rtol=1e-4, atol=2e-5
        )


def test_a_row_of_equal_numbers_is_zero_in_both_forms():
    x = torch.full((1, 64), 7.0)
    for form in (layer_norm, half_safe_layer_norm):
        assert form(x, (64,), None, None, 1e-6).abs().max() == 0


def test_in_half_precision_only_the_safe_layer_norm_survives_large_activations():
    x = normal(4, 256) * 300
    expected = F.layer_norm(x, (256,))
    half = x.half()
    assert (layer_norm(half, (256,)) - expected).abs().max() > 1
    assert (half_safe_layer_norm(half, (256,)) - expected).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4, 5, 6), (3, 4, 6, 7)), ((3, 4, 5, 6), (4, 6, 7)), ((1, 4, 5, 6), (4, 6, 7)), ((3, 5, 6), (3, 6, 7)),
        ((3, 5, 6), (6, 7)), ((5, 6), (6, 7)), ((5, 6), (3, 6, 7)), ((3, 1, 5, 6), (1, 4, 6, 7)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weights", [(), (0,), (1,)])
def test_products_are_those_of_pytorch(left, right, weights):
    pair = [normal(*left), normal(*right)]
    pair = [nn.Parameter(t, requires_grad=False) if i in weights else t for i, t in enumerate(pair)]
    expected = pair[0] @ pair[1]
    with TfliteForms():
        torch.testing.assert_close(pair[0] @ pair[1], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.matmul(*pair), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 3, 2), (4, -1, 2), (5, 4, 3, 2), (1, 3, 2), (1, 3, 7)])
def test_expand_is_the_one_of_pytorch(sizes):
    x = normal(1, 3, 1)[:, :, :1].expand(1, 3, 2) if sizes[-1] == 2 else normal(1, 3, 1)
    if sizes == (5, 4, 3, 2):
        sizes = (5, 1, 3, 2)
    expected = x.expand(*sizes)
    with TfliteForms():
        torch.testing.assert_close(x.expand(*sizes), expected, rtol=0, atol=0)
        torch.testing.assert_close(x.expand(torch.Size(sizes)), expected, rtol=0, atol=0)


def test_no_more_than_two_tensors_are_joined_at_once():
    joined = []
    cat = torch.cat

    def spy(tensors, dim=0):
        joined.append(len(tensors))
        return cat(tensors, dim=dim)

    torch.cat = spy
    try:
        with TfliteForms():
            assert normal(1, 2).expand(21, 2).shape == (21, 2)
    finally:
        torch.cat = cat
    assert max(joined) == 2
    assert len(joined) == 5


def test_half_safe_is_chosen_on_request():
    x = (normal(4, 256) * 300).half()
    with TfliteForms(half_safe=True):
        assert (F.layer_norm(x, (256,)) - F.layer_norm(x.float(), (256,))).abs().max() < 5e-3
        assert nn.LayerNorm(256).half()(x).isfinite().all()
