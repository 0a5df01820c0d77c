import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samexport.models.architectures import sam2
from samexport.models.architectures.sam2 import Features, Sam2
from samexport.models.architectures.sam2_mask_decoder import Decoded, choose
from samexport.models.families.sam2 import sam2_constants
from samexport.runtimes.host.object_masks import (
    ABSENT_LOGIT,
    ObjectMask,
    answers,
    as_output,
    given_mask,
    mask_prompt,
    object_mask,
    stability,
)
from tests.models import golden, sam2_golden

NOTHING = np.full(5, -7, np.float32)


def decoded(seed=0, score=1.0, scale=1.0):
    rng = np.random.default_rng(seed)
    drawn = {"low_res_masks": (2, 4, 6, 6), "iou_predictions": (2, 4), "object_pointers": (2, 4, 5)}
    outputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in drawn.items()}
    outputs["low_res_masks"] *= scale
    return {**outputs, "object_score": np.array([[score], [-1.0]], np.float32)}


def test_stability_worked_by_hand():
    sure, unsure, empty = np.full((2, 2), 9.0), np.array([[9.0, 0.04], [-0.04, -9.0]]), np.full((2, 2), -9.0)
    assert stability(np.stack([sure, unsure, empty])).tolist() == [1.0, pytest.approx(1 / 3), 1.0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.1, 100.0])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("fallback", [True, False])
def test_mask_chosen_is_the_architectures(seed, scale, multimask, fallback):
    outputs = decoded(seed, scale=scale)
    masks, iou, tokens, score = (
        torch.from_numpy(outputs[name])
        for name in ("low_res_masks", "iou_predictions", "object_pointers", "object_score")
    )
    chosen = choose(Decoded(masks, iou, tokens, score), multimask=multimask, fallback=fallback)
    best = int(chosen.iou[0].argmax())
    found = object_mask(outputs, 0, NOTHING, multimask=multimask, fallback=fallback)
    np.testing.assert_array_equal(found.iou, chosen.iou[0])
    np.testing.assert_array_equal(found.low_res, chosen.masks[0, best])
    np.testing.assert_array_equal(found.pointer, chosen.tokens[0, best])
    assert found.present


def test_unstable_mask_gives_way_to_the_best_candidate():
    masks, iou = np.full((4, 2, 2), 9.0, np.float32), np.array([0.9, 0.2, 0.4, 0.3], np.float32)
    assert answers(masks, iou, multimask=False, fallback=True) == (0,)
    masks[0] = 0.01
    assert answers(masks, iou, multimask=False, fallback=True) == (2,)
    assert answers(masks, iou, multimask=False, fallback=False) == (0,)


def test_object_that_is_not_there_has_no_mask_and_the_pointer_for_nothing():
    found = object_mask(decoded(), 1, NOTHING, multimask=True, fallback=True)
    assert not found.present
    assert (found.low_res == ABSENT_LOGIT).all()
    np.testing.assert_array_equal(found.pointer, NOTHING)


def test_result_does_not_hold_all_masks_in_memory():
    found = object_mask(decoded(), 0, NOTHING, multimask=True, fallback=True)
    assert all(array.base is None for array in (found.low_res, found.iou, found.pointer))


@pytest.mark.parametrize("shape", ["disc", "empty"])
def test_given_mask_becomes_the_output_as_in_the_official_code(shape):
    vectors, model, name = golden.read("sam2_units.npz"), sam2_golden.tiny(), f"mask_as_output.{shape}"
    x, y, radius = vectors["mask_disc"]
    rows, columns = np.mgrid[:1024, :1024]
    square = ((np.hypot(columns - x, rows - y) < radius) & (shape == "disc")).astype(np.float32)
    constants = sam2_constants(model)
    features = Features(
        sam2_golden.drawn("unit_feat_s0", 1, 32, 256, 256),
        sam2_golden.drawn("unit_feat_s1", 1, 64, 128, 128),
        sam2_golden.drawn("unit_vision", 1, 256, 64, 64),
    )
    prompt = torch.from_numpy(mask_prompt(square, constants))
    seen = model.object_mask(features.vision, features, mask=prompt, multimask=False, fallback=True)
    mask = ObjectMask(
        seen.low_res[0, 0].numpy(), seen.iou[0].numpy(), seen.pointer[0].numpy(), seen.object_score.item()
    )
    found = as_output(square, mask, constants["no_object_pointer"])
    golden.close(found.low_res[::20, ::20], vectors[f"{name}.low_res"], 2e-3)
    golden.close(found.pointer[::4], vectors[f"{name}.obj_ptr"][0], 2e-3)
    assert found.score == vectors[f"{name}.score"].item()
    assert found.iou == vectors[f"{name}.iou"].item()


def test_mask_prompt_is_the_convolution_of_the_model():
    small = sam2_golden.randomise(Sam2(sam2.TEST))
    square = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.float32)
    expected = small.mask_downsample(torch.from_numpy(square)[None, None])
    np.testing.assert_allclose(mask_prompt(square, sam2_constants(small)), expected, atol=1e-5)


def test_given_mask_is_put_on_the_square_by_its_majority():
    mask = np.zeros((30, 50), np.bool_)
    mask[5:20, 10:33] = True
    resized = F.interpolate(torch.from_numpy(mask).float()[None, None], size=(64, 64), mode="bilinear", antialias=True)
    np.testing.assert_array_equal(given_mask(mask, 64), (resized >= 0.5).float()[0, 0])
