"""The sparse tracker on the export forms: what it leaves out, and that the rest is the dense tracker's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samexport.errors import BundleError, ConfigError, FileError
from samexport.models.architectures.hiera import HieraSize
from samexport.models.architectures.sam2 import Sam2, Sam2Size
from samexport.models.architectures.sam2_sparse import Bypass, RoutedEncoder
from samexport.models.families.sam2 import VIDEO_GRAPHS, Sam2Numbers, all_graphs, sam2_constants, video_frame
from samexport.models.families.sam2_sparse import Cut
from samexport.models.graphs.sam2_sparse import PrunedMemoryAttention, Routed, SalientDecoder, Stem, Tail
from samexport.runtimes.adapters.entry_points import Bucket
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.families import sam2_sparse_tracker
from samexport.runtimes.families.sam2_session import Sam2Session
from samexport.runtimes.families.sam2_sparse_tracker import Sparse, SparseTracker
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.families.sam2_tracker_state import resume, save
from samexport.runtimes.host.frames import to_frame
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.windows import Windows
from tests.models import sam2_golden
from tests.runtimes.families.tracked import CLICK, FRAMES, a_mask, forms, wandering
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures

# 8 x 8 tokens in four windows that reach beyond the map
SIZE = Sam2Size(HieraSize(16, 1, (1, 1, 6, 1), (4, 7), windows=(8, 4, 6, 3)), 128, 64, 64)
CELLS = 64


@pytest.fixture(scope="module")
def model():
    made = sam2_golden.randomise(Sam2(SIZE))
    torch.manual_seed(0)
    made.bypass = Bypass(SIZE.trunk.widths[2]).eval().requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def runtimes(model):
    graphs = {graph.name: graph for graph in all_graphs(128, Sam2Numbers("", 64, cut=Cut(6, SIZE.trunk.widths[2])))}
    modules = {
        "encoder_stem": Stem(model),
        "encoder_routed": Routed(model),
        "encoder_tail": Tail(model),
        "memory_attention_pruned": PrunedMemoryAttention(model),
        "mask_decoder_salient": SalientDecoder(model),
    }
    sparse = {name: PyTorchRuntime(module.eval(), graphs[name]) for name, module in modules.items()}
    return {**forms(model), **sparse}


@pytest.fixture(scope="module")
def clip():
    return wandering()


@pytest.fixture
def dense(model, runtimes):
    return Tracker(runtimes, sam2_constants(model), frames=FRAMES)


@pytest.fixture
def make(model, runtimes):
    def tracker(**options):
        return SparseTracker(runtimes, sam2_constants(model), frames=FRAMES, sparse=Sparse(**options))

    return tracker


def prompts(tracker):
    tracker.add(0, 1, Prompt.make(CLICK))
    tracker.add(0, 2, a_mask())
    return tracker


def close(found, expected, tolerance):
    for one, other in zip(found.found, expected.found, strict=True):
        assert np.abs(one.low_res - other.low_res).mean() < tolerance
        assert one.score == pytest.approx(other.score, abs=tolerance)


def test_nothing_left_out_is_the_dense_tracker(make, dense, clip):
    off, all_kept = prompts(make(windows=False, memory=False)), prompts(make(windows=False, keep=1.0))
    for exact, same, frame in zip(
        off.propagate(clip), all_kept.propagate(clip), prompts(dense).propagate(clip), strict=True
    ):
        for one, other in zip(exact.found, frame.found, strict=True):
            np.testing.assert_array_equal(one.low_res, other.low_res)
        # bfloat16 turns the last bit of a memory into more than that
        close(same, frame, 0.02)
        assert (exact.windows, exact.tokens, same.tokens) == (None, 1, 1)


def test_old_memories_are_pruned_once_five_are_known(make, clip):
    tracker = prompts(make(windows=False, keep=0.2))
    calls, run = [], tracker._run
    tracker._run = lambda graph, part, inputs: calls.append((graph, inputs)) or run(graph, part, inputs)
    shares = [frame.tokens for frame in tracker.propagate(clip)]
    kept = int(CELLS * (1 - 0.8))
    # a prompted and the newest memory whole, five others pruned
    assert shares == [1.0] * 7 + [pytest.approx((2 * CELLS + 5 * kept) / (7 * CELLS))] * 3
    read = [inputs for graph, inputs in calls if graph == "memory_attention_pruned"]
    assert [inputs["kept"].shape[2] for inputs in read] == [1] * 5 + [5 * kept] * 3
    last, bank = read[-1], tracker.banks[1]
    assert last["kept_row"][0].tolist() == [float(row) for row in (5, 4, 3, 2, 1) for _ in range(kept)]
    assert [name for name, _ in calls].count("memory_attention") == 1
    for layer in range(4):
        for slot, frame in enumerate(range(3, 8)):
            cells = last["kept_cell"][0, layer, slot * kept : (slot + 1) * kept]
            assert cells.tolist() == sorted(set(cells.tolist()))
            bits = bank.tracked[frame].memory[cells].astype(np.uint32) << 16
            np.testing.assert_array_equal(
                last["kept"][0, layer, slot * kept : (slot + 1) * kept], bits.view(np.float32)
            )


def test_what_is_kept_is_what_was_salient_when_the_memory_was_new(make, runtimes, clip):
    tracker = prompts(make(windows=False, keep=0.2))
    frames = tracker.propagate(clip)
    seen, run, tracked = {}, tracker._run, []

    def note(graph, part, inputs):
        outputs = run(graph, part, inputs)
        if graph == "memory_attention_pruned":
            seen[len(tracked) - 1] = outputs["saliency"]
        return outputs

    tracker._run = note
    for _ in range(5):
        tracked.append(next(frames))
    for frame, saliency in seen.items():
        for item, name in enumerate((1, 2)):
            for layer in range(4):
                kept = tracker.kept[name][frame][layer]
                rest = np.delete(saliency[item, layer], kept)
                assert saliency[item, layer, kept].min() >= rest.max()


def test_frames_are_seen_in_windows_from_the_second_after_a_prompt_on(make, model, clip, monkeypatch):
    chosen = np.array([0, 3])
    monkeypatch.setattr(sam2_sparse_tracker, "choose", lambda *_, **__: chosen)
    tracker = prompts(make(memory=False))
    tracker.add(4, 1, Prompt.make([[60.0, 50.0]]))
    routed = RoutedEncoder(model.image_encoder, model.bypass, SIZE.trunk)
    used = []
    for index, picture in enumerate(clip):
        frame = tracker.step(picture)
        used.append(frame.windows)
        image = sam2_golden.normalised(torch.from_numpy(to_frame(picture, video_frame(128))) / 255)
        vision = routed(image, torch.from_numpy(chosen))[2] if frame.windows else model.features(image).vision
        np.testing.assert_allclose(tracker._seen[1]["vision"], vision.detach(), atol=2e-4)
        assert frame.index == index
    assert used == [None, None, (0, 3), (0, 3), None, None, *[(0, 3)] * 4]


def test_windows_are_those_of_the_masks_and_of_where_the_decoder_looked(make, clip, monkeypatch):
    asked = []

    def choose(windows, masks, scores, saliency, **options):
        asked.append((windows, masks, scores, saliency, options))
        return np.arange(windows.count)

    monkeypatch.setattr(sam2_sparse_tracker, "choose", choose)
    tracker = prompts(make(object_threshold=3, share=0.6))
    frames = [tracker.step(picture) for picture in clip[:4]]
    assert [frame.windows for frame in frames] == [None] * 4, "all windows are the dense encoder"
    windows, masks, scores, saliency, options = asked[-1]
    assert (windows, options) == (Windows(8, 6), {"object_threshold": 3, "share": 0.6})
    assert (masks.shape, masks.dtype, saliency.shape) == ((2, 3, 32, 32), np.bool_, (2, 8, 8))
    assert scores.tolist() == [found.score for found in frames[-1].found]
    for item, found in enumerate(frames[-1].found):
        best = (found.low_res > 0) & (found.score > 0)
        assert any(np.array_equal(best, candidate) for candidate in masks[item])
    np.testing.assert_allclose(saliency.sum((1, 2)), 1, rtol=1e-4)


def test_stream_forgets_what_was_kept_of_frames_that_are_gone(model, runtimes, clip):
    stream = prompts(SparseTracker(runtimes, sam2_constants(model), sparse=Sparse()))
    for picture in clip * 3:
        stream.step(picture)
    assert len(stream.kept[1]) <= 15


class Rooms:
    """The routed graph as a file that takes these numbers of windows alone."""

    def __init__(self, routed, *rooms):
        self.routed, self.graph, self.asked = routed, routed.graph, []
        self.bounds = tuple(Bucket(f"windows_{room}", 1, 1, slots=(("windows", room),)) for room in rooms)

    def run(self, inputs):
        self.asked.append(len(inputs["chosen"]))
        return self.routed.run(inputs)


@pytest.mark.parametrize(
    ("chosen", "rooms", "expected"),
    [([1], (1, 2), [1]), ([1], (2,), [1, "next"]), ([0, 1, 3], (1, 2), None), ([0, 1, 3], (3,), [0, 1, 3])],
)
def test_a_file_of_fixed_sizes_is_filled_up_with_windows_that_were_looked_at(
    model, runtimes, clip, monkeypatch, chosen, rooms, expected
):
    monkeypatch.setattr(sam2_sparse_tracker, "choose", lambda *_, **__: np.array(chosen))
    routed = Rooms(runtimes["encoder_routed"], *rooms)
    files = {**runtimes, "encoder_routed": routed}
    tracker = prompts(SparseTracker(files, sam2_constants(model), sparse=Sparse(memory=False)))
    for picture in clip[:2]:
        tracker.step(picture)
    ranked = tracker.windows.ranked(tracker.decoded["saliency"].sum(0)).tolist()
    more = next(each for each in ranked if each not in chosen)
    found = tracker.step(clip[2]).windows
    assert found == (None if expected is None else tuple(sorted(more if each == "next" else each for each in expected)))
    assert routed.asked == ([] if expected is None else [len(expected)])


def test_no_more_windows_than_allowed_are_seen_and_those_that_were_looked_at_most(make, clip):
    tracker = prompts(make(memory=False, most=1))
    for picture in clip[:2]:
        tracker.step(picture)
    assert tracker._fitted(np.array([0, 3]), np.array([2, 3, 1, 0])).tolist() == [3]
    assert len(tracker.step(clip[2]).windows) == 1


def test_quirks_are_those_of_the_published_code(make, clip, monkeypatch):
    asked = []

    def published(windows, masks, scores, looked, **_):
        asked.append(len(looked))
        return np.array([0, 2])

    monkeypatch.setattr(sam2_sparse_tracker, "choose_as_published", published)
    tracker = prompts(make(keep=0.2, quirks=True))
    kinds, attend = [], tracker._attend
    tracker._attend = lambda names, reads, vision: (
        kinds.append((tuple(names), tracker._pruned(names[0], reads[0]))) or attend(names, reads, vision)
    )
    seen = [tracker.step(picture).windows for picture in clip[:8]]
    # all windows are routed where they are wanted, and nothing asks the attention to two objects
    assert seen == [(0, 1, 2, 3)] * 2 + [(0, 2)] * 6
    assert asked == [2 * frame for frame in range(1, 8)]
    assert kinds[-2:] == [((1,), False), ((2,), True)], "the object alone that began last is pruned"


def test_tracker_goes_on_where_another_one_stopped(model, runtimes, make, clip, tmp_path):
    ours = prompts(SparseTracker(runtimes, sam2_constants(model), sparse=Sparse(keep=0.2, most=2, quirks=True)))
    for picture in clip[:8]:
        ours.step(picture)
    save(ours, tmp_path / "state.npz")
    again = resume(tmp_path / "state.npz", runtimes, sam2_constants(model))
    assert (type(again), again.sparse) == (SparseTracker, ours.sparse)
    for picture in clip[8:]:
        one, other = ours.step(picture), again.step(picture)
        assert (one.windows, one.tokens) == (other.windows, other.tokens)
        assert len(one.windows) == 2
        assert one.tokens < 1
        for a, b in zip(one.found, other.found, strict=True):
            np.testing.assert_array_equal(a.low_res, b.low_res)
    arrays = dict(np.load(tmp_path / "state.npz"))
    np.savez(tmp_path / "cut.npz", **{**arrays, "sparse": arrays["sparse"][:3]})
    with pytest.raises(FileError, match="was not written by a tracker"):
        resume(tmp_path / "cut.npz", runtimes, sam2_constants(model))


def test_what_a_bundle_cannot_leave_out_is_refused():
    def opened(*graphs):
        bundle = SimpleNamespace(graph_names=(*VIDEO_GRAPHS, *graphs), folder=Path("B"), manifest=None, constants={})
        return Sam2Session(SimpleNamespace(bundle=bundle, open=lambda _: None))

    with pytest.raises(BundleError, match="export it with --sparse"):
        opened().tracker(sparse={})
    with pytest.raises(BundleError, match="has no bypass for them; take --sparse smr, or export it"):
        opened("memory_attention_pruned").tracker(sparse={})
    assert not opened("memory_attention_pruned").tracker(sparse={"windows": False}).sparse.windows


def test_shares_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="shares are above 0"):
        Sparse(keep=0)
