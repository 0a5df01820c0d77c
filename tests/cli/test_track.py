"""``samexport track`` as a user types it, on a small SAM 2 with random weights."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samexport.cli import tracks
from samexport.cli.track import TrackRequest
from samexport.errors import ConfigError
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.families.sam2 import sam2_constants
from samexport.models.loading import load_model
from samexport.runtimes import bundle as bundles
from samexport.runtimes import session as sessions
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.families import sam2_sparse_tracker
from samexport.runtimes.families.sam2_sparse_tracker import Sparse, SparseTracker
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.host.drawing import overlay
from samexport.runtimes.host.video import VideoWriter, open_clip
from tests.command_line import one_line_error
from tests.runtimes.families.tracked import FRAMES, HW, a_mask, small_forms, small_model, wandering
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A folder of frames, and a mask; the working folder has nothing else."""
    (tmp_path / "frames").mkdir()
    for number, pixels in enumerate(wandering()):
        Image.fromarray(pixels).save(tmp_path / f"frames/{number}.png")
    Image.fromarray(a_mask()).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "frames"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The small model in the place of a bundle, which takes a minute to make."""
    weights = SimpleNamespace(kind="random", warning="RANDOM weights: its masks mean nothing")
    made = SimpleNamespace(folder=Path("BUNDLE"), manifest=SimpleNamespace(weights=weights))

    def tracker(*, sparse, **options):
        assert sparse is None
        return Tracker(small_forms(), sam2_constants(small_model()), **options)

    monkeypatch.setattr(bundles, "open_bundle", lambda _: made)
    monkeypatch.setattr(sessions, "open_session", lambda _: SimpleNamespace(tracker=tracker, placement="this machine"))


@pytest.fixture
def never(monkeypatch):
    """The model must not run: whatever is wrong is told before."""
    monkeypatch.setattr(Tracker, "step", lambda *_: pytest.fail("a frame was tracked"))


def prompts_of(*order, **options):
    found = TrackRequest(Path("b"), Path("v"), order, **options).prompts()
    return [(each.frame, each.object, each.prompt) for each in found]


def test_masks_and_tracks_say_the_same_for_every_frame_and_object(run, clip):
    code, out, err = run(
        "track", "BUNDLE", "frames", "--mask", "mask.png", "--object", 7, "--frame", 4, "--box", "10,10,50,40",
        "--out", "masks", "--json", "tracks.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    content = json.loads(Path("tracks.json").read_text())
    records = content.pop("tracks")
    assert content == {
        "bundle": "BUNDLE", "weights": "random", "video": "frames", "width": 80, "height": 60, "frames": FRAMES,
        "frames_per_second": 30.0, "objects": [1, 7], "sparse": None,
    }  # fmt: skip
    expected = sorted([(frame, 1) for frame in range(FRAMES)] + [(frame, 7) for frame in range(4, FRAMES)])
    assert [(record["frame"], record["object"]) for record in records] == expected
    assert sorted(os.listdir("masks")) == [f"frame{frame:05d}_object{name}.png" for frame, name in expected]
    for record in records:
        pixels = np.asarray(Image.open(f"masks/frame{record['frame']:05d}_object{record['object']}.png"))
        np.testing.assert_array_equal(coco.decode(record["segmentation"]), pixels)
        assert (pixels.sum(), coco.toBbox(record["segmentation"]).tolist()) == (record["area"], record["bbox"])
        assert record["present"] == (record["object_score"] > 0)
        assert record["prompted"] == ((record["frame"], record["object"]) in ((0, 1), (4, 7)))
    assert records[0]["area"] == pytest.approx(a_mask().sum(), rel=0.05)
    seen = sum(record["present"] for record in records if record["object"] == 1)
    lines = out.splitlines()
    assert lines[:2] == [
        "this bundle has RANDOM weights: its masks mean nothing",
        f"object 1: frames 0 to 9, in the picture on {seen} of 10",
    ]
    assert "frames/s (read " in lines[3]
    assert lines[3].endswith(" ms a frame) on this machine")
    assert lines[4:] == ["wrote masks: 16 PNGs", "wrote tracks.json: 16 masks"]


def test_overlay_is_the_video_with_the_masks_of_each_frame(run, clip, monkeypatch):
    pytest.importorskip("av")
    with VideoWriter(Path("clip.mp4"), open_clip(clip).rate / 3, HW) as video:
        for pixels in open_clip(clip).read(range(FRAMES)):
            video.write(pixels)
    Image.fromarray(np.roll(a_mask(), 20, axis=0)).save("lower.png")
    arguments = (
        "--frame", 3, "--object", 3, "--mask", "lower.png", "--object", 1, "--mask", "mask.png",
        "--object", 2, "--point", "20,30", "--direction", "both",
    )  # fmt: skip
    written, write = [], VideoWriter.write
    monkeypatch.setattr(VideoWriter, "write", lambda self, pixels: (written.append(pixels), write(self, pixels)))
    code, _, err = run("track", "BUNDLE", "clip.mp4", *arguments, "--overlay", "out.mp4", "--json", "tracks.json")
    assert (code, err) == (0, "")
    source, result = open_clip(Path("clip.mp4")), open_clip(Path("out.mp4"))
    assert (result.frames, result.image_hw, result.rate) == (FRAMES, HW, 10)
    records = json.loads(Path("tracks.json").read_text())["tracks"]
    assert len(records) == 3 * FRAMES
    for frame, (before, given, after) in enumerate(
        zip(source.read(range(10)), written, result.read(range(10)), strict=True)
    ):
        masks = [coco.decode(r["segmentation"]).astype(bool) for r in records if r["frame"] == frame]
        clicks = {"points": [[20, 30]], "labels": [1]} if frame == 3 else {}
        np.testing.assert_array_equal(given, overlay(before, np.stack(masks), **clicks))
        # a codec halves the resolution of colours
        assert np.abs(given.astype(int) - after).mean() < 12


def test_frame_and_object_hold_for_the_prompts_after_them():
    (f1, o1, first), (f2, o2, second), (f3, o3, third) = prompts_of(
        ("point", "1,2"), ("object_id", "5"), ("point", "3,4"), ("frame", "8"), ("point", "5,6,0"),
        ("box", "1,1,9,9"), ("point", "7,8"),
    )  # fmt: skip
    assert [(f1, o1), (f2, o2), (f3, o3)] == [(0, 1), (0, 5), (8, 5)]
    assert (first.points.tolist(), second.points.tolist()) == ([[1, 2]], [[3, 4]])
    assert (third.points.tolist(), third.labels.tolist()) == ([[5, 6], [7, 8]], [0, 1])
    assert third.box.tolist() == [1, 1, 9, 9]


def test_order_of_the_command_line_reaches_the_prompts(run, clip, monkeypatch):
    seen = []
    monkeypatch.setattr("samexport.cli.track.run_track", lambda request, *_, **__: seen.append(request))
    line = ["--box=1,2,3,4", "--frame", "3", "--object", "2", "--point", "5,6", "--frame=1", "--mask", "m.png"]
    assert run("track", "BUNDLE", *line, "frames", "--point", "7,8,0")[0] == 0
    assert seen[0].order == (
        ("box", "1,2,3,4"), ("frame", "3"), ("object_id", "2"), ("point", "5,6"), ("frame", "1"), ("mask", "m.png"),
        ("point", "7,8,0"),
    )  # fmt: skip


def test_prompts_of_a_file_are_those_of_the_command_line(clip, tmp_path):
    entries = [
        {"frame": 0, "points": [[1, 2], [3, 4]], "labels": [1, 0]},
        {"frame": 5, "object": 9, "box": [1, 2, 30, 40]},
        {"frame": 6, "mask": "../mask.png", "points": [[5, 6]]},
    ]
    (tmp_path / "frames/prompts.json").write_text(json.dumps(entries))
    one = prompts_of(file=Path("frames/prompts.json"))
    other = prompts_of(
        ("point", "1,2"), ("point", "3,4,0"), ("frame", "5"), ("object_id", "9"), ("box", "1,2,30,40"),
        ("frame", "6"), ("object_id", "1"), ("point", "5,6"), ("mask", "mask.png"),
    )  # fmt: skip
    assert len(one) == len(other) == 4
    for (*place, prompt), (*expected, wanted) in zip(one, other, strict=True):
        assert place == expected
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(prompt, wanted)
            np.testing.assert_array_equal(prompt, a_mask())
        else:
            assert (prompt.points.tolist(), prompt.labels.tolist()) == (wanted.points.tolist(), wanted.labels.tolist())
            assert (prompt.box is None) == (wanted.box is None)


BAD_LINES = [
    ([], "no object has a prompt"),
    (["--object", "2"], "--object 2 has no prompt"),
    (["--point", "1,1", "--frame", "3"], "--frame 3 has no prompt"),
    (["--object", "2", "--object", "3", "--point", "1,1"], "--object 2 has no prompt"),
    (["--frame", "12", "--point", "1,1"], "the frames of frames are 0 to 9"),
    (["--last", "3", "--frame", "4", "--point", "1,1"], "the frames of frames are 0 to 3"),
    (["--frame", "-1", "--point", "1,1"], "--frame"),
    (["--object", "0", "--point", "1,1"], "--object"),
    (["--point", "90,1"], "object 1, frame 0: (90, 1) is outside the clip, 80 wide and 60 high"),
    (["--point", "1"], "--point x,y"),
    (["--box", "1,2,3"], "--box x0,y0,x1,y1"),
    (["--box", "1,2,3,4", "--box", "1,2,3,4"], "object 1 has two of --box on frame 0"),
    (["--box", "100,2,130,4"], "is outside the image"),
    (["--mask", "absent.png"], "absent.png"),
    (["--mask", "black.png"], "black.png is black all over"),
    (["--mask", "small.png"], "the mask is 4x3, the clip 80x60"),
    (["--prompts", "absent.json"], "absent.json"),
    (["--prompts", "unknown.json"], "unknown field `point`"),
    (["--prompts", "negative.json"], "$[1].frame"),
    (["--prompts", "nothing.json"], "nothing.json: a prompt needs"),
    (["--point", "1,1", "--out", "frames", "--force"], "frames is an input of this command"),
    (["--point", "1,1", "--out", "full"], "full exists"),
    (["--point", "1,1", "--out", "full", "--force"], "it holds letter.txt"),
    (["--point", "1,1", "--json", "old.json"], "old.json exists"),
    (["--point", "1,1", "--json", "tracks.txt"], ".json"),
    (["--prompts", "negative.json", "--json", "negative.json", "--force"], "negative.json"),
    (["--point", "1,1", "--overlay", "out.png"], ".mp4"),
    (["--point", "1,1", "--keep", "0.1"], "need --sparse; give it"),
    (["--point", "1,1", "--reference-quirks"], "need --sparse; give it"),
    (["--point", "1,1", "--overlay", "absent/out.mp4"], "absent does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LINES)
def test_bad_input_is_told_in_one_line_and_leaves_everything(run, clip, never, tmp_path, arguments, message):
    Image.fromarray(np.zeros(HW, np.uint8)).save("black.png")
    Image.fromarray(np.full((3, 4), 255, np.uint8)).save("small.png")
    Path("unknown.json").write_text('[{"frame": 0, "point": [1, 2]}]')
    Path("negative.json").write_text('[{"frame": 0, "box": [1, 2, 3, 4]}, {"frame": -1}]')
    Path("nothing.json").write_text('[{"frame": 0}]')
    Path("old.json").write_text("mine")
    Path("full").mkdir()
    Path("full/letter.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = run("track", "BUNDLE", "frames", "--out", "masks", *arguments)
    assert (code, message in one_line_error(err)) == (2, True), err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("absent.mp4", "absent.mp4: no such file or folder"),
        ("empty", "empty holds no picture"),
        ("mask.png.mp4", "is no video, or a damaged one"),
    ],
)
def test_video_that_cannot_be_read_is_told_before_the_model_runs(run, clip, never, video, message):
    pytest.importorskip("av")
    Path("empty").mkdir()
    Path("mask.png.mp4").write_bytes(b"nothing")
    code, _, err = run("track", "BUNDLE", video, "--point", "1,1", "--out", "masks")
    assert (code, message in one_line_error(err)) == (2, True), err


def test_damage_on_the_way_leaves_nothing(run, clip):
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save("frames/3.png")
    before = sorted(os.listdir("."))
    code, _, err = run("track", "BUNDLE", "frames", "--point", "1,1", "--out", "masks", "--json", "tracks.json")
    assert (code, "3.png is 40x30, the first frame 80x60" in one_line_error(err)) == (2, True)
    assert sorted(os.listdir(".")) == before


def test_what_sparse_leaves_out_is_said(run, clip, monkeypatch):
    spec = find_model("test.hiera128_sparse")
    network, _ = load_model(spec, random_seed=7)
    runtimes = {g.name: PyTorchRuntime(build_graph(network, spec, g.name)[1], g) for g in spec.graphs}
    asked = []

    def tracker(*, sparse, **options):
        asked.append(sparse)
        return SparseTracker(runtimes, sam2_constants(network), sparse=Sparse(**sparse), **options)

    monkeypatch.setattr(sessions, "open_session", lambda _: SimpleNamespace(tracker=tracker, placement="this machine"))
    monkeypatch.setattr(sam2_sparse_tracker, "choose", lambda *_, **__: np.array([1, 2]))
    line = ("track", "BUNDLE", "frames", "--mask", "mask.png", "--json", "tracks.json", "--sparse", "both")
    code, out, err = run(*line, "--keep", 0.1, "--window-threshold", 0.6, "--object-threshold", 3)
    assert (code, err) == (0, "")
    wanted = {"windows": True, "memory": True, "keep": 0.1, "share": 0.6, "object_threshold": 3}
    assert asked == [wanted] * 2
    content = json.loads(Path("tracks.json").read_text())
    assert content["sparse"] == wanted
    assert [record["frame"] for record in content["seen"]] == list(range(FRAMES))
    assert [record["windows"] for record in content["seen"]] == [None] * 2 + [[1, 2]] * 8
    # windows of 6 of 8 tokens, the second one cut off at the border of 80 x 60 pixels
    assert content["seen"][5]["boxes"] == [[60.0, 0.0, 80.0, 45.0], [0.0, 45.0, 60.0, 60.0]]
    assert [record["tokens"] < 1 for record in content["seen"]] == [False] * 7 + [True] * 3
    # frames 7 to 9 read two memories of seven whole, and 6 of 64 tokens of the others
    share = (7 + 3 * (2 + 5 * 6 / 64) / 7) / 10
    assert f"a frame), 2.0 windows on 8 of 10 frames, {share:.0%} of the tokens on this machine" in out


def test_without_an_output_nothing_is_done(run, clip, never):
    code, _, err = run("track", "BUNDLE", "frames", "--point", "1,1")
    assert (code, "nothing would be written; give --out" in one_line_error(err)) == (2, True)


def test_earlier_masks_are_replaced_with_force_alone(run, clip):
    line = ("track", "BUNDLE", "frames", "--last", 1, "--mask", "mask.png", "--out", "masks")
    assert run(*line)[0] == 0
    code, _, err = run(*line)
    assert (code, "masks exists" in one_line_error(err)) == (2, True)
    assert run(*line, "--force", "--object", 3, "--point", "5,5")[0] == 0
    assert len(os.listdir("masks")) == 4


def test_model_that_follows_nothing_is_refused(run, clip, monkeypatch):
    def tracker(**_):
        raise ConfigError("mobilesam-tinyvit follows nothing through a video")

    monkeypatch.setattr(sessions, "open_session", lambda _: SimpleNamespace(tracker=tracker))
    code, _, err = run("track", "BUNDLE", "frames", "--point", "1,1", "--out", "masks")
    assert (code, "follows nothing through a video" in one_line_error(err)) == (2, True)


def test_every_frame_comes_with_its_masks_also_those_without_any():
    records = [{"frame": 1, "object": 1}, {"frame": 3, "object": 1}, {"frame": 3, "object": 2}]
    found = [(frame, [record["object"] for record in here]) for frame, here in tracks._by_frame(records, 5)]
    assert found == [(0, []), (1, [1]), (2, []), (3, [1, 2]), (4, [])]
