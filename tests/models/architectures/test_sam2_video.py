import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samexport.errors import PromptError
from samexport.models.architectures import sam2
from samexport.models.architectures.sam2 import ObjectMask, Sam2
from samexport.models.architectures.sam2_video import Remembered, Sam2Tracker
from tests.models import golden, sam2_golden

VIDEO = "sam2_video.npz"
FRAMES = 12
SCALE = torch.tensor([1024 / 480, 1024 / 320])


@pytest.fixture(scope="module")
def features():
    """Of the first two frames of the golden clip."""
    frames = [sam2_golden.clip_frame(index) for index in range(2)]
    golden.close(frames[0][0, :, 3::64, 5::64], golden.read(VIDEO)["pre0"], 1e-5)
    return [sam2_golden.tiny().features(frame) for frame in frames]


def start(run, features):
    """A tracker that has the prompt of a golden run, and the mask of frame 0."""
    vectors = golden.read(VIDEO)
    tracker = Sam2Tracker(sam2_golden.tiny(), frames=FRAMES, postprocess=run != "click_nopost")
    if run == "mask_post":
        mask = np.unpackbits(vectors["mask_prompt_bits"]).reshape(1, 1, 320, 480).astype(np.float32)
        square = F.interpolate(torch.from_numpy(mask), size=(1024, 1024), mode="bilinear", antialias=True)
        return tracker, tracker.give_mask(0, features, (square >= 0.5).float())
    if run == "box_post":
        box = torch.from_numpy(vectors["box_xyxy"]).view(1, 2, 2) * SCALE
        return tracker, tracker.click(0, features, box, torch.tensor([[2, 3]]))
    click = torch.from_numpy(vectors["click_xy"]).view(1, 1, 2) * SCALE
    return tracker, tracker.click(0, features, click, torch.ones(1, 1))


def check(run, frame, found, memory):
    """A frame against its vectors, at the tolerances of a video whose memory is rounded to bfloat16."""
    vectors = golden.read(VIDEO)
    candidates = vectors[f"{run}.ious"][frame]
    if run != "mask_post":
        golden.close(found.iou[0], candidates[~np.isnan(candidates)], 2e-4)
    sample = found.low_res[0, 0, ::16, ::16].numpy()
    golden.close(sample, vectors[f"{run}.low_res"][frame], 0.5)
    assert np.abs(sample - vectors[f"{run}.low_res"][frame]).mean() < 0.02
    golden.close(sam2_golden.stats(found.low_res)[:2], vectors[f"{run}.low_res_stats"][frame][:2], 0.02)
    golden.close(found.object_score, vectors[f"{run}.score"][frame], 0.005)
    golden.close(found.pointer[0, ::4], vectors[f"{run}.obj_ptr"][frame], 0.02)
    official = torch.from_numpy((vectors[f"{run}.mem_bf16"][frame].astype(np.uint32) << 16).view(np.float32))
    ours = memory[0, ::8, ::8, ::8]
    assert ours.dtype == torch.bfloat16
    difference = (ours.float() - official).abs()
    assert (difference == 0).float().mean() > 0.7
    # a step of bfloat16; but in box_post one pixel at a logit of 9e-6 is on the other side in the binary mask, and it
    # changes the cells around it
    assert (difference <= official.abs() / 128 + 0.01).float().mean() > (0.95 if run == "box_post" else 0.999)
    assert difference.max() < 0.5


@pytest.mark.parametrize("run", ["click_nopost", "box_post", "mask_post"])
def test_prompted_frame_of_a_golden_run(features, run):
    tracker, found = start(run, features[0])
    check(run, 0, found, tracker.prompted[0].memory)


def test_first_two_frames_of_a_golden_run(features):
    tracker, found = start("click_post", features[0])
    check("click_post", 0, found, tracker.prompted[0].memory)
    assert tracker.track(0, features[0]) is found
    seen, (hook,) = golden.watch({"read": tracker.model.memory_attention})
    found = tracker.track(1, features[1])
    hook.remove()
    tokens = seen["read"].flatten(2).transpose(1, 2)[0]
    expected = golden.read(VIDEO)["memattn_out_1"]
    golden.close(tokens[::64, ::16], expected, 0.3)
    assert np.abs(tokens[::64, ::16].numpy() - expected).mean() < 0.005
    check("click_post", 1, found, tracker.tracked[1].memory)


def remembered(model, frame):
    """An entry that can be told by its values."""
    width, grid = model.size.width, model.size.image_size // 16
    mask = ObjectMask(torch.zeros(1, 1, 4, 4), torch.ones(1, 1), torch.full((1, width), float(frame)), torch.ones(1, 1))
    return Remembered(mask, torch.full((1, 64, grid, grid), float(frame)).bfloat16())


@pytest.mark.parametrize("frame", [1, 2, 8, 11])
def test_bank_of_a_frame_has_the_official_positions(frame):
    vectors, model = golden.read(VIDEO), sam2_golden.tiny()
    tracker = Sam2Tracker(model, frames=FRAMES)
    tracker.prompted[0] = remembered(model, 0)
    tracker.tracked = {t: remembered(model, t) for t in range(1, frame)}
    memory, places, pointers = tracker.bank(frame)
    spatial = memory.shape[1] - pointers
    assert pointers == vectors[f"n_ptr_tokens_{frame}"]
    assert memory.shape[1] == places.shape[1] == vectors["n_mem"][frame]
    golden.close(places[0, :spatial:509, ::4], vectors[f"memory_pos_{frame}"], 1e-4)
    golden.close(places[0, spatial:, ::4], vectors[f"ptr_pos_{frame}"], 1e-4)


@pytest.fixture(scope="module")
def small():
    return sam2_golden.randomise(Sam2(sam2.TEST))


def order(tracker, frame):
    """Frames whose memories, and whose pointers, ``frame`` reads, in order."""
    memory, _, pointers = tracker.bank(frame)
    values = memory[0, :, 0]
    return values[:-pointers:16].tolist(), values[-pointers:].tolist()


def test_bank_takes_prompted_frames_then_six_tracked_ones_and_the_newest_pointers_first(small):
    tracker = Sam2Tracker(small)
    tracker.prompted = {t: remembered(small, t) for t in (3, 0)}
    tracker.tracked = {t: remembered(small, t) for t in range(1, 30) if t not in (3, 25)}
    spatial, pointers = order(tracker, 30)
    assert spatial == [3, 0, 24, 26, 27, 28, 29]
    assert pointers == [3, 0, 29, 28, 27, 26, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15]


def test_prompt_from_the_future_lends_its_memory_but_not_its_pointer(small):
    tracker = Sam2Tracker(small)
    tracker.prompted = {t: remembered(small, t) for t in (9, 4)}
    assert order(tracker, 5) == ([9, 4], [4])


def test_ages_are_shares_of_fifteen_frames_or_of_a_shorter_clip(small):
    for frames, span in ((12, 11), (16, 15), (100, 15)):
        tracker = Sam2Tracker(small, frames=frames)
        tracker.prompted[0] = remembered(small, 0)
        torch.testing.assert_close(tracker.bank(4)[1][:, -1:], small.pointer_times([4], span))


def small_features(small, seed):
    torch.manual_seed(seed)
    return small.features(torch.randn(1, 3, 64, 64))


def test_second_click_takes_the_first_mask_as_a_prompt_and_one_mask(small):
    tracker, features = Sam2Tracker(small), small_features(small, 0)
    points, labels = torch.tensor([[[20.0, 30.0], [40.0, 10.0]]]), torch.tensor([[1, 0]])
    first = tracker.click(0, features, points[:, :1], labels[:, :1])
    assert first.iou.shape == (1, 3)
    second = tracker.click(0, features, points, labels)
    assert second.iou.shape == (1, 1)
    expected = small.object_mask(
        small.without_memory(features.vision), features, points, labels, first.low_res.clamp(-32, 32),
        multimask=False, fallback=True,
    )  # fmt: skip
    torch.testing.assert_close(second.low_res, expected.low_res)


def test_click_on_a_tracked_frame_reads_the_memory_and_stays_a_tracked_frame(small):
    tracker = Sam2Tracker(small)
    point, label = torch.tensor([[[20.0, 30.0]]]), torch.ones(1, 1)
    tracker.click(0, small_features(small, 0), point, label)
    features = small_features(small, 1)
    tracked = tracker.track(1, features)
    embedding = small.with_memory(features.vision, *tracker.bank(1))
    corrected = tracker.click(1, features, point, label)
    mask = tracked.low_res.clamp(-32, 32)
    expected = small.object_mask(embedding, features, point, label, mask, multimask=True, fallback=True)
    torch.testing.assert_close(corrected.low_res, expected.low_res)
    assert (list(tracker.prompted), list(tracker.tracked)) == ([0], [1])
    assert tracker.tracked[1].memory.dtype == torch.bfloat16


def test_frame_before_every_prompt_cannot_be_tracked(small):
    tracker, features = Sam2Tracker(small), small_features(small, 0)
    with pytest.raises(PromptError, match="frame 0 comes before every prompt"):
        tracker.track(0, features)
    tracker.prompted[3] = remembered(small, 3)
    with pytest.raises(PromptError, match="frame 2 comes before every prompt"):
        tracker.track(2, features)
