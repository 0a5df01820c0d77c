"""Efficient-SAM2 against its official code (``efficient_sam2.npz``: jingjing0419/Efficient-SAM2 8e1ad06, seed 7)."""

import numpy as np
import pytest
import torch

from samexport.models.architectures import sam2
from samexport.models.architectures.hiera import HieraSize, ImageEncoder
from samexport.models.architectures.sam2_memory import MemoryAttention, sine_2d
from samexport.models.architectures.sam2_sparse import (
    Bypass,
    PrunedMemoryAttention,
    RoutedEncoder,
    Routing,
    most_salient,
    routing,
    to_map,
    to_windows,
)
from samexport.models.families.sam2_sparse import kept_tokens
from samexport.models.weights.random_weights import random_state_dict
from samexport.runtimes.host.windows import Windows
from tests.models import golden, sam2_golden

VECTORS = "efficient_sam2.npz"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (sam2.BASE_PLUS, Routing(6, 20, 14, 448)),
        (sam2.LARGE, Routing(9, 43, 16, 576)),
        (sam2.TINY, Routing(4, 9, 14, 384)),
    ],
)
def test_routed_blocks_are_the_official_ones(size, expected):
    assert routing(size.trunk) == expected


def test_chosen_windows_of_base_plus_are_the_official_ones():
    vectors, size = golden.read(VECTORS), sam2.BASE_PLUS.trunk
    encoder = ImageEncoder(size)
    # up to the block after the first inner global one; the rest is more of the same
    encoder.trunk.blocks = encoder.trunk.blocks[:14]
    sam2_golden.randomise(encoder.trunk, "image_encoder.trunk.")
    routed = RoutedEncoder(encoder, torch.nn.Identity(), size)
    stem = encoder.trunk.blocks[:6]
    x = encoder.trunk.patch_embed(sam2_golden.picture())
    x = torch.nn.Sequential(*stem)(x + encoder.trunk.position_embedding(256))
    chosen = torch.from_numpy(vectors["routed.windows"])
    routed.routing = Routing(6, 14, 14, 448)
    found = routed.routed(to_windows(x, 14)[chosen], routed.inside(64)[chosen])
    golden.close(found[:, ::5, ::5, ::64], vectors["routed.block13"], 1e-4)


SIZE = HieraSize(16, 1, (1, 1, 6, 1), (4, 7), windows=(8, 4, 4, 2))
"""128 pixels: a map of 8 x 8 in the third stage, four windows, no padding; blocks 3 to 6 are routed, 4 is global."""


@pytest.fixture(scope="module")
def small():
    return sam2_golden.randomise(ImageEncoder(SIZE, 32))


def picture():
    torch.manual_seed(0)
    return torch.randn(1, 3, 128, 128)


def test_all_windows_of_an_unpadded_map_are_the_dense_encoder(small):
    found = RoutedEncoder(small, torch.nn.Identity(), SIZE)(picture(), torch.arange(4))
    for ours, dense in zip(found, small(picture()), strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-4)


def test_windows_that_are_not_chosen_get_the_bypass_and_touch_nothing_before_the_last_global_block(small):
    seen, _ = golden.watch({"before": small.trunk.blocks[2], "last": small.trunk.blocks[7].norm1})
    torch.manual_seed(1)
    bypass = Bypass(SIZE.widths[2]).eval()
    inputs = []
    handle = small.trunk.blocks[7].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    encoder = RoutedEncoder(small, bypass, SIZE)
    encoder(picture(), torch.tensor([1, 2]))
    encoder(picture(), torch.tensor([0, 1, 2]))
    handle.remove()
    fewer, more = (to_windows(x, 4) for x in inputs)
    expected = bypass(to_windows(seen["before"], 4))
    torch.testing.assert_close(fewer[[0, 3]], expected[[0, 3]])
    torch.testing.assert_close(more[3], expected[3])
    assert (fewer[1] - more[1]).abs().max() > 1e-3, "a global block sees all chosen windows"


def test_bypass_is_a_bottleneck_around_which_tokens_go_on():
    torch.manual_seed(0)
    bypass, x = Bypass(8), torch.randn(2, 3, 3, 8)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    down, up = bypass.down_project, bypass.up_project
    expected = x + (normed @ down.weight.T + down.bias).clamp(min=0) @ up.weight.T + up.bias
    torch.testing.assert_close(bypass(x), expected)
    assert set(bypass.state_dict()) == {
        f"{name}.{kind}" for name in ("norm", "down_project", "up_project") for kind in ("weight", "bias")
    }


def test_windows_are_cut_row_by_row_and_joined_again():
    x = torch.arange(2 * 25.0).view(1, 5, 5, 2)
    windows = to_windows(x, 3)
    assert windows.shape == (4, 3, 3, 2)
    assert windows[1, 0, :, 0].tolist() == [6, 8, 0], "zeros are padded"
    assert windows[2, 0, 0, 0] == 30
    torch.testing.assert_close(to_map(windows, 5), x)
    trunk = RoutedEncoder(ImageEncoder(SIZE, 32), Bypass(64), HieraSize(16, 1, (1, 1, 6, 1), (4, 7), (8, 4, 6, 3)))
    np.testing.assert_array_equal(trunk.inside(8).flatten(1), Windows(8, 6).inside)


@pytest.fixture(scope="module")
def memory():
    """Memories [1, 4096, 64], pointer tokens, and the positions of rows and pointers."""
    shape = {"maskmem_tpos_enc": ((7, 1, 1, 64), "float32")}
    times = torch.from_numpy(random_state_dict(shape, 7)["maskmem_tpos_enc"]).view(7, 64)
    memories = [sam2_golden.drawn(f"smr_memory_{i}", 4096, 1, 64).transpose(0, 1) for i in range(7)]
    pointers = sam2_golden.drawn("smr_ptr", 64, 1, 64).transpose(0, 1)
    places = sine_2d(64, 64).flatten(2).transpose(1, 2) + times[:, None]
    return memories, pointers, places, sam2_golden.drawn("smr_ptr_pos", 64, 1, 64, scale=0.5).transpose(0, 1)


@pytest.fixture(scope="module")
def attention():
    return PrunedMemoryAttention(sam2_golden.randomise(MemoryAttention(256), "memory_attention."))


def current(number):
    return sam2_golden.drawn(f"smr_curr_{number}", 4096, 1, 256).permute(1, 2, 0).view(1, 256, 64, 64)


def sample(features):
    return features.flatten(2).transpose(1, 2)[0, ::64, ::16]


@torch.no_grad()
def test_pruned_memory_is_read_as_the_official_code_reads_it(memory, attention):
    memories, pointers, places, pointer_places = memory
    vectors = golden.read(VECTORS)
    bank = torch.cat([*memories, pointers], dim=1)
    positions = torch.cat([places[[6, 5, 4, 3, 2, 1, 0]].reshape(1, -1, 64), pointer_places], dim=1)
    whole = torch.arange(4096)
    kept = [
        torch.cat([whole, *(4096 * (old + 1) + torch.from_numpy(vectors["kept"][old, layer]) for old in range(5)),
                   6 * 4096 + whole])
        for layer in range(4)
    ]  # fmt: skip
    found, saliency = attention(current(6), bank, positions, 64, kept, 6)
    golden.close(sample(found), vectors["pruned.out"], 1e-3)
    assert kept_tokens(4096) == 204
    np.testing.assert_array_equal(most_salient(saliency, 204), vectors["pruned.newest_kept"])


@torch.no_grad()
def test_everything_kept_is_the_dense_attention():
    attention = sam2_golden.randomise(MemoryAttention(64, 128))
    torch.manual_seed(0)
    vision, memory, positions = torch.randn(1, 64, 4, 4), torch.randn(1, 50, 64), torch.randn(1, 50, 64)
    found, saliency = PrunedMemoryAttention(attention)(vision, memory, positions, 2, [torch.arange(48)] * 4, 2)
    torch.testing.assert_close(found, attention(vision, memory, positions, 2))
    torch.testing.assert_close(saliency.sum(1), torch.ones(4))
