"""Pictures that are stretched, filters on floats, and the way back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samexport.errors import ImageError
from samexport.models.spec import Preprocess
from samexport.runtimes.host.frames import FrameMap, resize, resize_longest, to_frame, upscale_logits

STRETCH = Preprocess(64, resize="stretch", filter="bilinear_float")


def picture(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(200, 90), (30, 170), (64, 64)])
def test_the_filter_on_floats_is_torchs_with_antialias(size):
    image = picture(*size)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    wanted = F.interpolate(tensor, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    np.testing.assert_allclose(to_frame(image, STRETCH), wanted.numpy(), rtol=0, atol=1e-3)


def test_a_stretched_picture_fills_the_frame_with_pillows_filters():
    image = picture(50, 90)
    for name, kind in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        wanted = np.array(Image.fromarray(image).resize((64, 64), kind))
        np.testing.assert_array_equal(resize(image, Preprocess(64, resize="stretch", filter=name)), wanted)


def test_padding_and_range_are_the_models():
    image = picture(20, 40)
    framed = to_frame(image, Preprocess(64, padding="black", white=1.0))
    np.testing.assert_array_equal(framed[0, :, 32:], 0)
    np.testing.assert_allclose(framed[0, :, :32] * 255, resize_longest(image, 64).transpose(2, 0, 1), atol=1e-4)


def test_points_go_to_the_frame_and_back_each_side_by_its_own_factor():
    place = FrameMap((100, 200), STRETCH)
    points = np.array([[0, 0], [200, 100], [50, 25]])
    np.testing.assert_allclose(place.to_frame(points), [[0, 0], [64, 64], [16, 16]])
    np.testing.assert_allclose(place.to_picture(place.to_frame(points)), points)
    assert FrameMap((100, 200), Preprocess(64)).inside == (32, 64)
    np.testing.assert_allclose(FrameMap((100, 200), Preprocess(64)).to_frame(points)[1], [64, 32])


def test_masks_of_a_stretched_frame_go_directly_to_the_whole_picture():
    logits = np.random.default_rng(2).standard_normal((1, 1, 16, 16)).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(logits), (30, 90), mode="bilinear", align_corners=False)
    found = upscale_logits(logits, FrameMap((30, 90), STRETCH))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "bilinear_float"])
def test_what_is_no_picture_is_refused_whatever_the_filter(kind):
    with pytest.raises(ImageError, match="uint8"):
        to_frame(np.zeros((4, 4), np.uint8), Preprocess(64, resize="stretch", filter=kind))
