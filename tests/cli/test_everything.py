"""``samexport segment --everything`` and the options of a sampler, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.command_line import one_line_error


def test_everything_writes_an_overlay_and_coco_masks_and_says_what_it_found(run, sampler_bundle, photo, tmp_path):
    out, masks = tmp_path / "o.png", tmp_path / "m.json"
    command = "segment", sampler_bundle.folder, photo, "--everything", "--out", out, "--coco", masks
    code, text, err = run(*command)
    assert (code, err) == (0, "")
    records = json.loads(masks.read_text())
    assert f"{len(records)} masks in 60 x 40 pixels" in text
    assert "RANDOM" in text
    for stage in ("sample", "encode", "decode", "upscale"):
        assert f"{stage} " in text.splitlines()[-1]
    assert Image.open(out).size == (60, 40)
    assert [record["score"] for record in records] == sorted((r["score"] for r in records), reverse=True)
    assert all(coco.area(record["segmentation"]) == record["area"] for record in records)
    code, _, err = run(*command)
    assert (code, "--force" in one_line_error(err)) == (2, True)


def test_everything_that_finds_nothing_is_a_sentence_and_empty_files(run, sampler_bundle, photo, tmp_path):
    out, masks = tmp_path / "o.png", tmp_path / "m.json"
    written = "--out", out, "--coco", masks
    code, text, _ = run("segment", sampler_bundle.folder, photo, "--everything", "--confidence", "1", *written)
    assert (code, json.loads(masks.read_text())) == (0, [])
    assert "no object was found" in text
    assert np.array_equal(np.array(Image.open(out)), np.array(Image.open(photo)))


def test_boxes_of_a_file_and_grids_are_samplers_too(run, tiny_bundle, photo, tmp_path):
    boxes, masks = tmp_path / "boxes.json", tmp_path / "m.json"
    boxes.write_text(json.dumps([{"bbox": [1, 2, 10, 20], "score": 0.2}, {"bbox": [5, 5, 30, 30], "score": 0.9}]))
    command = "segment", tiny_bundle.folder, photo, "--everything", "--coco", masks, "--force", "--sampler"
    assert run(*command, boxes)[0] == 0
    assert [record["prompt"] for record in json.loads(masks.read_text())] == [[5, 5, 35, 35], [1, 2, 11, 22]]
    boxes.write_text("[[1, 2, 11, 22]]")
    assert run(*command, boxes)[0] == 0
    assert [record["prompt"] for record in json.loads(masks.read_text())] == [[1, 2, 11, 22]]
    for grid in ("grid", "hierarchical"):
        code, text, _ = run(*command, grid, "--points-per-side", "4")
        assert (code, "stable enough" in text or "masks in" in text) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--everything", "--point", "1,1"], "no prompts"),
        (["--coco", "m.json"], "--everything"),
        (["--everything", "--sampler", "object-aware"], "has no sampler"),
        (["--everything", "--sampler", "grid", "--confidence", "0.5"], "belong to a detector"),
        (["--everything", "--sampler", "x.json"], "x.json"),
        (["--everything", "--coco", "m.txt"], ".json"),
        (["--everything", "--points-per-side", "0"], "at least 1"),
    ],
)
def test_options_of_everything_that_cannot_go_together_end_with_exit_code_2(
    run, tiny_bundle, photo, arguments, message
):
    code, _, err = run("segment", tiny_bundle.folder, photo, *arguments)
    assert (code, message in one_line_error(err)) == (2, True)


@pytest.mark.parametrize(
    "content", ["no json", "{}", "[[1, 2, 3]]", "[[1, 2, 3, 4], 5]", '[{"x": 1}]', '[["a", 1, 2, 3]]', "[[9, 9, 3, 3]]",
                '[{"image_id": 1, "bbox": [1, 1, 2, 2]}, {"image_id": 2, "bbox": [1, 1, 2, 2]}]']
)  # fmt: skip
def test_box_files_that_cannot_be_used_end_with_exit_code_2(run, tiny_bundle, photo, tmp_path, content):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(content)
    code, _, err = run("segment", tiny_bundle.folder, photo, "--everything", "--sampler", boxes)
    assert code == 2
    one_line_error(err)


def test_exporting_a_sampler_needs_its_weights_or_random_ones(run, tmp_path):
    arguments = "onnx", "--encoder", "test.tinyvit64", "--out", tmp_path / "b"
    code, _, err = run(*arguments, "--checkpoint", "x.pt", "--sampler", "object-aware")
    assert (code, "--sampler-checkpoint" in one_line_error(err)) == (2, True)
    code, _, err = run(*arguments, "--weights", "random", "--sampler-size", "640")
    assert (code, "--sampler object-aware" in one_line_error(err)) == (2, True)
    code, _, err = run(*arguments, "--weights", "random", "--sampler", "test", "--sampler-checkpoint", "absent.pt")
    assert (code, "AGPL-3.0" in err, "absent.pt" in one_line_error(err)) == (2, True, True)
    assert list(tmp_path.iterdir()) == []
