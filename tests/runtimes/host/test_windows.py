"""Choice of windows, against the official functions (``efficient_sam2.npz``)."""

import numpy as np
import pytest

from samexport.runtimes.host.windows import Windows, choose, choose_as_published
from tests.models import golden

VECTORS = "efficient_sam2.npz"
MODELS = {"base_plus": Windows(64, 14), "large": Windows(64, 16)}


def ids(row):
    return row[row >= 0].tolist()


def masks_of(vectors):
    return np.unpackbits(vectors["masks"]).reshape(-1, 256, 256).astype(bool)


@pytest.mark.parametrize("name", MODELS)
def test_windows_of_masks_are_the_official_ones(name):
    vectors, windows = golden.read(VECTORS), MODELS[name]
    for mask, expected in zip(masks_of(vectors), vectors[f"{name}.of_masks"], strict=True):
        assert windows.of_masks(mask).tolist() == ids(expected)
    assert not np.array_equal(vectors[f"{name}.of_masks"], vectors[f"{name}.undilated"]), "dilation would not be seen"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tenths", [6, 7])
def test_windows_of_attention_are_the_official_ones(name, tenths):
    vectors = golden.read(VECTORS)
    found = MODELS[name].of_saliency(vectors[f"{name}.saliency"][0], tenths / 10)
    assert found.tolist() == ids(vectors[f"{name}.of_saliency_{tenths}"][0])


def test_masks_of_all_objects_count_together():
    masks = np.zeros((2, 3, 256, 256), bool)
    masks[0, 1, 10, 10] = masks[1, 2, 255, 255] = True
    assert MODELS["large"].of_masks(masks).tolist() == [0, 15]


@pytest.mark.parametrize(("y", "expected"), [(61, [0]), (62, [0, 4]), (65, [0, 4]), (66, [4])])
def test_a_pixel_counts_two_pixels_beyond_its_window(y, expected):
    mask = np.zeros((256, 256), bool)
    mask[y, 10] = True
    assert MODELS["large"].of_masks(mask).tolist() == expected


def test_attention_that_never_adds_up_takes_every_window():
    assert len(MODELS["large"].of_saliency(np.full((64, 64), 1e-6, np.float32), 0.7)) == 16


@pytest.mark.parametrize(
    ("found", "scores", "expected"),
    [
        (True, (9, 9), [0]),
        (True, (9, 4), [0, 15]),
        (True, (4, 4), [0, 3, 15]),
        (False, (9, 9), [3, 15]),
    ],
)
def test_attention_is_asked_for_unsure_objects_or_where_no_mask_is(found, scores, expected):
    masks = np.zeros((2, 3, 256, 256), bool)
    masks[:, 0, 10, 10] = found
    saliency = np.zeros((2, 64, 64), np.float32)
    saliency[0, 0, 63], saliency[1, 63, 63] = 1, 1
    chosen = choose(MODELS["large"], masks, np.array(scores, np.float32), saliency, object_threshold=5, share=0.7)
    assert chosen.tolist() == expected


def test_published_code_asks_all_frames_since_it_last_did():
    masks = np.zeros((1, 3, 256, 256), bool)
    masks[:, 0, 10, 10] = True
    maps = np.zeros((3, 64, 64), np.float32)
    maps[0, 0, 63] = maps[1, 63, 63] = maps[2, 63, 0] = 1
    looked, found = [], []
    for score, saliency in ((9, maps[0]), (9, maps[1]), (4, maps[2]), (4, maps[2])):
        looked.append(saliency)
        scores = np.array([score], np.float32)
        ids = choose_as_published(MODELS["large"], masks, scores, looked, object_threshold=5, share=0.7)
        found.append((ids.tolist(), len(looked)))
    assert found == [([0], 1), ([0], 2), ([0, 3, 12, 15], 0), ([0, 12], 0)]


def test_tokens_beyond_the_map_are_known():
    windows = MODELS["base_plus"]
    inside = windows.inside.reshape(25, 14, 14)
    assert inside.sum() == 64 * 64
    assert inside[24, :8, :8].all()
    assert not inside[24, 8:].any()
