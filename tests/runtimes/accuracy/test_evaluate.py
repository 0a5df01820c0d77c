from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samexport.errors import ParityFailed
from samexport.models.spec import Preprocess
from samexport.runtimes.accuracy.annotations import AnnotatedImage, Instance, read_annotations
from samexport.runtimes.accuracy.evaluate import (
    ScoredMask,
    average_recall,
    box_prompt,
    box_proposals,
    grid_proposals,
    interior_click,
    measure,
    objects_by_size,
    random_click,
)
from samexport.runtimes.families.sam import SamSession
from samexport.runtimes.host.frames import FrameMap, upscale_logits
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.tasks.segment import Segmentation, Segmenter
from tests import annotated
from tests.annotated import CROWD, FIRST_HW, LARGE, MEDIUM, OTHER_SMALL, SECOND_HW, SMALL, part, rle_of


@pytest.fixture(params=["coco", "lvis"])
def images(request, tmp_path):
    data = annotated.coco_data() if request.param == "coco" else annotated.lvis_data()
    return read_annotations(*annotated.write(tmp_path, data)).images


class Stub:
    """Answers a prompt with what was written down for the object whose click or box it is."""

    chunk = 2

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def set_image(self, image):
        self.hw = image.shape[:2]

    def predict(self, prompts):
        assert 0 < len(prompts) <= self.chunk
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt):
        kind = "click" if prompt.box is None else "box"
        x, y = prompt.points[0] if kind == "click" else prompt.box[:2]
        (region,) = (r for r in self.answers[self.hw] if r[0] <= x < r[2] and r[1] <= y < r[3])
        self.asked.append((kind, region))
        mask = annotated.mask_of(self.answers[self.hw][region][kind], self.hw).astype(bool)
        return Segmentation(mask[None], np.ones(1, np.float32), np.zeros((1, 16, 16), np.float32), (0,))


NOTHING = (0, 0, 0, 0)
ANSWERS = {
    FIRST_HW: {
        SMALL: {"click": part(SMALL, 0.8), "box": SMALL},
        MEDIUM: {"click": part(MEDIUM, 0.5), "box": MEDIUM},
        LARGE: {"click": LARGE, "box": part(LARGE, 0.25)},
    },
    SECOND_HW: {OTHER_SMALL: {"click": NOTHING, "box": part(OTHER_SMALL, 0.5)}},
}


def test_miou_of_clicks_and_boxes_by_hand(images):
    stub = Stub(ANSWERS)
    scores = measure(images, stub, {"click": interior_click, "box": box_prompt})
    # IoU 0.8, 0.5, 1 and 0; 1, 1, 0.25 and 0.5
    assert scores.values == {
        "mIoU click": pytest.approx({"all": 2.3 / 4, "small": 0.8 / 2, "medium": 0.5, "large": 1.0}),
        "mIoU box": pytest.approx({"all": 2.75 / 4, "small": 1.5 / 2, "medium": 1.0, "large": 0.25}),
    }
    assert scores.proposals is None
    expected = [(kind, box) for found in ANSWERS.values() for kind in ("click", "box") for box in found]
    assert stub.asked == expected  # the crowd was not asked for
    assert objects_by_size(images) == {"all": 4, "small": 2, "medium": 1, "large": 1}


def proposals(hw):
    """Recall by rank in the first picture: 1 medium of IoU 0.5, 22 large of IoU 1, 123 small of IoU 0.8."""
    if hw == SECOND_HW:
        return [ScoredMask(rle_of(CROWD, hw), 0.9), ScoredMask(rle_of(part(OTHER_SMALL, 0.25), hw), 0.8)]
    nothing = rle_of((0, 140, 3, 143), hw)
    ranked = [rle_of(part(MEDIUM, 0.5), hw), *[nothing] * 20, rle_of(LARGE, hw), *[nothing] * 100]
    ranked.append(rle_of(part(SMALL, 0.8), hw))
    scored = [ScoredMask(rle, 0.9 - rank / 1000) for rank, rle in enumerate(ranked)]
    return [scored[i] for i in np.random.default_rng(0).permutation(len(scored))]


def test_average_recall_by_hand(images):
    scores = measure(images, Stub({}), {}, propose=lambda _, picture: proposals(picture.shape[:2]))
    # of the thresholds 0.5, 0.55 .. 0.95 an IoU of 0.5 reaches one, 0.8 seven, 1 ten and 0.25 none
    assert scores.values == {
        "AR@10": pytest.approx({"all": 1 / 40, "small": 0.0, "medium": 1 / 10, "large": 0.0}),
        "AR@100": pytest.approx({"all": 11 / 40, "small": 0.0, "medium": 1 / 10, "large": 1.0}),
        "AR@1000": pytest.approx({"all": 18 / 40, "small": 7 / 20, "medium": 1 / 10, "large": 1.0}),
    }
    assert scores.proposals == (123 + 2) / 2


def test_no_proposal_is_no_recall_and_no_object_is_no_number(images):
    values = measure(images[1:], Stub({}), {}, propose=lambda *_: []).values
    assert values["AR@1000"] == {"all": 0.0, "small": 0.0, "medium": None, "large": None}


def instance(mask, **more):
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    pixels = int(mask.sum())
    return Instance(
        **{"id": 1, "segmentation": rle, "pixels": pixels, "area": pixels, "box": NOTHING} | more, crowd=False
    )


def image_of(*instances, hw=(64, 64)):
    return AnnotatedImage(1, None, hw, instances)


@pytest.mark.parametrize(
    ("area", "classes"),
    [
        (1023, ["small"]),
        (1024, ["small", "medium"]),
        (1025, ["medium"]),
        (9216, ["medium", "large"]),
        (9217, ["large"]),
    ],
)
def test_the_annotated_area_decides_the_size_class_by_cocos_rule(area, classes):
    mask = np.ones((64, 64), bool)
    image = image_of(instance(mask, area=area))
    found = average_recall([image], {1: [ScoredMask(image.instances[0].segmentation, 1.0)]})["AR@10"]
    assert [label for label, value in found.items() if value == 1.0] == ["all", *classes]
    assert [label for label, count in objects_by_size([image]).items() if count] == ["all", *classes]


def test_one_proposal_finds_one_of_two_equal_objects():
    one = instance(np.ones((64, 64), bool))
    found = average_recall([image_of(one, one)], {1: [ScoredMask(one.segmentation, 1.0)]})
    assert found["AR@1000"]["all"] == 0.5


def brute_force_interior(mask):
    """Distance of every pixel from the nearest one outside; beyond the picture's edge is outside."""
    padded = np.pad(mask, 1)
    inside, outside = np.argwhere(padded), np.argwhere(~padded)
    distance = np.hypot(*(inside[:, None] - outside[None]).transpose(2, 0, 1)).min(axis=1)
    return (inside[distance.argmax()] - 1)[::-1], distance.max()


y, x = np.mgrid[0:48, 0:40]
SHAPES = {
    "disc": np.hypot(x - 21, y - 17) < 9,
    "ring": (np.hypot(x - 20, y - 20) < 18) & (np.hypot(x - 20, y - 20) > 9),
    "corner": (x < 12) | (y > 35),
    "two": (np.hypot(x - 6, y - 6) < 5) | (np.hypot(x - 30, y - 30) < 8),
    "pixel": (x == 39) & (y == 47),
    "all": x >= 0,
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_interior_click_is_the_centre_of_the_largest_circle(name):
    mask = SHAPES[name]
    prompt = interior_click(instance(mask))
    assert np.array_equal(prompt.points[0], brute_force_interior(mask)[0])
    assert prompt.labels.tolist() == [1]
    if name == "disc":
        assert prompt.points.tolist() == [[21, 17]]


def test_a_random_click_is_inside_and_depends_on_seed_and_id_alone():
    mask = SHAPES["ring"]
    clicks = {}
    for seed in (1, 2):
        for id_ in (0, 1, 2):
            (point,) = random_click(instance(mask, id=id_), seed).points.astype(int)
            assert mask[point[1], point[0]]
            clicks[seed, id_] = tuple(point)
    assert len(set(clicks.values())) == 6
    assert tuple(random_click(instance(mask, id=1), 2).points[0].astype(int)) == clicks[2, 1]


def test_an_object_without_pixels_is_not_asked_for_but_missed():
    empty = instance(np.zeros((64, 64), bool), area=3)
    values = average_recall([image_of(empty, instance(np.ones((64, 64), bool)))], {1: []})
    assert values["AR@10"]["small"] == 0.0
    scores = measure([FakePicture(image_of(empty))], Stub({}), {"click": interior_click})
    assert scores.values["mIoU click"]["all"] is None


class FakePicture:
    """An annotated image whose picture is black."""

    def __init__(self, image):
        self.id, self.instances, self.image_hw = image.id, image.instances, image.image_hw

    def read(self):
        return np.zeros((*self.image_hw, 3), np.uint8)


class GridStub(Stub):
    """The same four masks for every point: the third of them is empty."""

    decode_points = Segmenter.decode_points
    session = SamSession.__new__(SamSession)

    ious = np.array([1.0, 0.5, 0.9, 0.7], np.float32)

    def __init__(self):
        super().__init__({})
        self.bundle = self
        self.manifest = self
        self.frame = Preprocess(64)
        rows = np.arange(16)[:, None] * np.ones(16)
        self.logits = np.stack([rows + 1, rows - 8.5, -1 - rows, 3.2 - rows]).astype(np.float32)

    def decode(self, tensors):
        assert np.array_equal(tensors["point_labels"], [[1, -1]])
        assert np.array_equal(tensors["point_coords"], [[[32, 24], [0, 0]]])
        return self.logits[None], self.ious[None]


def test_grid_proposals_are_the_three_multimasks_ranked_by_predicted_iou_and_stability():
    stub = GridStub()
    options = GridOptions(1, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1.0)
    found = {
        p.score: coco.decode(p.segmentation).astype(bool)
        for p in grid_proposals(stub, options)(None, np.zeros((48, 64, 3), np.uint8))
    }
    upscaled = upscale_logits(stub.logits, FrameMap((48, 64), stub.frame))
    expected = {}
    for index in (1, 3):
        stability = np.float32((upscaled[index] > 1).sum()) / np.float32((upscaled[index] > -1).sum())
        expected[float((stub.ious[index] + stability) / 2)] = upscaled[index] > 0
    assert sorted(found) == pytest.approx(sorted(expected), abs=1e-6)
    for score, other in zip(sorted(found), sorted(expected), strict=True):
        assert np.array_equal(found[score], expected[other])


def test_annotated_boxes_stand_in_for_a_detector(images):
    class Everything:
        def masks(self, picture):
            for box, score in zip(self.sampling.boxes, self.sampling.scores, strict=True):
                mask = np.zeros(picture.shape[:2], np.uint8)
                x0, y0, x1, y1 = np.rint(box).astype(int)
                mask[y0:y1, x0:x1] = 1
                yield SimpleNamespace(segmentation=coco.encode(np.asfortranarray(mask)), score=score, predicted_iou=x0)

    everything = Everything()
    scores = measure(images, Stub({}), {}, propose=box_proposals(everything))
    objects = [[i for i in image.instances if not i.crowd] for image in images]
    assert scores.proposals == np.mean([len(each) for each in objects])
    assert everything.sampling.boxes.tolist() == [list(i.box) for i in objects[-1]]
    found = {i: list(box_proposals(everything)(image, image.read())) for i, image in enumerate(images)}
    assert [p.score for p in found[0]] == [round(i.box[0]) for i in objects[0]]
    wanted = coco_eval(images, {image.id: found[i] for i, image in enumerate(images)})
    assert scores.values["AR@1000"]["all"] == pytest.approx(wanted[1000][0])
    assert scores.values["AR@1000"]["all"] > 0
    assert list(box_proposals(everything)(replace(images[0], instances=()), images[0].read())) == []


def coco_eval(images, proposals):
    """AR of a whole data set in one go, with pycocotools alone: {K: [all, small, medium, large]}."""
    truth, found = COCO(), COCO()
    pictures = [{"id": i.id, "height": i.image_hw[0], "width": i.image_hw[1]} for i in images]
    truth.dataset = {"images": pictures, "categories": [{"id": 1}]}
    found.dataset = dict(truth.dataset)
    truth.dataset["annotations"] = [
        {"id": n, "image_id": i.id, "category_id": 1, "segmentation": o.segmentation, "area": o.area,
         "iscrowd": int(o.crowd)}
        for n, (i, o) in enumerate(((i, o) for i in images for o in i.instances), 1)
    ]  # fmt: skip
    found.dataset["annotations"] = [
        {"id": n, "image_id": i, "category_id": 1, "segmentation": p.segmentation, "area": 1, "score": p.score}
        for n, (i, p) in enumerate(((i, p) for i, several in proposals.items() for p in several), 1)
    ]  # fmt: skip
    truth.createIndex()
    found.createIndex()
    scoring = COCOeval(truth, found, iouType="segm")
    scoring.params.useCats, scoring.params.maxDets = 0, [10, 100, 1000]
    scoring.evaluate()
    scoring.accumulate()
    return {k: scoring.eval["recall"][:, 0, :, n].mean(0) for n, k in enumerate((10, 100, 1000))}


def test_picture_by_picture_gives_what_cocoeval_gives_for_all_of_them_at_once():
    rng = np.random.default_rng(4)
    images, proposals = [], {}
    for number in range(6):
        masks = [rng.random((8, 8)).repeat(12, 0).repeat(12, 1) > 0.6 for _ in range(5)]
        objects = [
            instance(mask & (rng.random(mask.shape) > 0.1), area=rng.choice([500, 2000, 20000])) for mask in masks
        ]
        crowd = replace(objects[0], crowd=True)
        images.append(AnnotatedImage(number, None, (96, 96), (crowd, *objects[1:])))
        several = [
            coco.encode(np.asfortranarray((m ^ (rng.random(m.shape) > 0.9)).astype(np.uint8))) for m in masks * 4
        ]
        proposals[number] = [ScoredMask(rle, float(rng.random())) for rle in several]
    ours, theirs = average_recall(images, proposals), coco_eval(images, proposals)
    for k, expected in theirs.items():
        assert 0 < expected[0] < 1
        assert list(ours[f"AR@{k}"].values()) == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize("where", ["scores", "low_res_masks"])
def test_an_answer_that_is_no_number_is_no_score(images, where):
    class Broken(Stub):
        def answer(self, prompt):
            found = super().answer(prompt)
            getattr(found, where).flat[0] = np.nan
            return found

    with pytest.raises(ParityFailed, match="NaN"):
        measure(images, Broken(ANSWERS), {"box": box_prompt})


def test_a_proposal_without_a_score_is_no_proposal(images):
    bad = [ScoredMask(rle_of(SMALL, FIRST_HW), float("nan"))]
    with pytest.raises(ParityFailed, match="NaN"):
        measure(images[:1], Stub({}), {}, propose=lambda *_: bad)
