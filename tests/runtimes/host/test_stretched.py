import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samexport.errors import ImageError
from samexport.runtimes.host.stretched import from_square, picture_square, resize, stretch_points, video_square
from tests.models import golden, sam2_golden

FRAME = (np.arange(24 * 40 * 3).reshape(24, 40, 3) * 7 % 256).astype(np.uint8)


def test_picture_is_the_one_that_the_official_image_predictor_sees():
    image = np.array(Image.open(golden.GOLDEN / "sam2.png"))
    square = sam2_golden.normalised(torch.from_numpy(picture_square(image, 1024)) / 255)
    golden.close(square[0, :, 5::64, 3::64], golden.read("sam2_tiny.npz")["pre"], 1e-5)


def test_frame_is_the_one_that_the_official_video_predictor_sees():
    frame = np.array(Image.open(golden.GOLDEN / "sam2_video.png"))[:320]
    square = video_square(frame, 1024)
    assert square.dtype == np.float32
    normalised = sam2_golden.normalised(torch.from_numpy(square) / 255)
    golden.close(normalised[0, :, 3::64, 5::64], golden.read("sam2_video.npz")["pre0"], 1e-5)


@pytest.mark.parametrize("target", [(7, 9), (24, 40), (31, 100), (12, 80)])
def test_resizing_is_the_one_of_torch(target):
    maps = np.random.default_rng(0).standard_normal((2, 24, 40)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[None], size=target, mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(resize(maps, *target), expected, atol=1e-5)


def test_masks_come_back_as_torch_enlarges_them():
    low = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(low)[None], size=(50, 90), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(from_square(low, (50, 90)), expected, atol=1e-5)


def test_points_are_stretched_side_by_side():
    stretched = stretch_points(np.array([[480, 320], [120.0, 80.0]]), (320, 480), 1024)
    np.testing.assert_allclose(stretched, [[1024, 1024], [256, 256]])


@pytest.mark.parametrize("stretch", [picture_square, video_square])
def test_what_is_no_picture_is_refused(stretch):
    with pytest.raises(ImageError, match="an image is uint8"):
        stretch(FRAME.astype(np.float32), 64)
