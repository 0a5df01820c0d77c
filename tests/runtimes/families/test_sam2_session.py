"""SAM 2's bundles through what every command uses: pictures, everything in a picture, verifying, videos."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from samexport.errors import BundleError, ConfigError, PromptError
from samexport.models.architectures.sam2_mask_decoder import choose
from samexport.models.catalog import find_model
from samexport.models.families.sam2 import IMAGE_GRAPHS, image_frame
from samexport.models.loading import reload_model
from samexport.runtimes.adapters.entry_points import Bucket
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.families.sam2_session import Sam2Session
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.object_masks import stability
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam2_prompts import count_points, pack
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.session import Decoded, OpenGraphs, open_session
from samexport.runtimes.tasks.segment import Segmenter
from tests.models import sam2_golden
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures

HW = (30, 60)


@pytest.fixture(scope="module")
def picture():
    coarse = np.random.default_rng(0).integers(0, 256, (5, 10, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def model(sam2_bundle):
    return reload_model(find_model(sam2_bundle.manifest.model), sam2_bundle.manifest.weights)


def packed(*prompts):
    tensors = pack(prompts, FrameMap(HW, image_frame(64)))
    return tensors["point_coords"].tolist(), tensors["point_labels"].tolist()


def test_a_box_comes_before_the_points_and_a_padding_point_ends_every_prompt():
    coords, labels = packed(
        Prompt.make([30, 15]), Prompt.make(box=[0, 0, 60, 30]), Prompt.make([15, 15], [0], box=[6, 3, 30, 15])
    )
    assert labels == [[1, -1, -2, -2], [2, 3, -1, -2], [2, 3, 0, -1]]
    assert coords[0][0] == [32, 32]
    assert coords[1][:2] == [[0, 0], [64, 64]]
    assert coords[2][2] == [16, 32]


def test_a_mask_alone_has_no_slot_and_is_clamped():
    tensors = pack([Prompt.make(mask_input=np.full((16, 16), 99.0))], FrameMap(HW, image_frame(64)))
    assert tensors["point_labels"].tolist() == [[-2]]
    assert tensors["mask_input"].max() == 32
    assert count_points(np.array([[2, 3, 1, -1, -2]])).tolist() == [3]


def test_masks_are_those_that_the_architecture_finds(sam2_bundle, model, picture):
    with Segmenter(sam2_bundle, threads=1) as segmenter:
        segmenter.set_image(picture)
        prompts = [Prompt.make([20, 10]), Prompt.make([[20, 10], [5, 5]], [1, 0]), Prompt.make(box=[10, 5, 40, 25])]
        answers = segmenter.predict(prompts)
    square = torch.from_numpy(to_frame(picture, image_frame(64))) / 255
    features = model.features(sam2_golden.normalised(square))
    embed = model.without_memory(features.vision)
    scale = torch.tensor([64 / 60, 64 / 30])
    given = [([[20, 10]], [1]), ([[20, 10], [5, 5]], [1, 0]), ([[10, 5], [40, 25]], [2, 3])]
    for answer, (points, labels) in zip(answers, given, strict=True):
        points = torch.tensor([points], dtype=torch.float32) * scale
        multimask = len(labels) == 1
        decoded = model.decode(embed, features, points, torch.tensor([labels]), None)
        wanted = choose(decoded, multimask=multimask, fallback=True)
        best = int(wanted.iou[0].argmax())
        np.testing.assert_allclose(answer.low_res_masks[0], wanted.masks[0, best], atol=2e-3)
        np.testing.assert_allclose(answer.scores[0], wanted.iou[0, best], atol=1e-4)


def test_what_is_clear_is_answered_by_mask_0_unless_it_is_unstable(sam2_bundle):
    session = open_session(OpenGraphs(sam2_bundle))
    assert isinstance(session, Sam2Session)
    sure = np.full((4, 16, 16), 9.0, np.float32)
    unsure = sure.copy()
    unsure[0, :8] = 0.0
    assert stability(sure[0]) == 1
    assert stability(unsure[0]) == 0.5
    labels = np.array([[2, 3, -1], [2, 3, -1], [1, -1, -2], [-2, -2, -2]], np.float32)
    decoded = Decoded(np.stack([sure, unsure, sure, sure]), np.tile(np.float32([0.9, 0.2, 0.6, 0.4]), (4, 1)))
    assert session.choose({"point_labels": labels}, decoded) == [0, 2, 2, 2]


def test_too_many_points_are_told_without_the_padding_point(sam2_bundle, picture):
    session = open_session(OpenGraphs(sam2_bundle))
    prompt = Prompt.make(np.full((8, 2), 9.0))
    tensors = session.pack([prompt], FrameMap(HW, image_frame(64)))
    opened = session.graphs.open("mask_decoder")
    opened.entry_points = (Bucket("decode_1", 1, 8),)
    with pytest.raises(
        PromptError, match="8 points; this file takes at most 7: give fewer, or export it with --points 9"
    ):
        session.check([prompt], tensors)
    session.check([Prompt.make(np.full((7, 2), 9.0))], tensors)


def test_commands_run_on_a_bundle_of_the_family(sam2_bundle, picture, run, tmp_path):
    Image.fromarray(picture).save(tmp_path / "p.png")
    code, _, err = run("segment", sam2_bundle.folder, tmp_path / "p.png", "--box", "10,5,40,25")
    assert code == 0, err
    boxes = tmp_path / "boxes.json"
    boxes.write_text("[[5, 5, 30, 25], [20, 0, 60, 30]]")
    out = tmp_path / "all.json"
    code, _, err = run("everything", sam2_bundle.folder, tmp_path / "p.png", "--sampler", boxes, "--masks", out)
    assert code == 0, err
    assert len(json.loads(out.read_text())) == 2
    grid = tmp_path / "grid.json"
    options = ("--points-per-side", 3, "--pred-iou-thresh", 0, "--stability-score-thresh", 0)
    code, _, err = run(
        "everything", sam2_bundle.folder, tmp_path / "p.png", "--sampler", "grid", *options, "--masks", grid
    )
    assert code == 0, err
    code, out, err = run("verify", sam2_bundle.folder)
    assert code == 0, err
    assert "sparse video" in out


def test_a_video_is_judged_frame_by_frame(sam2_bundle):
    golden = load_golden(sam2_bundle.folder, sam2_bundle.manifest.frame)
    clip, sparse = (golden.clips[name] for name in ("video", "sparse video"))
    assert (clip.masks.shape[:2], sparse.masks.shape[:2]) == ((5, 2), (9, 1))
    assert 0.02 < clip.masks.mean() < 0.9
    # half of the windows from the third frame on, a token of each layer once a memory is old
    assert sparse.numbers["windows"].sum((1, 2)).tolist() == [4, 4, *[2] * 7]
    assert sparse.numbers["kept"].sum((1, 2, 3)).tolist() == [0, 0, *[2] * 7]
    outputs = {"video": {"masks", "object_score", "iou_predictions", "object_pointers"}}
    outputs["sparse video"] = outputs["video"] | {"windows", "kept"}
    for name, wanted in outputs.items():
        assert {row.output for row in sam2_bundle.manifest.parity if row.check.case == name} == wanted


def test_a_stream_goes_on_from_step_to_step(sam2_bundle, picture):
    session = open_session(OpenGraphs(sam2_bundle, threads=1))
    first, state = session.step(picture, None, [Prompt.make([20, 10]), Prompt.make(box=[10, 5, 40, 25])])
    again, same = session.step(np.roll(picture, 5, axis=1), state)
    assert same is state
    assert isinstance(state, Tracker)
    assert first.logits.shape == again.logits.shape == (2, 1, 16, 16)
    assert state.next_frame == 2


def test_a_bundle_for_pictures_follows_nothing(sam2_bundle, tiny_bundle):
    kept = tuple(a for a in sam2_bundle.manifest.artifacts if a.graph in IMAGE_GRAPHS)
    pictures = Bundle(sam2_bundle.folder, replace(sam2_bundle.manifest, artifacts=kept))
    with pytest.raises(
        BundleError, match="was made for pictures and has no mask_decoder_tracked; export it with --video"
    ):
        open_session(OpenGraphs(pictures)).tracker()
    with pytest.raises(ConfigError, match="follows nothing through a video"):
        open_session(OpenGraphs(tiny_bundle)).tracker()
