"""J and F against cases worked out by hand, and what counts of a data set in DAVIS' layout."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samexport.errors import ConfigError, ImageError
from samexport.runtimes.accuracy.video import border, both, boundary_measure, read_labels, score_sequence, sequences


def band(first, last, size=100):
    """Columns ``first`` to ``last``; its borders are the columns first - 1 and last."""
    mask = np.zeros((size, size), bool)
    mask[:, first : last + 1] = True
    return mask


def test_border_is_on_the_upper_left_side_of_a_change():
    mask = np.zeros((5, 5), bool)
    mask[2:4, 2:4] = True
    expected = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (3, 3)]
    assert [tuple(each) for each in np.argwhere(border(mask)).tolist()] == expected
    assert not border(np.ones((4, 4), bool)).any(), "the picture's own edge is none"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # 0.008 of the diagonal of 100 x 100 is 1.13, rounded up 2
        (band(20, 49), 1),
        (band(22, 51), 1),
        (band(23, 52), 0),
        (band(20, 54), 0.5),
        # the one border found is right, one of two is missed
        (band(20, 99), 2 / 3),
        (band(0, 99), 0),
    ],
)
def test_f_is_how_much_of_each_border_is_near_the_other(found, expected):
    assert boundary_measure(found, band(20, 49)) == pytest.approx(expected)
    assert boundary_measure(band(20, 49), found) == pytest.approx(expected)


def test_j_is_the_iou_and_empty_masks_that_should_be_are_right():
    assert both(band(20, 49), band(30, 59))[0] == pytest.approx(20 / 40)
    nothing = np.zeros((9, 9), bool)
    assert both(nothing, nothing) == (1, 1)
    assert both(nothing, band(2, 4, 9)) == (0, 0)


def frames(folder, count, hw=(20, 30)):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((*hw, 3), number, np.uint8)).save(folder / f"{number:05d}.jpg")


def annotate(path, values, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([*range(256)] * 3)
    picture.save(path)


class Fake:
    """Finds each object where it was first, but object 2 nowhere."""

    def __init__(self, frames):
        self.count, self.masks, self.frame, self.forgot = frames, {}, 0, 0

    def add(self, frame, name, mask):
        assert frame == self.frame
        self.masks[name] = mask

    def step(self, picture):
        self.frame += 1
        labels = np.zeros(picture.shape[:2], np.int32)
        for place, (name, mask) in enumerate(self.masks.items(), 1):
            labels[mask & (name != 2)] = place
        return SimpleNamespace(objects=tuple(self.masks), labels=lambda: labels)

    def forget(self):
        self.forgot += 1


def test_first_and_last_frames_do_not_count_and_objects_may_come_later(tmp_path):
    frames(tmp_path / "JPEGImages/480p/dog", 7)
    values = np.zeros((20, 30), np.uint8)
    values[5:15, 5:15] = 1
    annotate(tmp_path / "Annotations/480p/dog/00000.png", values)
    annotate(tmp_path / "Annotations/480p/dog/00002.png", np.roll(values, 5, axis=1))
    values[0:5, 20:30] = 2
    for number in (3, 4, 5):
        annotate(tmp_path / f"Annotations/480p/dog/{number:05d}.png", values)
    (sequence,) = sequences(tmp_path)
    told, made = [], []
    scores = score_sequence(
        sequence, lambda frames: made.append(Fake(frames)) or made[0], lambda *done: told.append(done)
    )
    one, two = scores
    assert (one.sequence, one.object, one.frames) == ("dog", 1, 3), "frames 2, 3, 4"
    assert one.region == pytest.approx((50 / 150 + 1 + 1) / 3)
    assert (two.object, two.region, two.boundary, two.both, two.frames) == (2, 0, 0, 0, 1), "frame 4"
    assert told == [(done, 6) for done in range(1, 7)], "what is not annotated in the end is not followed"
    assert (made[0].count, made[0].forgot) == (7, 6)


def test_values_are_objects_and_void_is_none(tmp_path):
    values = np.array([[0, 1, 255]], np.uint8)
    annotate(tmp_path / "palette.png", values)
    annotate(tmp_path / "grey.png", values, mode="L")
    assert read_labels(tmp_path / "palette.png", (1, 3)).tolist() == [[0, 1, 0]]
    assert read_labels(tmp_path / "grey.png", (1, 3)).tolist() == [[0, 1, 255]]
    Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(tmp_path / "colours.png")
    for name, hw, message in (
        ("colours", (1, 3), "has colours"),
        ("grey", (2, 3), "its frame 3x2"),
        ("no", (1, 1), "cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            read_labels(tmp_path / f"{name}.png", hw)


def test_a_data_set_without_pictures_of_its_annotations_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="in the layout of DAVIS"):
        sequences(tmp_path)
    frames(tmp_path / "JPEGImages/dog", 2)
    annotate(tmp_path / "Annotations/dog/other.png", np.ones((20, 30), np.uint8))
    with pytest.raises(ImageError, match="no annotation of a picture"):
        sequences(tmp_path)[0].frames()
