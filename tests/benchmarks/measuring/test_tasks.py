from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco

from samexport.benchmarks.contenders.official_grid import official_grid
from samexport.benchmarks.measuring.masks import read_reference
from samexport.benchmarks.measuring.reference import write_reference
from samexport.benchmarks.measuring.tasks import TASKS, TaskSubject
from samexport.benchmarks.results.rows import Job
from samexport.runtimes.host.grid import generate
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.tasks.segment import Segmentation
from samexport.runtimes.verdicts import Verdict

HW = 60, 90


@pytest.fixture(autouse=True)
def coarse_grid(monkeypatch):
    grid = TaskSubject.grid
    monkeypatch.setattr(TaskSubject, "grid", lambda subject, side: grid(subject, 4))


def subject_of(bundle, name, reference=None, precision="fp32", **changes):
    size = {"photograph": HW[::-1]} | changes
    job = Job(str(bundle.folder), name, "", "export", precision, "onnxruntime", 1, TASKS[name].prompts, **size)
    return TaskSubject(job, reference)


def called(subject):
    subject.prepare()
    subject.open()
    subject.call()
    return subject


@pytest.fixture
def reference(tmp_path):
    """The file of what PyTorch makes of a task."""

    def make(bundle, name):
        write_reference(subject_of(bundle, name).job, tmp_path / "reference.json")
        return tmp_path / "reference.json"

    return make


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_and_its_masks_are_pytorchs(sampler_bundle, reference, name):
    assert TASKS[name].suits(sampler_bundle)
    subject = called(subject_of(sampler_bundle, name, reference=reference(sampler_bundle, name)))
    assert all(milliseconds >= 0 for milliseconds in subject.stages.values())
    assert subject.stages["decode"] > 0
    found = subject.check()
    assert (found.verdict, found.mask_iou) == (Verdict.PASS, pytest.approx(1, abs=1e-3))
    assert len(subject.found()) >= 1
    subject.close()


@pytest.mark.parametrize("name", TASKS)
def test_masks_that_the_timed_work_did_not_make_right_fail_the_task(sampler_bundle, reference, name):
    """The golden prompts through ``predict`` would still be right."""
    subject = called(subject_of(sampler_bundle, name, reference=reference(sampler_bundle, name)))
    whole = subject._found
    subject._found = whole[:-1]
    assert subject.check().verdict is (Verdict.FAIL if len(whole) < 100 else Verdict.PASS)
    subject._found = whole[: len(whole) // 2]
    assert subject.check().verdict is Verdict.FAIL
    subject._found = [emptied(mask) for mask in whole]
    assert subject.check().verdict is Verdict.FAIL


def test_right_masks_that_answer_other_prompts_fail_the_task(tiny_bundle, reference):
    boxes = called(subject_of(tiny_bundle, "64 boxes", reference=reference(tiny_bundle, "64 boxes")))
    boxes._found = boxes._found[::-1]
    assert boxes.check().verdict is Verdict.FAIL
    name = "everything: grid 32x32, official"
    grid = called(subject_of(tiny_bundle, name, reference=reference(tiny_bundle, name)))
    grid._found = [mask | {"point": (mask["point"][0] + 9, mask["point"][1])} for mask in grid._found]
    assert grid.check().verdict is Verdict.FAIL


def emptied(mask):
    if isinstance(mask, Segmentation):
        return replace(mask, masks=np.zeros_like(mask.masks))
    if isinstance(mask, dict):
        return mask | {"rle": [HW[0] * HW[1]]}
    return replace(mask, segmentation=coco.encode(np.zeros(HW, np.uint8, order="F")))


def test_without_masks_of_pytorch_there_is_no_verdict(tiny_bundle):
    found = called(subject_of(tiny_bundle, "one click")).check()
    assert (found.verdict, found.reason) == (Verdict.SKIPPED, "not compared: there are no masks of PyTorch")


def test_a_low_precision_has_its_own_tolerance(half_bundle, reference):
    name = "everything: 300 boxes"
    job = subject_of(half_bundle, name, precision="fp16").job
    found = called(TaskSubject(job, reference(half_bundle, name))).check()
    assert found.verdict is Verdict.PASS
    assert 0.9 < found.mask_iou < 0.9999
    # the same masks are none of an fp32 file's
    strict = called(TaskSubject(replace(job, precision="fp32"), reference(half_bundle, name)))
    assert strict.check().verdict is Verdict.FAIL


def test_the_timed_work_filters_as_pytorch_did(tiny_bundle, reference):
    file = reference(tiny_bundle, "everything: grid 32x32")
    subject = subject_of(tiny_bundle, "everything: grid 32x32", reference=file)
    subject.prepare()
    assert subject.thresholds == read_reference(file).thresholds


def test_a_task_with_a_detector_needs_one_in_the_bundle(tiny_bundle):
    assert not TASKS["everything: 300 boxes of the detector"].suits(tiny_bundle)


def test_the_photograph_is_the_golden_picture_scaled(tiny_bundle):
    subject = subject_of(tiny_bundle, "one click")
    subject.prepare()
    assert subject.picture.shape == (*HW, 3)


def test_the_official_grid_gives_the_masks_of_ours(tiny_bundle):
    subject = subject_of(tiny_bundle, "one click")
    subject.prepare()
    subject.open()
    # random masks all reach across the picture; without NMS they stay
    frame, options = tiny_bundle.manifest.frame, replace(subject.grid(4), box_nms_thresh=1.0)
    timings = {"decode": 0.0, "upscale": 0.0}
    official = official_grid(subject.segmenter.decode_points, HW, frame, options, timings)
    ours = generate(subject.picture, lambda _: subject.segmenter.decode_points, frame, options)
    assert len(official) == len(ours) > 3
    for one, other in zip(official, ours, strict=True):
        assert one["predicted_iou"] == pytest.approx(other.predicted_iou)
        mask = decode_rle(coco.frPyObjects({"size": list(HW), "counts": one["rle"]}, *HW))
        differing = np.count_nonzero(mask ^ decode_rle(other.segmentation))
        assert differing <= 2, differing
    assert min(timings.values()) > 0


@pytest.mark.parametrize(
    ("name", "encodes", "prompts"), [("one click", 1, 1), ("next click", 0, 1), ("64 boxes", 1, 64)]
)
def test_a_task_does_the_work_that_its_name_says(tiny_bundle, monkeypatch, name, encodes, prompts):
    subject = subject_of(tiny_bundle, name)
    subject.prepare()
    subject.open()
    done = {"encoder": 0, "prompts": 0}
    decode, run = subject.segmenter.session.decode, subject.segmenter.set_image

    def counted(encoded, tensors):
        done["prompts"] += len(tensors["point_labels"])
        return decode(encoded, tensors)

    monkeypatch.setattr(subject.segmenter.session, "decode", counted)
    monkeypatch.setattr(subject.segmenter, "set_image", lambda p: done.update(encoder=done["encoder"] + 1) or run(p))
    subject.call()
    assert done == {"encoder": encodes, "prompts": prompts}


def test_the_batch_of_a_job_is_the_segmenters_chunk(tiny_bundle):
    subject = subject_of(tiny_bundle, "64 boxes", batch=5)
    subject.prepare()
    subject.open()
    assert subject.segmenter.chunk == 5
