"""Drawn scenes: masks that are exact and agree with each other and with the picture, and seeds that keep apart."""

import numpy as np
import pytest
import torch

from samexport.models.catalog import find_model
from samexport.training import measure
from samexport.training.loop import Stage, Trainer, TrainSettings
from samexport.training.scenes import HELD_OUT, LAYERS, SceneSettings, _covered, _lay_out, _see, draw


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    return draw(3, SceneSettings(128, 12), generator())


def wholes(scenes):
    return range(1, scenes.slots, LAYERS)


def test_every_pixel_belongs_to_one_object_the_background_or_nothing(scenes):
    assert scenes.ids.min() >= -1
    assert scenes.ids.max() < scenes.slots
    slots = torch.tensor([0, *wholes(scenes)]).expand(3, -1)
    belongs = scenes.masks(slots).sum(1)
    assert torch.equal(belongs, (scenes.ids >= 0).long())


def test_areas_are_those_of_the_masks_and_add_up(scenes):
    everything = torch.arange(scenes.slots).expand(3, -1)
    assert torch.equal(scenes.areas(), scenes.masks(everything).sum((2, 3)))
    for picture, areas in zip(scenes.ids.numpy(), scenes.areas().numpy(), strict=True):
        for slot in wholes(scenes):
            assert areas[slot] == np.isin(picture, range(slot, slot + LAYERS)).sum()
        outside = (picture < 0).sum()
        assert areas[0] + sum(areas[slot] for slot in wholes(scenes)) + outside == picture.size


def test_a_whole_contains_its_parts(scenes):
    seen_parts = 0
    for slot in wholes(scenes):
        for part in range(slot + 1, slot + LAYERS):
            whole, own = scenes.masks(torch.tensor([[slot, part]] * 3)).unbind(1)
            assert not (own & ~whole).any()
            seen_parts += int(own.any())
    assert seen_parts >= 3


def test_enough_is_seen_of_what_is_asked_for(scenes):
    assert torch.equal(scenes.seen(), scenes.areas() >= 96)
    assert torch.equal(
        draw(1, SceneSettings(512), generator()).seen(), draw(1, SceneSettings(512), generator()).areas() >= 128
    )


def test_windows_show_what_the_whole_frame_shows():
    """Every outline on every pixel, painted one over the other, as a painter does."""
    size = 160
    layout = _lay_out(2, SceneSettings(size, 30), generator())
    axes = ((torch.arange(size) + 0.5) / size).expand(1, 2, size)
    painted = torch.zeros(2, size, size, dtype=torch.int32)
    for one in layout.slot.argsort():
        whole = layout.whole[one]
        outline = _covered(layout, one[None], axes)[0] & _covered(layout, whole[None], axes)[0]
        painted[layout.picture[one]][outline] = layout.slot[one].int()
    assert len(painted.unique()) > 25
    assert torch.equal(_see(layout, 2, size), painted)


def test_a_plain_picture_has_one_colour_on_each_mask():
    scenes = draw(2, SceneSettings(128, 8, texture=0.0, ragged=0.0), generator())
    checked = 0
    for picture, ids in zip(scenes.pictures, scenes.ids, strict=True):
        for slot in ids.unique():
            # the lens reaches two pixels beyond a border
            far = -torch.nn.functional.max_pool2d(-(ids == slot).float()[None], 7, 1, 3)[0] > 0
            far[:3], far[-3:], far[:, :3], far[:, -3:] = False, False, False, False
            if far.any():
                assert len(picture[:, far].unique(dim=1).T) == 1
                checked += 1
    assert checked > 6


def test_pictures_are_eight_bits(scenes):
    assert torch.equal(scenes.pictures, scenes.pictures.clamp(0, 255).round())


def test_the_same_seed_draws_the_same_scenes_and_another_one_others(scenes):
    again = draw(3, SceneSettings(128, 12), generator())
    assert torch.equal(again.pictures, scenes.pictures)
    assert torch.equal(again.ids, scenes.ids)
    assert not torch.equal(draw(3, SceneSettings(128, 12), generator(4)).ids, scenes.ids)


def test_pictures_that_are_not_square_end_right_or_below():
    outside = draw(40, SceneSettings(64, 3, ragged=1.0), generator()).ids < 0
    rows, columns = outside.all(2).sum(1), outside.all(1).sum(1)
    assert ((rows > 0) ^ (columns > 0)).sum() >= 35
    assert not ((rows > 0) & (columns > 0)).any()
    for mask, height, width in zip(outside, rows, columns, strict=True):
        expected = torch.zeros(64, 64, dtype=torch.bool)
        expected[64 - int(height) :] = True
        expected[:, 64 - int(width) :] = True
        assert torch.equal(mask, expected)
        assert max(height, width) <= 32
    assert not (draw(20, SceneSettings(64, 3, ragged=0.0), generator()).ids < 0).any()


@pytest.mark.parametrize("seed", [0, 1, 1100, 2**32 - 1])
def test_training_never_draws_a_held_out_scene(seed, monkeypatch):
    """A CPU reads the lower 32 bits of a seed alone, so these must keep apart."""
    used = []
    monkeypatch.setattr(measure, "draw", lambda count, settings, generator: used.append(generator.initial_seed()))
    for index in (0, 1, 199, 1005, 1 << 30):
        measure.held_out(index, SceneSettings(64), torch.device("cpu"))
    stages = (Stage(1.0, 64, 1, 1, 1, 0.0, 1),)
    trainer = Trainer(find_model("test.tinyvit64"), TrainSettings(stages, steps=1, seed=seed))
    trained = [trainer._generator(number).initial_seed() for number in (0, 1, 2, 10_001, (1 << 30) - 1)]
    assert all(HELD_OUT <= number < 1 << 32 for number in used)
    assert all(0 <= number < HELD_OUT for number in trained)
