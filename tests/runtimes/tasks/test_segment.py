import subprocess
import sys

import numpy as np
import pytest

from samexport.errors import PromptError
from samexport.runtimes.host.image import upscale_logits
from samexport.runtimes.host.prompts import Prompt, pack
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
    logits = upscale_logits(answer.low_res_masks, (45, 60), tiny_bundle.manifest.frame)
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
        run = opened._run
        monkeypatch.setattr(opened, "_run", lambda graph, inputs: calls.append(graph) or run(graph, inputs))
        opened.set_image(picture)
        opened.predict(many_prompts(5))
        opened.set_image(picture[::-1].copy())
        opened.predict(many_prompts(2))
    assert calls.count("decoder_prologue") == 2
    assert calls.count("decoder_step") == 4


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
    tensors = pack(many_prompts(4), (45, 60), tiny_bundle.manifest.frame)
    assert set(tensors) == set(tiny_bundle.graph("decoder").input_names) - {"image_embeddings"}
