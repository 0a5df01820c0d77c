"""``samexport eval --video``: J and F of a bundle's tracker on a small data set."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samexport.errors import BundleError
from samexport.models.families.sam2 import sam2_constants
from samexport.runtimes import bundle as bundles
from samexport.runtimes import session as sessions
from samexport.runtimes.families.sam2_tracker import Tracker
from tests.command_line import one_line_error
from tests.runtimes.families.tracked import a_mask, small_forms, small_model, wandering
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """Two clips of four frames; what is asked of the session."""
    for name in ("bird", "cat"):
        for folder in ("JPEGImages", "Annotations"):
            (tmp_path / "data" / folder / name).mkdir(parents=True)
        for number, pixels in enumerate(wandering()[:4]):
            Image.fromarray(pixels).save(tmp_path / f"data/JPEGImages/{name}/{number:05d}.png")
            Image.fromarray(a_mask()).save(tmp_path / f"data/Annotations/{name}/{number:05d}.png")
    asked = []

    def tracker(*, sparse, **options):
        asked.append(sparse)
        return Tracker(small_forms(), sam2_constants(small_model()), **options)

    weights = SimpleNamespace(warning="RANDOM weights: its masks mean nothing")
    made = SimpleNamespace(folder=Path("BUNDLE"), manifest=SimpleNamespace(model="test.hiera64", weights=weights))
    monkeypatch.setattr(bundles, "open_bundle", lambda _: made)
    monkeypatch.setattr(sessions, "open_session", lambda _: SimpleNamespace(tracker=tracker))
    monkeypatch.chdir(tmp_path)
    return asked


def test_scores_are_printed_and_written(run, data):
    code, out, err = run("eval", "BUNDLE", "--video", "data", "--sparse", "smr", "--out", "scores.json")
    assert (code, err) == (0, "")
    content = json.loads(Path("scores.json").read_text())
    assert data == [{"windows": False, "memory": True}] * 3
    assert [(each["sequence"], each["object"], each["frames"]) for each in content["objects"]] == [
        ("bird", 1, 2),
        ("cat", 1, 2),
    ]
    for name, mean in (("region", "j"), ("boundary", "f"), ("j_and_f", "j_and_f")):
        assert content[mean] == pytest.approx(np.mean([each[name] for each in content["objects"]]))
    assert content["j_and_f"] == pytest.approx((content["j"] + content["f"]) / 2)
    lines = out.splitlines()
    assert lines[0] == "this bundle has RANDOM weights: its masks mean nothing"
    assert f"{100 * content['j_and_f']:.1f}" in next(line for line in lines if "mean of 2" in line)


def test_a_damaged_clip_is_told_and_the_others_are_scored(run, data):
    Path("data/Annotations/bird/00001.png").write_bytes(b"no picture")
    code, out, err = run("eval", "BUNDLE", "--video", "data")
    assert (code, "mean of 1" in out) == (2, True)
    assert "bird is left out: " in err


BAD_LINES = [
    (("--video", "absent"), "in the layout of DAVIS"),
    (("--video", "data", "--sequences", "cat,dog"), "has no sequence 'dog'"),
    (("--video", "data", "--images", "data"), "--video takes a bundle, and neither"),
    ((), "give --annotations and --images, or --video"),
    (("--annotations", "a.json", "--images", "data", "--sparse", "both"), "are of --video"),
    (("--video", "data", "--out", "scores.md"), ".json"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LINES)
def test_bad_input_is_told_in_one_line(run, arguments, message):
    code, _, err = run("eval", "BUNDLE", *arguments)
    assert (code, message in one_line_error(err)) == (2, True), err


def test_nothing_that_counts_is_no_score(run):
    shutil.rmtree("data/Annotations/cat")
    for number in (2, 3):
        Path(f"data/Annotations/bird/{number:05d}.png").unlink()
    code, _, err = run("eval", "BUNDLE", "--video", "data")
    assert (code, "nothing was measured" in one_line_error(err)) == (2, True)


def test_a_bundle_that_follows_nothing_is_refused_before_the_clips_are_read(run, monkeypatch):
    def tracker(**_):
        raise BundleError("B was made for pictures")

    monkeypatch.setattr(sessions, "open_session", lambda _: SimpleNamespace(tracker=tracker))
    Path("data/Annotations/bird/00000.png").write_bytes(b"no picture")
    code, _, err = run("eval", "BUNDLE", "--video", "data")
    assert (code, "made for pictures" in one_line_error(err)) == (2, True)
