import pytest
import torch

from samexport.models.architectures.mask_decoder import MaskDecoder
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from tests.models import golden

VECTORS = "mobilesam.npz"
# end to end, and the decoder alone
TOLERANCE = {"land": 1e-3, "syn": 5e-4}


@pytest.fixture(scope="module")
def decoders(mobile_sam):
    spec = find_model("tinyvit")
    return tuple(build_graph(mobile_sam, spec, name, plain=True)[1] for name in ("decoder", "decoder_with_mask"))


@pytest.mark.parametrize("picture", ["land", "syn"])
@pytest.mark.parametrize("case", golden.CASES)
def test_masks_and_scores_of_a_golden_prompt(decoders, decode, picture, case):
    vectors, name = golden.read(VECTORS), f"{picture}.{case}"
    outputs = decode(decoders, picture, *golden.prompts_of(vectors, name), mask=case == "mask_click")
    golden.check_masks(*outputs, vectors, name, TOLERANCE[picture])


def small_inputs(count, tokens):
    torch.manual_seed(1)
    source, pe = torch.randn(count, 64, 4, 4), torch.randn(1, 64, 4, 4)
    return source, pe, torch.randn(count, tokens, 64)


@pytest.fixture(scope="module")
def small():
    return golden.random_sam("test.tinyvit64").mask_decoder


def test_prompts_of_a_batch_do_not_see_each_other(small):
    source, pe, sparse = small_inputs(3, 2)
    masks, iou = small(source, pe, sparse, torch.zeros(3, 2))
    for i in range(3):
        alone = small(source[i : i + 1], pe, sparse[i : i + 1], torch.zeros(1, 2))
        torch.testing.assert_close(masks[i : i + 1], alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(iou[i : i + 1], alone[1], rtol=1e-4, atol=1e-4)


def test_token_with_a_large_negative_bias_does_not_exist(small):
    source, pe, sparse = small_inputs(1, 3)
    with_absent = small(source, pe, sparse, torch.tensor([[0.0, -1e4, 0.0]]))
    without = small(source, pe, sparse[:, ::2], torch.zeros(1, 2))
    for ours, expected in zip(with_absent, without, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_first_block_replaces_the_tokens_and_the_second_adds_to_them(small):
    first, second = small.transformer.layers
    assert (first.first, second.first) == (True, False)
    tokens, image = torch.randn(1, 6, 64), torch.randn(1, 16, 64)
    mute = MaskDecoder(64, 128).requires_grad_(False)
    mute.load_state_dict(small.state_dict())
    for block in mute.transformer.layers:
        for attention in (block.self_attn, block.cross_attn_token_to_image):
            attention.out_proj.weight.zero_()
            attention.out_proj.bias.zero_()
        block.mlp.lin2.weight.zero_()
        block.mlp.lin2.bias.zero_()
    results = [block(tokens, image, tokens, image, torch.zeros(1, 6))[0] for block in mute.transformer.layers]
    assert torch.equal(results[0][0, 0], results[0][0, 1])
    assert not torch.allclose(results[1][0, 0], results[1][0, 1])
