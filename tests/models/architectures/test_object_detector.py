"""The detector against numbers of the official code (tests/golden/detector.npz) and against hand-worked cases."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from samexport.models.architectures.object_detector import (
    DETECTOR_TEST,
    DETECTOR_X,
    DetectorSize,
    ObjectDetector,
    anchors,
)
from samexport.models.weights.random_weights import random_state_dict
from tests.models.golden import checksum

GOLDEN = Path(__file__).parents[2] / "golden"


def tensors_of(detector):
    return {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in detector.state_dict().items()}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "detector.npz")


@pytest.fixture(scope="module")
def weights():
    with torch.device("meta"):
        detector = ObjectDetector(DETECTOR_X)
    return random_state_dict(tensors_of(detector), 7)


def test_names_shapes_and_types_are_those_of_the_official_weights(weights, golden):
    assert len(weights) == 637
    assert checksum(weights) == str(golden["weights_sha256"])


def test_maps_and_boxes_are_those_of_the_official_code(weights, golden):
    with torch.device("meta"):
        detector = ObjectDetector(DETECTOR_X)
    detector.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, assign=True)
    image = torch.from_numpy(golden["input_uint8"]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        maps = detector.eval()(image)
        boxes, scores = detector.decode(maps)
    for level, step in enumerate((3, 2, 2)):
        np.testing.assert_allclose(maps[level][0, :, ::step, ::step], golden[f"head{level}"], atol=2e-3)
    low, high = boxes[0].numpy().T.reshape(2, 2, -1)
    np.testing.assert_allclose(np.concatenate([(low + high) / 2, high - low]), golden["boxes_cxcywh"], atol=0.02)
    np.testing.assert_allclose(scores[0, :, 0], golden["scores"], atol=2e-5)


def test_sizes_are_read_off_the_shapes():
    for size in (DETECTOR_TEST, DetectorSize(classes=80, reg_max=16), DetectorSize(depths=(1, 2, 3, 4))):
        with torch.device("meta"):
            shapes = {k: shape for k, (shape, _) in tensors_of(ObjectDetector(size)).items()}
        assert DetectorSize.from_shapes(shapes) == size
    del shapes["model.22.dfl.conv.weight"]
    with pytest.raises(KeyError, match="dfl"):
        DetectorSize.from_shapes(shapes)


def test_equal_bins_put_each_side_at_the_middle_distance():
    detector = ObjectDetector(DETECTOR_TEST)
    bins = DETECTOR_TEST.reg_max
    maps = [torch.zeros(1, 4 * bins + 1, 4 // s, 8 // s) for s in (1, 2, 4)]
    maps[2][0, 4 * bins] = 100.0
    boxes, scores = detector.decode(maps)
    reach = (bins - 1) / 2
    # first cell of stride 8, second row of stride 16, last cell of stride 32
    for index, x, y, stride in ((0, 4, 4, 8), (32 + 4, 8, 24, 16), (32 + 8 + 1, 48, 16, 32)):
        side = reach * stride
        np.testing.assert_allclose(boxes[0, index].detach(), [x - side, y - side, x + side, y + side])
    np.testing.assert_array_equal(scores[0, :, 0], [0.5] * 40 + [1.0] * 2)


def test_a_certain_bin_is_its_distance_and_sides_come_left_top_right_bottom():
    detector = ObjectDetector(DETECTOR_TEST)
    bins = DETECTOR_TEST.reg_max
    maps = [torch.zeros(1, 4 * bins + 1, 4 // s, 4 // s) for s in (1, 2, 4)]
    for side, distance in enumerate((1, 2, 3, 4)):
        maps[2][0, side * bins + distance] = 200.0
    boxes, _ = detector.decode(maps)
    np.testing.assert_allclose(boxes[0, -1].detach(), [16 - 32, 16 - 64, 16 + 96, 16 + 128])


def test_anchors_go_level_by_level_and_row_by_row():
    points, strides = anchors([(2, 3), (1, 2), (1, 1)])
    rows = [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]
    np.testing.assert_array_equal(points, [*rows, [0.5, 0.5], [1.5, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(strides[:, 0], [8] * 6 + [16] * 2 + [32])


def test_every_batch_norm_has_the_eps_of_the_size():
    detector = ObjectDetector(dataclasses.replace(DETECTOR_TEST, batch_norm_eps=0.25))
    assert {m.eps for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.25}
