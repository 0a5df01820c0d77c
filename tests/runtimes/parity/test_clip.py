"""A whole video as one check: what it takes for a clip, and which mistakes it sees."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from samexport.errors import ParityFailed
from samexport.exporter.to_onnx.half import to_half
from samexport.models.catalog import find_family
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.families import sam2_tracker
from samexport.runtimes.families.sam2_clip import follow, follow_sparse
from samexport.runtimes.families.sam2_sparse_tracker import SparseTracker
from samexport.runtimes.host.memory import Bank, Read
from samexport.runtimes.parity import verify
from samexport.runtimes.parity.clip import Followed, clip_frames, compare_clip, make_clip
from samexport.runtimes.parity.compare import HALF_LOOP, LOOP_TIER
from samexport.runtimes.parity.golden_files import load_golden, save_golden
from samexport.runtimes.parity.verify import compare_cases
from samexport.runtimes.session import OpenGraphs, open_session
from samexport.runtimes.verdicts import Check, Verdict
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures

PICTURE = np.arange(40 * 4 * 3, dtype=np.uint8).reshape(4, 40, 3)


def frames(margins):
    """Followed objects with these margins; the first number of each is its place."""
    for number, margin in enumerate(margins):
        yield Followed(np.ones((1, 2, 2), np.bool_), {"score": np.array([number], np.float32)}, margin)


@pytest.mark.parametrize(
    ("margins", "seed", "length"),
    [
        ([[1] * 5], 0, 5),
        ([[1, 1, 0.001, 1, 1], [1] * 5], 1, 5),
        ([[1, 0], [1, 1, 1, 0], [0], [1, 1, 0]], 1, 3),
    ],
)
def test_the_first_clip_without_a_near_tie_is_taken_else_the_longest_beginning(margins, seed, length):
    clip = make_clip(lambda session, clip, seed: frames(margins[seed]), None, clip_frames(PICTURE, 5))
    assert (clip.seed, len(clip.masks), clip.numbers["score"].shape) == (seed, length, (length, 1))


def test_there_is_no_clip_where_nothing_is_clear():
    assert make_clip(lambda *_: frames([0]), None, clip_frames(PICTURE, 5)) is None


def test_frames_are_the_picture_moved_around_its_edge():
    moved = clip_frames(PICTURE, 5)
    assert len(moved) == 5
    np.testing.assert_array_equal(moved[2], np.roll(PICTURE, 4, axis=1))


@pytest.fixture(scope="module")
def golden(sam2_bundle):
    return load_golden(sam2_bundle.folder, sam2_bundle.manifest.frame)


@pytest.fixture
def compare(sam2_bundle, golden):
    def rows(clip=golden.clips["video"], follow=follow, frames=5):
        pictures = clip_frames(golden.picture, frames)
        session = open_session(OpenGraphs(sam2_bundle, threads=1))
        found = compare_clip(Check("end_to_end"), clip, follow, session, pictures, LOOP_TIER)
        return {row.output: row.verdict for row in found}

    return rows


def test_files_follow_as_the_reference_does(compare):
    assert compare() == dict.fromkeys(("masks", "object_score", "iou_predictions", "object_pointers"), Verdict.PASS)


def test_other_objects_are_told_apart(compare, golden):
    assert Verdict.FAIL in compare(replace(golden.clips["video"], seed=golden.clips["video"].seed + 1)).values()


MISTAKES = {
    "memories that are empty": (sam2_tracker, "to_bfloat16", lambda values: np.zeros(values.shape, np.uint16)),
    "memories in the wrong order": (
        Bank,
        "read",
        lambda read: lambda *args, **options: _reversed(read(*args, **options)),
    ),
    "masks that are not memorised as prompts": (
        sam2_tracker.Tracker,
        "_memorise",
        lambda memorise: lambda self, found, features, *, binary: memorise(self, found, features, binary=not binary),
    ),
}


def _reversed(read):
    return Read(read.memories, read.rows[::-1], read.pointers[::-1], read.ages)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_host_alone_is_seen(compare, monkeypatch, mistake):
    place, name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(place, name, wrong if name == "to_bfloat16" else wrong(getattr(place, name)))
    assert Verdict.FAIL in compare().values()


@pytest.fixture(scope="module")
def half_bundle(sam2_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "bundle"
    shutil.copytree(sam2_bundle.folder, folder)
    for file in folder.glob("*.onnx"):
        onnx.save(to_half(onnx.load(file)), file)
    files = tuple(replace(each, recipe="fp16") for each in sam2_bundle.manifest.artifacts)
    return replace(sam2_bundle, folder=folder, manifest=replace(sam2_bundle.manifest, artifacts=files))


def test_half_precision_follows_nearly_as_the_reference_does(half_bundle, golden):
    rows = list(compare_cases(half_bundle, replace(golden, cases=()), threads=1))
    found = {(row.check.case, row.output): row for row in rows if row.check.case in golden.clips}
    assert {row.verdict for row in found.values()} == {Verdict.PASS}
    assert 30 < found["video", "object_pointers"].snr_db < 60


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_host_is_seen_on_files_in_half_precision(half_bundle, golden, monkeypatch, mistake):
    place, name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(place, name, wrong if name == "to_bfloat16" else wrong(getattr(place, name)))
    session = open_session(OpenGraphs(half_bundle, threads=1))
    frames = clip_frames(golden.picture, 5)
    rows = compare_clip(Check("end_to_end"), golden.clips["video"], follow, session, frames, HALF_LOOP)
    assert Verdict.FAIL in {row.verdict for row in rows}


def _without_the_last(fitted):
    return lambda self, ids, ranked: fitted(self, ids, ranked)[:-1]


def _of_the_other_layer(old_tokens):
    def wrong(self, name, read):
        found = old_tokens(self, name, read)
        return {**found, "kept": found["kept"][::-1], "kept_cell": found["kept_cell"][::-1]}

    return wrong


def _first(attend):
    def wrong(self, names, reads, vision):
        found = attend(self, names, reads, vision)
        for kept in self.kept.values():
            kept.update({frame: np.zeros_like(cells) for frame, cells in kept.items()})
        return found

    return wrong


SPARSE_MISTAKES = {
    "a window too few": ("_fitted", _without_the_last, "windows"),
    "tokens of the other layer": ("_old_tokens", _of_the_other_layer, "object_pointers"),
    "the first token instead of the most salient": ("_attend", _first, "kept"),
    "none": ("_attend", lambda attend: attend, None),
}


@pytest.mark.parametrize("mistake", SPARSE_MISTAKES)
def test_a_mistake_with_what_is_left_out_is_seen(compare, golden, monkeypatch, mistake):
    name, wrong, seen = SPARSE_MISTAKES[mistake]
    monkeypatch.setattr(SparseTracker, name, wrong(getattr(SparseTracker, name)))
    found = compare(golden.clips["sparse video"], follow_sparse, 9)
    failed = [output for output, verdict in found.items() if verdict == Verdict.FAIL]
    assert (seen in failed) if seen else (failed == [])


def test_a_file_that_fails_on_the_way_is_a_failed_row(sam2_bundle, golden, monkeypatch):
    def broken(self, *_, **__):
        raise ParityFailed("memory_attention gives NaN")

    monkeypatch.setattr(sam2_tracker.Tracker, "_read", broken)
    rows = list(compare_cases(sam2_bundle, replace(golden, cases=()), threads=1))
    for name in golden.clips:
        assert [(r.output, r.verdict) for r in rows if r.check.case == name] == [("run", Verdict.FAIL)]


def test_a_clip_is_stored_with_the_cases(golden, sam2_bundle, tmp_path):
    save_golden(golden, tmp_path)
    again, clip = load_golden(tmp_path, sam2_bundle.manifest.frame).clips["video"], golden.clips["video"]
    np.testing.assert_array_equal(again.masks, clip.masks)
    assert again.numbers.keys() == clip.numbers.keys()
    for name, values in clip.numbers.items():
        np.testing.assert_array_equal(again.numbers[name], values)


def test_a_family_without_memory_has_no_clip(tiny_bundle):
    assert find_family("sam").loops == ()
    assert load_golden(tiny_bundle.folder, tiny_bundle.manifest.frame).clips == {}


@pytest.mark.parametrize(("file_format", "runtime"), [("onnx", "onnxruntime"), ("tflite", "litert"), ("coreml", "mil")])
def test_clips_are_followed_on_bundles_of_every_format(sam2_bundle, golden, monkeypatch, file_format, runtime):
    """The files are those in ONNX: what is shown is that the loops are run, on the runtime of the format."""
    files = tuple(replace(each, file_format=file_format) for each in sam2_bundle.manifest.artifacts)
    bundle = replace(sam2_bundle, manifest=replace(sam2_bundle.manifest, artifacts=files))
    asked, opened = set(), Bundle.open

    def open_onnx(self, graph, *, runtime=None, threads=None):
        asked.add(runtime)
        return opened(sam2_bundle, graph, threads=threads)

    monkeypatch.setattr(Bundle, "open", open_onnx)
    monkeypatch.setattr(verify, "lint_rows", lambda *_: ())
    rows = list(compare_cases(bundle, replace(golden, cases=()), threads=1))
    for name in golden.clips:
        followed = [row for row in rows if row.check.case == name]
        assert {row.verdict for row in followed} == {Verdict.PASS}
        assert {row.check.runtime for row in followed} == asked == {runtime}
        masks = next(row for row in followed if row.output == "masks")
        mean, worst = (float(word) for word in masks.reason.replace(",", "").split()[5::2])
        assert worst == pytest.approx(masks.mask_iou, abs=1e-5)
        assert worst <= mean <= 1
