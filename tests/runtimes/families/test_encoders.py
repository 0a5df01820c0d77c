"""Every encoder behind the commands: the untouched architectures at 64 pixels, segmenting a picture."""

from dataclasses import replace

import numpy as np
import pytest

from samexport.errors import PromptError
from samexport.models.catalog import MODELS
from samexport.models.spec import Preprocess, WeightsInfo
from samexport.runtimes.accuracy.agreement import ask
from samexport.runtimes.host.frames import FrameMap, resize
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import stability
from samexport.runtimes.parity.picture import picture_masks
from samexport.runtimes.session import Decoded
from samexport.runtimes.tasks.everything import GridPoints, SegmentEverything
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.torch_bundle import plain_bundle
from tests.models.graphs.test_encoders import SMALL, network_of

PICTURE = np.random.default_rng(3).integers(0, 256, (40, 90, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=SMALL)
def bundle(request):
    return plain_bundle(MODELS[request.param], network_of(request.param), WeightsInfo("random", "seed 7", None, 7))


def test_clicks_and_boxes_are_answered(bundle):
    prompts = [Prompt.make([30, 20]), Prompt.make(box=[5, 5, 60, 30]), Prompt.make([[30, 20], [50, 30]])]
    with Segmenter(bundle) as segmenter:
        segmenter.set_image(PICTURE)
        answers = segmenter.predict(prompts)
        many = segmenter.predict(prompts[0], multimask=True)
    assert all(answer.masks.shape == (1, 40, 90) and np.isfinite(answer.scores).all() for answer in answers)
    assert len(many.masks) == len(bundle.manifest.mask_outputs)


def test_the_same_prompt_is_answered_alike_in_any_company(bundle):
    with Segmenter(bundle) as segmenter:
        segmenter.set_image(PICTURE)
        alone = segmenter.predict(Prompt.make([30, 20]))
        _, beside = segmenter.predict([Prompt.make(box=[5, 5, 60, 30]), Prompt.make([30, 20])])
    np.testing.assert_allclose(alone.scores, beside.scores, rtol=0, atol=1e-4)


def test_everything_runs(bundle):
    grid = GridPoints(GridOptions(points_per_side=4, pred_iou_thresh=-9, stability_score_thresh=0))
    with SegmentEverything(bundle, grid) as everything:
        assert list(everything.masks(PICTURE))
        assert np.isfinite(everything.best_iou)


def test_what_an_export_compares_and_a_gate_asks_is_answered(bundle):
    masks = picture_masks(bundle, PICTURE, threads=1).masks
    assert masks.shape == (2, 40, 90)
    (asked,) = ask(bundle, [PICTURE], threads=1)
    assert len(asked.prompts["click"]) == len(asked.answers["click"]) == 16


@pytest.fixture(scope="module")
def edge():
    spec = MODELS["test.edge64"]
    with Segmenter(plain_bundle(spec, network_of(spec.name), WeightsInfo("random", "seed 7", None, 7))) as segmenter:
        segmenter.set_image(PICTURE)
        yield segmenter.session, segmenter._encoded


def test_edge_sams_masks_are_ranked_by_stability(edge):
    """As in its web demo: the most stable of all four for clicks, the first for a box."""
    session, encoded = edge
    packed = session.pack([Prompt.make([[30, 20], [50, 30]]), Prompt.make(box=[5, 5, 60, 30])], encoded.place)
    found = session.decode(encoded, packed)
    np.testing.assert_array_equal(found.scores, stability(found.logits))
    scores = np.float32([[0.9, 0.1, 0.2, 0.3], [0.1, 0.9, 0.2, 0.3]])
    assert session.choose(packed, replace(found, scores=scores)) == [0, 0]
    assert session.choose(packed, replace(found, scores=scores[::-1])) == [1, 0]


def test_stability_of_masks_worked_out_by_hand():
    logits = np.float32([[[[2, 0.5], [-0.5, -2]], [[2, 2], [2, 2]], [[-2, -2], [-2, -2]]]])
    np.testing.assert_allclose(stability(logits), [[1 / 3, 1, 0]])


@pytest.fixture(scope="module")
def efficient():
    spec = MODELS["test.efficientsam64"]
    with Segmenter(plain_bundle(spec, network_of(spec.name), WeightsInfo("random", "seed 7", None, 7))) as segmenter:
        yield segmenter.session


def test_efficient_sams_prompts_have_six_slots_box_first(efficient):
    place = FrameMap((40, 90), efficient.manifest.frame)
    packed = efficient.pack([Prompt.make([45, 20], box=[0, 0, 90, 40])], place)
    assert packed["point_labels"].tolist() == [[2, 3, 1, -1, -1, -1]]
    assert packed["point_coords"].tolist() == [[[0, 0], [64, 64], [32, 32], [-1, -1], [-1, -1], [-1, -1]]]
    assert efficient.choose(packed, Decoded(np.zeros((1, 4, 2, 2), np.float32), np.float32([[9, 1, 3, 2]]))) == [2]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt.make([[5, 5]], labels=[0]), "background point"),
        (Prompt.make([[5, 5]] * 7), "takes 6 points"),
        (Prompt.make([[5, 5]] * 5, box=[0, 0, 9, 9]), "takes 4 points beside a box"),
        (Prompt.make([5, 5], mask_input=np.zeros((16, 16))), "points and boxes alone"),
        (Prompt.make([95, 5]), "95"),
    ],
)
def test_what_efficient_sam_was_not_trained_with_is_refused(efficient, prompt, message):
    with pytest.raises(PromptError, match=message):
        efficient.pack([prompt], FrameMap((40, 90), efficient.manifest.frame))


def test_resize_without_antialias_takes_the_two_nearest_pixels():
    """Worked out by hand: 64 columns to 16 are means of the two in the middle of four, whatever the rest."""
    row = np.repeat(np.uint8([[0, 10, 20, 30, 40, 50, 60, 80]])[:, :, None], 3, axis=2)
    frame = Preprocess(16, resize="stretch", filter="bilinear_plain")
    square = resize(np.repeat(row, 16, axis=0).repeat(4, axis=1), frame)
    assert square.shape == (16, 16, 3)
    np.testing.assert_allclose(square[0, :4, 0], [0, 0, 10, 10])
    wide = np.arange(64, dtype=np.uint8)[None, :, None].repeat(3, axis=2).repeat(2, axis=0)
    np.testing.assert_allclose(resize(wide, frame)[0, :, 0], np.arange(16) * 4 + 1.5)
