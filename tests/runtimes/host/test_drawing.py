import numpy as np
import pytest

from samexport.errors import ImageError
from samexport.runtimes.host import image as image_module
from samexport.runtimes.host.drawing import PALETTE, Panel, _line_width, outline_boxes, overlay, panel_sheet


def _square(side, top, left, size):
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_overlay_fills_and_outlines_only_the_mask():
    image = np.full((100, 100, 3), 200, np.uint8)
    mask = _square(100, 20, 30, 40)
    drawn = overlay(image, mask[None], opacity=0.5)
    assert (image == 200).all()
    np.testing.assert_array_equal(drawn[~mask], image[~mask])
    np.testing.assert_array_equal(drawn[40, 50], np.round(100 + np.array(PALETTE[0]) / 2))
    for row, column in ((20, 50), (59, 50), (40, 30), (40, 69)):
        np.testing.assert_array_equal(drawn[row, column], PALETTE[0])


def test_overlay_paints_small_masks_last_in_their_own_colour():
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = overlay(image, np.stack([_square(100, 40, 40, 20), _square(100, 10, 10, 80)]), opacity=1)
    np.testing.assert_array_equal(drawn[50, 50], PALETTE[0])
    np.testing.assert_array_equal(drawn[20, 20], PALETTE[1])


def test_overlay_draws_no_outline_along_the_picture_edge():
    drawn = overlay(np.zeros((50, 50, 3), np.uint8), np.ones((1, 50, 50), bool), opacity=0.5)
    assert (drawn == np.round(np.array(PALETTE[0]) / 2)).all()


def test_overlay_marks_points_and_boxes():
    image = np.full((200, 200, 3), 128, np.uint8)
    points, labels = [(40, 50), (150, 60), (0, 199)], [1, 0, 1]
    boxes = [(20, 100, 180, 180)]
    drawn = overlay(image, np.zeros((0, 200, 200), bool), points=points, labels=labels, boxes=boxes)
    green, red = drawn[46, 36].astype(int), drawn[56, 146].astype(int)
    assert green[1] > green[0] + 50
    assert red[0] > red[1] + 50
    assert (drawn[47, 40] == 255).all(), "a plus has an upright bar"
    assert drawn[57, 150, 1] < 128, "a minus has none"
    assert (drawn[100, 60] == 255).all()
    assert (drawn[140, 20] == 255).all()
    np.testing.assert_array_equal(drawn[140, 100], image[140, 100])


def test_overlay_of_an_empty_mask_changes_nothing():
    image = np.full((30, 30, 3), 77, np.uint8)
    np.testing.assert_array_equal(overlay(image, np.zeros((2, 30, 30), bool)), image)


def test_overlay_refuses_masks_of_another_size():
    with pytest.raises(ImageError, match="masks of an image"):
        overlay(np.zeros((30, 30, 3), np.uint8), np.zeros((1, 30, 31), bool))


def test_prompts_are_drawn_the_same_whatever_the_strips_are(monkeypatch):
    image = np.random.default_rng(2).integers(0, 256, (90, 130, 3), np.uint8)
    prompts = {"points": [(40, 50), (3, 2)], "labels": [1, 0], "boxes": [(20.5, 10.7, 99.2, 80.9), (0, 0, 130, 90)]}

    def drawn():
        canvas = overlay(image, np.zeros((0, 90, 130), bool), **prompts)
        outline_boxes(canvas, {0: (5.5, 6.5, 60.5, 70.5)})
        return canvas

    whole = drawn()
    monkeypatch.setattr(image_module, "_STRIP_PIXELS", 7 * 130)
    np.testing.assert_array_equal(drawn(), whole)


def test_lines_do_not_grow_with_the_length_of_a_thin_picture():
    assert _line_width(np.zeros((3000, 4000, 1), np.uint8)) == 8
    assert _line_width(np.zeros((100_000, 1, 1), np.uint8)) == 1
    drawn = overlay(np.zeros((100_000, 1, 3), np.uint8), np.zeros((0, 100_000, 1), bool), points=[[0, 500]], labels=[1])
    assert np.flatnonzero(drawn.any(axis=(1, 2))).tolist() == list(range(493, 508))


def test_panels_show_each_mask_alone_under_its_title():
    image = np.full((300, 400, 3), 200, np.uint8)
    masks = [_square(400, 20, 20, 60)[:300], _square(400, 200, 300, 60)[:300], np.zeros((300, 400), bool)]
    panels = [Panel(f"mask {i}", i, mask, [[50, 150]], [1]) for i, mask in enumerate(masks)]
    sheet = panel_sheet(image, iter(panels), columns=2, legend="plus: inside")
    height, width = 26 + 300, 400
    assert sheet.shape == (2 * (height + 8) + 8 + 26, 2 * (width + 8) + 8, 3)
    for number, mask in enumerate(masks):
        row, column = divmod(number, 2)
        top, left = 8 + row * (height + 8), 8 + column * (width + 8)
        np.testing.assert_array_equal(sheet[top + 10, left + 5], PALETTE[number])
        assert (sheet[top : top + 26, left + 20 : left + 90] < 100).any(), "the title"
        panel = sheet[top + 26 : top + 326, left : left + 400]
        changed = (panel != 200).any(axis=-1)
        marker = np.hypot(*(np.mgrid[:300, :400] - np.array([150, 50])[:, None, None])) < 12
        np.testing.assert_array_equal(changed & ~marker, mask & ~marker)
        assert changed[marker].any()
    assert (sheet[-26:] < 200).any(), "the legend"


@pytest.mark.parametrize(("shape", "panel"), [((40, 60), (213, 320)), ((3000, 1000), (640, 213)), ((1, 999), (1, 640))])
def test_panels_have_a_readable_size_whatever_the_picture_has(shape, panel):
    sheet = panel_sheet(np.zeros((*shape, 3), np.uint8), [Panel("mask 0", 0, np.ones(shape, bool))], columns=3)
    assert sheet.shape[0] == 8 + 26 + panel[0] + 8
    painted = (sheet[8 + 26 :] == PALETTE[0]) | (sheet[8 + 26 :] == np.round(0.45 * np.array(PALETTE[0])))
    assert painted.all(axis=-1).sum() == panel[0] * panel[1]
