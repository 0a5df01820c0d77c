"""Clips from files and folders, against what was written into them."""

import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from samexport.errors import ImageError
from samexport.runtimes.host import video
from samexport.runtimes.host.video import VideoWriter, open_clip

FRAMES, HW = 25, (60, 81)


def frame(number):
    """Told from others by its grey, which a codec keeps but for a few steps."""
    return np.full((*HW, 3), 9 * number, np.uint8)


def number_of(pixels):
    return round(float(pixels.mean()) / 9)


@pytest.fixture
def av():
    return pytest.importorskip("av")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(FRAMES):
        Image.fromarray(frame(number)).save(tmp_path / f"frames/shot{number}.png")
    (tmp_path / "frames/notes.txt").write_text("no frame")
    return tmp_path / "frames"


@pytest.fixture
def write(av, tmp_path):
    def make(name, codec="libx264", **options):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=12, options=options)
            stream.width, stream.height, stream.pix_fmt = HW[1] - 1, HW[0], "yuv420p"
            for number in range(FRAMES):
                pixels = np.ascontiguousarray(frame(number)[:, :-1])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        return tmp_path / name

    return make


def test_folder_is_read_in_the_order_of_the_numbers_in_its_names(folder):
    clip = open_clip(folder)
    assert (clip.frames, clip.image_hw, clip.rate) == (FRAMES, HW, 30)
    assert [number_of(pixels) for pixels in clip.read(range(5, 15))] == list(range(5, 15))
    assert [number_of(pixels) for pixels in clip.read(range(12, 7, -1))] == [12, 11, 10, 9, 8]
    assert open_clip(folder, last=3).frames == 4


def test_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ImageError, match="holds no picture"):
        open_clip(tmp_path)


def test_frame_of_another_size_is_named(folder):
    Image.fromarray(frame(0)[:, :40]).save(folder / "shot3.png")
    with pytest.raises(ImageError, match=r"shot3.png is 40x60, the first frame 81x60"):
        list(open_clip(folder).read(range(FRAMES)))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"g": "6", "bf": "2"}),
        ("open.mkv", "libx264", {"g": "6", "bf": "2", "x264-params": "open-gop=1"}),
        ("whole.mov", "libx264", {}),
        ("old.avi", "mpeg4", {"g": "5", "bf": "2", "b": "4000000"}),
        ("timeless.h264", "libx264", {"g": "6"}),
    ],
)
def test_any_part_of_a_video_is_read_in_both_directions(write, monkeypatch, name, codec, options):
    monkeypatch.setattr(video, "_HELD_BYTES", 3 * 60 * 80 * 4)
    clip = open_clip(write(name, codec, **options))
    assert (clip.frames, clip.image_hw) == (FRAMES, (60, 80))
    for part in (range(FRAMES), range(7, 16), range(20, 2, -1), range(24, 25), range(3, -1, -1), range(4, 4)):
        assert [number_of(pixels) for pixels in clip.read(part)] == list(part)


def test_what_is_written_is_read_again(av, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", Fraction(24000, 1001), HW) as writer:
        for number in range(FRAMES):
            writer.write(frame(number))
    clip = open_clip(tmp_path / "clip.mp4", last=9)
    assert (clip.frames, clip.image_hw, clip.rate) == (10, (60, 82), Fraction(24000, 1001))
    assert [number_of(pixels) for pixels in clip.read(range(10))] == list(range(10))


def test_video_of_a_camera_that_was_held_upright_is_upright(write, tmp_path):
    content = bytearray(write("clip.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 60 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    lying, upright = (next(open_clip(tmp_path / name).read(range(1))) for name in ("clip.mp4", "turned.mp4"))
    assert open_clip(tmp_path / "turned.mp4").image_hw == (80, 60)
    np.testing.assert_array_equal(upright, np.rot90(lying, -1))


def test_damaged_and_other_files_are_refused_in_one_line(write, tmp_path):
    whole = write("clip.mkv", g="1").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(write("clip.mp4").read_bytes()[:-2000])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "damaged.mkv").write_bytes(whole[:1500] + bytes(range(256)) + whole[1756:])
    for name in ("cut.mp4", "empty.mp4"):
        with pytest.raises(ImageError, match=rf"{name} is no video, or a damaged one: Invalid data"):
            open_clip(tmp_path / name)
    with pytest.raises(ImageError, match="no such file or folder"):
        open_clip(tmp_path / "absent.mp4")
    with pytest.raises(ImageError, match=r"frame (\d+) cannot be decoded \(.*\); --last \d+ stops before it") as caught:
        open_clip(tmp_path / "damaged.mkv")
    bad = int(str(caught.value).split("frame ")[1].split()[0])
    assert open_clip(tmp_path / "damaged.mkv", last=bad - 1).frames == bad


def test_video_file_without_the_extra_names_the_command_that_installs_it(tmp_path):
    code = f"""
import sys
sys.modules["av"] = None
from pathlib import Path
from samexport.errors import MissingDependency
from samexport.runtimes.host.video import open_clip
try:
    open_clip(Path({str(tmp_path / "clip.mp4")!r}))
except MissingDependency as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.startswith("clip.mp4 is read with PyAV: pip install "), run.stderr
    assert "[video]" in run.stdout or "av" in run.stdout
