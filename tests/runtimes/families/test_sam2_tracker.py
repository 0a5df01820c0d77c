"""The tracker on the export forms, against the official video predictor and our reference in PyTorch."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samexport.errors import ConfigError, FileError, ImageError, ParityFailed, PromptError
from samexport.models.architectures.sam2_video import Sam2Tracker
from samexport.models.families.sam2 import VIDEO_GRAPHS, sam2_constants, sam2_graphs, sam2_module, video_frame
from samexport.runtimes.adapters.entry_points import entry_points, plan, run_in_buckets
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.families.sam2_tracker import GRAPHS, Tracker
from samexport.runtimes.families.sam2_tracker_state import resume, save
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.memory import from_bfloat16
from samexport.runtimes.host.prompts import Prompt
from tests.models import golden, sam2_golden
from tests.runtimes.families.tracked import BOX, CLICK, FRAMES, HW, a_mask, forms, small_forms, small_model, wandering
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures


@pytest.fixture(scope="module")
def small():
    return small_model()


@pytest.fixture(scope="module")
def runtimes(small):
    return small_forms()


@pytest.fixture
def tracker(small, runtimes):
    def make(**options):
        return Tracker(runtimes, sam2_constants(small), **options)

    return make


@pytest.fixture(scope="module")
def clip():
    return wandering()


@pytest.fixture(scope="module")
def features(small, clip):
    squares = (torch.from_numpy(to_frame(frame, video_frame(64))) / 255 for frame in clip)
    return [small.features(sam2_golden.normalised(square)) for square in squares]


def scaled(points):
    return torch.from_numpy(FrameMap(HW, video_frame(64)).to_frame(np.array(points).reshape(-1, 2))).float()[None]


def check(found, expected, tolerance=2e-2):
    """An object against the reference's; bfloat16 turns the last bits of memories into more than that."""
    low_res, wanted = found.low_res, expected.low_res[0, 0].numpy()
    assert (low_res == -1024).all() == (wanted == -1024).all()
    golden.close(low_res, wanted, tolerance * 10)
    assert np.abs(low_res - wanted).mean() < tolerance
    golden.close(found.iou, expected.iou[0], tolerance)
    golden.close(found.pointer, expected.pointer[0], tolerance)
    golden.close(found.score, expected.object_score.item(), tolerance)


def test_graphs_are_those_of_the_family():
    assert set(GRAPHS) == set(VIDEO_GRAPHS)


def test_first_frames_of_the_golden_clip_are_the_official_ones():
    vectors, model = golden.read("sam2_video.npz"), sam2_golden.tiny()
    both = np.array(Image.open(golden.GOLDEN / "sam2_video.png"))
    tracker = Tracker(forms(model), sam2_constants(model), frames=12)
    tracker.add(0, 1, Prompt.make(vectors["click_xy"]))
    for index in range(2):
        frame = tracker.step(both[320 * index : 320 * (index + 1)])
        (found,), kept = frame.found, tracker.banks[1].get(index)
        golden.close(found.iou, vectors["click_post.ious"][index], 2e-4)
        golden.close(found.low_res[::16, ::16], vectors["click_post.low_res"][index], 0.5)
        golden.close(found.pointer[::4], vectors["click_post.obj_ptr"][index], 0.02)
        golden.close(found.score, vectors["click_post.score"][index], 0.005)
        memory = from_bfloat16(kept.memory).T.reshape(64, 64, 64)
        golden.close(sam2_golden.stats(torch.from_numpy(memory))[:2], vectors["click_post.mem_stats"][index][:2], 0.01)


def test_objects_of_a_batch_are_followed_as_the_reference_follows_each(small, tracker, clip, features):
    ours, references = tracker(frames=FRAMES), {name: Sam2Tracker(small, frames=FRAMES) for name in (7, 3, 9)}
    ours.add(0, 7, Prompt.make(CLICK))
    ours.add(0, 3, Prompt.make(box=BOX))
    ours.add(2, 9, a_mask())
    references[7].click(0, features[0], scaled(CLICK), torch.ones(1, 1))
    references[3].click(0, features[0], scaled(BOX), torch.tensor([[2, 3]]))
    square = F.interpolate(torch.from_numpy(a_mask()).float()[None, None], (64, 64), mode="bilinear", antialias=True)
    references[9].give_mask(2, features[2], (square >= 0.5).float())
    for index, frame in enumerate(ours.propagate(clip)):
        assert (frame.index, frame.objects) == (index, (7, 3) if index < 2 else (7, 3, 9))
        for name, found in zip(frame.objects, frame.found, strict=True):
            check(found, references[name].track(index, features[index]))
        if index == 5:
            break


def test_clicks_one_after_the_other_and_corrections(small, tracker, clip, features):
    ours, reference = tracker(frames=FRAMES), Sam2Tracker(small, frames=FRAMES)
    more, labels = [[20.0, 30.0], [60.0, 10.0]], [1, 0]
    ours.add(0, 1, Prompt.make(CLICK))
    ours.add(0, 1, Prompt.make(more, labels))
    reference.click(0, features[0], scaled(CLICK), torch.ones(1, 1))
    check(ours.step(clip[0]).found[0], reference.click(0, features[0], scaled(more), torch.tensor([labels])), 1e-4)
    for index in (1, 2):
        check(ours.step(clip[index]).found[0], reference.track(index, features[index]))
    ours.add(2, 1, Prompt.make(CLICK))
    corrected = next(ours.propagate(clip, start=2)).found[0]
    check(corrected, reference.click(2, features[2], scaled(CLICK), torch.ones(1, 1)))
    assert (list(ours.banks[1].prompted), list(ours.banks[1].tracked)) == ([0], [1, 2])
    again = next(ours.propagate(clip, start=2)).found[0]
    np.testing.assert_array_equal(again.low_res, corrected.low_res)


class Fixed(PyTorchRuntime):
    """A form behind entry points of fixed sizes, as a TFLite file has them."""

    def __init__(self, module, graph):
        super().__init__(module, graph)
        self.entry_points = entry_points(graph, plan((1, 2), (3,)))
        self.called = []

    def _run(self, inputs):
        return run_in_buckets(self.graph, inputs, self.entry_points, self._call)

    def _call(self, bucket, part):
        self.called.append(bucket.name)
        for tensor in self.graph.inputs:
            assert part[tensor.name].shape == tensor.resolved(bucket.sizes(self.graph))
        return super()._run(part)


@pytest.fixture
def fixed(small):
    graphs = sam2_graphs(small.size.image_size, small.size.width)[1:]
    return {graph.name: Fixed(sam2_module(small, graph.name), graph) for graph in graphs}


def test_files_of_fixed_sizes_follow_as_others_do(small, tracker, runtimes, fixed, clip):
    ours = Tracker({**runtimes, **fixed}, sam2_constants(small), frames=FRAMES)
    free = tracker(frames=FRAMES)
    for each in (ours, free):
        each.add(0, 7, Prompt.make(CLICK))
        each.add(0, 3, Prompt.make(box=BOX))
        each.add(1, 7, a_mask())
        each.add(8, 9, a_mask())
    for one, other in zip(ours.propagate(clip), free.propagate(clip), strict=True):
        assert one.objects == other.objects
        for a, b in zip(one.found, other.found, strict=True):
            golden.close(a.low_res, b.low_res, 0.2)
            golden.close(a.score, b.score, 2e-2)
    assert set(fixed["memory_attention"].called) == {"memories_1", "memories_7", "memories_10"}
    assert set(fixed["mask_decoder_tracked"].called) == {"decode_1", "decode_2"}


def test_of_more_prompted_frames_than_a_file_takes_the_nearest_are_read(small, runtimes, fixed, clip):
    ours = Tracker({**runtimes, **fixed}, sam2_constants(small), frames=FRAMES)
    for frame in range(6):
        ours.add(frame, 1, Prompt.make(CLICK))
    list(ours.propagate(clip))
    bank = ours.banks[1]
    assert list(bank.prompted) == list(range(6))
    read = bank.read(8, most=4)
    assert read.rows == [6, 6, 6, 6, 1, 0]
    np.testing.assert_array_equal(read.memories[0], bank.prompted[2].memory)
    assert len(bank.read(8).rows) == 8


def test_prompt_of_a_stream_corrects_what_is_followed(small, tracker, clip, features):
    ours, reference = tracker(), Sam2Tracker(small)
    ours.add(0, 1, Prompt.make(CLICK))
    ours.add(2, 1, Prompt.make([[60.0, 10.0]], [0]))
    reference.click(0, features[0], scaled(CLICK), torch.ones(1, 1))
    for index in (1, 2):
        reference.track(index, features[index])
    corrected = reference.click(2, features[2], scaled([[60.0, 10.0]]), torch.zeros(1, 1))
    *_, found = (ours.step(clip[index]).found[0] for index in range(3))
    check(found, corrected)
    assert (list(ours.banks[1].prompted), list(ours.banks[1].tracked)) == ([0], [1, 2])
    check(ours.step(clip[3]).found[0], reference.track(3, features[3]))


def test_both_directions_meet_at_the_prompt(tracker, clip):
    ours = tracker(frames=FRAMES)
    ours.add(5, 1, Prompt.make(CLICK))
    order = [frame.index for frame in ours.propagate(clip, direction="both")]
    assert order == [*range(5, FRAMES), 4, 3, 2, 1, 0]
    backwards = tracker(frames=FRAMES)
    backwards.add(5, 1, Prompt.make(CLICK))
    assert [frame.index for frame in backwards.propagate(clip, direction="backwards")] == [5, 4, 3, 2, 1, 0]


def test_backwards_is_forwards_on_the_clip_in_reverse(tracker, clip):
    forwards, backwards = tracker(frames=FRAMES), tracker(frames=FRAMES)
    forwards.add(0, 1, Prompt.make(CLICK))
    backwards.add(FRAMES - 1, 1, Prompt.make(CLICK))
    for there, back in zip(
        forwards.propagate(clip[::-1]), backwards.propagate(clip, direction="backwards"), strict=True
    ):
        np.testing.assert_array_equal(there.found[0].low_res, back.found[0].low_res)


def test_stream_gives_what_a_clip_gives_and_forgets_what_no_frame_reads(tracker, clip):
    longer = clip + clip[::-1]
    whole, stream = tracker(frames=len(longer)), tracker()
    for each in (whole, stream):
        each.add(0, 1, Prompt.make(CLICK))
    for frame in whole.propagate(longer):
        streamed = stream.step(longer[frame.index])
        np.testing.assert_array_equal(streamed.found[0].low_res, frame.found[0].low_res)
    assert list(stream.banks[1].tracked) == list(range(5, 20))
    assert list(whole.banks[1].tracked) == list(range(1, 20))


def test_frame_is_encoded_once_for_all_objects_and_not_again_for_prompts_alone(tracker, runtimes, clip):
    ours, calls = tracker(frames=FRAMES), []
    opened = ours._open
    for name in range(3):
        ours.add(0, name, Prompt.make(CLICK))
    frames = ours.propagate(clip)
    next(frames)

    class Counted:
        bounds = ()

        def __init__(self, name):
            self.name, self.graph = name, opened(name).graph

        def run(self, inputs):
            calls.append(self.name if self.name != "memory_attention" else (self.name, len(inputs["memory"])))
            return opened(self.name).run(inputs)

    ours._open = Counted
    next(frames)
    reads = [("memory_attention", 2), ("memory_attention", 1)]
    assert calls == ["image_encoder", *reads, "mask_decoder_tracked", "memory_encoder"]
    calls.clear()
    next(ours.propagate(clip))
    assert calls == []


def test_masks_at_the_size_of_the_video(tracker, clip):
    ours = tracker(frames=FRAMES)
    ours.add(0, 1, a_mask())
    ours.add(0, 2, Prompt.make(CLICK))
    frame = next(ours.propagate(clip))
    masks, labels = frame.masks(), frame.labels()
    assert masks.shape == (2, *HW)
    assert np.mean(masks[0] == a_mask()) > 0.95
    np.testing.assert_array_equal(labels > 0, masks.any(axis=0))


def test_tracker_goes_on_from_a_file(tracker, runtimes, small, clip, tmp_path):
    ours = tracker()
    ours.add(0, 4, Prompt.make(CLICK))
    ours.add(1, 2, Prompt.make(box=BOX))
    for index in range(4):
        ours.step(clip[index])
    save(ours, tmp_path / "state.npz")
    again = resume(tmp_path / "state.npz", runtimes, sam2_constants(small))
    for index in range(4, 8):
        one, other = ours.step(clip[index]), again.step(clip[index])
        assert one.objects == other.objects
        for a, b in zip(one.found, other.found, strict=True):
            np.testing.assert_array_equal(a.low_res, b.low_res)
            np.testing.assert_array_equal(a.iou, b.iou)


def test_file_that_no_tracker_wrote_is_refused(runtimes, small, tracker, clip, tmp_path):
    np.savez(tmp_path / "other.npz", frame=np.arange(3))
    with pytest.raises(FileError, match="was not written by a tracker"):
        resume(tmp_path / "other.npz", runtimes, sam2_constants(small))
    with pytest.raises(ConfigError, match="once frames were tracked"):
        save(tracker(), tmp_path / "new.npz")
    ours = tracker()
    ours.add(0, 4, Prompt.make(CLICK))
    ours.step(clip[0])
    save(ours, tmp_path / "state.npz")
    other = {**sam2_constants(small), "no_object_pointer": np.zeros(9, np.float32)}
    with pytest.raises(ConfigError, match="a model of another size"):
        resume(tmp_path / "state.npz", runtimes, other)


def test_prompts_that_cannot_be_used_are_refused_in_one_line(tracker, clip):
    ours = tracker(frames=FRAMES)
    with pytest.raises(PromptError, match="no object has a prompt"):
        next(ours.propagate(clip))
    with pytest.raises(PromptError, match="frame 10 is not in the video"):
        ours.add(FRAMES, 1, Prompt.make(CLICK))
    with pytest.raises(PromptError, match="earlier mask itself"):
        ours.add(0, 1, Prompt.make(mask_input=np.zeros((16, 16))))
    with pytest.raises(PromptError, match=r"bool \[H, W\]"):
        ours.add(0, 1, np.zeros(HW))
    ours.add(0, 1, Prompt.make([[81.0, 3.0]]))
    with pytest.raises(PromptError, match="outside the video, 80 wide and 60 high"):
        next(ours.propagate(clip))
    assert ours.banks == {}
    stream = tracker()
    stream.step(clip[0])
    with pytest.raises(PromptError, match="frame 0 of the stream is gone; the next one is 1"):
        stream.add(0, 1, Prompt.make(CLICK))
    with pytest.raises(PromptError, match="the mask is 4x3, the video 80x60"):
        stream.add(1, 1, np.zeros((3, 4), np.bool_))
    with pytest.raises(ConfigError, match="made for 10 frames, the clip has 2"):
        next(ours.propagate(clip[:2]))


def test_stream_without_an_object_yet_gives_empty_frames(tracker, clip):
    frame = tracker().step(clip[0])
    assert frame.objects == ()
    assert frame.masks().shape == (0, *HW)
    assert not frame.labels().any()


def test_frame_of_another_size_is_refused(tracker, clip):
    stream = tracker()
    stream.add(0, 1, Prompt.make(CLICK))
    stream.step(clip[0])
    with pytest.raises(ImageError, match="frame 1 is 40x60, those before 80x60"):
        stream.step(clip[1][:, :40])


def test_object_that_is_removed_is_followed_no_longer(tracker, clip):
    stream = tracker()
    stream.add(0, 1, Prompt.make(CLICK))
    stream.add(0, 2, Prompt.make(CLICK))
    stream.add(2, 1, Prompt.make(CLICK))
    stream.step(clip[0])
    stream.remove(1)
    assert [stream.step(clip[t]).objects for t in (1, 2)] == [(2,), (2,)]


def test_numbers_that_are_none_stop_the_tracker(tracker, runtimes, clip):
    class Broken:
        graph = runtimes["image_encoder"].graph

        def run(self, inputs):
            outputs = runtimes["image_encoder"].run(inputs)
            return {**outputs, "vision": np.full_like(outputs["vision"], np.nan)}

    stream = tracker()
    stream._open = {**runtimes, "image_encoder": Broken()}.__getitem__
    with pytest.raises(ParityFailed, match="image_encoder gives NaN or infinity in vision"):
        stream.step(clip[0])
