import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from samexport.errors import ConfigError, ImageError, ParityFailed, PromptError
from samexport.runtimes.adapters.entry_points import Bucket
from samexport.runtimes.host.frames import FrameMap, upscale_logits
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import pack
from samexport.runtimes.tasks.everything import GivenBoxes, SegmentEverything
from samexport.runtimes.tasks.segment import Segmenter


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[0:45, 0:60]
    return np.stack([4 * x, 5 * y, 255 * (np.hypot(x - 30, y - 20) < 12)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def segmenter(tiny_bundle, picture):
    with Segmenter(tiny_bundle) as opened:
        opened.set_image(picture)
        yield opened


def many_prompts(count: int) -> list[Prompt]:
    rng = np.random.default_rng(5)
    clicks = rng.uniform(0, 44, (count, 3, 2))
    kinds = [
        lambda p: Prompt.make(points=p[:1], labels=[1]),
        lambda p: Prompt.make(points=p, labels=[1, 0, 1]),
        lambda p: Prompt.make(box=[*(p[0] / 2), *(p[0] / 2 + 10)]),
        lambda p: Prompt.make(points=p[1:2], labels=[0], box=[*(p[0] / 2), *(p[0] / 2 + 10)]),
    ]
    return [kinds[i % 4](p) for i, p in enumerate(clicks)]


def test_a_batch_of_mixed_prompts_equals_each_prompt_alone(segmenter):
    prompts = many_prompts(9)
    together = segmenter.predict(prompts, multimask=True)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = segmenter.predict([prompt], multimask=True)
        span = np.ptp(alone.low_res_masks)
        np.testing.assert_allclose(answer.low_res_masks, alone.low_res_masks, atol=1e-5 * span)
        np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-5)


def test_chunks_give_the_same_numbers_as_one_go(tiny_bundle, picture):
    prompts, answers = many_prompts(11), []
    for chunk in (1, 4, 64):
        with Segmenter(tiny_bundle, chunk=chunk) as opened:
            opened.set_image(picture)
            answers.append(np.concatenate([r.low_res_masks for r in opened.predict(prompts)]))
    for other in answers[1:]:
        np.testing.assert_allclose(answers[0], other, atol=1e-5 * np.ptp(answers[0]))


def test_a_grid_of_clicks_is_what_each_click_gives(tiny_bundle, picture):
    clicks = np.array([[7.0, 9.0], [31.5, 20.0], [50.0, 40.0]])
    with Segmenter(tiny_bundle, chunk=2) as opened:
        opened.set_image(picture)
        logits, scores = opened.decode_points(clicks * 64 / 60)
        answers = opened.predict([Prompt.make(points=[click], labels=[1]) for click in clicks], multimask=True)
    expected = np.stack([answer.low_res_masks[1:] for answer in answers])
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.ptp(expected))
    np.testing.assert_allclose(scores, [answer.scores[1:] for answer in answers], atol=1e-5)


def test_masks_are_the_thresholded_upscaled_logits_of_the_picture(segmenter, tiny_bundle):
    (answer,) = segmenter.predict([Prompt.make(points=[[30, 20]], labels=[1])], multimask=True)
    assert answer.masks.shape == (4, 45, 60)
    logits = upscale_logits(answer.low_res_masks, FrameMap((45, 60), tiny_bundle.manifest.frame))
    assert np.array_equal(answer.masks, logits > 0)


def test_one_click_takes_the_best_ambiguous_mask_and_a_clear_prompt_mask_0(segmenter):
    click = Prompt.make(points=[[30, 20]], labels=[1])
    (every,) = segmenter.predict([click], multimask=True)
    (best,) = segmenter.predict([click])
    assert best.indices == (1 + int(every.scores[1:].argmax()),)
    (clear,) = segmenter.predict([Prompt.make(points=[[30, 20], [1, 1]], labels=[1, 0])])
    assert clear.indices == (0,)


def test_a_mask_prompt_changes_the_answer_and_shares_a_batch_with_plain_prompts(segmenter):
    click = Prompt.make(points=[[30, 20]], labels=[1])
    (plain,) = segmenter.predict([click], multimask=True)
    refined = Prompt.make(points=[[30, 20]], labels=[1], mask_input=plain.low_res_masks[0])
    with_mask, without = segmenter.predict([refined, click], multimask=True)
    assert np.abs(with_mask.low_res_masks - plain.low_res_masks).max() > 0.1
    np.testing.assert_allclose(without.low_res_masks, plain.low_res_masks, atol=1e-5 * np.ptp(plain.low_res_masks))


def test_no_prompt_and_no_picture_are_refused(segmenter, tiny_bundle, picture):
    with pytest.raises(PromptError, match="no prompt"):
        segmenter.predict([])
    with Segmenter(tiny_bundle) as fresh, pytest.raises(PromptError, match="set_image"):
        fresh.predict([Prompt.make(points=[[1, 1]], labels=[1])])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (700, 10), (64, 64), (33, 64)])
def test_any_picture_shape_gives_masks_of_that_shape(tiny_bundle, shape):
    with Segmenter(tiny_bundle) as opened:
        opened.set_image(np.full((*shape, 3), 90, np.uint8))
        (answer,) = opened.predict([Prompt.make(points=[[0, 0]], labels=[1])])
    assert answer.masks.shape == (1, *shape)
    assert np.isfinite(answer.scores).all()


def test_a_split_bundle_computes_the_prologue_once_a_picture(half_bundle, picture, monkeypatch):
    with Segmenter(half_bundle, chunk=2) as opened:
        calls = []
        run = opened.graphs.run
        monkeypatch.setattr(opened.graphs, "run", lambda *given: calls.append(given[0]) or run(*given))
        opened.set_image(picture)
        opened.predict(many_prompts(5))
        opened.set_image(picture[::-1].copy())
        opened.predict(many_prompts(2))
    assert calls.count("decoder_prologue") == 2
    assert calls.count("decoder_step") == 4


def test_a_box_is_answered_by_mask_0_alone_among_others_and_in_everything(segmenter, tiny_bundle, picture):
    box = Prompt.make(box=[10, 5, 50, 40])
    (alone,), (_, among) = segmenter.predict([box]), segmenter.predict([Prompt.make([5, 5]), box])
    assert alone.indices == among.indices == (0,)
    (every,) = segmenter.predict([box], multimask=True)
    assert (every.chosen, every.scores.argmax()) == (0, every.scores[1:].argmax() + 1), "another would have scored more"
    with SegmentEverything(tiny_bundle, GivenBoxes(box.box[None], np.ones(1))) as everything:
        (mask,) = everything.masks(picture)
    assert (mask.index, mask.predicted_iou) == (0, pytest.approx(alone.scores[0], abs=1e-5))


def test_one_prompt_is_one_answer_and_a_list_is_a_list(segmenter):
    click = Prompt.make([30, 20])
    one, (same,) = segmenter.predict(click), segmenter.predict([click])
    np.testing.assert_array_equal(one.masks, same.masks)
    assert one.chosen == one.indices[0]
    again = segmenter.predict(Prompt.make([30, 20], mask_input=one.low_res_masks))
    assert again.masks.shape == (1, 45, 60)


def test_answers_come_while_later_prompts_are_not_decoded(tiny_bundle, picture, monkeypatch):
    with Segmenter(tiny_bundle, chunk=2) as opened:
        opened.set_image(picture)
        calls, run = [], opened.graphs.run
        monkeypatch.setattr(opened.graphs, "run", lambda *given: calls.append(given[0]) or run(*given))
        answers = opened.answers(many_prompts(6))
        next(answers)
        assert calls == ["decoder"]
        assert len(list(answers)) == 5
        assert calls == ["decoder"] * 3


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "8", None])
def test_a_chunk_that_is_no_number_of_prompts_is_refused(tiny_bundle, chunk):
    for kind in (Segmenter, SegmentEverything):
        with pytest.raises(ConfigError, match="at least 1"):
            kind(tiny_bundle, chunk=chunk)


def test_a_picture_that_fails_leaves_none_behind(tiny_bundle, picture, tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with Segmenter(tiny_bundle) as opened:
        for bad in (tmp_path / "bad.png", picture.astype(np.float32), 3):
            opened.set_image(picture)
            with pytest.raises(ImageError):
                opened.set_image(bad)
            with pytest.raises(PromptError, match="no picture was set"):
                opened.predict(Prompt.make([1, 1]))
        monkeypatch.setattr(
            opened.graphs, "run", lambda graph, inputs, wanted=(): {"image_embeddings": np.full((1, 2), np.nan)}
        )
        with pytest.raises(ParityFailed, match="encoder returned NaN"):
            opened.set_image(picture)
        with pytest.raises(PromptError, match="no picture was set"):
            opened.predict(Prompt.make([1, 1]))


@pytest.mark.parametrize("name", ["low_res_masks", "iou_predictions"])
def test_nan_is_never_an_answer(tiny_bundle, picture, monkeypatch, name):
    with Segmenter(tiny_bundle) as opened:
        opened.set_image(picture)
        run = opened.graphs.run
        monkeypatch.setattr(
            opened.graphs,
            "run",
            lambda *given: {n: v * (np.inf if n == name else 1) for n, v in run(*given).items()},
        )
        with pytest.raises(ParityFailed, match="decoder returned NaN"):
            opened.predict(Prompt.make([1, 1]))


def test_pictures_are_paths_pillow_images_or_arrays(tiny_bundle, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "p.png")
    with Segmenter(tiny_bundle) as opened:
        found = []
        for source in (picture, tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(picture)):
            opened.set_image(source)
            found.append(opened.predict(Prompt.make([30, 20])).scores)
    assert np.ptp(found) == 0


class Rooms:
    """An opened decoder of fixed size, as far as its size is asked for."""

    entry_points = (Bucket("decode_1", 1, 8), Bucket("decode_4", 4, 2))

    def close(self):
        pass


def test_points_beyond_a_file_of_fixed_size_are_counted_as_the_user_does(tiny_bundle, picture, monkeypatch):
    eight = Prompt.make([(i, i) for i in range(8)])
    with Segmenter(tiny_bundle) as opened:
        opened.set_image(picture)
        monkeypatch.setitem(opened.graphs.opened, "decoder", Rooms())
        for prompt, message in (
            (eight, "prompt 1 has 8 points; this file takes at most 7: give fewer, or export it with --points 9"),
            (
                Prompt.make(eight.points[:7], box=(0, 0, 5, 5)),
                "7 points with a box;.* 6 with a box.*--points 9",
            ),
        ):
            with pytest.raises(PromptError, match=message):
                opened.predict([Prompt.make([1, 1]), prompt])


NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxscript", "onnxslim", "safetensors", "pooch", "coremltools"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
import numpy as np
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.parity.verify import verify_bundle
bundle = open_bundle(Path(sys.argv[1]))
print(verify_bundle(bundle).verdict)
with Segmenter(bundle) as segmenter:
    segmenter.set_image(np.zeros((40, 50, 3), np.uint8))
    print(segmenter.predict([Prompt.make(points=[[3, 4]], labels=[1])])[0].masks.shape)
"""


def test_verify_and_segment_need_neither_torch_nor_onnx(tiny_bundle):
    run = subprocess.run([sys.executable, "-c", NO_TORCH, tiny_bundle.folder], capture_output=True, text=True)
    assert run.stdout.split("\n")[:2] == ["PASS", "(1, 40, 50)"], run.stderr


def test_pack_agrees_with_the_decoder_contract(tiny_bundle):
    tensors = pack(many_prompts(4), FrameMap((45, 60), tiny_bundle.manifest.frame))
    assert set(tensors) == set(tiny_bundle.graph("decoder").input_names) - {"image_embeddings"}


def test_prompts_are_anything_iterable_and_nothing_else(tiny_bundle, picture):
    with Segmenter(tiny_bundle) as opened:
        opened.set_image(picture)
        prompts = many_prompts(3)
        found = opened.predict(prompt for prompt in prompts)
        for one, other in zip(found, opened.predict(prompts), strict=True):
            np.testing.assert_array_equal(one.masks, other.masks)
        for wrong in (None, [None], [3, 3], np.zeros((2, 2))):
            with pytest.raises(PromptError, match=r"prompts are made with Prompt\.make"):
                opened.predict(wrong)


def test_a_segmenter_that_was_closed_opens_its_files_again(tiny_bundle, picture):
    segmenter = Segmenter(tiny_bundle)
    segmenter.set_image(picture)
    before = segmenter.predict(Prompt.make([30, 20]))
    segmenter.close()
    assert not segmenter.graphs.opened
    np.testing.assert_array_equal(segmenter.predict(Prompt.make([30, 20])).masks, before.masks)
    assert segmenter.graphs.opened
    segmenter.close()
