"""The weights of the golden vectors are reproduced bit for bit, on any machine and in any order."""

import numpy as np
import pytest

from samexport.models.weights.random_weights import random_state_dict
from tests.models.golden import checksum, official_keys

# checksums made by the generator of the golden vectors
MOBILE_SAM_SEED_7 = "bd7358f7da6167cda969649f1257fc604bd869ade03d95ae5ac5012b79000e4b"
ONE_KEY_PER_RULE_SEED_7 = "47e84cbd64c94f84b651fc4d2d188162bbb7f76a73ac69616e6cf64c2bd168c5"

ONE_KEY_PER_RULE = {
    "image_encoder.patch_embed.seq.0.bn.num_batches_tracked": ((), "int64"),
    "image_encoder.patch_embed.seq.0.bn.running_mean": ((5,), "float32"),
    "image_encoder.patch_embed.seq.0.bn.running_var": ((5,), "float32"),
    "memory_encoder.fuser.layers.0.gamma": ((5,), "float32"),
    "model.22.dfl.conv.weight": ((1, 6, 1, 1), "float16"),
    "image_encoder.layers.1.blocks.0.attn.attention_biases": ((2, 9), "float32"),
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": ((2, 8), "float32"),
    "image_encoder.blocks.0.attn.rel_pos_h": ((5, 4), "float32"),
    "image_encoder.blocks.0.attn.rel_pos_w": ((5, 4), "float32"),
    "image_encoder.pos_embed": ((1, 2, 2, 4), "float32"),
    "image_encoder.trunk.pos_embed_window": ((1, 4, 2, 2), "float32"),
    "image_encoder.trunk.pos_embedding": ((1, 4, 2, 2), "float32"),
    "mask_decoder.iou_token.weight": ((1, 8), "float32"),
    "mask_decoder.mask_tokens.weight": ((4, 8), "float32"),
    "prompt_encoder.no_mask_embed.weight": ((1, 8), "float32"),
    "prompt_encoder.point_embeddings.3.weight": ((1, 8), "float32"),
    "no_mem_embed": ((1, 1, 8), "float32"),
    "model.22.cv2.1.2.bias": ((8,), "float16"),
    "mask_decoder.iou_prediction_head.layers.2.bias": ((4,), "float32"),
    "sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.bias": ((4,), "float32"),
    "mask_decoder.output_hypernetworks_mlps.0.layers.2.bias": ((4,), "float32"),
    "image_encoder.neck.1.bias": ((4,), "float32"),
    "mask_decoder.output_upscaling.1.weight": ((4,), "float32"),
    "mask_decoder.transformer.layers.0.self_attn.q_proj.weight": ((6, 4), "float32"),
    "mask_decoder.transformer.layers.0.self_attn.k_proj.weight": ((6, 4), "float32"),
    "image_encoder.layers.1.blocks.0.attn.qkv.weight": ((6, 4), "float32"),
    "image_encoder.layers.1.blocks.0.local_conv.c.weight": ((4, 1, 3, 3), "float32"),
    "image_encoder.layers.0.blocks.0.conv3.c.weight": ((4, 6, 1, 1), "float32"),
    "image_encoder.layers.1.blocks.0.mlp.fc2.weight": ((4, 6), "float32"),
    "mask_decoder.iou_prediction_head.layers.2.weight": ((4, 6), "float32"),
    "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight": ((4, 6), "float32"),
    "image_encoder.neck.convs.2.conv.weight": ((4, 6, 1, 1), "float32"),
    "model.4.m.0.cv2.conv.weight": ((4, 4, 3, 3), "float16"),
    "model.22.cv3.0.0.conv.weight": ((4, 4, 3, 3), "float16"),
    "model.3.conv.weight": ((4, 4, 3, 3), "float16"),
    "model.22.cv2.0.2.weight": ((8, 4, 1, 1), "float16"),
    "model.22.cv3.0.2.weight": ((1, 4, 1, 1), "float16"),
    "mask_decoder.output_upscaling.0.weight": ((4, 3, 2, 2), "float32"),
    "image_encoder.neck.0.weight": ((4, 6, 1, 1), "float32"),
}


def test_mobile_sam_at_seed_7_is_the_model_of_the_golden_vectors():
    tensors = official_keys("mobile_sam")
    assert len(tensors) == 439
    assert checksum(random_state_dict(tensors, 7)) == MOBILE_SAM_SEED_7


def test_every_rule_gives_the_values_of_the_golden_generator():
    assert checksum(random_state_dict(ONE_KEY_PER_RULE, 7)) == ONE_KEY_PER_RULE_SEED_7


def test_one_weight_worked_by_hand():
    key, fan_in = "mask_decoder.output_upscaling.0.weight", 4  # transposed: the first dimension feeds each output
    seed = 3401681713770223824  # first 8 bytes, little-endian, of SHA-256 of "7:" and the key
    expected = np.random.default_rng(seed).standard_normal((4, 3, 2, 2)) * (1.4 / fan_in**0.5)
    value = random_state_dict({key: ((4, 3, 2, 2), "float32")}, 7)[key]
    np.testing.assert_array_equal(value, expected.astype(np.float32))


def test_a_value_depends_on_its_own_key_and_the_seed_alone():
    whole = random_state_dict(ONE_KEY_PER_RULE, 7)
    backwards = random_state_dict(dict(reversed(ONE_KEY_PER_RULE.items())), 7)
    other = random_state_dict(ONE_KEY_PER_RULE, 8)
    constant = {"image_encoder.patch_embed.seq.0.bn.num_batches_tracked", "model.22.dfl.conv.weight"}
    for key, spec in ONE_KEY_PER_RULE.items():
        alone = random_state_dict({key: spec}, 7)[key]
        np.testing.assert_array_equal(alone, whole[key])
        np.testing.assert_array_equal(backwards[key], whole[key])
        assert np.array_equal(other[key], whole[key]) == (key in constant)
        assert (whole[key].shape, whole[key].dtype.name) == spec
    assert checksum(backwards) == checksum(whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": np.float32([1, 2]), "c": np.int64(3)},
        {"a": np.float32([1, 2.5]), "b": np.int64(3)},
        {"a": np.float32([[1, 2]]), "b": np.int64(3)},
        {"a": np.float64([1, 2]), "b": np.int64(3)},
        {"a": np.float32([1, 2])},
    ],
    ids=["key", "value", "shape", "dtype", "absent"],
)
def test_checksum_sees_each_change(changed):
    state = {"a": np.float32([1, 2]), "b": np.int64(3)}
    as_arrays = {key: np.asarray(value) for key, value in changed.items()}
    assert checksum(as_arrays) != checksum({key: np.asarray(value) for key, value in state.items()})


def test_checksum_reads_memory_in_logical_order_and_any_byte_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert checksum({"a": np.asfortranarray(array)}) == checksum({"a": array})
    assert checksum({"a": array.astype(">f4")}) == checksum({"a": array})
