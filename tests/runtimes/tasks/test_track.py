"""Following objects through a clip, against the tracker that has the whole clip at once."""

from functools import partial

import numpy as np
import pytest

from samexport.errors import PromptError
from samexport.models.families.sam2 import sam2_constants
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.video import Clip
from samexport.runtimes.tasks.track import ObjectPrompt, check, follow, passes
from tests.runtimes.families.tracked import BOX, CLICK, FRAMES, HW, a_mask, small_forms, small_model, wandering
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures


class Pictures(Clip):
    def __init__(self, pictures):
        self.pictures, self.frames, self.image_hw, self.path = pictures, len(pictures), HW, "pictures"

    def read(self, frames):
        return (self.pictures[frame] for frame in frames)


@pytest.fixture(scope="module")
def clip():
    return Pictures(wandering())


@pytest.fixture
def tracker():
    return partial(Tracker, small_forms(), sam2_constants(small_model()))


def run(tracker, clip, prompts, direction="forwards"):
    return list(follow(tracker, clip, passes(prompts, clip.frames, direction)))


def assert_same(tracked, frame):
    """What was found against a frame of the tracker itself."""
    assert tracked.frame == frame.index
    assert [mask.object for mask in tracked.masks] == list(frame.objects)
    for mask, wanted, found in zip(tracked.masks, frame.masks(), frame.found, strict=True):
        np.testing.assert_array_equal(decode_rle(mask.segmentation), wanted)
        assert (mask.area, mask.score) == (wanted.sum(), found.score)
        if mask.area:
            x, y, width, height = mask.bbox
            assert wanted[y : y + height, x : x + width].sum() == mask.area
            assert wanted[y].any()
            assert wanted[:, x + width - 1].any()


def test_objects_are_followed_as_the_tracker_follows_them(tracker, clip):
    prompts = [ObjectPrompt(0, 1, Prompt.make(CLICK)), ObjectPrompt(0, 2, a_mask()), ObjectPrompt(3, 3, a_mask())]
    whole = tracker(frames=FRAMES)
    for each in prompts:
        whole.add(each.frame, each.object, each.prompt)
    found = run(tracker, clip, prompts)
    for tracked, frame in zip(found, whole.propagate(clip.pictures), strict=True):
        assert_same(tracked, frame)
        assert {"read", "encode", "remember", "decode", "memorise", "masks"} == set(tracked.seconds)
    assert any(mask.area for tracked in found for mask in tracked.masks if not mask.prompted)
    assert [mask.prompted for mask in found[3].masks] == [False, False, True]


def test_backwards_is_the_tracker_backwards(tracker, clip):
    whole = tracker(frames=FRAMES)
    whole.add(6, 4, a_mask())
    found = run(tracker, clip, [ObjectPrompt(6, 4, a_mask())], "backwards")
    for tracked, frame in zip(found, whole.propagate(clip.pictures, direction="backwards"), strict=True):
        assert_same(tracked, frame)


def test_both_directions_give_every_object_every_frame_once(tracker, clip):
    prompts = [ObjectPrompt(2, 1, a_mask()), ObjectPrompt(6, 2, Prompt.make(box=BOX)), ObjectPrompt(0, 3, a_mask())]
    found = run(tracker, clip, prompts, "both")
    seen = [(mask.object, tracked.frame) for tracked in found for mask in tracked.masks]
    assert sorted(seen) == [(name, frame) for name in (1, 2, 3) for frame in range(FRAMES)]
    backwards = {t.frame: mask for t in run(tracker, clip, prompts[1:2], "backwards") for mask in t.masks}
    for tracked in found:
        for mask in tracked.masks:
            if mask.object == 2 and tracked.frame < 6:
                assert mask.segmentation == backwards[tracked.frame].segmentation


def test_later_prompt_corrects_what_was_found_there(tracker, clip):
    prompts = [ObjectPrompt(0, 1, a_mask()), ObjectPrompt(4, 1, Prompt.make([[10.0, 50.0]]))]
    whole = tracker(frames=FRAMES)
    whole.add(0, 1, prompts[0].prompt)
    frames = list(whole.propagate(clip.pictures))[:4]
    whole.add(4, 1, prompts[1].prompt)
    frames += whole.propagate(clip.pictures, start=4)
    uncorrected = run(tracker, clip, prompts[:1])
    found = run(tracker, clip, prompts)
    for tracked, frame in zip(found[:5], frames[:5], strict=True):
        assert_same(tracked, frame)
    assert found[4].masks[0].score != uncorrected[4].masks[0].score


def test_memory_does_not_grow_with_the_clip(tracker, clip):
    made = []

    def opened(**options):
        made.append(tracker(**options))
        return made[-1]

    longer = Pictures(clip.pictures * 3)
    run(opened, longer, [ObjectPrompt(1, 1, Prompt.make(CLICK))])
    assert len(made[0].banks[1].tracked) == 15


@pytest.mark.parametrize(
    ("frame", "prompt", "message"),
    [
        (FRAMES, Prompt.make(CLICK), "object 7, frame 10: the frames of pictures are 0 to 9"),
        (1, Prompt.make([[81, 3]]), r"object 7, frame 1: \(81, 3\) is outside the clip, 80 wide and 60 high"),
        (1, Prompt.make(box=[90, 1, 95, 9]), "object 7, frame 1: box .* is outside the image"),
        (1, np.ones((3, 4), np.bool_), "object 7, frame 1: the mask is 4x3, the clip 80x60; scale the mask"),
    ],
)
def test_prompts_that_do_not_lie_in_the_clip_are_refused(clip, frame, prompt, message):
    with pytest.raises(PromptError, match=message):
        check([ObjectPrompt(0, 1, a_mask()), ObjectPrompt(frame, 7, prompt)], clip)


def test_clip_without_prompts_is_refused(clip):
    with pytest.raises(PromptError, match="no object has a prompt"):
        check([], clip)
