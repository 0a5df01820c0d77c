"""The automatic mask generators against numbers of the official code.

``amg_stub.npz`` and ``hierarchical.json`` come from the official generators with a decoder in closed form,
``amg_mobilesam.npz`` from the official MobileSAM with the random weights of seed 7.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from samexport.errors import ConfigError
from samexport.models.architectures.sam import Sam
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.spec import Preprocess
from samexport.models.weights.random_weights import random_state_dict
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.grid import (
    GridOptions,
    _is_cut,
    count_points,
    crop_boxes,
    generate,
    generate_hierarchical,
    grid_points,
)
from samexport.runtimes.host.masks import decode_rle, trace
from tests.models.golden import checksum

GOLDEN = Path(__file__).parents[2] / "golden"
FRAME = Preprocess(1024)


def discs(_=None):
    """The decoder in closed form: three discs around each point, of radius and slope by formula."""
    places = np.arange(256) * 4 + 2.0

    def decode(points):
        x, y, m = points[:, 0, None], points[:, 1, None], np.arange(3)
        radius = 60 + 50 * m + 40 * np.sin(x / 97 + m)
        distance = np.hypot(places - points[:, 0, None, None], places[:, None] - points[:, 1, None, None])
        logits = (0.2 + 0.4 * m)[:, None, None] * (radius[..., None, None] - distance[:, None])
        return logits.astype(np.float32), (0.75 + 0.2 * np.cos(x / 71 + y / 53 + m)).astype(np.float32)

    return decode


@pytest.mark.parametrize("name", ["fake_plain", "fake_crops"])
def test_records_are_those_of_the_official_generator(name):
    golden = np.load(GOLDEN / "amg_stub.npz")
    height, width = golden[f"{name}.image_hw"]
    options = GridOptions(**json.loads(str(golden[f"{name}.args"])))
    records = generate(np.zeros((height, width, 3), np.uint8), discs, FRAME, options)
    assert len(records) == len(golden[f"{name}.area"])
    packed = np.packbits([decode_rle(r.segmentation).ravel() for r in records], axis=1)
    np.testing.assert_array_equal(packed, golden[f"{name}.mask_packed"])
    np.testing.assert_array_equal([r.area for r in records], golden[f"{name}.area"])
    np.testing.assert_array_equal([r.bbox for r in records], golden[f"{name}.bbox_xywh"])
    np.testing.assert_array_equal([r.crop_box for r in records], golden[f"{name}.crop_box_xywh"])
    np.testing.assert_allclose([r.point_coords[0] for r in records], golden[f"{name}.point_coords"], atol=1e-9)
    np.testing.assert_allclose([r.predicted_iou for r in records], golden[f"{name}.predicted_iou"], atol=1e-6)
    # one pixel of 2600 lies on the threshold
    np.testing.assert_allclose([r.stability_score for r in records], golden[f"{name}.stability_score"], atol=5e-4)


def test_hierarchical_records_are_those_of_tinysam():
    golden = json.loads((GOLDEN / "hierarchical.json").read_text())
    decoded = []

    def encode(image):
        decode = discs(image)
        return lambda points: decoded.extend(points) or decode(points)

    image = np.zeros((*golden["image_hw"], 3), np.uint8)
    records = generate_hierarchical(image, encode, FRAME, GridOptions(**golden["options"]), golden["high_score_thresh"])
    assert len(decoded) == golden["decoded_points"] < 144
    assert len(records) == len(golden["records"])
    for found, expected in zip(records, golden["records"], strict=True):
        assert list(found.bbox) == expected["bbox"]
        assert found.area == expected["area"]
        np.testing.assert_allclose(found.predicted_iou, expected["predicted_iou"], atol=1e-5)
        np.testing.assert_allclose(found.point_coords[0], expected["point_coords"], atol=1e-5)


def test_masks_of_mobilesam_have_the_official_boxes_areas_and_stability():
    golden = np.load(GOLDEN / "amg_mobilesam.npz")
    spec = find_model("mobilesam.tinyvit")
    sam = Sam(spec).eval()
    tensors = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in sam.state_dict().items()}
    weights = random_state_dict(tensors, 7)
    assert checksum(weights) == str(golden["weights_sha256"])
    sam.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    image = golden["image"]
    coords, labels = torch.zeros(4, 2, 2), torch.tensor([[1.0, -1.0]] * 4)
    coords[:, 0] = torch.from_numpy(golden["points"] * (1024 / 384, 683 / 256))
    with torch.no_grad():
        embeddings = build_graph(sam, spec, "encoder")[1](torch.from_numpy(to_frame(image, spec.frame)))
        logits, scores = build_graph(sam, spec, "decoder")[1](embeddings, coords, labels)
    np.testing.assert_allclose(scores[:, 1:], golden["iou"], atol=1e-5)
    for place in np.ndindex(4, 3):
        mask = trace(logits[place[0], 1 + place[1]].numpy(), FrameMap(image.shape[:2], spec.frame), offset=1.0)
        np.testing.assert_allclose(mask.stability, golden["stability"][place], atol=2e-4)
        np.testing.assert_allclose(mask.area, golden["area"][place], atol=10)
        np.testing.assert_array_equal(mask.box, golden["boxes_xyxy"][place])


def test_grid_points_are_cell_centres_row_by_row():
    np.testing.assert_array_equal(grid_points(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_crops_overlap_and_end_at_the_image_by_hand():
    # overlap int(0.25 * 100 * 2 / 2) = 25; sides ceil((25 + 160) / 2) = 93 and ceil((25 + 100) / 2) = 63
    crops = crop_boxes((100, 160), 1, 0.25)
    assert crops[0] == ((0, 0, 160, 100), 0)
    assert [box for box, _ in crops[1:]] == [
        (0, 0, 93, 63), (0, 38, 93, 100), (68, 0, 160, 63), (68, 38, 160, 100)
    ]  # fmt: skip
    layers = [layer for _, layer in crop_boxes((100, 160), 2, 0.25)]
    assert layers == [0] + [1] * 4 + [2] * 16


def test_count_points_is_what_is_decoded():
    for options in (
        GridOptions(points_per_side=5, points_per_batch=7),
        GridOptions(points_per_side=5, crop_n_layers=2, crop_n_points_downscale_factor=2),
    ):
        batches = []

        def encode(_, batches=batches):
            def decode(points):
                batches.append(len(points))
                return np.full((len(points), 3, 256, 256), -9, np.float32), np.ones((len(points), 3), np.float32)

            return decode

        assert generate(np.zeros((90, 120, 3), np.uint8), encode, FRAME, options) == []
        assert sum(batches) == count_points(options)
        assert max(batches) <= options.points_per_batch


def square_logits(x0, y0, x1, y1):
    """A sharp rectangle in pixels of the 1024 frame, whole multiples of 4."""
    logits = np.full((256, 256), -10, np.float32)
    logits[y0 // 4 : y1 // 4, x0 // 4 : x1 // 4] = 10
    return logits


def one_point(*masks):
    """Decodes every point to these three masks, all of IoU 0.9, 0.95, 1."""

    def encode(_):
        return lambda points: (
            np.repeat(np.stack(masks)[None], len(points), axis=0),
            np.repeat(np.float32([[0.9, 0.95, 1.0]]), len(points), axis=0),
        )

    return encode


def test_masks_at_an_inner_side_of_a_crop_are_dropped():
    corner, right, bottom = (
        square_logits(*box) for box in ((0, 0, 600, 300), (300, 100, 1016, 300), (300, 100, 600, 500))
    )
    options = GridOptions(
        points_per_side=1, crop_n_layers=1, crop_overlap_ratio=0.0, box_nms_thresh=1, crop_nms_thresh=1
    )
    records = generate(np.zeros((1024, 2048, 3), np.uint8), one_point(corner, right, bottom), FRAME, options)
    found = {(r.crop_box[:2], r.crop_box[2]): set() for r in records}
    for record in records:
        name = {0.9: "corner", 0.95: "right", 1.0: "bottom"}[round(record.predicted_iou, 2)]
        found[record.crop_box[:2], record.crop_box[2]].add(name)
    assert found == {
        ((0, 0), 2048): {"corner", "right", "bottom"},
        ((0, 0), 1024): {"corner"},
        ((0, 512), 1024): {"bottom"},
        ((1024, 0), 1024): {"right"},
        ((1024, 512), 1024): {"right", "bottom"},
    }


def test_20_pixels_from_a_side_are_at_it_and_21_are_not():
    crop, image_hw = (100, 100, 300, 300), (1000, 1000)
    assert not _is_cut((121, 121, 279, 279), crop, image_hw)
    for box in ((120, 121, 279, 279), (121, 120, 279, 279), (121, 121, 280, 279), (121, 121, 279, 280)):
        assert _is_cut(box, crop, image_hw)
    assert _is_cut((21, 10, 50, 50), (10, 0, 300, 300), image_hw)
    assert not _is_cut((20, 10, 50, 50), (10, 0, 300, 300), image_hw)


def test_among_equals_the_fine_points_win():
    everywhere = square_logits(400, 400, 600, 600)
    image = np.zeros((1024, 1024, 3), np.uint8)
    options = GridOptions(points_per_side=4, box_nms_thresh=0.5)
    first, *_ = generate_hierarchical(image, one_point(*[everywhere] * 3), FRAME, options, high_score_thresh=20)
    assert first.point_coords == ((256.0, 256.0),)  # the one coarse point is (512, 512)


def test_small_regions_are_removed_and_the_duplicates_that_this_makes():
    clean = square_logits(200, 200, 600, 600)
    spotted = clean.copy()
    spotted[200:203, 200:203] = 10  # an island of 12 x 12 pixels
    far = square_logits(700, 700, 1000, 1000)
    image = np.zeros((1024, 1024, 3), np.uint8)
    encode = one_point(clean, spotted, far)
    apart = generate(image, encode, FRAME, GridOptions(points_per_side=1))
    assert [r.predicted_iou for r in apart] == [1.0, np.float32(0.95), np.float32(0.9)]
    joined = generate(image, encode, FRAME, GridOptions(points_per_side=1, min_mask_region_area=400))
    # the untouched mask wins although the cleaned one has the higher score
    assert [r.predicted_iou for r in joined] == [1.0, np.float32(0.9)]


def test_cleaned_masks_get_their_own_box_and_area():
    spotted = square_logits(200, 200, 600, 600)
    spotted[200:203, 200:203] = 10
    options = GridOptions(points_per_side=1, min_mask_region_area=400)
    image = np.zeros((1024, 1024, 3), np.uint8)
    (record,) = generate(image, one_point(spotted, spotted, spotted), FRAME, options)
    mask = decode_rle(record.segmentation)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert record.bbox == (columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])
    assert record.bbox[0] + record.bbox[2] < 610
    assert record.area == mask.sum()
    assert set(dataclasses.asdict(record)) == {
        "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"
    }  # fmt: skip


def test_options_that_cannot_be_are_refused():
    for bad in (
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"crop_n_layers": -1},
        {"min_mask_region_area": -1},
        {"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
        {"points_per_side": 2.5},
        {"points_per_side": "32"},
        {"crop_n_layers": 10**9, "crop_n_points_downscale_factor": 2},
        *({name: np.nan} for name in vars(GridOptions())),
        *({name: 10**400} for name in vars(GridOptions())),
        *({name: None} for name in vars(GridOptions())),
    ):
        with pytest.raises(ConfigError):
            GridOptions(**bad)
    with pytest.raises(ConfigError, match="points_per_side is a whole number, at least 1 and at most 1024, got 100000"):
        GridOptions(points_per_side=100_000)
    assert GridOptions(pred_iou_thresh=np.float32(0.5), points_per_side=np.int64(3)).points_per_side == 3
    for bad in ({"points_per_side": 3}, {"crop_n_layers": 1}):
        with pytest.raises(ConfigError, match="hierarchical"):
            generate_hierarchical(np.zeros((9, 9, 3), np.uint8), discs, FRAME, GridOptions(**bad))
