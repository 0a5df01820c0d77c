import pytest
import torch

from samexport.models.architectures import sam_vit
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.graphs import sam_vit as graph
from samexport.models.graphs.sam_vit import Block
from tests.models import golden
from tests.models.graphs.test_tiny_vit import largest_share, operators, picture

TINY = "test.vit64"


@pytest.fixture(scope="module")
def tiny():
    return golden.random_sam(TINY)


@pytest.fixture(scope="module")
def encoders(tiny):
    """Export form and plain form."""
    return [build_graph(tiny, find_model(TINY), "encoder", plain=plain)[1] for plain in (False, True)]


@pytest.mark.parametrize("kind", ["noise", "padded", "black", "white"])
def test_export_form_equals_the_architecture(encoders, kind):
    export, plain = encoders
    assert largest_share(export(picture(kind)), plain(picture(kind))) < 1e-5


def random_block(window, grid):
    """Biases as large as the signal: an error in what a padding token contributes cannot hide."""
    torch.manual_seed(window)
    block = sam_vit.Block(8, 2, window, grid).requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_()
    return block


@pytest.mark.parametrize(("folded", "chunk"), [(True, 512), (False, 512), (False, 8)])
@pytest.mark.parametrize(("window", "height", "columns"), [(3, 3, 3), (3, 4, 4), (3, 7, 5), (7, 2, 9), (0, 5, 5)])
def test_block_equals_the_architecture_on_any_grid(window, height, columns, folded, chunk, monkeypatch):
    monkeypatch.setattr(graph, "LARGEST_FOLDED", 32 if folded else 0)
    monkeypatch.setattr(graph, "QUERY_CHUNK", chunk)
    block, x = random_block(window, height), torch.randn(1, height, columns, 8)
    form = Block(block)
    assert form.attention.folded == folded
    assert largest_share(form(x), block(x)) < 1e-5
    assert golden.largest_rank(torch.export.export(form, (x,))) <= 4


def test_padding_token_is_a_zero_after_the_norm_and_has_a_say():
    """The constants that stand for its key and value matter: without the bias the padded result is another one."""
    block, x = random_block(3, 4), torch.randn(1, 4, 4, 8)
    before = block(x)
    block.attn.qkv.bias.zero_()
    assert largest_share(block(x), before) > 0.01
    assert largest_share(Block(block)(x), block(x)) < 1e-5


def test_relative_positions_of_rows_and_columns_are_not_swapped(tiny):
    """On random tables a swap is visible, and the export form follows it."""
    block, x = random_block(3, 4), torch.randn(1, 4, 4, 8)
    before = block(x)
    attention = block.attn
    attention.rel_pos_h, attention.rel_pos_w = attention.rel_pos_w, attention.rel_pos_h
    assert largest_share(block(x), before) > 0.01
    assert largest_share(Block(block)(x), block(x)) < 1e-5


def test_no_tensor_is_above_rank_4(encoders):
    export, plain = (golden.largest_rank(torch.export.export(form, (picture("noise"),))) for form in encoders)
    assert export <= 4 < plain


def test_layer_norms_see_real_tokens_only(encoders):
    """A grid of 4 in windows of 3: a normalised padding token would make a 6."""
    program = torch.export.export(encoders[0], (picture("noise"),))
    norms = [shape for name, shape in operators(program) if name == "layer_norm"]
    assert len(norms) == 2 * 2 + 2
    assert {shape[:3] for shape in norms} == {(1, 4, 4)}
