from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco

from samexport.benchmarks.contenders.official_grid import official_grid
from samexport.benchmarks.measuring.tasks import TASKS, TaskSubject
from samexport.benchmarks.results.rows import Job
from samexport.runtimes.host.grid import generate
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.verdicts import Verdict

HW = 60, 90


@pytest.fixture(autouse=True)
def coarse_grid(monkeypatch):
    grid = TaskSubject.grid
    monkeypatch.setattr(TaskSubject, "grid", lambda subject, side: grid(subject, 4))


def subject_of(bundle, name, **changes):
    size = {"photograph": HW[::-1]} | changes
    return TaskSubject(
        Job(str(bundle.folder), name, "", "export", "fp32", "onnxruntime", 1, TASKS[name].prompts, **size)
    )


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.detector])
def test_every_task_runs_and_its_masks_are_the_golden_ones(tiny_bundle, name):
    assert TASKS[name].suits(tiny_bundle)
    subject = subject_of(tiny_bundle, name)
    subject.prepare()
    subject.open()
    subject.call()
    assert all(milliseconds >= 0 for milliseconds in subject.stages.values())
    assert subject.stages["decode"] > 0
    assert subject.check().verdict is Verdict.PASS
    subject.close()


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
    ("name", "encodes", "prompts"), [("one click", 1, [1]), ("next click", 0, [1]), ("64 boxes", 1, [64])]
)
def test_a_task_does_the_work_that_its_name_says(tiny_bundle, monkeypatch, name, encodes, prompts):
    subject = subject_of(tiny_bundle, name)
    subject.prepare()
    subject.open()
    done = {"encoder": 0, "prompts": []}
    decode, run = subject.segmenter.decode, subject.segmenter.set_image
    monkeypatch.setattr(
        subject.segmenter, "decode", lambda t: done["prompts"].append(len(t["point_labels"])) or decode(t)
    )
    monkeypatch.setattr(subject.segmenter, "set_image", lambda p: done.update(encoder=done["encoder"] + 1) or run(p))
    subject.call()
    assert done == {"encoder": encodes, "prompts": prompts}


def test_the_batch_of_a_job_is_the_segmenters_chunk(tiny_bundle):
    subject = subject_of(tiny_bundle, "64 boxes", batch=5)
    subject.prepare()
    subject.open()
    assert subject.segmenter.chunk == 5


def test_wrong_masks_fail_the_task(tiny_bundle):
    subject = subject_of(tiny_bundle, "one click")
    subject.prepare()
    subject.open()
    subject.golden.masks[:] = ~subject.golden.masks
    assert subject.check().verdict is Verdict.FAIL
