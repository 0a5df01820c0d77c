import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from scipy import ndimage

from samexport.errors import ConfigError
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap, upscale_logits
from samexport.runtimes.host.masks import TracedMask, decode_rle, encode_rle, remove_small_regions, trace

FRAME = Preprocess(64)


def blobs(seed, level=0.0):
    """Smooth logits [16, 16] of both signs, shifted by ``level``."""
    noise = np.random.default_rng(seed).standard_normal((16, 16))
    return (4 * ndimage.gaussian_filter(noise, 1.5) + level).astype(np.float32)


def whole(mask, image_hw):
    """The mask over the image, from its rectangle."""
    full = np.zeros(image_hw, np.bool_)
    height, width = mask.inside.shape
    full[mask.top : mask.top + height, mask.left : mask.left + width] = mask.inside
    return full


@given(
    st.integers(0, 1000),
    st.sampled_from([(64, 64), (200, 300), (301, 97), (5, 40), (1, 1)]),
    st.sampled_from([-3.0, -1.0, 0.0, 2.0]),
    st.sampled_from([0.0, 0.75]),
)
@settings(max_examples=60, deadline=None)
def test_trace_equals_upscaling_everything(seed, image_hw, level, threshold):
    logits = blobs(seed, level)
    full = upscale_logits(logits, FrameMap(image_hw, FRAME))
    mask = trace(logits, FrameMap(image_hw, FRAME), threshold=threshold, offset=0.5)
    clear = np.abs(full - threshold) > 1e-4
    np.testing.assert_array_equal(whole(mask, image_hw)[clear], (full > threshold)[clear])
    high, low = np.count_nonzero(full > threshold + 0.5), np.count_nonzero(full > threshold - 0.5)
    if low:
        np.testing.assert_allclose(mask.stability, high / low, atol=2 / low)
    else:
        assert np.isnan(mask.stability)


def test_only_the_rectangle_that_a_mask_can_reach_is_held():
    logits = np.full((16, 16), -5, np.float32)
    logits[4:6, 8] = 5
    mask = trace(logits, FrameMap((640, 640), FRAME))
    assert mask.inside.size < 0.05 * 640 * 640
    x0, y0, x1, y1 = mask.box
    assert 300 <= x0 < x1 <= 380
    assert 140 <= y0 < y1 <= 260
    assert mask.area == np.count_nonzero(upscale_logits(logits, FrameMap((640, 640), FRAME)) > 0)


def test_an_empty_mask_has_box_zero_area_zero_and_no_stability():
    mask = trace(np.full((16, 16), -5, np.float32), FrameMap((30, 40), FRAME), offset=1)
    assert mask.box == (0, 0, 0, 0)
    assert mask.area == 0
    assert np.isnan(mask.stability)
    assert encode_rle(mask, (30, 40)) == coco.encode(np.zeros((30, 40), np.uint8, "F"))


def test_logits_of_another_model_are_refused():
    with pytest.raises(ConfigError, match=r"\[16, 16\]"):
        trace(np.zeros((17, 16), np.float32), FrameMap((30, 40), FRAME))


@given(st.integers(0, 10_000), *[st.integers(1, 9)] * 2, *[st.integers(0, 2)] * 3)
def test_run_lengths_are_those_of_pycocotools(seed, height, width, left, top, right):
    rng = np.random.default_rng(seed)
    inside = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9, 1.0])
    mask = TracedMask(inside, left, top, np.float32(1))
    # the rectangle touches the image's lower side, so that runs over whole columns may join
    image_hw = (top + height, left + width + right)
    for origin in ((0, 0), (1, 0), (0, 2)):
        shifted = TracedMask(inside, left + origin[0], top + origin[1], np.float32(1))
        size = (image_hw[0] + origin[1], image_hw[1] + origin[0])
        expected = coco.encode(np.asfortranarray(whole(shifted, size).astype(np.uint8)))
        found = encode_rle(mask, size, origin)
        assert found == expected
        np.testing.assert_array_equal(decode_rle(found), whole(shifted, size))


def by_labels(mask, min_area):
    """SAM's rule with scipy's labels instead of OpenCV's."""
    changed = False
    for hole in (True, False):
        labels, count = ndimage.label(mask ^ hole, np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        small = [i for i in range(1, count + 1) if areas[i] < min_area]
        changed |= bool(small)
        keep = [i for i in range(1, count + 1) if i not in small]
        if hole:
            mask = mask | np.isin(labels, small)
        elif small:
            mask = np.isin(labels, keep or [int(areas[1:].argmax()) + 1])
    return mask, changed


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_small_regions_go_as_by_labelling(seed, height, width, min_area):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    before = mask.copy()
    cleaned, changed = remove_small_regions(mask, min_area)
    expected, expected_changed = by_labels(mask, min_area)
    assert changed == expected_changed
    assert cleaned.sum() == expected.sum()
    if cleaned.sum() >= min_area:  # below, several islands may be the largest
        np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(mask, before)


def test_islands_holes_and_corners_by_hand():
    mask = np.zeros((8, 12), np.bool_)
    mask[1:6, 1:6] = True
    mask[3, 3] = False  # a hole of one pixel
    mask[6, 6] = True  # hangs on by a corner
    mask[1, 9:11] = True  # an island of two pixels
    cleaned, changed = remove_small_regions(mask, 3)
    expected = mask.copy()
    expected[3, 3], expected[1, 9:11] = True, False
    assert changed
    np.testing.assert_array_equal(cleaned, expected)
    assert not remove_small_regions(expected, 3)[1]


def test_a_spiral_is_one_region():
    spiral = np.zeros((41, 41), np.bool_)
    y = x = 0
    dy, dx, spiral[0, 0] = 0, 1, True
    for length in [40, 40, 40, *[n for n in range(38, 1, -2) for _ in range(2)]]:
        for _ in range(length):
            y, x = y + dy, x + dx
            spiral[y, x] = True
        dy, dx = dx, -dy
    assert ndimage.label(spiral, np.ones((3, 3)))[1] == 1
    cleaned, _ = remove_small_regions(spiral, int(spiral.sum()) - 1)
    assert cleaned[spiral].all()
