import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from samexport.errors import BundleError, ConfigError, ImageError, ParityFailed, PromptError
from samexport.models.catalog import find_model
from samexport.runtimes import session as session_module
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.families.sam import SamSession
from samexport.runtimes.host.detector import SamplerOptions, letterbox, postprocess
from samexport.runtimes.host.frames import FrameMap, upscale_logits
from samexport.runtimes.host.grid import GridOptions, count_points
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks import everything as everything_module
from samexport.runtimes.tasks import segment as segment_module
from samexport.runtimes.tasks.everything import (
    DetectorBoxes,
    GivenBoxes,
    GridPoints,
    SegmentEverything,
)
from samexport.runtimes.tasks.records import of_objects
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
        logits = upscale_logits(answer.low_res_masks[0], FrameMap((90, 120), tiny_bundle.manifest.frame))
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


def test_boxes_are_cut_off_at_the_picture_and_empty_ones_are_left_out_before_encoding(tiny_bundle, picture):
    boxes = np.array([[-0.4, 1, 20, 20], [5, 5, 5, 9], [50, 10, 120.3, 90.2], [200, 1, 300, 9]])
    given = GivenBoxes(boxes, np.array([0.9, 0.8, 0.7, 0.6]))
    with SegmentEverything(tiny_bundle, given) as everything:
        masks = list(everything.masks(picture))
        assert [(mask.prompt, mask.score) for mask in masks] == [((0, 1, 20, 20), 0.9), ((50, 10, 120, 90), 0.7)]
        assert everything.notes == (
            "2 of 4 boxes have no area inside the picture, 120 wide and 90 high, and are left out",
            "2 of 4 boxes reach beyond the picture, 120 wide and 90 high, and are cut off there",
        )
        list(everything.masks(np.zeros((99, 400, 3), np.uint8)))
        assert len(everything.notes) == 2


def test_boxes_that_look_normalised_are_told(tiny_bundle, picture):
    with SegmentEverything(tiny_bundle, GivenBoxes(np.array([[0.1, 0.1, 0.5, 0.6]]), np.ones(1))) as everything:
        assert len(list(everything.masks(picture))) == 1
    assert "normalised" in everything.notes[0]


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        ([[1, 1, 20, 20], [np.nan, 0, 3, 3]], [1, 1]),
        ([[1, 1, 20, 20]], [np.nan]),
        ([[1, 1, 20, 20]], [1, 1]),
        ([[1, 1, 20]], [1]),
        ([[5, 5, 5, 9], [9, 9, 3, 3]], [1, 1]),
        (np.broadcast_to(1.0, (100_001, 4)), np.broadcast_to(1.0, 100_001)),
    ],
)
def test_boxes_that_are_none_are_refused_before_encoding(tiny_bundle, picture, boxes, scores):
    given = GivenBoxes(np.array(boxes, float), np.array(scores, float))
    with SegmentEverything(tiny_bundle, given) as everything:
        with pytest.raises(PromptError):
            list(everything.masks(picture))
        assert everything.timings["encode"] == 0


class Clock:
    """Stands still but while a file is opened, which takes a second."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        real = Bundle.open

        def slow(bundle, name, **options):
            self.now += 1
            return real(bundle, name, **options)

        monkeypatch.setattr(Bundle, "open", slow)
        for module in (session_module, segment_module, everything_module):
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self):
        return self.now


def test_opening_files_is_in_no_stage(tiny_bundle, sampler_bundle, half_bundle, picture, monkeypatch):
    Clock(monkeypatch)
    for bundle, sampling, files in (
        (tiny_bundle, some_boxes(1), 2), (half_bundle, some_boxes(1), 3),
        (sampler_bundle, DetectorBoxes(SamplerOptions(max_boxes=2)), 3), (tiny_bundle, GridPoints(GridOptions(1)), 2),
    ):  # fmt: skip
        with SegmentEverything(bundle, sampling) as everything:
            for _ in range(2):
                list(everything.masks(picture))
                assert (everything.opening, sum(everything.timings.values())) == (1000 * files, 0)


def test_a_picture_is_a_path_a_pillow_image_or_an_array(tiny_bundle, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "p.png")
    with SegmentEverything(tiny_bundle, some_boxes(2)) as everything:
        areas = [
            [mask.area for mask in everything.masks(source)]
            for source in (picture, str(tmp_path / "p.png"), tmp_path / "p.png", Image.fromarray(picture))
        ]
        with pytest.raises(ImageError):
            list(everything.masks(picture.tolist()))
    assert areas == [areas[0]] * 4


def test_the_best_predicted_iou_of_a_grid_is_kept(tiny_bundle, picture):
    with SegmentEverything(tiny_bundle, GridPoints(GridOptions(4, pred_iou_thresh=99))) as everything:
        assert list(everything.masks(picture)) == []
        nothing = everything.best_iou
    with SegmentEverything(tiny_bundle, GridPoints(GridOptions(4, 64, -9, 0))) as everything:
        masks = list(everything.masks(picture))
    assert max(mask.predicted_iou for mask in masks) <= nothing == everything.best_iou


def test_a_detector_that_returns_nan_is_no_answer(sampler_bundle, picture, monkeypatch):
    with SegmentEverything(sampler_bundle) as everything:
        run = everything._detector.run
        monkeypatch.setattr(everything._detector, "run", lambda inputs: {n: v * np.nan for n, v in run(inputs).items()})
        with pytest.raises(ParityFailed, match="NaN or infinite"):
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
    records = json.loads(json.dumps([result.to_coco(7, "p.png") for result in of_objects(masks)]))
    for record, mask, box in zip(records, masks, some_boxes(3).boxes, strict=True):
        assert (record["image_id"], record["category_id"], record["mask"]) == (7, 1, 0)
        assert (record["box"], record["points"]) == (box.tolist(), [])
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
from samexport.models.catalog import find_model
from samexport.runtimes.families.sam import SamSession
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
            self.session = SamSession.__new__(SamSession)
            self.session.manifest = find_model("test.tinyvit64")

        def decode(self, tensors):
            rows = len(tensors["point_labels"])
            return np.zeros((rows, 4, 16, 16), np.float32), np.zeros((rows, 4), np.float32)

    everything = SegmentEverything.__new__(SegmentEverything)
    everything._segmenter, everything._image_hw = Decoder(), (90, 120)
    everything.timings = {"decode": 0.0}
    everything.bundle = type("B", (), {"manifest": find_model("test.tinyvit64")})
    places = [place for place, *_ in everything.decode(some_boxes(count).boxes)]
    assert [i for place in places for i in range(place.start, place.stop)] == list(range(count))
    assert max(place.stop - place.start for place in places) <= chunk


@pytest.mark.parametrize("sampling", ["grid", 0, GridPoints], ids=repr)
def test_what_is_no_sampling_is_answered_with_the_three_that_there_are(sampler_bundle, sampling):
    with pytest.raises(ConfigError, match=r"sampling is DetectorBoxes.*GridPoints.*tasks\.everything, not"):
        SegmentEverything(sampler_bundle, sampling)


def test_a_grid_has_no_boxes(sampler_bundle):
    with SegmentEverything(sampler_bundle, GridPoints()) as everything, pytest.raises(ConfigError, match="call masks"):
        everything.sample(np.zeros((40, 50, 3), np.uint8))


def test_a_detector_that_was_closed_is_opened_again(sampler_bundle):
    picture = np.zeros((40, 50, 3), np.uint8)
    everything = SegmentEverything(sampler_bundle)
    before = everything.sample(picture)
    everything.close()
    for one, other in zip(before, everything.sample(picture), strict=True):
        np.testing.assert_array_equal(one, other)
    everything.close()
