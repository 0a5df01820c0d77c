import math

import numpy as np
import pytest
import torch

from samexport.models.architectures.prompt_encoder import PromptEncoder
from tests.models import golden

VECTORS = "mobilesam.npz"


@pytest.fixture
def small():
    """Width 8 at 64 pixels, every value random."""
    torch.manual_seed(0)
    encoder = PromptEncoder(8, 64).requires_grad_(False)
    encoder.pe_layer.positional_encoding_gaussian_matrix.normal_()
    return encoder


@pytest.mark.parametrize("picture", ["land", "port", "syn"])
@pytest.mark.parametrize("case", golden.CASES)
def test_tokens_of_a_golden_prompt(mobile_sam, picture, case):
    vectors = golden.read(VECTORS)
    tokens = mobile_sam.prompt_encoder.embed_points(*golden.prompts_of(vectors, f"{picture}.{case}"))
    golden.close(tokens[..., ::4], vectors[f"{picture}.{case}.sparse"], 1e-5)


def test_points_without_a_box_get_one_padding_token_and_boxes_get_none():
    tokens = {case: golden.read(VECTORS)[f"land.{case}.sparse"].shape[1] for case in golden.CASES}
    assert tokens == {"one_click": 2, "three_clicks": 4, "box": 2, "box_click": 3, "mask_click": 2, "box_batch5": 2}
    for case, count in tokens.items():
        assert golden.prompts_of(golden.read(VECTORS), f"land.{case}")[1].shape[1] == count


def test_dense_position_encoding_is_the_official_one(mobile_sam):
    ours = mobile_sam.prompt_encoder.dense_pe()
    assert ours.shape == (1, 256, 64, 64)
    golden.close(ours[0, ::16, ::8, ::8], golden.read(VECTORS)["dense_pe"], 1e-5)


@pytest.mark.parametrize("picture", ["land", "syn"])
def test_dense_map_of_a_golden_mask_prompt(mobile_sam, mask_inputs, picture):
    dense = mobile_sam.prompt_encoder.embed_mask(mask_inputs[picture], torch.ones(1))
    golden.close(dense[0, ::16, ::8, ::8], golden.read(VECTORS)[f"{picture}.mask_click.dense"], 1e-4)


def test_position_encoding_worked_by_hand(small):
    matrix = small.pe_layer.positional_encoding_gaussian_matrix.double().numpy()
    x, y = 20.25, 3.0
    u = (2 * (x + 0.5) / 64 - 1) * matrix[0] + (2 * (y + 0.5) / 64 - 1) * matrix[1]
    expected = np.concatenate([np.sin(2 * math.pi * u), np.cos(2 * math.pi * u)])
    token = small.embed_points(torch.tensor([[[x, y]]]), torch.ones(1, 1))[0, 0] - small.point_embeddings[1].weight[0]
    golden.close(token, expected, 1e-5)


def test_each_label_adds_its_own_embedding(small):
    labels = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    tokens = small.embed_points(torch.full((1, 4, 2), 12.0), labels)[0]
    bare = small.pe_layer(torch.full((2,), 12.5 / 64))
    for token, embedding in zip(tokens, small.point_embeddings, strict=True):
        torch.testing.assert_close(token, bare + embedding.weight[0])


def test_padding_point_has_no_position_and_absent_slot_is_zero(small):
    coords = torch.tensor([[[0.0, 0.0], [50.0, 9.0], [0.0, 0.0], [50.0, 9.0]]])
    tokens = small.embed_points(coords, torch.tensor([[-1.0, -1.0, -2.0, -2.0]]))[0]
    nothing = small.not_a_point_embed.weight[0]
    assert torch.equal(tokens, torch.stack([nothing, nothing, torch.zeros(8), torch.zeros(8)]))


def test_dense_map_is_the_mask_where_there_is_one_and_else_the_constant(small):
    masks = torch.randn(2, 1, 16, 16)
    dense = small.embed_mask(masks, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(dense[:1], small.mask_downscaling(masks[:1]))
    torch.testing.assert_close(dense[1:], small.no_mask_embed.weight.view(1, 8, 1, 1).expand(1, 8, 4, 4))
