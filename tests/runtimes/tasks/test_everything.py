import json
import subprocess
import sys

import numpy as np
import pytest

from samexport.errors import BundleError, PromptError
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.detector import SamplerOptions, letterbox, postprocess
from samexport.runtimes.host.grid import GridOptions, count_points
from samexport.runtimes.host.image import upscale_logits
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.everything import (
    DetectorBoxes,
    GivenBoxes,
    GridPoints,
    SegmentEverything,
    to_coco,
)
from samexport.runtimes.tasks.segment import Segmenter


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[0:90, 0:120]
    return np.stack([2 * x, 2 * y, 255 * (np.hypot(x - 60, y - 40) < 24)], axis=-1).astype(np.uint8)


def some_boxes(count: int, width: int = 120, height: int = 90) -> GivenBoxes:
    rng = np.random.default_rng(4)
    low = rng.uniform(0, 0.6, (count, 2))
    high = low + rng.uniform(0.1, 0.4, (count, 2))
    boxes = np.concatenate([low, high], axis=1) * (width, height, width, height)
    return GivenBoxes(boxes, np.linspace(1, 0.5, count))


def test_each_box_gives_mask_0_of_the_decoder_at_the_pictures_size(tiny_bundle, picture):
    given = some_boxes(7)
    with SegmentEverything(tiny_bundle, given, chunk=3) as everything:
        masks = list(everything.masks(picture))
    with Segmenter(tiny_bundle) as segmenter:
        segmenter.set_image(picture)
        every = segmenter.predict([Prompt.make(box=box) for box in given.boxes], multimask=True)
    assert len(masks) == 7
    for mask, box, score, answer in zip(masks, given.boxes, given.scores, every, strict=True):
        logits = upscale_logits(answer.low_res_masks[0], (90, 120), tiny_bundle.manifest.frame)
        clear = np.abs(logits) > 1e-3
        found = decode_rle(mask.segmentation)
        np.testing.assert_array_equal(found[clear], (logits > 0)[clear])
        assert mask.area == found.sum()
        assert mask.predicted_iou == pytest.approx(answer.scores[0], abs=1e-5)
        assert (mask.score, mask.prompt) == (score, tuple(box))
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        if len(rows):
            assert mask.bbox == (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
        else:
            assert mask.bbox == (0, 0, 0, 0)


def test_the_detectors_boxes_are_those_of_its_file_and_its_postprocessing(sampler_bundle, picture):
    info = sampler_bundle.manifest.sampler
    with sampler_bundle.open("prompt_sampler") as detector:
        for rgb in (False, True):
            pixels, placed = letterbox(picture, 96, rgb=rgb)
            found = detector.run({"image": pixels})
            wanted, scores = postprocess(found["boxes"], found["scores"], placed, info.options)
            with SegmentEverything(sampler_bundle, DetectorBoxes(rgb=rgb)) as everything:
                boxes, found_scores = everything.sample(picture)
            np.testing.assert_array_equal(boxes, wanted)
            np.testing.assert_array_equal(found_scores, scores)
    assert len(boxes) > 5


def test_masks_come_while_later_ones_are_not_decoded_yet(sampler_bundle, picture):
    seen = []
    with SegmentEverything(sampler_bundle, chunk=4) as everything:
        masks = everything.masks(picture, lambda stage, done, total: seen.append((stage, done, total)))
        first = next(masks)
        assert ("decode", 4) not in {event[:2] for event in seen}
        rest = list(masks)
    assert first.score >= max(mask.score for mask in rest)
    assert [mask.score for mask in rest] == sorted((mask.score for mask in rest), reverse=True)
    assert seen[:2] == [("sample", 0, 1), ("encode", 0, 1)]
    assert seen[-1] == ("decode", 1 + len(rest), 1 + len(rest))
    assert set(everything.timings) == {"sample", "encode", "decode", "upscale"}
    assert min(everything.timings.values()) > 0


def test_nothing_found_is_an_empty_result_and_nothing_is_encoded(sampler_bundle, tiny_bundle, picture):
    with SegmentEverything(sampler_bundle, DetectorBoxes(SamplerOptions(confidence=1))) as everything:
        assert list(everything.masks(picture)) == []
        assert everything.timings["encode"] == 0
    with SegmentEverything(tiny_bundle, GivenBoxes(np.zeros((0, 4)), np.zeros(0))) as everything:
        assert list(everything.masks(picture)) == []


def test_thresholds_decide_how_many_boxes_there_are(sampler_bundle, picture):
    counts = []
    for options in (SamplerOptions(0.3), SamplerOptions(0.3, max_boxes=5), SamplerOptions(0.3, nms_iou=0.2)):
        with SegmentEverything(sampler_bundle, DetectorBoxes(options)) as everything:
            counts.append(len(list(everything.masks(picture))))
    assert counts[0] > counts[2] > 0
    assert counts[1] == 5


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_grid_of_clicks_is_a_sampler_too(tiny_bundle, picture, hierarchical):
    options = GridOptions(4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
    seen = []
    with SegmentEverything(tiny_bundle, GridPoints(options, hierarchical)) as everything:
        masks = list(everything.masks(picture, lambda *event: seen.append(event)))
    assert seen[-1][0] == "decode"
    assert 0 < len(masks) <= 3 * count_points(options)
    for mask in masks[:5]:
        assert mask.area == decode_rle(mask.segmentation).sum() > 0
        assert len(mask.prompt) == 2


def test_a_bundle_without_a_detector_samples_a_grid(tiny_bundle):
    with SegmentEverything(tiny_bundle) as everything:
        assert everything.sampling == GridPoints()
    with pytest.raises(BundleError, match="--sampler object-aware"):
        SegmentEverything(tiny_bundle, DetectorBoxes())


def test_boxes_that_are_none_are_refused_with_their_number(tiny_bundle, picture):
    for bad in ([5, 5, 5, 9], [0, 0, 121, 40], [np.nan, 0, 3, 3]):
        given = GivenBoxes(np.array([[1, 1, 20, 20], bad], float), np.ones(2))
        with SegmentEverything(tiny_bundle, given) as everything, pytest.raises(PromptError):
            list(everything.masks(picture))


def test_a_decoder_trained_without_mask_0_answers_with_its_best_other_one(tiny_bundle, picture):
    from dataclasses import replace

    others = Bundle(tiny_bundle.folder, replace(tiny_bundle.manifest, mask_outputs=(1, 2, 3)))
    given = some_boxes(6)
    with SegmentEverything(others, given) as everything:
        masks = list(everything.masks(picture))
    with Segmenter(tiny_bundle) as segmenter:
        segmenter.set_image(picture)
        answers = segmenter.predict([Prompt.make(box=box) for box in given.boxes], multimask=True)
    for mask, answer in zip(masks, answers, strict=True):
        assert mask.predicted_iou == pytest.approx(answer.scores[1:].max(), abs=1e-5)


def test_coco_records_are_plain_data_that_pycocotools_reads(tiny_bundle, picture):
    from pycocotools import mask as coco

    with SegmentEverything(tiny_bundle, some_boxes(3)) as everything:
        masks = list(everything.masks(picture))
    records = json.loads(json.dumps(to_coco(masks)))
    for record, mask in zip(records, masks, strict=True):
        assert coco.area(record["segmentation"]) == record["area"] == mask.area
        assert coco.toBbox(record["segmentation"]).tolist() == record["bbox"]


NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "safetensors", "scipy", "cv2"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
import numpy as np
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.tasks.everything import SegmentEverything
with SegmentEverything(open_bundle(Path(sys.argv[1]))) as everything:
    print(len(list(everything.masks(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)))) > 0)
"""


def test_everything_needs_neither_torch_nor_onnx(sampler_bundle):
    run = subprocess.run([sys.executable, "-c", NO_TORCH, sampler_bundle.folder], capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr


@pytest.mark.parametrize(("count", "chunk"), [(1, 4), (4, 4), (5, 4), (9, 1), (40, 9)])
def test_chunks_cover_every_box_once(count, chunk):
    class Decoder:
        def __init__(self):
            self.chunk = chunk

        def decode(self, tensors):
            rows = len(tensors["point_labels"])
            return np.zeros((rows, 4, 16, 16), np.float32), np.zeros((rows, 4), np.float32)

    everything = SegmentEverything.__new__(SegmentEverything)
    everything._segmenter, everything._image_hw = Decoder(), (90, 120)
    everything.timings = {"decode": 0.0}
    from samexport.models.catalog import find_model

    everything.bundle = type("B", (), {"manifest": find_model("test.tinyvit64")})
    places = [place for place, *_ in everything.decode(some_boxes(count).boxes)]
    assert [i for place in places for i in range(place.start, place.stop)] == list(range(count))
    assert max(place.stop - place.start for place in places) <= chunk
