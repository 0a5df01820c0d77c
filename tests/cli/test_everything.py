"""``samexport everything`` and the options of a sampler, as a user types them."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from samexport.cli.everything import read_boxes
from samexport.errors import PromptError
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import pack
from samexport.runtimes.tasks import everything as everything_module
from samexport.runtimes.tasks.everything import fit_boxes
from samexport.runtimes.tasks.segment import Segmenter
from tests.command_line import one_line_error


def test_everything_writes_an_overlay_and_coco_masks_and_says_what_it_found(run, sampler_bundle, photo, tmp_path):
    out, masks = tmp_path / "o.png", tmp_path / "m.json"
    command = "everything", sampler_bundle.folder, photo, "--out", out, "--masks", masks
    code, text, err = run(*command)
    assert (code, err) == (0, "")
    records = json.loads(masks.read_text())
    assert f"{len(records)} masks in 60 x 40 pixels" in text
    assert f"wrote {masks}: {len(records)} masks" in text
    assert "RANDOM" in text
    for stage in ("open", "sample", "encode", "decode", "upscale"):
        assert f"{stage} " in text.splitlines()[-1]
    assert Image.open(out).size == (60, 40)
    assert [record["score"] for record in records] == sorted((r["score"] for r in records), reverse=True)
    assert all(coco.area(record["segmentation"]) == record["area"] for record in records)
    code, _, err = run(*command)
    assert (code, "--force" in one_line_error(err)) == (2, True)


def test_everything_that_finds_nothing_is_a_sentence_and_empty_files(run, sampler_bundle, photo, tmp_path):
    out, masks = tmp_path / "o.png", tmp_path / "m.json"
    written = "--out", out, "--masks", masks
    code, text, _ = run("everything", sampler_bundle.folder, photo, "--confidence", "1", *written)
    assert (code, json.loads(masks.read_text())) == (0, [])
    assert "no object was found" in text
    assert np.array_equal(np.array(Image.open(out)), np.array(Image.open(photo)))


def test_boxes_of_a_file_and_grids_are_samplers_too(run, tiny_bundle, photo, tmp_path):
    boxes, masks = tmp_path / "boxes.json", tmp_path / "m.json"
    boxes.write_text(json.dumps([{"bbox": [1, 2, 10, 20], "score": 0.2}, {"bbox": [5, 5, 30, 30], "score": 0.9}]))
    command = "everything", tiny_bundle.folder, photo, "--masks", masks, "--force", "--sampler"
    assert run(*command, boxes)[0] == 0
    assert [record["box"] for record in json.loads(masks.read_text())] == [[5, 5, 35, 35], [1, 2, 11, 22]]
    boxes.write_text("[[1, 2, 11, 22]]")
    assert run(*command, boxes)[0] == 0
    assert [record["box"] for record in json.loads(masks.read_text())] == [[1, 2, 11, 22]]
    for grid in ("grid", "hierarchical"):
        code, text, _ = run(*command, grid, "--points-per-side", "4")
        assert (code, "stable enough" in text or "masks in" in text) == (0, True)


@pytest.mark.parametrize(("sure", "named"), [("0", False), ("9", True)])
def test_what_keeps_every_mask_away_is_named(run, tiny_bundle, photo, sure, named):
    grid = ("--points-per-side", "2", "--pred-iou-thresh", sure, "--stability-score-thresh", "1")
    code, text, _ = run("everything", tiny_bundle.folder, photo, *grid)
    assert (code, "--stability-score-thresh (1)" in text, "--pred-iou-thresh (" in text) == (0, True, named)


def test_the_old_spelling_is_the_same_command(run, tiny_bundle, photo, tmp_path):
    grid = ("--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert run("segment", tiny_bundle.folder, photo, "--everything", *grid, "--coco", old)[0] == 0
    assert run("everything", tiny_bundle.folder, photo, *grid, "--masks", new)[0] == 0
    assert old.read_text() == new.read_text() != "[]\n"
    for prompt in (("--point", "1,1"), ("--box=1,1,9,9",), ("--multimask",)):
        code, _, err = run("segment", tiny_bundle.folder, photo, "--everything", *prompt)
        assert (code, "takes no prompts" in one_line_error(err)) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "object-aware"], "has no sampler"),
        (["--sampler", "grid", "--confidence", "0.5"], "belong to a detector"),
        (["--sampler", "x.json"], "x.json"),
        (["--sampler", "x.json", "--crop-n-layers", "1"], "--crop-n-layers belong to --sampler grid"),
        (["--masks", "m.txt"], ".json"),
        (["--points-per-side", "0"], "at least 1"),
        (["--points-per-side", "100000"], "at most 1024, got 100000"),
        (["--points-per-side", "9" * 400], "at most 1024"),
        (["--crop-n-layers", "1000000000"], "at most 4"),
        (["--pred-iou-thresh", "nan"], "got nan"),
        (["--box-nms-thresh", "2"], "at most 1"),
        (["--crop-n-layers", "2", "--sampler", "hierarchical"], "hierarchical"),
    ],
)
def test_options_that_cannot_be_end_with_exit_code_2_before_the_model_runs(
    run, tiny_bundle, photo, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Segmenter, "set_image", lambda *_: pytest.fail("the picture was encoded"))
    code, _, err = run("everything", tiny_bundle.folder, photo, *arguments)
    assert (code, message in one_line_error(err)) == (2, True), err


def test_options_of_the_grid_do_not_go_with_a_detector(run, sampler_bundle, photo):
    code, _, err = run("everything", sampler_bundle.folder, photo, "--pred-iou-thresh", "0.5", "--crop-n-layers", "1")
    expected = "--pred-iou-thresh, --crop-n-layers belong to --sampler grid and hierarchical"
    assert (code, expected in one_line_error(err)) == (2, True)


def test_the_options_of_the_grid_reach_it(run, tiny_bundle, photo, tmp_path, monkeypatch):
    options = {
        "points_per_side": 4, "pred_iou_thresh": 0.25, "stability_score_thresh": 0.5, "stability_score_offset": 0.75,
        "box_nms_thresh": 0.625, "crop_n_layers": 1, "crop_nms_thresh": 0.875, "crop_overlap_ratio": 0.125,
        "crop_n_points_downscale_factor": 2, "min_mask_region_area": 3,
    }  # fmt: skip
    seen = []
    real = everything_module.generate
    monkeypatch.setattr(everything_module, "generate", lambda *call: seen.append(call[-1]) or real(*call))
    typed = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert run("everything", tiny_bundle.folder, photo, *typed)[0] == 0
    assert {name: getattr(seen[0], name) for name in options} == options


def test_where_no_mask_passes_the_line_names_the_options_and_what_they_must_reach(run, tiny_bundle, photo):
    command = ("everything", tiny_bundle.folder, photo, "--points-per-side", "3", "--json")
    code, out, _ = run(*command, "--pred-iou-thresh", "-9", "--stability-score-thresh", "0")
    best = max(mask["predicted_iou"] for mask in json.loads(out)["masks"])
    code, text, _ = run(*command[:-1], "--pred-iou-thresh", "99")
    assert code == 0
    line = next(line for line in text.splitlines() if line.startswith("no mask in 60 x 40 pixels"))
    assert f"the best predicted IoU is {best:.3f}" in line
    assert "--pred-iou-thresh (99)" in line
    assert "--stability-score-thresh (0.95)" in line


def test_prompts_and_everything_write_the_same_records(run, tiny_bundle, sampler_bundle, photo, tmp_path):
    grid = ("--points-per-side", "2", "--pred-iou-thresh", "-9", "--stability-score-thresh", "0")
    commands = (
        ("segment", tiny_bundle.folder, photo, "--point", "3,4", "--box", "1,2,30,30", "--multimask"),
        ("everything", tiny_bundle.folder, photo, *grid),
        ("everything", sampler_bundle.folder, photo, "--max-boxes", "2"),
    )
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}))
    keys = set()
    for command in commands:
        code, out, _ = run(*command, "--masks", tmp_path / "m.json", "--force", "--json")
        records = json.loads((tmp_path / "m.json").read_text())
        assert (code, json.loads(out.splitlines()[-1])["masks"]) == (0, records)  # pycocotools prints too
        keys |= {tuple(record) for record in records}
        loaded = COCO(str(truth)).loadRes(str(tmp_path / "m.json"))
        assert len(loaded.getAnnIds(imgIds=[1], catIds=[1])) == len(records) > 0
    assert len(keys) == 1


def test_boxes_that_do_not_fit_are_told_and_left_out(run, tiny_bundle, photo, tmp_path):
    boxes, masks = tmp_path / "boxes.json", tmp_path / "m.json"
    boxes.write_text("[[-0.4, 1, 20, 20], [5, 5, 5, 30], [2, 2, 60.3, 40.2], [70, 1, 90, 9]]")
    command = "everything", tiny_bundle.folder, photo, "--sampler", boxes, "--masks", masks, "--force"
    code, _, err = run(*command)
    assert [record["box"] for record in json.loads(masks.read_text())] == [[0, 1, 20, 20], [2, 2, 60, 40]]
    assert (code, "2 of 4 boxes have no area" in err, "2 of 4 boxes reach beyond" in err) == (0, True, True)
    boxes.write_text("[[0.1, 0.1, 0.5, 0.6]]")
    code, _, err = run(*command)
    assert (code, "normalised" in err) == (0, True)
    code, _, err = run("everything", tiny_bundle.folder, photo, photo.parent, "--sampler", boxes)
    assert (code, "boxes of one picture" in one_line_error(err) or "two of the pictures" in err) == (2, True)


BAD_BOXES = [
    "no json", "{}", "[[1, 2, 3]]", "[[1, 2, 3, 4], 5]", '[{"x": 1}]', '[["a", 1, 2, 3]]', "[[9, 9, 3, 3]]",
    '[{"image_id": 1, "bbox": [1, 1, 2, 2]}, {"image_id": 2, "bbox": [1, 1, 2, 2]}]', '["1234"]', "[[1, 2, NaN, 4]]",
    "[[1, 2, 1e999, 4]]", '[{"bbox": [1, 2, 3, 4], "score": "0.5"}]', '[{"bbox": [1, 2, 3, 4], "score": 1e999}]',
    '[{"bbox": [1e308, 2, 1e308, 4]}]', "[[true, 2, 3, 4]]", "[" * 100_000, f"[[{10**400}, 2, 3, 4]]",
    '[{"image_id": [], "bbox": [1, 1, 2, 2]}, {"image_id": {}, "bbox": [1, 1, 2, 2]}]', '[{"bbox": {"a": 1}}]', "null",
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_BOXES, ids=range(len(BAD_BOXES)))
def test_box_files_that_cannot_be_used_end_with_exit_code_2(run, tiny_bundle, photo, tmp_path, content):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(content)
    code, _, err = run("everything", tiny_bundle.folder, photo, "--sampler", boxes)
    assert (code, "boxes" in one_line_error(err)) == (2, True)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.sampled_from(["bbox", "score", "image_id", "annotations", "x"]), inner, max_size=4),
    ),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(_JSON, st.integers(1, 50), st.integers(1, 50))
def test_any_json_gives_boxes_inside_the_picture_or_a_prompt_error(tmp_path_factory, content, height, width):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(content))
    with contextlib.suppress(PromptError):
        boxes, scores, _ = fit_boxes(read_boxes(path), (height, width))
        pack(
            [Prompt.make(box=box) for box in boxes] or [Prompt.make([0, 0])], FrameMap((height, width), Preprocess(64))
        )
        assert np.isfinite(scores).all()


def test_exporting_a_sampler_needs_its_weights_or_random_ones(run, tmp_path):
    arguments = "onnx", "--encoder", "test.tinyvit64", "--out", tmp_path / "b"
    code, _, err = run(*arguments, "--checkpoint", "x.pt", "--sampler", "object-aware")
    assert (code, "--sampler-checkpoint" in one_line_error(err)) == (2, True)
    code, _, err = run(*arguments, "--weights", "random", "--sampler-size", "640")
    assert (code, "--sampler object-aware" in one_line_error(err)) == (2, True)
    code, _, err = run(*arguments, "--weights", "random", "--sampler", "test", "--sampler-checkpoint", "absent.pt")
    assert (code, "AGPL-3.0" in err, "absent.pt" in one_line_error(err)) == (2, True, True)
    assert list(tmp_path.iterdir()) == []
