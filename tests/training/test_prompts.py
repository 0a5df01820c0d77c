"""Prompts of masks that were made by hand."""

import torch

from samexport.training.prompts import Points, boxes, choose_targets, corrections, first_clicks, first_prompts
from samexport.training.scenes import SceneSettings, draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rectangles():
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, 4:10, 7:20] = True
    masks[1, 31, 0] = True
    masks[2, 2:5, 2:5] = True
    masks[2, 20:25, 28:30] = True
    return masks


def test_a_box_goes_from_the_first_to_the_last_pixel():
    found = boxes(rectangles(), None)
    assert found.coords.tolist() == [[[7, 4], [19, 9]], [[0, 31], [0, 31]], [[2, 2], [29, 24]]]
    assert found.labels.tolist() == [[2, 3]] * 3


def test_a_shaken_box_stays_near_and_within_the_frame():
    masks = torch.zeros(30, 1024, 1024, dtype=torch.bool)
    masks[:, 5:900, 100:1020] = True
    exact, shaken = boxes(masks, None).coords, boxes(masks, generator()).coords
    assert (shaken - exact).abs().max() <= 20
    assert (shaken - exact).abs().mean() > 5
    assert shaken.min() >= 0
    assert shaken.max() <= 1023


def test_clicks_lie_on_their_masks_anywhere_and_before_the_padding_point():
    masks = rectangles()[:1].expand(300, -1, -1)
    found = first_clicks(masks, generator())
    assert found.labels.tolist() == [[1, -1]] * 300
    x, y = found.coords[:, 0].long().unbind(1)
    assert masks[torch.arange(300), y, x].all()
    assert len({(int(a), int(b)) for a, b in zip(x, y, strict=True)}) > 60
    assert not found.coords[:, 1].any()


def test_half_of_the_first_prompts_are_boxes():
    masks = rectangles()[:1].expand(400, -1, -1)
    found, is_box = first_prompts(masks, generator())
    assert 150 < int(is_box.sum()) < 250
    assert (found.labels[is_box] == torch.tensor([2, 3])).all()
    assert (found.labels[~is_box] == torch.tensor([1, -1])).all()


def test_a_further_point_stands_before_the_padding_point_and_after_a_box():
    coords = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 4.0], [5.0, 6.0]]])
    points = Points(coords, torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
    once = points.with_point(torch.tensor([[7.0, 8.0], [9.0, 9.0]]), torch.tensor([0.0, 1.0]))
    assert once.labels.tolist() == [[1, 0, -1], [2, 3, 1]]
    assert once.coords.tolist() == [[[1, 2], [7, 8], [0, 0]], [[3, 4], [5, 6], [9, 9]]]
    twice = once.with_point(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([1.0, 0.0]))
    assert twice.labels.tolist() == [[1, 0, 1, -1], [2, 3, 1, 0]]
    assert twice.coords[:, 2].tolist() == [[1, 1], [9, 9]]


def test_a_correction_is_where_the_mask_is_wrong_and_says_what_belongs_there():
    wanted = torch.zeros(3, 8, 8)
    wanted[:, 2:6, 2:6] = 1.0
    found = torch.where(wanted > 0.5, 5.0, -5.0)
    found[0, 3, 4] = -1.0  # missing
    found[1, 7, 0] = 1.0  # too much
    for seed in range(5):
        coords, labels = corrections(found, wanted, generator(seed))
        assert labels.tolist() == [1, 0, 1]
        # a cell is four pixels
        assert coords[:2].tolist() == [[4 * 4 + 1.5, 4 * 3 + 1.5], [1.5, 4 * 7 + 1.5]]
        x, y = (coords[2] / 4).long()
        assert wanted[2, y, x] == 1


def test_targets_are_objects_of_which_enough_is_seen_with_their_share_of_each_cell():
    scenes = draw(2, SceneSettings(128, 20), generator(5))
    targets = choose_targets(scenes, 30, generator())
    allowed = [scenes.masks(scenes.seen()[i].nonzero()[:, 0].expand(2, -1))[i] for i in range(2)]
    background = scenes.masks(torch.zeros(2, 1, dtype=torch.long))
    for picture in range(2):
        known = {bytes(mask.numpy()) for mask in (*allowed[picture], *background[picture])}
        chosen = [bytes(mask.numpy()) for mask in targets.masks[picture]]
        assert set(chosen) <= known
        assert len(set(chosen)) > 2
    cell = targets.masks[1, 3, 40:44, 60:64].float().mean()
    assert targets.soft[1, 3, 10, 15] == cell
    assert targets.soft.shape == (2, 30, 32, 32)
