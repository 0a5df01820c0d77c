"""``samexport segment`` as a user types it: prompts, pictures, and where the results go."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from samexport.cli import pictures, results
from samexport.cli.segment import SegmentRequest, read_logits
from samexport.cli.terminal import ProgressBar
from samexport.errors import FileError, PromptError
from samexport.runtimes.session import OpenGraphs
from samexport.runtimes.tasks.segment import Segmenter
from tests.command_line import one_line_error

CLICK = ("--point", "30,20")


@pytest.fixture
def never(monkeypatch):
    """The model must not run: whatever is wrong is told before."""
    monkeypatch.setattr(Segmenter, "set_image", lambda *_: pytest.fail("the picture was encoded"))


def data_set(path, *images):
    """COCO's annotations of nothing: pictures and one category, as loadRes needs them."""
    listed = [{"id": id_, "file_name": name, "height": 40, "width": 60} for id_, name in images]
    path.write_text(json.dumps({"images": listed, "annotations": [], "categories": [{"id": 1, "name": "object"}]}))
    return path


def test_segment_writes_overlay_masks_rle_and_logits(run, tiny_bundle, photo, tmp_path):
    arguments = ("segment", tiny_bundle.folder, photo, *CLICK, "--point", "5,5,0", "--multimask")
    outputs = ("--out", tmp_path / "o.png", "--masks", tmp_path / "m.json", "--logits", tmp_path / "l.npy")
    code, out, err = run(*arguments, *outputs)
    assert (code, err) == (0, "")
    assert out.count("score") == 4
    for line in (
        f"wrote {tmp_path}/o.png: the picture with 4 masks",
        f"wrote {tmp_path}/m.json: 4 masks",
        "l.npy: logits",
    ):
        assert line in out
    records = json.loads((tmp_path / "m.json").read_text())
    logits = np.load(tmp_path / "l.npy")
    assert (len(records), logits.shape) == (4, (4, 16, 16))
    code, _, _ = run(*arguments, "--masks", tmp_path / "masks")
    assert code == 0
    listed = json.loads((tmp_path / "masks/masks.json").read_text())
    assert [{**record, "file": f"prompt0_mask{record['mask']}.png"} for record in records] == listed
    for record in listed:
        decoded = coco.decode(record["segmentation"]).astype(bool)
        assert np.array_equal(decoded, np.asarray(Image.open(tmp_path / "masks" / record["file"])))
        assert decoded.sum() == record["area"]
        assert coco.toBbox(record["segmentation"]).tolist() == record["bbox"]
    assert [record["chosen"] for record in records] == [True, False, False, False]


def test_several_masks_are_shown_in_panels_and_one_on_the_picture(run, tiny_bundle, photo, tmp_path):
    for options, size in (((), (60, 40)), (("--multimask",), (4 * 328 + 8, 8 + 26 + 213 + 8 + 26))):
        code, _, _ = run("segment", tiny_bundle.folder, photo, *CLICK, *options, "--out", tmp_path / "o.png", "--force")
        assert (code, Image.open(tmp_path / "o.png").size) == (0, size)


def test_segment_takes_several_boxes_as_several_prompts(run, tiny_bundle, photo):
    code, out, _ = run("segment", tiny_bundle.folder, photo, "--box", "1,1,20,20", "--box", "10,10,50,30")
    assert (code, out.count(", mask 0: score")) == (0, 2), "a box is answered by mask 0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a point, a box or a mask"),
        (["--point", "a,b"], "--point x,y"),
        (["--point", "1"], "--point x,y"),
        (["--point", "nan,3"], "finite"),
        (["--point", "1e400,3"], "finite"),
        (["--point", "100,3"], "outside the image"),
        (["--point", "1,2,7"], "labels are 1"),
        (["--box", "1,2,3"], "--box x0,y0,x1,y1"),
        (["--box", "1234"], "--box x0,y0,x1,y1"),
        (["--box", "20,20,1,1"], "empty"),
        (["--box", "70,20,90,30"], "outside the image, 60 wide and 40 high"),
        (["--box", "1,1,9,9", "--box", "2,2,8,8", "--point", "1,1"], "one box at most"),
        (["--point", "1,1", "--mask", "absent.npy"], "absent.npy"),
        (["--point", "1,1", "--runtime", "tflow"], "onnxruntime"),
        (["--point", "1,1"] * 1001, "at most 1000"),
        (["--point", "1,1", "--max-pixels", "2399"], "60x40 is more than 2399 pixels"),
        (["--point", "1,1", "--annotations", "absent.json"], "absent.json"),
    ],
)
def test_bad_prompts_end_with_exit_code_2_before_the_model_runs(
    run, tiny_bundle, photo, tmp_path, monkeypatch, never, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("segment", tiny_bundle.folder, photo, *arguments)
    assert (code, message in one_line_error(err)) == (2, True), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.unknown"], "x.unknown"),
        (["--out", "photo.png", "--force"], "is an input"),
        (["--out", "link.png", "--force"], "is an input"),
        (["--out", "absent/x.png"], "absent does not exist"),
        (["--out", "n" * 300 + ".png"], "too long"),
        (["--out", "a\0b.png"], "null"),
        (["--out", "x.png/"], "no such folder"),
        (["--out", "pipe.png", "--force"], "not a file"),
        (["--masks", "x.png"], "a folder, or a name that ends in .json"),
        (["--masks", "photo.png"], "a folder, or a name that ends in .json"),
        (["--masks", "absent/masks"], "absent does not exist"),
        (["--masks", "n" * 300], "too long"),
        (["--masks", "n" * 300 + ".json"], "too long"),
        (["--masks", "BUNDLE/bundle.json", "--force"], "is an input"),
        (["--masks", "BUNDLE", "--force"], "which is no mask"),
        (["--logits", "x.txt"], ".npy"),
        (["--logits", "old.npy", "--mask", "old.npy", "--force"], "is an input"),
        (["--logits", "old.npy"], "old.npy exists"),
        (["--mask", "old.npy"], r"mask_input must be [16, 16]"),
    ],
)
def test_where_results_go_is_checked_before_the_model_runs(
    run, tiny_bundle, own_bundle, photo, tmp_path, monkeypatch, never, arguments, message
):
    monkeypatch.chdir(tmp_path)
    os.symlink("photo.png", "link.png")
    os.mkfifo("pipe.png")
    np.save("old.npy", np.zeros((8, 8), np.float32))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folder = str(own_bundle.folder)
    arguments = [argument.replace("BUNDLE", folder) for argument in arguments]
    code, _, err = run("segment", folder, photo, *CLICK, "--masks", "good", *arguments)
    assert (code, message in one_line_error(err)) == (2, True), err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "good").exists()


def test_existing_results_are_not_overwritten(run, tiny_bundle, photo, tmp_path):
    for name in ("o.png", "m.json", "l.npy"):
        (tmp_path / name).write_text("mine")
        option = {"o": "--out", "m": "--masks", "l": "--logits"}[name[0]]
        arguments = ("segment", tiny_bundle.folder, photo, "--point", "1,1", option, tmp_path / name)
        code, _, err = run(*arguments)
        assert (code, "--force" in one_line_error(err)) == (2, True)
        assert (tmp_path / name).read_text() == "mine"
        assert run(*arguments, "--force")[0] == 0
        assert (tmp_path / name).read_bytes() != b"mine"


def test_a_result_that_cannot_be_written_does_not_take_the_others_with_it(
    run, tiny_bundle, photo, tmp_path, monkeypatch
):
    def fail(*_):
        raise FileError("the disk is full")

    monkeypatch.setattr(results, "save_picture", fail)
    outputs = ("--out", tmp_path / "o.png", "--masks", tmp_path / "m.json", "--logits", tmp_path / "l.npy")
    code, _, err = run("segment", tiny_bundle.folder, photo, *CLICK, *outputs)
    assert (code, "disk is full" in one_line_error(err)) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "m.json", "l.npy"}


def test_what_pillow_cannot_save_is_one_line_and_leaves_nothing(run, tiny_bundle, tmp_path):
    Image.new("RGB", (1, 65_501)).save(tmp_path / "long.png")
    arguments = ("segment", tiny_bundle.folder, tmp_path / "long.png", "--point", "0,9", "--out", tmp_path / "o.jpg")
    code, _, err = run(*arguments)
    assert (code, ".jpg holds 65500 pixels a side" in one_line_error(err)) == (2, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_LONGEST", {})
        code, _, err = run(*arguments)
    assert (code, "o.jpg cannot be written" in one_line_error(err)) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["long.png"]


def test_a_folder_of_masks_is_replaced_whole_and_a_foreign_file_stops_that(run, tiny_bundle, photo, tmp_path):
    folder = tmp_path / "masks"
    arguments = ("segment", tiny_bundle.folder, photo, "--masks", folder)
    folder.mkdir()
    assert run(*arguments, "--box", "1,1,9,9", "--box", "2,2,30,30")[0] == 0, "an empty folder is nobody's"
    assert {p.name for p in folder.iterdir()} == {"prompt0_mask0.png", "prompt1_mask0.png", "masks.json"}
    code, _, err = run(*arguments, *CLICK)
    assert (code, "--force to replace it" in one_line_error(err)) == (2, True)
    assert run(*arguments, "--box", "1,1,9,9", "--force")[0] == 0
    assert {p.name for p in folder.iterdir()} == {"prompt0_mask0.png", "masks.json"}
    (folder / "notes.txt").write_text("mine")
    code, _, err = run(*arguments, "--box", "2,2,30,30", "--box", "1,1,9,9", "--force")
    assert (code, "it holds notes.txt" in one_line_error(err)) == (2, True)
    assert {p.name for p in folder.iterdir()} == {"prompt0_mask0.png", "masks.json", "notes.txt"}


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_pictures_that_cannot_be_read_end_with_exit_code_2(run, tiny_bundle, tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    code, _, err = run("segment", tiny_bundle.folder, tmp_path / "x.png", "--point", "1,1")
    assert (code, "x.png" in one_line_error(err)) == (2, True)


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "a\0b.png", "photo.png/", "absent.png", "empty/", "empty"])
def test_names_of_pictures_that_cannot_be_end_with_exit_code_2(run, tiny_bundle, photo, tmp_path, name):
    (tmp_path / "empty").mkdir()
    code, _, err = run("segment", tiny_bundle.folder, f"{tmp_path}/{name}", "--point", "1,1")
    assert code == 2
    one_line_error(err)


# The mask of an earlier run


def test_one_of_several_earlier_masks_must_be_chosen(run, tiny_bundle, photo, tmp_path):
    path = tmp_path / "l.npy"
    assert run("segment", tiny_bundle.folder, photo, *CLICK, "--multimask", "--logits", path)[0] == 0
    code, _, err = run("segment", tiny_bundle.folder, photo, *CLICK, "--mask", path)
    assert (code, f"holds 4 masks; give one as {path}:INDEX, 0 to 3" in one_line_error(err)) == (2, True)
    logits, scores = np.load(path), []
    for index in range(4):
        np.testing.assert_array_equal(read_logits(f"{path}:{index}"), logits[index])
        code, out, _ = run("segment", tiny_bundle.folder, photo, *CLICK, "--mask", f"{path}:{index}")
        scores.append(out.split("score ")[1].split(",")[0])
        assert code == 0
    assert len(set(scores)) > 1
    code, _, err = run("segment", tiny_bundle.folder, photo, *CLICK, "--mask", f"{path}:4")
    assert (code, "none with the index 4" in one_line_error(err)) == (2, True)


def test_one_mask_needs_no_index_and_a_name_may_have_a_colon(tmp_path):
    values = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16)
    for shape in ((16, 16), (1, 16, 16), (1, 1, 16, 16)):
        np.save(tmp_path / "a.npy", values.reshape(shape))
        np.testing.assert_array_equal(read_logits(str(tmp_path / "a.npy")), values[0, 0])
    np.save(tmp_path / "a.npy", np.concatenate([values, values + 1]))
    (tmp_path / "a.npy").rename(tmp_path / "a.npy:1")
    with pytest.raises(PromptError, match=r"holds 2 masks; give one as .*a\.npy:1:INDEX"):
        read_logits(str(tmp_path / "a.npy:1"))
    np.testing.assert_array_equal(read_logits(str(tmp_path / "a.npy:1:0")), values[0, 0])


def npy(header, data=b""):
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


HOSTILE = {
    "nothing": b"",
    "text": b"no array",
    "six_exbibytes": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1048576), }"),
    "more_than_there_is": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16, 16), }", b"1234"),
    "overflow": npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 62}, {1 << 62}), }}"),
    "negative": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 16, 16), }", bytes(1024)),
    "no_masks": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 16, 16), }"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (16, 16), }", bytes(2048)),
    "complex": npy("{'descr': '<c8', 'fortran_order': False, 'shape': (16, 16), }", bytes(2048)),
    "truth_values": npy("{'descr': '|b1', 'fortran_order': False, 'shape': (16, 16), }", bytes(256)),
    "nan": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16, 16), }", b"\xff" * 1024),
    "flat": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (256,), }", bytes(1024)),
    "scalar": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", bytes(4)),
    "wide": npy("{'descr': '|i1', 'fortran_order': False, 'shape': (1, 5000), }", bytes(5000)),
    "bad_header": npy("{'descr': '<f4', 'fortran_order': maybe"),
    "archive": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE)
def test_arrays_that_are_no_mask_end_with_exit_code_2(run, tiny_bundle, photo, tmp_path, never, name):
    path = tmp_path / "mask.npy"
    path.write_bytes(HOSTILE[name])
    code, _, err = run("segment", tiny_bundle.folder, photo, *CLICK, "--mask", path)
    assert code == 2, err
    assert "pickle" not in one_line_error(err)


def test_a_pipe_is_not_waited_for(run, tiny_bundle, photo, tmp_path, never):
    os.mkfifo(tmp_path / "pipe.npy")
    code, _, err = run("segment", tiny_bundle.folder, photo, *CLICK, "--mask", tmp_path / "pipe.npy")
    assert (code, "pipe.npy cannot be read" in one_line_error(err)) == (2, True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_arrays_and_texts_are_prompts_or_a_prompt_error(tmp_path_factory, data):
    content = bytearray(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 4), }", bytes(64)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    texts = st.one_of(st.text(max_size=12), st.lists(st.floats().map(str), max_size=5).map(",".join))
    given_points, given_boxes = (tuple(data.draw(st.lists(texts, max_size=3))) for _ in range(2))
    mask = data.draw(st.sampled_from([None, str(path), f"{path}:0", f"{path}:9"]))
    with contextlib.suppress(PromptError):
        assert SegmentRequest(path, (), given_points, given_boxes, mask).prompts()


# What is told


def test_boxes_and_points_that_are_not_quite_what_is_meant_have_a_note(run, tiny_bundle, photo):
    code, _, err = run("segment", tiny_bundle.folder, photo, "--box", "-0.4,10,60.3,40.2")
    assert (code, err.count("note: "), "beyond the picture, 60 wide and 40 high" in err) == (0, 1, True)
    for prompt in (("--point", "0.5,0.5"), ("--box", "0.1,0.1,0.5,0.6")):
        code, _, err = run("segment", tiny_bundle.folder, photo, *prompt)
        assert (code, err.count("note: "), "normalised" in err) == (0, 1, True)
    for prompt in (("--point", "0,1"), ("--point", "0.5,30"), ("--box", "0,0,60,40")):
        assert run("segment", tiny_bundle.folder, photo, *prompt)[::2] == (0, "")


def test_a_note_says_that_12_bits_in_16_are_nearly_black(run, tiny_bundle, tmp_path):
    Image.fromarray(np.full((40, 60), 4000, np.uint16)).save(tmp_path / "deep.png")
    code, out, err = run("segment", tiny_bundle.folder, tmp_path / "deep.png", *CLICK)
    assert (code, "note: " in err, "nearly black" in err, "note" in out) == (0, True, True, False)


@pytest.mark.parametrize("name", ["low_res_masks", "iou_predictions", "image_embeddings"])
def test_nan_is_a_failure_and_nothing_is_written(run, tiny_bundle, photo, tmp_path, monkeypatch, name):
    real = OpenGraphs.run
    spoilt = {name: np.float32(np.nan)}
    monkeypatch.setattr(OpenGraphs, "run", lambda *call: {n: v * spoilt.get(n, 1) for n, v in real(*call).items()})
    code, out, err = run("segment", tiny_bundle.folder, photo, *CLICK, "--out", tmp_path / "o.png")
    assert (code, "NaN" in one_line_error(err), "score" in out) == (1, True, False)
    assert not (tmp_path / "o.png").exists()


def test_too_little_memory_is_one_line(run, tiny_bundle, photo, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Segmenter, "set_image", fail)
    code, _, err = run("segment", tiny_bundle.folder, photo, *CLICK)
    assert (code, "not enough memory for a picture of this size" in one_line_error(err)) == (2, True)


def test_json_is_an_object_a_picture_and_nothing_else(run, tiny_bundle, photo, tmp_path):
    outputs = ("--out", tmp_path / "o.png", "--masks", tmp_path / "m.json")
    code, out, err = run("segment", tiny_bundle.folder, photo, "--box", "-1,5,50,30", "--json", *outputs)
    found = json.loads(out)
    assert (code, "RANDOM" in err, out.count("\n")) == (0, True, 1)
    assert (found["image"], found["width"], found["height"], found["random_weights"]) == (str(photo), 60, 40, True)
    assert set(found["timings_ms"]) == {"read", "open", "encode", "decode", "upscale"}
    assert found["files"] == [str(tmp_path / "o.png"), str(tmp_path / "m.json")]
    assert found["masks"] == json.loads((tmp_path / "m.json").read_text())
    assert (found["masks"][0]["box"], found["masks"][0]["mask"]) == ([0, 5, 50, 30], 0)
    assert ["beyond the picture" in note for note in found["notes"]] == [True]


def test_opening_is_told_apart_and_once(run, tiny_bundle, photo, tmp_path):
    Image.open(photo).save(tmp_path / "again.png")
    _, out, _ = run("segment", tiny_bundle.folder, photo, tmp_path / "again.png", *CLICK)
    first, second = (line for line in out.splitlines() if "encode " in line)
    assert ("open " in first, "open " in second) == (True, False)


def test_results_are_there_even_if_nobody_reads_what_is_printed(tiny_bundle, photo, tmp_path):
    Image.open(photo).save(tmp_path / "again.png")
    command = [sys.executable, "-c", "from samexport.cli.main import main; main()"]
    arguments = ["segment", tiny_bundle.folder, photo, tmp_path / "again.png", *CLICK, "--out", tmp_path / "o"]
    process = subprocess.Popen(
        [*command, *arguments, "--masks", tmp_path / "m.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() != 0
    assert "Traceback" not in error
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"photo.png", "again.png"}
    assert len(json.loads((tmp_path / "m.json").read_text())) == 2


def test_names_that_a_terminal_cannot_show_are_printed_with_replacements(
    run, tiny_bundle, photo, tmp_path, monkeypatch
):
    names = [os.fsdecode(name) for name in (b"\xff.png", "日本.png".encode())]
    for name in names:
        shutil.copy(photo, tmp_path / name)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    arguments = ("--box", "-1,0,9,9", "--out", tmp_path / "o", "--masks", tmp_path / "m.json")
    assert run("segment", tiny_bundle.folder, *(tmp_path / name for name in names), *arguments)[0] == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(names)
    assert [os.path.basename(r["file_name"]) for r in json.loads((tmp_path / "m.json").read_text())] == names
    for stream in streams:
        stream.flush()
        assert b"\\udcff.png" in stream.buffer.getvalue()


def test_a_bar_on_the_terminal_leaves_what_goes_to_a_program_alone(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    read, shown = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", read)
    monkeypatch.setattr(sys, "stderr", shown)
    with ProgressBar() as bar:
        bar.update("decode", 1, 2)
        print("for a program")
    assert read.getvalue() == "for a program\n"


# Several pictures


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them damaged, and a file that is none."""
    here = tmp_path / "pictures"
    here.mkdir()
    for name, value in (("000000000139.jpg", 90), ("27.png", 160)):
        Image.new("RGB", (60, 40), (value, 40, 200 - value)).save(here / name)
    (here / "5.png").write_bytes(b"no picture")
    (here / "readme.txt").write_text("no picture")
    return here


def test_of_several_pictures_one_that_cannot_be_used_is_left_out(run, tiny_bundle, folder, tmp_path):
    outputs = ("--out", tmp_path / "o", "--masks", tmp_path / "m.json", "--logits", tmp_path / "l")
    code, out, err = run("segment", tiny_bundle.folder, folder, "--json", *CLICK, *outputs)
    assert (code, one_line_error(err)) == (2, "error: 1 of 3 pictures could not be used")
    assert f"error: {folder}/5.png: " in err
    found = {os.path.basename(line["image"]): line for line in map(json.loads, out.splitlines())}
    assert sorted(found) == ["000000000139.jpg", "27.png", "5.png"]
    assert set(found["5.png"]) == {"image", "error"}
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"000000000139.png", "27.png"}
    assert {p.name for p in (tmp_path / "l").iterdir()} == {"000000000139.npy", "27.npy"}
    assert [r["image_id"] for r in json.loads((tmp_path / "m.json").read_text())] == [139, 27]


def test_results_of_several_pictures_are_evaluated_by_pycocotools(run, tiny_bundle, folder, tmp_path):
    (folder / "5.png").unlink()
    truth = data_set(tmp_path / "truth.json", (27, "27.png"), (139, "000000000139.jpg"))
    assert run("segment", tiny_bundle.folder, folder, *CLICK, "--masks", tmp_path / "m.json")[0] == 0
    loaded = COCO(str(truth)).loadRes(str(tmp_path / "m.json"))
    assert sorted(loaded.getImgIds()) == [27, 139]
    for annotation in loaded.loadAnns(loaded.getAnnIds()):
        assert loaded.annToMask(annotation).shape == (40, 60)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "NaN",
        '{"images": 5}',
        '{"images": [{"id": "x", "file_name": "photo.png"}]}',
        '{"images": [{"id": 1e999, "file_name": "photo.png"}]}',
        '{"images": [{"id": 1, "file_name": 5}]}',
        '{"images": [{"id": 1, "file_name": "other.png"}]}',
    ],
)
def test_annotations_without_the_picture_end_with_exit_code_2(run, tiny_bundle, photo, tmp_path, never, content):
    truth = tmp_path / "truth.json"
    truth.write_text(content)
    arguments = ("segment", tiny_bundle.folder, photo, *CLICK, "--annotations", truth, "--masks", tmp_path / "m.json")
    code, _, err = run(*arguments)
    assert (code, "truth.json" in one_line_error(err)) == (2, True)


def test_ids_come_from_the_annotations_where_names_are_no_numbers(run, tiny_bundle, photo, tmp_path):
    truth = data_set(tmp_path / "truth.json", (7, "train/photo.png"))
    arguments = ("segment", tiny_bundle.folder, photo, *CLICK, "--annotations", truth, "--masks", tmp_path / "m.json")
    assert run(*arguments)[0] == 0
    assert COCO(str(truth)).loadRes(str(tmp_path / "m.json")).getImgIds() == [7]


def test_masks_of_several_pictures_are_folders(run, tiny_bundle, folder, tmp_path):
    arguments = ("segment", tiny_bundle.folder, folder / "27.png", folder / "000000000139.jpg", *CLICK)
    assert run(*arguments, "--masks", tmp_path / "m")[0] == 0
    names = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*.json")}
    assert names == {"27/masks.json", "000000000139/masks.json"}
    code, _, err = run(*arguments, "--masks", tmp_path / "m")
    assert (code, "--force" in one_line_error(err)) == (2, True)


def test_pictures_of_one_name_keep_their_results_apart(run, tiny_bundle, photo, tmp_path):
    Image.open(photo).save(tmp_path / "photo.bmp")
    assert run("segment", tiny_bundle.folder, photo, tmp_path / "photo.bmp", *CLICK, "--out", tmp_path / "o")[0] == 0
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"photo.png.png", "photo.bmp.png"}
    code, _, err = run("segment", tiny_bundle.folder, photo, photo, *CLICK)
    assert (code, "two of the pictures are called photo.png" in one_line_error(err)) == (2, True)
    code, _, err = run(
        "segment", tiny_bundle.folder, photo, tmp_path / "photo.bmp", *CLICK, "--out", tmp_path / "x.png"
    )
    assert (code, "with several pictures, give a folder" in one_line_error(err)) == (2, True)


def test_a_picture_comes_from_standard_input(run, tiny_bundle, photo, tmp_path, monkeypatch):
    _, expected, _ = run("segment", tiny_bundle.folder, photo, *CLICK)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    code, out, _ = run("segment", tiny_bundle.folder, "-", *CLICK, "--out", tmp_path / "o.png")
    assert (code, out.splitlines()[1]) == (0, expected.splitlines()[1])
    for stream in (None, io.TextIOWrapper(io.BytesIO(b"")), io.TextIOWrapper(io.BytesIO(bytes(99)))):
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(pictures, "_STDIN_LIMIT", 50)
        code, _, err = run("segment", tiny_bundle.folder, "-", *CLICK)
        assert code == 2
        one_line_error(err)


def test_what_is_done_when_a_run_is_interrupted_is_kept(run, tiny_bundle, folder, tmp_path, monkeypatch):
    real, done = Segmenter.set_image, []

    def stop(self, image):
        done.append(image)
        if len(done) == 2:
            raise KeyboardInterrupt
        real(self, image)

    monkeypatch.setattr(Segmenter, "set_image", stop)
    code, _, err = run("segment", tiny_bundle.folder, folder, *CLICK, "--masks", tmp_path / "m.json")
    assert (code, "Traceback" in err) == (130, False)
    assert [r["image_id"] for r in json.loads((tmp_path / "m.json").read_text())] == [139]
