import contextlib
import hashlib
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samexport.errors import ConfigError, ImageError
from samexport.models.spec import Preprocess
from samexport.runtimes.host import image as image_module
from samexport.runtimes.host.drawing import overlay
from samexport.runtimes.host.frames import (
    FrameMap,
    axis_weights,
    resize_longest,
    resized_size,
    to_frame,
    upscale_logits,
    upscale_mask,
)
from samexport.runtimes.host.image import as_pixels, read_image

GOLDEN = Path(__file__).parents[2] / "golden"
FRAME = Preprocess(1024)


def _normalise(framed):
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (FRAME.mean, FRAME.std))
    return (framed - mean) / std


def _png(width, height, bit_depth=8, colour_type=2, rows=b""):
    """A PNG made by hand, so that its header may promise what its data does not hold."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def _grey(values):
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=-1)


# Preprocessing against the official code's numbers


def test_landscape_is_preprocessed_bit_for_bit_like_the_official_code():
    golden = np.load(GOLDEN / "preprocess.npz")
    image = read_image(GOLDEN / "land.png")
    resized = resize_longest(image, 1024)
    assert resized.shape == (683, 1024, 3)
    np.testing.assert_array_equal(resized[::16, ::16], golden["land.resized.slice"])
    assert hashlib.sha256(resized.tobytes()).hexdigest() == str(golden["land.resized_sha256"])
    normalised = _normalise(to_frame(image, FRAME)[0])
    np.testing.assert_array_equal(normalised[:, ::31, ::31], golden["land.input.slice"])
    assert not normalised[:, 683:].any()


def _shrink_rows(image, target):
    """Pillow's bilinear filter on the first axis, written down anew: fixed point of 22 bits, rounded to 8."""
    scale = len(image) / target
    rows = []
    for centre in (np.arange(target) + 0.5) * scale:
        near = np.arange(max(0, int(centre - scale + 0.5)), min(len(image), int(centre + scale + 0.5)))
        shares = np.maximum(0, 1 - abs(near + 0.5 - centre) / scale)
        weights = np.floor(shares / shares.sum() * 2**22 + 0.5).astype(np.int64)
        rows.append(np.tensordot(weights, image[near].astype(np.int64), 1) + 2**21 >> 22)
    return np.stack(rows).astype(np.uint8)


def test_a_tall_picture_is_resized_columns_first_whatever_pillow_does():
    image = np.random.default_rng(0).integers(0, 256, (500, 100, 3), np.uint8)
    columns_first = _shrink_rows(_shrink_rows(image.transpose(1, 0, 2), 13).transpose(1, 0, 2), 64)
    rows_first = _shrink_rows(_shrink_rows(image, 64).transpose(1, 0, 2), 13).transpose(1, 0, 2)
    assert (columns_first != rows_first).any()
    np.testing.assert_array_equal(resize_longest(image, 64), columns_first)


def test_portrait_is_preprocessed_bit_for_bit_like_the_official_code():
    # The upper half of the golden picture is noise and too large to keep; it reaches resized rows up to 513.
    golden = np.load(GOLDEN / "preprocess.npz")
    image = np.concatenate([np.zeros((600, 800, 3), np.uint8), read_image(GOLDEN / "port_bottom.png")])
    resized = resize_longest(image, 1024)
    assert resized.shape == (1024, 683, 3)
    np.testing.assert_array_equal(resized[::16, ::16][33:], golden["port.resized.slice"][33:])
    normalised = _normalise(to_frame(image, FRAME)[0])
    np.testing.assert_array_equal(normalised[:, ::31, ::31][:, 17:], golden["port.input.slice"][:, 17:])
    assert not normalised[:, :, 683:].any()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (600, 900, (683, 1024)),
        (1200, 800, (1024, 683)),
        (1024, 1024, (1024, 1024)),
        (1, 1, (1024, 1024)),
        (1, 3000, (1, 1024)),
        (30000, 10, (1024, 1)),
        (5, 2048, (3, 1024)),  # 2.5 goes up, not to the even neighbour
        (683, 1024, (683, 1024)),
    ],
)
def test_resized_size_by_hand(height, width, expected):
    assert resized_size(height, width, 1024) == expected


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.sampled_from([64, 512, 1024]))
def test_resized_size_keeps_the_long_side_and_rounds_the_other_to_nearest(height, width, size):
    new_height, new_width = resized_size(height, width, size)
    assert max(new_height, new_width) == size
    assert resized_size(width, height, size) == (new_width, new_height)
    exact = min(height, width) * size / max(height, width)
    assert min(new_height, new_width) == 1 or abs(min(new_height, new_width) - exact) <= 0.5 + 1e-9


def test_an_image_of_the_right_size_passes_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    np.testing.assert_array_equal(resize_longest(image, 64), image)
    np.testing.assert_array_equal(to_frame(image, Preprocess(64))[0, :, :40], image.transpose(2, 0, 1))


def test_frame_holds_0_to_255_and_the_mean_right_and_below():
    framed = to_frame(np.full((10, 20, 3), (0, 128, 255), np.uint8), Preprocess(64))
    assert framed.dtype == np.float32
    assert framed.shape == (1, 3, 64, 64)
    for channel, (value, mean) in enumerate(zip((0, 128, 255), FRAME.mean, strict=True)):
        assert (framed[0, channel, :32] == value).all()
        assert (framed[0, channel, 32:] == np.float32(mean)).all()


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5), (5, 5, 4)])
def test_what_is_no_rgb_image_is_refused(shape):
    with pytest.raises(ImageError, match="uint8"):
        to_frame(np.zeros(shape, np.uint8), FRAME)
    with pytest.raises(ImageError, match="float32"):
        to_frame(np.zeros((5, 5, 3), np.float32), FRAME)


# Reading files


def _palette_image():
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return image


PALETTE_PIXELS = [[(1, 2, 3), (200, 100, 50)]]
CASES = {
    "grey": (Image.fromarray(np.array([[0, 128, 255]], np.uint8)), "png", {}, _grey([[0, 128, 255]])),
    "grey_alpha": (
        Image.frombytes("LA", (2, 1), bytes([100, 0, 200, 255])),
        "png",
        {},
        _grey([[100, 200]]),
    ),
    "rgba": (
        Image.fromarray(np.array([[[10, 20, 30, 0], [40, 50, 60, 128]]], np.uint8)),
        "png",
        {},
        [[(10, 20, 30), (40, 50, 60)]],
    ),
    "rgba_webp": (
        Image.fromarray(np.array([[[10, 20, 30, 1], [40, 50, 60, 128]]], np.uint8)),
        "webp",
        {"lossless": True, "exact": True},
        [[(10, 20, 30), (40, 50, 60)]],
    ),
    "palette": (_palette_image(), "png", {}, PALETTE_PIXELS),
    "palette_gif": (_palette_image(), "gif", {}, PALETTE_PIXELS),
    "palette_clear_colour": (_palette_image(), "png", {"transparency": 1}, PALETTE_PIXELS),
    "palette_alphas": (_palette_image(), "png", {"transparency": b"\x00\x80"}, PALETTE_PIXELS),
    "grey_clear_colour": (Image.new("L", (1, 1), 9), "png", {"transparency": 9}, _grey([[9]])),
    "rgb_clear_colour": (
        Image.new("RGB", (1, 1), (9, 8, 7)),
        "png",
        {"transparency": (9, 8, 7)},
        [[(9, 8, 7)]],
    ),
    "cmyk": (
        Image.frombytes("CMYK", (4, 1), bytes([0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 255, 0, 0, 255, 0])),
        "tiff",
        {},
        [[(255, 255, 255), (0, 255, 255), (0, 0, 0), (255, 255, 0)]],
    ),
    "cmyk_jpeg": (
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)),
        "jpeg",
        {"quality": 100},
        np.full((8, 8, 3), (255, 0, 0)),
    ),
    "one_bit": (
        Image.fromarray(np.array([[True, False]])),
        "png",
        {},
        _grey([[255, 0]]),
    ),
    "16_bit": (
        Image.fromarray(np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)),
        "png",
        {},
        _grey([[0, 0, 1, 1, 128, 255]]),
    ),
    "16_bit_dark": (Image.fromarray(np.array([[0, 514]], np.uint16)), "tiff", {}, _grey([[0, 2]])),
    "16_bit_big_endian": (
        Image.frombytes("I;16B", (3, 1), np.array([0, 2570, 65535], ">u2").tobytes()),
        "tiff",
        {},
        _grey([[0, 10, 255]]),
    ),
    "16_bit_pgm": (Image.fromarray(np.array([[0, 2570, 65535]], np.int32)), "ppm", {}, _grey([[0, 10, 255]])),
    "32_bit_that_fits_16": (
        Image.fromarray(np.array([[0, 2570]], np.int32)),
        "tiff",
        {},
        _grey([[0, 10]]),
    ),
    "32_bit": (
        Image.fromarray(np.array([[-1000, 0, 1000]], np.int32)),
        "tiff",
        {},
        _grey([[0, 128, 255]]),
    ),
    "32_bit_positive": (Image.fromarray(np.array([[0, 200_000]], np.int32)), "tiff", {}, _grey([[0, 255]])),
    "float": (Image.fromarray(np.array([[0, 0.25, 1]], np.float32)), "tiff", {}, _grey([[0, 64, 255]])),
    "float_negative": (
        Image.fromarray(np.array([[-3e38, 0, 3e38]], np.float32)),
        "tiff",
        {},
        _grey([[0, 128, 255]]),
    ),
    "float_constant": (Image.fromarray(np.full((1, 2), 7, np.float32)), "tiff", {}, _grey([[0, 0]])),
}


@pytest.mark.parametrize("case", CASES)
def test_every_file_mode_gives_the_pixels_worked_out_by_hand(tmp_path, case):
    image, kind, options, expected = CASES[case]
    path = tmp_path / f"{case}.{kind}"
    image.save(path, kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


def test_16_bit_colour_keeps_the_upper_byte(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(_png(1, 1, bit_depth=16, rows=b"\x00" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF)))
    np.testing.assert_array_equal(read_image(path), [[(0x12, 0x80, 0xFF)]])


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path), np.full((3, 4, 3), (255, 0, 0)))


UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("kind", "options", "dtype", "factor"),
    [
        ("png", {}, np.uint8, 1),
        ("webp", {"lossless": True}, np.uint8, 1),
        ("tiff", {}, np.uint8, 1),
        ("tiff", {"compression": "tiff_lzw"}, np.uint8, 1),
        ("tiff", {}, np.uint16, 257),
        ("png", {}, np.uint16, 257),
    ],
)
def test_exif_orientation_is_applied_once(tmp_path, orientation, kind, options, dtype, factor):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array(UPRIGHT[1], dtype) * dtype(factor)
    path = tmp_path / f"turned.{kind}"
    Image.fromarray(stored).save(path, exif=exif, **options)
    np.testing.assert_array_equal(read_image(path), _grey(UPRIGHT[orientation]))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (30_000, 10), (10, 30_000)])
def test_extreme_shapes_give_a_frame_and_masks(tmp_path, height, width):
    path = tmp_path / "thin.png"
    Image.new("RGB", (width, height), (9, 99, 199)).save(path)
    image = read_image(path)
    new_height, new_width = resized_size(height, width, 1024)
    framed = to_frame(image, FRAME)
    assert (framed[0, :, :new_height, :new_width] == np.array([9, 99, 199])[:, None, None]).all()
    assert upscale_mask(np.ones((1, 256, 256), np.float32), FrameMap((height, width), FRAME)).all()
    assert overlay(image, np.ones((1, height, width), bool)).shape == image.shape


def _encoded(kind, **options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


DAMAGED = {
    "empty.png": (b"", "empty"),
    "text.jpg": (b"not a picture\n", "no picture"),
    "truncated.png": (_encoded("png")[:800], "damaged"),
    "truncated.jpg": (_encoded("jpeg")[:700], "damaged"),
    "zero_width.png": (_png(0, 5), "no picture"),
    "zero_height.png": (_png(5, 0), "no picture"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no picture"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name):
    content, reason = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_one_line_that_names_them(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png: no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is a directory"):
        read_image(str(tmp_path))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_float_pixels_that_are_not_finite_are_refused(tmp_path, bad):
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.array([[0, bad]], np.float32)).save(path)
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_image(path)


def test_the_pixel_limit_is_checked_on_the_header_alone(tmp_path):
    # There is no pixel data behind these headers: a decoder that started would call the files damaged.
    guard = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "bomb.png"
    for width, height in ((15_000, 14_001), (60_000, 60_000)):
        path.write_bytes(_png(width, height, colour_type=0))
        with pytest.raises(ImageError, match=rf"{width}x{height} is more than 210000000 pixels.*--max-pixels"):
            read_image(path)
    assert guard == Image.MAX_IMAGE_PIXELS


def test_pictures_of_200_megapixels_are_read_though_pillow_would_stop_at_179(tmp_path):
    path = tmp_path / "phone.png"
    path.write_bytes(_png(16_384, 12_288, colour_type=0))
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)
    with pytest.raises(ImageError, match="16384x12288 is more than 120000000 pixels"):
        read_image(path, max_pixels=120_000_000)


def test_a_side_is_bounded_too_because_masks_take_memory_for_each_row_and_column(tmp_path):
    path = tmp_path / "line.png"
    path.write_bytes(_png(1, 200_001, colour_type=0))
    with pytest.raises(ImageError, match="1x200001 has a side of more than 200000 pixels"):
        read_image(path)
    with pytest.raises(ImageError, match="a side of more than 200000 pixels"):
        to_frame(np.zeros((1, 200_001, 3), np.uint8), FRAME)


SHORT_OF_MEMORY = """
import resource, sys
from samexport.errors import ImageError
from samexport.runtimes.host.image import read_image
read_image(sys.argv[2])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100_000_000,) * 2)
try:
    read_image(sys.argv[1])
except ImageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to know how much memory the process has")
def test_too_little_memory_does_not_read_as_a_damaged_picture(tmp_path):
    paths = [tmp_path / name for name in ("large.png", "small.png")]
    for path, side in zip(paths, (9000, 9), strict=True):
        Image.new("RGB", (side, side)).save(path, compress_level=1)
    run = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY, *paths], capture_output=True, text=True)
    assert "large.png: there is not enough memory for a picture of this size" in run.stdout, run.stderr


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "message"), [("n" * 300 + ".png", "file name too long"), ("a\0b.png", "null"), ("x.png/", "not a dir")]
)
def test_names_that_cannot_be_are_one_line(tmp_path, name, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match=message):
        read_image(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("highest", "told"), [(1, True), (255, True), (4095, True), (4096, False), (65535, False), (0, False)]
)
def test_a_note_says_that_12_bits_in_16_are_nearly_black(tmp_path, highest, told):
    notes = []
    Image.fromarray(np.full((5, 6), highest, np.uint16)).save(tmp_path / "grey.png")
    rows = b"".join(b"\0" + struct.pack(">3H", highest, 0, highest // 2) * 4 for _ in range(3))
    (tmp_path / "colour.png").write_bytes(_png(4, 3, bit_depth=16, rows=rows))
    for number, name in enumerate(("grey.png", "colour.png"), 1):
        read_image(tmp_path / name, note=notes.append)
        # of colours Pillow keeps the upper byte, so a few bits in 16 cannot be told from black
        assert len(notes) == (number if told and highest > 255 else int(told))
    assert all("nearly black" in text for text in notes)


def test_8_bit_pictures_have_no_note(tmp_path):
    Image.new("RGB", (5, 5), (3, 2, 1)).save(tmp_path / "dark.png")
    read_image(tmp_path / "dark.png", note=pytest.fail)


def test_pictures_are_the_same_whatever_they_are_cut_into(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    sources = {
        "colour.png": Image.fromarray(rng.integers(0, 256, (41, 37, 3), np.uint8)),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (41, 37)).astype(np.uint16)),
        "float.tiff": Image.fromarray(rng.normal(0, 9, (41, 37)).astype(np.float32)),
        "palette.gif": Image.fromarray(rng.integers(0, 256, (41, 37), np.uint8)).convert("P"),
    }
    for name, source in sources.items():
        source.save(tmp_path / name)

    def results():
        axis_weights.cache_clear()
        read = [read_image(tmp_path / name) for name in sources]
        return [*read, *(resize_longest(image, size) for image in read for size in (20, 64)),
                upscale_logits(np.eye(16), FrameMap((900, 5), Preprocess(64)))]  # fmt: skip

    whole = results()
    monkeypatch.setattr(image_module, "_STRIP_PIXELS", 5 * 37)
    for one, other in zip(whole, results(), strict=True):
        np.testing.assert_array_equal(one, other)
    axis_weights.cache_clear()


def test_pictures_of_any_kind_become_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
    picture, path = Image.fromarray(pixels), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    upright = np.rot90(pixels, -1)
    with Image.open(path) as opened:
        for source in (path, str(path), opened):
            np.testing.assert_array_equal(as_pixels(source), upright)
    np.testing.assert_array_equal(read_image(io.BytesIO(path.read_bytes())), upright)
    np.testing.assert_array_equal(as_pixels(picture), pixels)
    assert as_pixels(pixels) is pixels
    for wrong in (None, 5, [[1, 2, 3]], pixels.tolist(), pixels[0], pixels.astype(float), Image.new("RGB", (0, 4))):
        with pytest.raises(ImageError):
            as_pixels(wrong)


def test_the_pixel_limit_is_inclusive(tmp_path):
    path = tmp_path / "small.png"
    Image.new("L", (10, 10)).save(path)
    assert read_image(path, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(ImageError, match="10x10 is more than 99 pixels"):
        read_image(path, max_pixels=99)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"]))
    content = bytearray(_encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{kind}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ImageError):
        image = read_image(path, max_pixels=100_000)
        assert image.dtype == np.uint8
        assert image.ndim == 3


# Masks back to the original size


def _torch_upscale(low_res_masks, image_hw, frame, dtype):
    """The official order of steps, each done by torch: enlarge to the frame, crop, resize to the image."""
    torch = pytest.importorskip("torch")
    resize = torch.nn.functional.interpolate
    height, width = resized_size(*image_hw, frame.size)
    masks = torch.from_numpy(low_res_masks).to(getattr(torch, dtype))
    masks = resize(masks, (frame.size, frame.size), mode="bilinear", align_corners=False)
    return resize(masks[..., :height, :width], image_hw, mode="bilinear", align_corners=False).numpy()


SIZES = [(600, 900), (1200, 800), (1, 1), (1, 3000), (5000, 3), (97, 1024), (1024, 1024), (1500, 2251)]


@pytest.mark.parametrize("image_hw", SIZES)
def test_upscaled_logits_equal_torch(image_hw):
    logits = np.random.default_rng(1).normal(0, 5, (2, 1, 256, 256)).astype(np.float32)
    upscaled = upscale_logits(logits, FrameMap(image_hw, FRAME))
    assert upscaled.dtype == np.float32
    scale = np.ptp(logits)
    assert np.abs(upscaled - _torch_upscale(logits, image_hw, FRAME, "float64")).max() < 2e-7 * scale
    # torch's float32 coordinates are coarser than ours
    assert np.abs(upscaled - _torch_upscale(logits, image_hw, FRAME, "float32")).max() < 2e-5 * scale


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_upscaled_logits_equal_torch_in_any_small_frame(height, width, seed):
    frame = Preprocess(64)
    logits = np.random.default_rng(seed).normal(0, 5, (1, 2, 16, 16)).astype(np.float32)
    expected = _torch_upscale(logits, (height, width), frame, "float64")
    np.testing.assert_allclose(upscale_logits(logits, FrameMap((height, width), frame)), expected, atol=5e-6)


@pytest.mark.parametrize("lead", [(), (3,), (2, 4), (0,)])
def test_the_mask_is_exactly_the_thresholded_logits(lead):
    logits = np.random.default_rng(2).normal(0, 5, (*lead, 256, 256)).astype(np.float32)
    for threshold in (0.0, 1.5):
        mask = upscale_mask(logits, FrameMap((130, 70), FRAME), threshold)
        assert mask.shape == (*lead, 130, 70)
        np.testing.assert_array_equal(mask, upscale_logits(logits, FrameMap((130, 70), FRAME)) > threshold)


def test_a_logit_at_the_threshold_is_outside():
    assert not upscale_mask(np.zeros((256, 256), np.float32), FrameMap((20, 30), FRAME)).any()


def test_masks_equal_the_official_generator_pixel_by_pixel():
    # The official generator ran on logits in closed form: a disc around each point, wider for later masks.
    golden = np.load(GOLDEN / "amg_stub_masks.npz")
    height, width = (int(side) for side in golden["image_hw"])
    new_height, new_width = resized_size(height, width, 1024)
    x, y = (golden["point_coords"] * [new_width / width, new_height / height]).T[:, :, None, None]
    index = golden["mask_index"][:, None, None]
    centre = 4 * np.arange(256) + 2
    radius = 60 + 50 * index + 40 * np.sin(x / 97 + index)
    logits = (0.2 + 0.4 * index) * (radius - np.hypot(centre - x, centre[:, None] - y))
    masks = upscale_mask(logits.astype(np.float32), FrameMap((height, width), FRAME))
    expected = np.unpackbits(golden["mask_packed"], axis=1).reshape(masks.shape).astype(bool)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), golden["area"])
    np.testing.assert_array_equal(masks, expected)


def test_logits_of_another_model_are_refused():
    with pytest.raises(ConfigError, match=r"\[256, 256\], got \[1, 16, 16\]"):
        upscale_logits(np.zeros((1, 16, 16), np.float32), FrameMap((10, 10), FRAME))
    with pytest.raises(ImageError):
        upscale_mask(np.zeros((256, 256), np.float32), FrameMap((0, 10), FRAME))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "got NoneType"),
        (3, "got int"),
        (np.zeros((2, 2, 3), np.uint8), "got ndarray; use it as it is"),
        (Image.new("RGB", (2, 2)), "got Image; use it as it is"),
        (b"\x89PNG", "got bytes; wrap it in io.BytesIO"),
        (io.StringIO("text"), "got StringIO"),
    ],
)
def test_what_is_no_file_is_not_called_damaged(source, reason):
    with pytest.raises(ImageError) as caught:
        read_image(source)
    assert str(caught.value) == f"a picture is read from a path or a file opened as bytes, {reason}"
