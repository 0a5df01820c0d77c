import math

import numpy as np
import pytest
import torch

from samexport.models.architectures import sam2
from samexport.models.architectures.sam2 import Features, Sam2, Sam2Size
from samexport.models.architectures.sam2_memory import (
    MemoryAttention,
    RotaryAttention,
    rotary_angles,
    rotate,
    sine_1d,
    sine_2d,
)
from tests.models import golden, sam2_golden

UNITS = "sam2_units.npz"


@pytest.fixture(scope="module")
def vision():
    return sam2_golden.drawn("unit_vision", 1, 256, 64, 64)


@pytest.fixture(scope="module")
def disc():
    """Logits of a disc on the whole frame, [1, 1, 1024, 1024]."""
    x, y, radius = golden.read(UNITS)["mask_disc"]
    rows, columns = np.mgrid[:1024, :1024].astype(np.float64)
    logits = np.clip((radius - np.hypot(columns - x, rows - y)) / 12, -15, 15)
    return torch.from_numpy(logits.astype(np.float32))[None, None]


@pytest.mark.parametrize("kind", ["sigmoid", "binary"])
@pytest.mark.parametrize("there", ["present", "absent"])
def test_memory_of_a_frame(vision, disc, kind, there):
    vectors, name = golden.read(UNITS), f"memenc.{kind}_{there}"
    score = torch.tensor([[2.0 if there == "present" else -2.0]])
    memory = sam2_golden.tiny().encode_memory(vision, disc, score, binary=kind == "binary")
    golden.close(memory[0, ::8, ::10, ::10], vectors[name], 2e-3)
    golden.close(sam2_golden.stats(memory), vectors[f"{name}_stats"], 2e-3)


def test_frame_that_reads_two_memories_and_eight_pointer_tokens(vision):
    vectors, model = golden.read(UNITS), sam2_golden.tiny()
    maps = (sam2_golden.drawn(f"unit_memory_{i}", 4096, 1, 64).permute(1, 2, 0).view(1, 64, 64, 64) for i in range(2))
    parts = [model.memory_tokens(memory, row) for memory, row in zip(maps, (6, 0), strict=True)]
    pointers = sam2_golden.drawn("unit_ptr", 8, 1, 64).transpose(0, 1)
    times = sam2_golden.drawn("unit_ptr_pos", 8, 1, 64, scale=0.5).transpose(0, 1)
    memory, places = (torch.cat(tokens, dim=1) for tokens in zip(*parts, (pointers, times), strict=True))
    embedding = model.with_memory(vision, memory, places, 8)
    tokens = embedding.flatten(2).transpose(1, 2)[0]
    golden.close(tokens[::68, ::8], vectors["memattn.2"], 2e-3)
    golden.close(sam2_golden.stats(embedding), vectors["memattn.2.stats"], 2e-3)


@pytest.mark.parametrize("frames", [12, 16])
def test_times_of_pointers(frames):
    vectors = golden.read(UNITS)
    offsets = vectors["ptr_pos.offsets"].tolist()
    golden.close(sam2_golden.tiny().pointer_times(offsets, frames - 1)[0], vectors[f"ptr_pos.{frames}"], 1e-4)


@pytest.fixture
def features(vision):
    s0 = sam2_golden.drawn("unit_feat_s0", 1, 32, 256, 256)
    return Features(s0, sam2_golden.drawn("unit_feat_s1", 1, 64, 128, 128), vision)


@pytest.mark.parametrize("prompt", ["click", "none"])
@pytest.mark.parametrize("shift", [0, -6])
def test_object_on_a_frame(features, prompt, shift):
    vectors, model, name = golden.read(UNITS), sam2_golden.tiny(), f"heads.{prompt}_shift{shift}"
    click = (torch.tensor([[[300.0, 700.0]]]), torch.ones(1, 1)) if prompt == "click" else ()
    head = model.sam_mask_decoder.pred_obj_score_head
    hook = head.register_forward_hook(lambda _module, _inputs, score: score + shift)
    found = model.object_mask(features.vision, features, *click, multimask=True, fallback=True)
    hook.remove()
    golden.close(found.low_res[0, 0, ::20, ::20], vectors[f"{name}.low_res"], 2e-3)
    golden.close(model.whole_frame(found.low_res)[0, 0, 7::99, 7::99], vectors[f"{name}.high_res"], 2e-3)
    golden.close(found.iou, vectors[f"{name}.ious"], 1e-4)
    golden.close(found.pointer[:, ::4], vectors[f"{name}.obj_ptr"], 2e-3)
    golden.close(found.object_score, vectors[f"{name}.score"], 1e-3)


@pytest.mark.parametrize("shape", ["disc", "empty"])
def test_given_mask_becomes_the_output(features, disc, shape):
    vectors, name = golden.read(UNITS), f"mask_as_output.{shape}"
    mask = (disc > 0).float() * (shape == "disc")
    found = sam2_golden.tiny().mask_as_output(features, mask, fallback=True)
    golden.close(found.low_res[0, 0, ::20, ::20], vectors[f"{name}.low_res"], 2e-3)
    golden.close(found.pointer[:, ::4], vectors[f"{name}.obj_ptr"], 2e-3)
    golden.close(found.object_score, vectors[f"{name}.score"], 1e-6)
    golden.close(found.iou, vectors[f"{name}.iou"], 1e-6)


def test_encodings_worked_by_hand():
    golden.close(sine_1d(torch.tensor([0.5]), 8)[0], sines_then_cosines(0.5), 1e-6)
    encoding = sine_2d(8, 3)[0, :, 0, 2]  # y = 1, x = 3 of 3
    expected = [
        f(2 * math.pi * place / (3 + 1e-6) / period)
        for place in (1, 3)
        for f, period in ((math.sin, 1), (math.cos, 1), (math.sin, 100), (math.cos, 100))
    ]
    golden.close(encoding, expected, 1e-5)


def sines_then_cosines(value):
    return [f(value / period) for f in (math.sin, math.cos) for period in (1, 1, 100, 100)]


def test_rotation_is_the_product_with_complex_numbers():
    torch.manual_seed(0)
    x, angles = torch.randn(2, 9, 16), rotary_angles(16, 3)
    turned = torch.view_as_complex(x.view(2, 9, 8, 2)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, angles), torch.view_as_real(turned).flatten(2))
    cell, frequencies = 5, [1.0, 0.1, 0.01, 0.001]  # second row, third column
    golden.close(angles[cell], [place * f for place in (2, 1) for f in frequencies], 1e-6)


def test_keys_of_each_map_turn_alike_and_pointers_do_not_turn():
    torch.manual_seed(0)
    attention, angles = RotaryAttention(8, 4).requires_grad_(False), rotary_angles(8, 2)
    q, k, v = torch.randn(1, 4, 8), torch.randn(1, 11, 4), torch.randn(1, 11, 4)
    keys = attention.k_proj(k)
    keys = torch.cat([rotate(keys[:, :4], angles), rotate(keys[:, 4:8], angles), keys[:, 8:]], dim=1)
    weights = (rotate(attention.q_proj(q), angles) @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
    expected = attention.out_proj(weights @ attention.v_proj(v))
    torch.testing.assert_close(attention(q, k, v, angles, placeless=3), expected)


def test_positions_are_added_to_the_keys_and_not_to_the_values():
    torch.manual_seed(0)
    attention = MemoryAttention(16, 8).requires_grad_(False).eval()
    vision, memory, places = torch.randn(1, 16, 2, 2), torch.randn(1, 6, 64), torch.randn(1, 6, 64)
    one_value = memory[:, :1].expand(1, 6, 64)  # then no weights matter
    torch.testing.assert_close(attention(vision, one_value, places, 2), attention(vision, one_value, 0 * places, 2))
    assert not torch.allclose(attention(vision, memory, places, 2), attention(vision, memory, 0 * places, 2))


def test_version_2_0_marks_neither_absent_objects_nor_the_age_of_pointers():
    torch.manual_seed(0)
    size = Sam2Size(sam2.TEST.trunk, 64, 64, 128, absent_memory=False, timed_pointers=False)
    old = sam2_golden.randomise(Sam2(size))
    vision, logits = torch.randn(1, 64, 4, 4), torch.randn(1, 1, 64, 64)
    memories = [old.encode_memory(vision, logits, torch.tensor([[score]]), binary=False) for score in (-1.0, 1.0)]
    assert torch.equal(*memories)
    tokens, times = old.pointer_tokens([torch.ones(1, 64), torch.zeros(1, 64)], [1, 2], 15)
    assert tokens[0, :, 0].tolist() == [1, 0]
    assert not times.any()
    assert times.shape == tokens.shape
