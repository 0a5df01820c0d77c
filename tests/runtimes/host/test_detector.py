from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samexport.errors import ConfigError, ImageError
from samexport.runtimes.host.detector import (
    PADDING,
    Letterbox,
    SamplerOptions,
    letterbox,
    nms,
    postprocess,
    snap,
    to_image,
)

GOLDEN = Path(__file__).parents[2] / "golden"


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Before the detector


def test_resizing_has_opencv_pixels():
    """The arrays are cv2.resize(..., INTER_LINEAR) of opencv 5.0 on pictures drawn from one generator."""
    golden = np.load(GOLDEN / "letterbox.npz")
    rng = np.random.default_rng(int(golden["seed"]))
    for name in golden.files[:-1]:
        shape, size = name.split("to")
        height, width = map(int, shape.split("x"))
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        framed, placed = letterbox(picture, int(size), rgb=True, square=False)
        resized = golden[name]
        top, left = (
            round((side - new) / 2 - 0.1) for side, new in zip(placed.frame_hw, resized.shape[:2], strict=True)
        )
        found = framed[0, :, top : top + resized.shape[0], left : left + resized.shape[1]].transpose(1, 2, 0)
        np.testing.assert_array_equal(found, resized, err_msg=name)


def test_1500x2250_becomes_704x1024_with_bars_of_10_and_11():
    framed, placed = letterbox(np.full((1500, 2250, 3), 200, np.uint8), 1024, square=False)
    assert framed.shape == (1, 3, 704, 1024)
    assert placed == Letterbox((1500, 2250), (704, 1024))
    bars = (framed[0] == PADDING).all(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(bars), [*range(10), *range(693, 704)])
    assert (framed[0, :, 10:693] == 200).all()


def test_square_input_holds_the_official_frame_whole_strides_from_its_corner():
    picture = random_image(100, 300)
    framed, placed = letterbox(picture, 256)
    official, _ = letterbox(picture, 256, square=False)
    assert placed == Letterbox((100, 300), (96, 256), left=0, top=64)
    np.testing.assert_array_equal(framed[:, :, 64:160], official)
    assert (framed[:, :, :64] == PADDING).all()
    assert (framed[:, :, 160:] == PADDING).all()
    upright = letterbox(picture.transpose(1, 0, 2), 256)[1]
    assert upright == Letterbox((300, 100), (256, 96), left=64, top=0)


def test_channels_are_bgr_unless_rgb_is_asked_for():
    picture = random_image(64, 64)
    np.testing.assert_array_equal(letterbox(picture, 64, rgb=True)[0][0], picture.transpose(2, 0, 1))
    np.testing.assert_array_equal(letterbox(picture, 64)[0][0], picture[..., ::-1].transpose(2, 0, 1))


def test_small_and_extreme_pictures_are_enlarged_and_never_vanish():
    assert letterbox(random_image(10, 20), 64)[1].frame_hw == (32, 64)
    assert letterbox(random_image(1, 4000), 64)[1].frame_hw == (32, 64)
    assert letterbox(random_image(1, 1), 64)[1].frame_hw == (64, 64)


def test_pictures_and_sizes_that_cannot_be_are_refused():
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError):
            letterbox(bad, 64)
    for size in (0, 100, -64, 320_000):
        with pytest.raises(ConfigError, match="multiple of 32"):
            letterbox(random_image(4, 4), size)


def test_thresholds_that_are_no_numbers_are_refused():
    for bad in ({"confidence": np.nan}, {"nms_iou": np.nan}, {"border": np.nan}, {"border": np.inf}, {"max_boxes": 0}):
        with pytest.raises(ConfigError):
            SamplerOptions(**bad)


# After the detector


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("offset", [(0, 0), (32, 64)])
def test_boxes_are_those_of_the_official_code(case, offset):
    golden = np.load(GOLDEN / "detector.npz")
    centre, side = golden["boxes_cxcywh"].T[:, :2], golden["boxes_cxcywh"].T[:, 2:]
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
    confidence, iou, most = golden[f"post{case}.params"]
    frame_hw = golden["input_uint8"].shape[:2]
    placed = Letterbox(tuple(golden["orig_hw"].tolist()), frame_hw, *offset)
    options = SamplerOptions(float(confidence), float(iou), int(most))
    shifted = boxes + np.array(offset * 2, np.float32)
    found, scores = postprocess(shifted, golden["scores"], placed, options)
    np.testing.assert_allclose(found, golden[f"post{case}.image_xyxy"], atol=1e-3)
    np.testing.assert_array_equal(scores, golden[f"post{case}.scores"])
    kept = nms(boxes[golden["scores"] > np.float32(confidence)], scores_above(golden, confidence), iou)
    stages = boxes[golden["scores"] > np.float32(confidence)][kept[: int(most)]]
    np.testing.assert_array_equal(stages, golden[f"post{case}.nms_xyxy"])
    np.testing.assert_array_equal(snap(stages, frame_hw), golden[f"post{case}.snapped_xyxy"])


def test_candidates_may_come_in_any_order():
    golden = np.load(GOLDEN / "detector.npz")
    centre, side = golden["boxes_cxcywh"].T[:, :2], golden["boxes_cxcywh"].T[:, 2:]
    boxes, scores = np.concatenate([centre - side / 2, centre + side / 2], axis=1), golden["scores"]
    placed = Letterbox(tuple(golden["orig_hw"].tolist()), golden["input_uint8"].shape[:2])
    order = np.random.default_rng(0).permutation(len(scores))
    assert len(np.unique(scores)) == len(scores)
    for found, shuffled in zip(
        postprocess(boxes, scores, placed), postprocess(boxes[order], scores[order], placed), strict=True
    ):
        np.testing.assert_array_equal(found, shuffled)


def scores_above(golden, confidence):
    return golden["scores"][golden["scores"] > np.float32(confidence)]


def test_nothing_found_is_an_empty_result():
    placed = Letterbox((100, 200), (64, 128))
    for boxes, scores in (((0, 4), 0), ((3, 4), 3)):
        found, left = postprocess(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), placed)
        assert found.shape == (0, 4)
        assert left.shape == (0,)


def test_threshold_is_strict_and_boxes_in_the_bars_are_dropped():
    placed = Letterbox((100, 128), (128, 128))  # 14 rows of bar above, 14 below
    boxes = np.array([[40, 40, 60, 60], [30, 30, 90, 90], [40, 118, 60, 127], [40, 50, 70, 120]], np.float32)
    found, scores = postprocess(boxes, np.array([0.4, 0.5, 0.9, 0.6], np.float32), placed, SamplerOptions(border=0))
    np.testing.assert_allclose(found, [[40, 36, 70, 100], [30, 16, 90, 76]])
    np.testing.assert_array_equal(scores, np.float32([0.6, 0.5]))


def test_sides_near_the_frame_move_onto_its_edge_before_the_bars_are_taken_off():
    boxes = np.array([[19.9, 20, 108.1, 108], [0, 60, 128, 127]], np.float32)
    snapped = snap(boxes, (128, 128))
    np.testing.assert_allclose(snapped, [[0, 20, 128, 108], [0, 60, 128, 128]])
    placed = Letterbox((50, 64), (128, 128))
    np.testing.assert_allclose(to_image(snapped, placed), [[0, 3, 64, 47], [0, 23, 64, 50]])


def naive_nms(boxes, scores, iou):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            x = max(0, min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0]))
            y = max(0, min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1]))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if x * y and x * y / (sum(areas) - x * y) > iou:
                break
        else:
            kept.append(i)
    return kept


@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 4, st.integers(0, 3)), max_size=25),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_nms_equals_the_textbook_with_ties_and_empty_boxes(rows, iou):
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in rows]
    scores = [s for *_, s in rows]
    wanted = naive_nms(boxes, scores, iou)
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    np.testing.assert_array_equal(nms(*arrays, iou), wanted)
    np.testing.assert_array_equal(nms(*arrays, iou, 3), wanted[:3])


def test_options_out_of_range_are_refused():
    for bad in ({"confidence": 1.5}, {"nms_iou": -0.1}, {"max_boxes": 0}, {"border": -1.0}):
        with pytest.raises(ConfigError):
            SamplerOptions(**bad)
