import pytest
import torch

from samexport.models.architectures.hiera import Attention, Block, Hiera, PyramidNeck
from samexport.models.architectures.sam2 import BASE_PLUS, LARGE, SMALL, TINY
from tests.models import golden, sam2_golden

# from the configurations of the official code: window of each block, 0 for the whole map; where queries are pooled
BLOCKS = {
    "tiny": (TINY, [8, 8, 4, 4, 14, 0, 14, 0, 14, 0, 14, 7], [1, 3, 10]),
    "small": (SMALL, [8, 8, 4, 4, 14, 14, 14, 0, 14, 14, 0, 14, 14, 0, 14, 7], [1, 3, 14]),
    "base_plus": (
        BASE_PLUS,
        [8, 8, 8, 4, 4, 4, *[14] * 6, 0, *[14] * 3, 0, *[14] * 3, 0, 14, 7, 7],
        [2, 5, 21],
    ),
    "large": (
        LARGE,
        [8, 8, 8, *[4] * 6, *[16] * 14, 0, *[16] * 9, 0, *[16] * 9, 0, 16, 8, 8, 8],
        [2, 8, 44],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_windows_and_pooling_of_each_block_are_the_official_ones(name):
    size, windows, pooled = BLOCKS[name]
    with torch.device("meta"):
        trunk = Hiera(size.trunk)
    assert [block.window for block in trunk.blocks] == windows
    assert [i for i, block in enumerate(trunk.blocks) if block.attn.pooled] == pooled
    assert list(trunk.stage_ends) == [i - 1 for i in (*pooled, len(windows))]
    for block in trunk.blocks:
        assert block.attn.qkv.out_features // 3 // block.attn.heads == size.trunk.width // size.trunk.heads


@pytest.mark.parametrize(("name", "count"), [("tiny", 26_849_472), ("small", 33_947_328), ("base_plus", 68_675_712)])
def test_number_of_parameters(name, count):
    with torch.device("meta"):
        trunk = Hiera(BLOCKS[name][0].trunk)
    assert sum(p.numel() for p in trunk.parameters()) == count


def test_base_plus_on_the_golden_picture_up_to_its_first_global_block():
    vectors = golden.read("sam2_base_plus.npz")
    trunk = Hiera(BASE_PLUS.trunk)
    trunk.blocks = trunk.blocks[:13]  # the rest is more of the same
    sam2_golden.randomise(trunk, "image_encoder.trunk.")
    seen, _ = golden.watch(dict(enumerate(trunk.blocks)))
    trunk(sam2_golden.picture())
    for index in (1, 4, 5, 12):
        sam2_golden.check_block(seen[index], vectors, index)
    for index, expected in enumerate(vectors["block_stats"]):
        golden.close(sam2_golden.stats(seen[index]), expected, 1e-3)


def random_block(*args):
    torch.manual_seed(0)
    block = Block(*args).requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    return block


def test_pooling_takes_the_maximum_of_queries_and_keeps_keys_and_values():
    torch.manual_seed(0)
    attention, x = Attention(6, 8, 2, pooled=True).requires_grad_(False), torch.randn(1, 4, 2, 6)
    q, k, v = attention.qkv(x).view(8, 3, 2, 4).unbind(1)  # tokens row by row: 0 1 / 2 3 / 4 5 / 6 7
    q = torch.stack([q[:4].amax(0), q[4:].amax(0)])
    weights = (torch.einsum("qhc,khc->hqk", q, k) / 4**0.5).softmax(-1)
    expected = attention.proj(torch.einsum("hqk,khc->qhc", weights, v).reshape(2, 8)).view(1, 2, 1, 8)
    torch.testing.assert_close(attention(x), expected)


def test_shortcut_of_a_wider_block_projects_the_normalised_input():
    block = random_block(4, 8, 2, 0)
    block.attn.proj.weight.zero_()
    block.attn.proj.bias.zero_()
    x = torch.randn(1, 2, 2, 4)
    shortcut = block.proj(block.norm1(x)).amax((1, 2), keepdim=True)
    torch.testing.assert_close(block(x), shortcut + block.mlp(block.norm2(shortcut)))


def test_padding_is_zero_after_the_norm_and_takes_part():
    """A 2x2 map in a window of 3 is a 3x3 map whose third row and column are zero."""
    block, x = random_block(8, 8, 2, 3), torch.randn(1, 2, 2, 8)
    padded = torch.nn.functional.pad(block.norm1(x), (0, 0, 0, 1, 0, 1))
    y = x + block.attn(padded)[:, :2, :2]
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


def test_windows_do_not_see_each_other_and_pooling_halves_them():
    block, x = random_block(4, 8, 2, 2), torch.randn(1, 4, 6, 4)
    whole = block(x)
    assert whole.shape == (1, 2, 3, 8)
    for row in range(2):
        for column in range(3):
            window = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(block(window), whole[:, row : row + 1, column : column + 1])


def test_padded_window_that_is_pooled_is_cropped_to_half():
    block, x = random_block(4, 8, 2, 4), torch.randn(1, 6, 6, 4)
    alone = torch.nn.functional.pad(block.norm1(x)[:, 4:, 4:], (0, 0, 0, 2, 0, 2))
    corner = block.attn(alone)[:, :1, :1] + block.proj(block.norm1(x)[:, 4:, 4:]).amax((1, 2), keepdim=True)
    out = block(x)
    assert out.shape == (1, 3, 3, 8)
    torch.testing.assert_close(out[:, 2:, 2:], corner + block.mlp(block.norm2(corner)))


def test_position_embedding_tiles_the_window_part_and_stretches_the_background():
    trunk = Hiera(TINY.trunk).requires_grad_(False)
    trunk.pos_embed_window.normal_()
    trunk.pos_embed.fill_(2.0)
    embedding = trunk.position_embedding(16)
    tile = trunk.pos_embed_window.permute(0, 2, 3, 1) + 2
    for row, column in ((0, 0), (0, 8), (8, 0), (8, 8)):
        torch.testing.assert_close(embedding[:, row : row + 8, column : column + 8], tile)


def test_neck_adds_the_deepest_stage_to_the_one_before_and_to_no_other():
    torch.manual_seed(0)
    neck = PyramidNeck((2, 3, 4, 5), 6).requires_grad_(False)
    stages = [torch.randn(1, 2 + i, 16 >> i, 16 >> i) for i in range(4)]
    high, middle, low = neck(stages)
    torch.testing.assert_close(high, neck.convs[3](stages[0]))
    torch.testing.assert_close(middle, neck.convs[2](stages[1]))
    deepest = neck.convs[0](stages[3])
    torch.testing.assert_close(low, neck.convs[1](stages[2]) + torch.kron(deepest, torch.ones(2, 2)))
