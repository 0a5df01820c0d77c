import contextlib
import json
import re
import shutil
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from samexport.cli import evaluation
from samexport.cli import main as cli
from samexport.cli.evaluation import torch_bundle
from samexport.errors import BundleError, ConfigError, ParityFailed
from samexport.installation import install_hint
from samexport.models.catalog import find_model
from samexport.runtimes.accuracy.evaluate import grid_proposals
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.tasks.segment import Segmenter
from tests import annotated
from tests.command_line import one_line_error

GRID = ("--points-per-side", "8")
OBJECTS = 6
KINDS = ("mIoU click", "mIoU box", "AR@10", "AR@100", "AR@1000")


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """Run ``samexport eval`` in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["samexport", "eval", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def own_objects(tmp_path_factory):
    """Options for a picture whose objects are PyTorch's proposals of lowest rank, and the share in the first ten."""
    folder = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[0:150, 0:200]
    picture = np.stack([x, y, 200 * (np.hypot(x - 60, y - 70) < 40)], axis=-1).astype(np.uint8)
    picture[20:110, 120:190] = (250, 40, 90)
    Image.fromarray(picture).save(folder / "first.png")
    options = GridOptions(8, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=0.9)
    with Segmenter(torch_bundle(find_model("test.tinyvit64"), random_seed=7)) as segmenter:
        found = sorted(grid_proposals(segmenter, options)(None, picture), key=lambda p: -p.score)
    assert len(found) > 10
    annotations = [
        {"id": rank, "image_id": 3, "segmentation": {**p.segmentation, "counts": p.segmentation["counts"].decode()}}
        for rank, p in enumerate(found)
    ][-OBJECTS:]
    data = {"images": [{"id": 3, "file_name": "first.png", "height": 150, "width": 200}], "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(data))
    share = sum(a["id"] < 10 for a in annotations) / OBJECTS
    return ("--annotations", folder / "instances.json", "--images", folder, *GRID), share


@pytest.fixture
def by_hand(tmp_path):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    return "--annotations", annotations, "--images", pictures, *GRID


def test_a_bundle_is_as_accurate_as_pytorch_and_finds_pytorchs_own_objects(
    evaluate, tiny_bundle, own_objects, tmp_path
):
    options, found_in_ten = own_objects
    out = tmp_path / "reports" / "report.json"
    code, printed, err = evaluate(tiny_bundle.folder, *options, "--pytorch", "--max-drop", "0.001", "--out", out)
    assert code == 0, err
    assert printed.count("RANDOM weights") == 2
    assert "no metric fell by more than 0.001" in printed
    report = json.loads(out.read_text())
    assert report["objects"]["all"] == OBJECTS
    bundle, pytorch = (report["models"][name] for name in (tiny_bundle.folder.name, "PyTorch"))
    assert 0 < found_in_ten < 1
    assert pytorch["values"]["AR@10"]["all"] == pytest.approx(found_in_ten)
    for model in (bundle, pytorch):
        assert sorted(model["values"]) == sorted(KINDS)
        assert model["values"]["AR@1000"]["all"] == 1.0
        assert model["proposals"] > 10
        assert 0 < model["values"]["mIoU click"]["all"] < 1
    for values in report["difference"].values():
        assert all(value is None or abs(value) < 1e-4 for value in values.values())
    assert printed.count("difference") == len(KINDS)
    code, alone, _ = evaluate(
        "--pytorch", "--encoder", "test.tinyvit64", "--weights", "random", "--prompts", "click", *options
    )
    assert code == 0
    (row,) = (line.split() for line in printed.splitlines() if line.startswith("mIoU click  PyTorch"))
    assert row in [line.split() for line in alone.splitlines()]


def test_the_bundles_own_detector_makes_the_proposals_in_both(evaluate, sampler_bundle, own_objects, tmp_path):
    options, _ = own_objects
    asked = ("--prompts", "everything", "--sampler", "detector", "--pytorch", "--max-drop", "0.001")
    out = tmp_path / "report.json"
    code, _, err = evaluate(sampler_bundle.folder, *options[:4], *asked, "--out", out)
    assert code == 0, err
    report = json.loads(out.read_text())
    counts = [model["proposals"] for model in report["models"].values()]
    assert counts[0] == counts[1] > 10
    assert report["sampler"] == "detector"


def test_annotated_boxes_make_one_proposal_an_object(evaluate, tiny_bundle, own_objects, tmp_path):
    options, _ = own_objects
    asked = ("--prompts", "box,everything", "--sampler", "boxes", "--out", tmp_path / "report.json")
    code, _, err = evaluate(tiny_bundle.folder, *options[:4], *asked)
    assert code == 0, err
    (model,) = json.loads((tmp_path / "report.json").read_text())["models"].values()
    assert model["proposals"] == OBJECTS
    # each of ten thresholds above its IoU loses an object, unless another object's mask fits it
    assert (
        model["values"]["AR@10"]["all"]
        == model["values"]["AR@1000"]["all"]
        > 2 * model["values"]["mIoU box"]["all"] - 1.1
    )


def test_a_bundle_without_a_detector_has_no_proposals_of_it(evaluate, tiny_bundle, by_hand):
    code, _, err = evaluate(tiny_bundle.folder, *by_hand, "--sampler", "detector")
    assert code == 2
    assert "--sampler object-aware" in err


def test_a_bundle_that_lost_accuracy_fails_the_gate(evaluate, own_bundle, own_objects, tmp_path):
    path = own_bundle.folder / "decoder.onnx"
    model = onnx.load(path)
    (node,) = (n for n in model.graph.node if "low_res_masks" in n.output)
    node.output[list(node.output).index("low_res_masks")] = "right_masks"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1e6]), "a_million"))
    model.graph.node.append(onnx.helper.make_node("Sub", ["right_masks", "a_million"], ["low_res_masks"]))
    onnx.save(model, path)
    options, out = own_objects[0], tmp_path / "report.md"
    code, printed, err = evaluate(own_bundle.folder, *options, "--pytorch", "--max-drop", "0.3", "--out", out)
    assert code == 1
    assert "--max-drop 0.3" in one_line_error(err)
    assert "FAIL  AR@1000 is 1.0000 below PyTorch" in err
    assert "no metric fell" not in printed
    assert re.search(r"\| AR@1000 \| difference \| -1\.0000 ", out.read_text())
    clicks = ("--prompts", "click", "--max-images", 1)
    assert evaluate(own_bundle.folder, *options, *clicks, "--pytorch", "--max-drop", "1")[0] == 0


def test_only_the_prompts_asked_for_are_measured(evaluate, tiny_bundle, by_hand, tmp_path):
    out = tmp_path / "report.md"
    code, printed, _ = evaluate(tiny_bundle.folder, *by_hand, "--prompts", "box", "--out", out, "--max-images", 1)
    assert code == 0
    assert ("mIoU box" in printed, "click" in printed, "AR@" in printed) == (True, False, False)
    assert out.read_text().startswith("## Accuracy on 1 images of instances.json\n\n| metric | model | all | small |")
    mine = out.read_text()
    code, _, err = evaluate(tiny_bundle.folder, *by_hand, "--prompts", "box", "--out", out)
    assert (code, "--force" in one_line_error(err), out.read_text() == mine) == (2, True, True)
    clicks = ("--prompts", "click", "--click", "random")
    arguments = (tiny_bundle.folder, *by_hand, *clicks, "--out", out, "--force")
    code, first, _ = evaluate(*arguments, "--seed", 1)
    assert (code, "mIoU click" in out.read_text()) == (0, True)
    assert evaluate(*arguments, "--seed", 1)[1] == first != evaluate(*arguments, "--seed", 2)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "clicks"], "--prompts is one or more of click,box,everything"),
        (["--prompts", ""], "--prompts is one or more of"),
        (["--click", "middle"], "'interior', 'random'"),
        (["--max-drop", "0.1"], "give the bundle and --pytorch"),
        (["--pytorch", "--max-drop", "2"], "less than or equal to 1"),
        (["--out", "instances.json/report.md"], "cannot be written"),
        (["--encoder", "tinyvit"], "leave --encoder and --weights out"),
        (["--weights", "random"], "leave --encoder and --weights out"),
        (["--weights", "some"], "'official', 'demo', 'random'"),
        (["--sampler", "net"], "'grid', 'detector'"),
        (["--out", "report.txt"], "must end in .json, .md"),
        (["--checkpoint", "absent.pt"], "absent.pt cannot be read"),
        (["--runtime", "tflow"], "onnxruntime"),
        (["--annotations", "absent.json"], "absent.json cannot be read"),
        (["--images", "absent"], "first.png is missing"),
    ],
)
def test_options_that_cannot_be_used_end_with_exit_code_2(
    evaluate,
    tiny_bundle,
    by_hand,
    tmp_path,
    monkeypatch,
    arguments,
    message,
):
    monkeypatch.chdir(tmp_path)
    code, _, err = evaluate(tiny_bundle.folder, *by_hand, *arguments)
    assert (code, message in one_line_error(err)) == (2, True), err


def test_nothing_to_evaluate_and_other_weights_are_refused(evaluate, tiny_bundle, own_bundle, by_hand):
    for arguments in ((), ("--pytorch",), ("--encoder", "tinyvit")):
        code, _, err = evaluate(*arguments, *by_hand)
        assert (code, "nothing to evaluate" in one_line_error(err)) == (2, True)
    manifest = own_bundle.folder / "bundle.json"
    data = json.loads(manifest.read_text())
    data["weights"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(data))
    code, _, err = evaluate(own_bundle.folder, *by_hand, "--pytorch")
    assert (code, "the bundle was made from seed 7" in one_line_error(err)) == (2, True)


def test_another_detector_than_the_bundles_is_refused(evaluate, sampler_bundle, by_hand, tmp_path):
    shutil.copytree(sampler_bundle.folder, tmp_path / "other")
    manifest = tmp_path / "other" / "bundle.json"
    data = json.loads(manifest.read_text())
    data["sampler"]["weights"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(data))
    code, _, err = evaluate(tmp_path / "other", *by_hand, "--pytorch", "--sampler", "detector")
    assert (code, "the bundle's detector is " in one_line_error(err)) == (2, True)


def test_proposals_are_ranked_by_the_predicted_iou_and_not_cut_by_it(evaluate, own_bundle, own_objects, tmp_path):
    """A model that is sure of nothing has as many proposals as the same one that is sure."""
    path, out, options = own_bundle.folder / "decoder.onnx", tmp_path / "report.json", own_objects[0]
    model = onnx.load(path)
    (node,) = (n for n in model.graph.node if "iou_predictions" in n.output)
    node.output[list(node.output).index("iou_predictions")] = "sure"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1e-3]), "a_thousandth"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["sure", "a_thousandth"], ["iou_predictions"]))
    onnx.save(model, path)
    assert evaluate(own_bundle.folder, *options, "--pytorch", "--prompts", "everything", "--out", out)[0] == 0
    unsure, sure = (model["proposals"] for model in json.loads(out.read_text())["models"].values())
    assert unsure == sure > 10


def test_pytorch_behind_the_interface_of_a_bundle_has_the_plain_graphs_only(tiny_bundle):
    model = torch_bundle(find_model("test.tinyvit64"), random_seed=7)
    assert model.graph_names == ("encoder", "decoder", "decoder_with_mask")
    assert model.manifest.frame == tiny_bundle.manifest.frame
    with pytest.raises(BundleError, match="PyTorch has no decoder_step"):
        model.open("decoder_step")


def test_without_scipy_interior_clicks_say_what_to_install_and_random_ones_work(
    evaluate, tiny_bundle, by_hand, monkeypatch
):
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    code, _, err = evaluate(tiny_bundle.folder, *by_hand, "--prompts", "click")
    assert (code, install_hint("eval") in one_line_error(err)) == (2, True)
    assert evaluate(tiny_bundle.folder, *by_hand, "--prompts", "click", "--click", "random")[0] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_limit_that_nothing_can_exceed_is_none(tmp_path, value):
    with pytest.raises(ConfigError, match="--max-drop is from 0 to 1"):
        evaluation.EvalRequest(tmp_path, tmp_path, bundle=tmp_path, pytorch=True, max_drop=value)


def boxes(*more):
    return ("--prompts", "box", *more)


def test_a_damaged_picture_is_counted_and_the_others_are_scored_as_without_it(evaluate, tiny_bundle, tmp_path):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    arguments = (tiny_bundle.folder, "--annotations", annotations, "--images", pictures)
    alone, both = tmp_path / "alone.json", tmp_path / "both.json"
    # picture 3 comes first, 8 second
    assert evaluate(*arguments, *boxes("--max-images", 1, "--out", alone))[0] == 0
    (pictures / "second.png").write_bytes(b"no picture")
    code, printed, err = evaluate(*arguments, *boxes("--pytorch", "--out", both))
    assert (code, "1 of 2 pictures were not measured" in one_line_error(err)) == (2, True)
    assert err.count("not measured: ") == 1
    assert "second.png" in err
    report = json.loads(both.read_text())
    assert report["complete"]
    assert [("second.png" in problem) for problem in report["problems"]] == [True]
    name = tiny_bundle.folder.name
    assert report["models"][name]["values"] == json.loads(alone.read_text())["models"][name]["values"]
    assert report["objects"]["all"] == 3
    assert "mIoU box" in printed


@pytest.mark.parametrize("failing", ["bundle", "PyTorch"])
def test_models_are_compared_on_the_pictures_that_none_failed_on(
    evaluate, tiny_bundle, by_hand, tmp_path, monkeypatch, failing
):
    real, calls = evaluation.score_picture, []
    alone, both = tmp_path / "alone.json", tmp_path / "both.json"
    assert evaluate(tiny_bundle.folder, *by_hand, *boxes("--pytorch", "--max-images", 1, "--out", alone))[0] == 0

    def fail_once(image, *arguments):
        calls.append(image.id)
        if len(calls) == {"bundle": 2, "PyTorch": 4}[failing]:
            raise ParityFailed("NaN")
        return real(image, *arguments)

    monkeypatch.setattr(evaluation, "score_picture", fail_once)
    assert evaluate(tiny_bundle.folder, *by_hand, *boxes("--pytorch", "--out", both))[0] == 1
    assert calls == ([3, 8, 3] if failing == "bundle" else [3, 8, 3, 8])
    one, other = (json.loads(path.read_text()) for path in (alone, both))
    assert other["models"] == one["models"]
    assert {model["images"] for model in other["models"].values()} == {1}
    assert other["difference"] == one["difference"] != {}


def test_models_that_saw_other_pictures_are_not_compared(evaluate, tiny_bundle, by_hand, tmp_path, monkeypatch):
    real, calls, out = evaluation.score_picture, [], tmp_path / "report.json"

    def stop_at_the_last(image, *arguments):
        calls.append(image.id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(image, *arguments)

    monkeypatch.setattr(evaluation, "score_picture", stop_at_the_last)
    with contextlib.suppress(KeyboardInterrupt):
        evaluate(tiny_bundle.folder, *by_hand, *boxes("--pytorch", "--out", out))
    report = json.loads(out.read_text())
    images = [report["models"][name]["images"] for name in (tiny_bundle.folder.name, "PyTorch")]
    assert images == [2, 1]
    assert report["difference"] == {}


def test_a_damaged_picture_does_not_open_the_gate(evaluate, tiny_bundle, tmp_path):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    for name in ("first.png", "second.png"):
        (pictures / name).write_bytes(b"no picture")
    arguments = (tiny_bundle.folder, "--annotations", annotations, "--images", pictures)
    code, printed, err = evaluate(*arguments, *boxes("--pytorch", "--max-drop", 1))
    assert (code, "nothing was measured" in one_line_error(err)) == (1, True)
    assert "no metric fell" not in printed


def test_a_model_that_answers_nan_has_no_score(evaluate, own_bundle, by_hand, tmp_path):
    path = own_bundle.folder / "decoder.onnx"
    model = onnx.load(path)
    (node,) = (n for n in model.graph.node if "low_res_masks" in n.output)
    node.output[list(node.output).index("low_res_masks")] = "right_masks"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([np.nan]), "no_number"))
    model.graph.node.append(onnx.helper.make_node("Add", ["right_masks", "no_number"], ["low_res_masks"]))
    onnx.save(model, path)
    code, printed, err = evaluate(own_bundle.folder, *by_hand, *boxes("--pytorch", "--max-drop", 1))
    assert code == 1
    assert "NaN" in err
    assert "nothing was measured" in one_line_error(err)
    assert "0.0000" not in printed
    code, printed, err = evaluate(own_bundle.folder, *by_hand, *boxes())
    assert (code, "2 of 2 pictures were not measured" in one_line_error(err)) == (1, True)


def test_what_was_scored_is_kept_when_the_user_stops(evaluate, tiny_bundle, by_hand, tmp_path, monkeypatch):
    real, seen = evaluation.score_picture, []

    def stop_at_the_second(image, *arguments):
        seen.append(image.id)
        if len(seen) == 2:
            # as after a power cut: the report is on the disk already
            assert json.loads(out.read_text())["models"][tiny_bundle.folder.name]["images"] == 1
            raise KeyboardInterrupt
        return real(image, *arguments)

    out = tmp_path / "report.json"
    monkeypatch.setattr(evaluation, "score_picture", stop_at_the_second)
    with contextlib.suppress(KeyboardInterrupt):
        assert evaluate(tiny_bundle.folder, *by_hand, *boxes("--out", out))[0] != 0
    report = json.loads(out.read_text())
    assert (report["complete"], report["models"][tiny_bundle.folder.name]["images"]) == (False, 1)


@pytest.mark.parametrize("name", ["instances.json", "bundle.json", "pictures"])
def test_a_report_never_replaces_an_input(evaluate, own_bundle, tmp_path, name):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    out = own_bundle.folder / name if name == "bundle.json" else tmp_path / name
    before = annotations.read_bytes(), (own_bundle.folder / "bundle.json").read_bytes()
    arguments = (own_bundle.folder, "--annotations", annotations, "--images", pictures)
    code, _, err = evaluate(*arguments, *boxes("--out", out, "--force"))
    assert code == 2, err
    assert "input of this command" in one_line_error(err) or name == "pictures"
    assert (annotations.read_bytes(), (own_bundle.folder / "bundle.json").read_bytes()) == before


def test_what_is_left_out_of_the_annotations_is_said(evaluate, tiny_bundle, tmp_path):
    data = annotated.coco_data()
    data["annotations"].append(annotated.annotation(50, 3, annotated.SMALL, segmentation=[[]]))
    annotations, pictures = annotated.write(tmp_path, data)
    Image.open(pictures / "second.png").save(pictures / "turned.png", exif=exif(3))
    (pictures / "turned.png").rename(pictures / "second.png")
    out = tmp_path / "report.md"
    arguments = (tiny_bundle.folder, "--annotations", annotations, "--images", pictures)
    code, printed, _ = evaluate(*arguments, *boxes("--out", out))
    assert code == 0
    for text in (printed, out.read_text()):
        assert "left out: 2 crowds (iscrowd 1)" in text
        assert "left out: 1 annotations with an empty segmentation" in text
        assert "left out: 1 pictures without an object" in text
        assert "1 of the pictures (second.png) is turned by its EXIF orientation" in text


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def test_pictures_none_of_which_can_be_used_have_no_scores(evaluate, tiny_bundle, tmp_path):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    for name in ("first.png", "second.png"):
        (pictures / name).write_bytes(b"no picture")
    arguments = (tiny_bundle.folder, "--annotations", annotations, "--images", pictures)
    code, printed, err = evaluate(*arguments, *boxes("--out", tmp_path / "report.json"))
    line = "2 of 2 pictures were not measured: no picture could be used; there are no scores"
    assert (code, line in one_line_error(err), "other" in err) == (2, True, False)
    assert "wrote" not in printed
