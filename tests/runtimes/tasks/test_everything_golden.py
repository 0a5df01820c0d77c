"""Detector, automatic masks and the box pipeline as ONNX files, against numbers of the official code.

``detector_square.npz``: MobileSAMv2's detector (ChaoningZhang/MobileSAM 34bbbfd) on a square picture, its decoded
boxes and scores. ``everything.npz``: records of the official automatic mask generator (``grid.*``) on the picture
of ``amg_mobilesam.npz``; and mask 0 of five boxes on ``land.png``: logits ``[::15, ::15]``, min, max, mean and std.
All with the random weights of seed 7.
"""

import json

import numpy as np

from samexport.exporter.sampler_export import SamplerExport, load_sampler, write_sampler
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.models.catalog import find_model
from samexport.runtimes.host.frames import FrameMap, upscale_mask
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.host.image import read_image
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.parity.compare import compare_boxes, intersection_over_union, tier
from samexport.runtimes.registry import open_runtime
from samexport.runtimes.tasks.everything import GivenBoxes, GridPoints, SegmentEverything
from samexport.runtimes.verdicts import Check, Verdict
from tests.models.golden import GOLDEN


def test_the_detector_of_mobilesamv2_finds_the_official_boxes_in_onnx(tmp_path, monkeypatch):
    # slimming 270 MB takes as long as all the rest; the small sampler's file is slimmed in other tests
    monkeypatch.setattr(to_onnx, "optimise", lambda model, *_: (model, ""))
    golden = np.load(GOLDEN / "detector_square.npz")
    centre, side = golden["boxes_cxcywh"].T[:, :2], golden["boxes_cxcywh"].T[:, 2:]
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
    best = np.argsort(-golden["scores"], kind="stable")
    expected = {"boxes": boxes[best], "scores": golden["scores"][best]}
    sampler = load_sampler(SamplerExport("object-aware", image_size=192), ranked=True, random_seed=7)
    artifact = write_sampler(sampler, tmp_path, OnnxOptions(), find_model("tinyvit"))
    with open_runtime(tmp_path / artifact.path, sampler.graph, "onnx") as runtime:
        # the official network was fed the channels of the file in their order
        found = runtime.run({"image": golden["input_uint8"].transpose(2, 0, 1)[None].astype(np.float32)})
    rows = compare_boxes(Check("case"), sampler.graph, expected, found, tier("fp32"))
    assert [str(row) for row in rows if row.verdict is not Verdict.PASS] == []
    assert len(best) == sampler.graph.outputs[0].shape[0] == 756


def test_the_grid_of_the_bundle_gives_the_records_of_the_official_generator(full_bundle):
    golden = np.load(GOLDEN / "everything.npz")
    picture = np.load(GOLDEN / "amg_mobilesam.npz")["image"]
    grid = GridPoints(GridOptions(**json.loads(str(golden["grid.args"]))))
    with SegmentEverything(full_bundle, grid) as everything:
        masks = list(everything.masks(picture))
    assert len(masks) == len(golden["grid.area"]) == 23
    np.testing.assert_allclose([mask.predicted_iou for mask in masks], golden["grid.predicted_iou"], atol=1e-5)
    np.testing.assert_allclose([mask.area for mask in masks], golden["grid.area"], atol=10)
    np.testing.assert_allclose([mask.prompt for mask in masks], golden["grid.point_coords"], atol=1e-6)
    x, y, width, height = np.array([mask.bbox for mask in masks]).T
    # SAM's boxes are one pixel short
    np.testing.assert_array_equal(np.stack([x, y, width - 1, height - 1], axis=1), golden["grid.bbox_xywh"])


def test_boxes_give_the_official_mask_0(full_bundle):
    golden = np.load(GOLDEN / "everything.npz")
    picture = read_image(GOLDEN / "land.png")
    boxes = golden["boxes"]
    given = GivenBoxes(boxes, np.linspace(1, 0.5, len(boxes)))
    with SegmentEverything(full_bundle, given, chunk=2) as everything:
        everything.encode(picture)
        parts = [(logits, predicted) for _, logits, predicted in everything.decode(boxes)]
        masks = list(everything.masks(picture))
    logits = np.concatenate([part[0] for part in parts])
    predicted = np.concatenate([part[1] for part in parts])
    np.testing.assert_allclose(logits[:, ::15, ::15], golden["boxes.logits"], atol=1e-3)
    np.testing.assert_allclose(predicted, golden["boxes.iou"], atol=1e-4)
    stats = np.stack([f(logits.astype(np.float64), axis=(1, 2)) for f in (np.min, np.max, np.mean, np.std)], axis=-1)
    np.testing.assert_allclose(stats, golden["boxes.stats"], atol=1e-3)
    upscaled = upscale_mask(logits, FrameMap(picture.shape[:2], full_bundle.manifest.frame))
    found = np.stack([decode_rle(mask.segmentation) for mask in masks])
    assert intersection_over_union(upscaled, found).min() >= 0.9999
