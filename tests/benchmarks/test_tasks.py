import pytest

from samexport.benchmarks import tasks
from samexport.benchmarks.rows import Job
from samexport.benchmarks.tasks import TASKS, TaskSubject
from samexport.runtimes.parity import Verdict


@pytest.fixture(autouse=True)
def small_photograph(monkeypatch):
    monkeypatch.setattr(tasks, "PHOTOGRAPH", (60, 90))
    monkeypatch.setattr(tasks, "_POINTS_PER_SIDE", 4)


def subject_of(bundle, name, **changes):
    return TaskSubject(
        Job(str(bundle.folder), name, "", "export", "fp32", "onnxruntime", 1, TASKS[name].prompts, **changes)
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_and_its_masks_are_the_golden_ones(tiny_bundle, name):
    subject = subject_of(tiny_bundle, name)
    subject.prepare()
    subject.open()
    subject.call()
    assert subject.check().verdict is Verdict.PASS
    subject.close()


def test_the_photograph_is_the_golden_picture_enlarged(tiny_bundle):
    subject = subject_of(tiny_bundle, "one click")
    subject.prepare()
    assert subject.picture.shape[1:] == (90, 3)
    height, width = subject.golden.picture.shape[:2]
    assert subject.picture.shape[0] == round(90 * height / width)


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
