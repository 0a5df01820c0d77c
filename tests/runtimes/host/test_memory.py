import numpy as np
import pytest
import torch

from samexport.models.architectures import sam2
from samexport.models.architectures.sam2 import ObjectMask as TorchMask
from samexport.models.architectures.sam2 import Sam2
from samexport.models.architectures.sam2_video import Remembered as TorchRemembered
from samexport.models.architectures.sam2_video import Sam2Tracker
from samexport.runtimes.host.memory import Bank, Remembered, batch, from_bfloat16, to_bfloat16
from samexport.runtimes.host.object_masks import ObjectMask
from tests.models import sam2_golden

CELLS = 16


def remembered(frame):
    """An entry that can be told by its values."""
    mask = ObjectMask(np.zeros((4, 4), np.float32), np.ones(1, np.float32), np.full(64, frame, np.float32), 1.0)
    return Remembered(mask, to_bfloat16(np.full((CELLS, 64), frame, np.float32)))


def bank(prompted, tracked):
    return Bank({t: remembered(t) for t in prompted}, {t: remembered(t) for t in tracked})


def frames(read):
    """Frames whose memories, and whose pointers, are read."""
    return [float(from_bfloat16(m)[0, 0]) for m in read.memories], [float(p[0]) for p in read.pointers]


def test_bfloat16_is_rounded_as_torch_rounds_it():
    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    values[:5] = 0, -0.0, 1.00390625, 1.01171875, 3e38  # ties, and what is nearly infinite
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(to_bfloat16(values), expected.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), expected.float())


def test_bank_takes_prompted_frames_then_six_tracked_ones_and_the_newest_pointers_first():
    read = bank((3, 0), (t for t in range(1, 30) if t not in (3, 25))).read(30)
    assert frames(read) == (
        [3, 0, 24, 26, 27, 28, 29],
        [3, 0, 29, 28, 27, 26, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15],
    )
    assert read.rows == [6, 6, 5, 3, 2, 1, 0]
    assert read.ages[:3] == [27 / 15, 2, 1 / 15]


def test_backwards_is_forwards_in_a_mirror():
    ahead, behind = bank((3, 0), range(4, 20)), bank((-3, 0), range(-19, -3))
    forwards, backwards = ahead.read(20), behind.read(-20, backwards=True)
    assert [[-x for x in part] for part in frames(forwards)] == list(map(list, frames(backwards)))
    assert (forwards.rows, forwards.ages) == (backwards.rows, backwards.ages)


def test_prompt_from_the_future_lends_its_memory_but_not_its_pointer():
    kept = bank((9, 4), ())
    assert frames(kept.read(5)) == ([9, 4], [4])
    assert frames(kept.read(5, backwards=True)) == ([9, 4], [9])


def test_object_is_followed_from_its_first_prompt_on():
    kept = bank((9, 4), ())
    assert [kept.follows(t) for t in (3, 4, 20)] == [False, True, True]
    assert [kept.follows(t, backwards=True) for t in (3, 9, 10)] == [True, True, False]


def test_corrected_frame_stays_a_tracked_frame():
    kept = bank((0,), (1, 2))
    kept.put(2, remembered(22))
    kept.put(5, remembered(5))
    assert (list(kept.prompted), list(kept.tracked)) == ([0, 5], [1, 2])
    assert kept.get(2).mask.pointer[0] == 22
    assert [kept.has_prompt(t) for t in (0, 1, 2, 5)] == [True, False, True, True]
    kept.forget(range(3))
    assert kept.has_prompt(2)
    kept.forget(range(2))
    assert not kept.has_prompt(2)


def test_what_is_forgotten_was_tracked():
    kept = bank((0,), range(1, 9))
    kept.forget(range(5, 9))
    assert (list(kept.prompted), list(kept.tracked)) == ([0], [5, 6, 7, 8])


def test_batch_marks_slots_that_an_object_does_not_have():
    inputs = batch([bank((0,), (1, 2)).read(3), bank((2,), ()).read(3)])
    assert inputs["memory"].shape == (2, 3, CELLS, 64)
    np.testing.assert_array_equal(inputs["memory_row"], [[6, 1, 0], [6, -1, -1]])
    np.testing.assert_array_equal(inputs["pointer_present"], [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(15 * inputs["pointer_age"], [[3, 1, 2], [1, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(inputs["memory"][:, :, 0, 0], [[0, 1, 2], [2, 0, 0]])
    np.testing.assert_array_equal(inputs["pointers"][..., 0], [[0, 2, 1], [2, 0, 0]])


@pytest.mark.parametrize("frame", [1, 5, 6, 7, 14, 40])
@pytest.mark.parametrize("span", [11, 15])
def test_a_frame_reads_what_the_reference_reads(frame, span):
    model = sam2_golden.randomise(Sam2(sam2.TEST))
    reference = Sam2Tracker(model, frames=span + 1)
    whole, ones = torch.zeros(1, 1, 4, 4), torch.ones(1, 1)
    entries = {
        t: TorchRemembered(
            TorchMask(whole, ones, torch.full((1, 64), float(t)), ones), torch.full((1, 64, 4, 4), float(t)).bfloat16()
        )
        for t in range(frame)
    }
    reference.prompted = {t: entries[t] for t in (0, 3) if t < frame}
    reference.tracked = {t: kept for t, kept in entries.items() if t not in (0, 3)}
    memory, _, count = reference.bank(frame)
    read = bank(reference.prompted, reference.tracked).read(frame, span)
    assert frames(read) == (memory[0, :-count:CELLS, 0].tolist(), memory[0, -count:, 0].tolist())
