"""Files and folders appear whole; what strangers give is bounded before it is read."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from samexport import files
from samexport.errors import BundleError, FileError
from samexport.files import check_output, new_file, new_folder, read_bytes, read_json, sha256, to_json, write_text

MARK = "mark.txt"


def refusal(folder: Path) -> str:
    foreign = {p.name for p in folder.iterdir()} - {MARK}
    return f"it holds {min(foreign)}" if foreign else ""


def make(target: Path, text: str, *, force: bool = False) -> None:
    with new_folder(target, force=force, refusal=refusal) as folder:
        (folder / MARK).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_whole_with_its_parents(tmp_path):
    make(tmp_path / "deep" / "bundle", "1")
    assert names(tmp_path / "deep") == ["bundle"]
    assert (tmp_path / "deep" / "bundle" / MARK).read_text() == "1"


@pytest.mark.parametrize("error", [RuntimeError("converter"), KeyboardInterrupt(), ConnectionError("refused")])
def test_nothing_is_left_when_the_work_fails_and_the_error_stays_what_it_is(tmp_path, error):

    def work():
        with new_folder(tmp_path / "bundle") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(type(error)) as caught:
        work()
    assert caught.value is error
    assert names(tmp_path) == []


def test_a_missing_file_of_the_work_is_not_blamed_on_the_target(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "bundle"):
        (tmp_path / "elsewhere").read_text()


def test_an_error_under_the_target_names_the_target(tmp_path):
    with pytest.raises(BundleError, match="b cannot be written: No such file"), new_folder(tmp_path / "b") as out:
        (out / "absent" / "file").write_text("x")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("flatbuffer cannot be serialised")]
)
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, error):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(BundleError, match="the disk is full"), new_folder(tmp_path / "bundle"):
        raise error
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(BundleError, match="exists"):
            make(tmp_path / "bundle", "1", force=force)
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["bundle"]


def test_force_refuses_a_folder_of_ours_that_holds_a_file_of_the_user(tmp_path):
    make(tmp_path / "bundle", "old")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        make(tmp_path / "bundle", "new", force=True)
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "bundle" / MARK).read_text() == "old"


def test_a_file_that_the_user_adds_while_the_work_runs_is_kept(tmp_path):
    make(tmp_path / "bundle", "old")

    def work():
        with new_folder(tmp_path / "bundle", force=True, refusal=refusal) as folder:
            (folder / MARK).write_text("new")
            (tmp_path / "bundle" / "notes.txt").write_text("mine")

    with pytest.raises(BundleError, match=r"notes\.txt"):
        work()
    assert names(tmp_path / "bundle") == [MARK, "notes.txt"]


def test_force_replaces_a_bundle_and_only_at_the_end(tmp_path):
    make(tmp_path / "bundle", "old")
    with pytest.raises(BundleError, match="--force"):
        make(tmp_path / "bundle", "new")
    with new_folder(tmp_path / "bundle", force=True, refusal=refusal) as folder:
        (folder / MARK).write_text("new")
        assert (tmp_path / "bundle" / MARK).read_text() == "old"
    assert (tmp_path / "bundle" / MARK).read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def failing_rename(monkeypatch, *fails: str) -> None:
    rename = Path.rename

    def fail(self, target):
        if self.name in fails and self.parent.name.startswith(".bundle.samexport-"):
            raise OSError(errno.EIO, "disk error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)


def test_a_failed_rename_puts_the_old_bundle_back(tmp_path, monkeypatch):
    make(tmp_path / "bundle", "old")
    failing_rename(monkeypatch, "new")
    with pytest.raises(BundleError, match="disk error"):
        make(tmp_path / "bundle", "new", force=True)
    assert (tmp_path / "bundle" / MARK).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_an_old_bundle_that_cannot_be_put_back_is_kept_and_the_error_says_where(tmp_path, monkeypatch):
    make(tmp_path / "bundle", "old")
    failing_rename(monkeypatch, "new", "old")
    with pytest.raises(BundleError, match="it is whole in") as caught:
        make(tmp_path / "bundle", "new", force=True)
    kept = Path(str(caught.value).rpartition("whole in ")[2])
    assert (kept / MARK).read_text() == "old"
    monkeypatch.undo()
    with pytest.raises(BundleError, match="exists"):
        make(tmp_path / "bundle", "newer")
    assert (tmp_path / "bundle" / MARK).read_text() == "old"


def test_ctrl_c_between_the_two_renames_keeps_the_old_bundle(tmp_path, monkeypatch):
    make(tmp_path / "bundle", "old")
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "bundle", "new", force=True)
    assert (tmp_path / "bundle" / MARK).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_a_symlink_is_never_replaced(tmp_path):
    make(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BundleError, match="it is a link"):
        make(tmp_path / "link", "new", force=True)
    assert (tmp_path / "real" / MARK).read_text() == "old"


def test_the_folder_obeys_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        make(tmp_path / "bundle", "1")
        write_text(tmp_path / "report.md", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "report.md").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, name):
    with pytest.raises(BundleError, match="choose another"):
        make(tmp_path / name, "1")
    with pytest.raises(FileError, match="choose another"):
        write_text(tmp_path / f"{name}.md", "1")


def test_the_longest_name_that_a_folder_can_have_works(tmp_path):
    make(tmp_path / ("x" * 255), "1")
    assert names(tmp_path) == ["x" * 255]


KILLED = """
import sys, time
from pathlib import Path
from samexport.files import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "left"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
def test_a_killed_run_leaves_no_bundle_and_the_next_run_tidies_up(tmp_path, number, left):
    target = tmp_path / "bundle"
    run = subprocess.Popen([sys.executable, "-c", KILLED, target], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert run.stdout is not None
    assert run.stdout.readline() == b"writing\n"
    run.send_signal(number)
    run.wait(timeout=30)
    assert not target.exists()
    assert len(names(tmp_path)) == left
    make(target, "1")
    assert names(tmp_path) == ["bundle"]


def private(tmp_path: Path, suffix: str) -> Path:
    folder = tmp_path / f".bundle.samexport-{suffix}"
    folder.mkdir()
    (folder / "lock").touch()
    return folder


def test_a_run_killed_between_the_two_renames_gives_the_old_bundle_back(tmp_path):
    old = private(tmp_path, "abcd1234") / "old"
    old.mkdir()
    (old / MARK).write_text("old")
    with pytest.raises(BundleError, match="exists"):
        make(tmp_path / "bundle", "new")
    assert (tmp_path / "bundle" / MARK).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_an_export_that_runs_elsewhere_is_left_alone(tmp_path):
    running = private(tmp_path, "abcd1234")
    with FileLock(running / "lock"):
        make(tmp_path / "bundle", "1")
        assert running.is_dir()
    make(tmp_path / "bundle", "2", force=True)
    assert not running.exists()


@pytest.mark.parametrize("name", [".bundle.samexport-mine", ".bundle.samexport-abcd1234", ".other.samexport-abcd1234"])
def test_folders_that_only_look_like_ours_are_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    if name.startswith(".other"):
        (tmp_path / name / "lock").touch()
    make(tmp_path / "bundle", "1")
    assert (tmp_path / name).is_dir()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")

    def work():
        with new_file(path, force=True) as private:
            private.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileError, match="the disk is full"):
        work()
    assert path.read_text() == "old"
    write_text(path, "new", force=True)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["report.json"]


def test_a_file_of_the_user_is_not_replaced_without_force(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("mine")
    with pytest.raises(FileError, match="--force"):
        write_text(path, "new")
    assert path.read_text() == "mine"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new", force=True)
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()


def test_outputs_are_checked_before_the_work(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    (tmp_path / "same.png").hardlink_to(picture)
    cases = {
        "must end in": (tmp_path / "a.xyz", {"endings": (".png",)}),
        "does not exist": (tmp_path / "absent" / "a.png", {}),
        "is an input": (tmp_path / "same.png", {"force": True, "inputs": (picture,)}),
        "not a file": (tmp_path, {"force": True}),
        "exists": (picture, {}),
        "cannot be written": (picture / "inside.png", {}),
    }
    for message, (path, options) in cases.items():
        with pytest.raises(FileError, match=message):
            check_output(path, **{"force": False, **options})
    assert names(tmp_path) == ["a.png", "same.png"]
    check_output(tmp_path / "b.PNG", force=False, endings=(".png",))


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name, message in (
        ("pipe", "not a regular file"), ("zero", "not a regular file"), ("large", "larger"), ("absent", "No such"),
        (".", "Is a directory"),
    ):  # fmt: skip
        with pytest.raises(FileError, match=message):
            read_bytes(tmp_path / name, limit=10)
    with pytest.raises(FileError, match="not a regular file"):
        sha256(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("{", "Expecting property name"),
        ("[1e999999999999]x", "Extra data"),
    ],
)
def test_json_is_strict_and_bounded(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileError, match=message):
        read_json(tmp_path / "a.json")


def test_brackets_in_strings_do_not_nest(tmp_path):
    content = {"a": "[" * 1000 + '\\"{'}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "a.json") == content


def test_what_is_not_utf8_is_one_line(tmp_path):
    (tmp_path / "a.json").write_bytes(b'"\xff"')
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_written_as_json(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"snr_db": value})


def test_a_folder_hashes_by_names_and_contents_and_where_one_ends(tmp_path):
    def folder(name, **content):
        (tmp_path / name).mkdir()
        for file, text in content.items():
            (tmp_path / name / file).write_text(text)
        return sha256(tmp_path / name)

    first = folder("1", a="x", b="y")
    assert folder("2", a="x", b="y") == first
    assert folder("3", a="xb\0y") != first
    assert folder("4", a="x", c="y") != first
    assert folder("5", a="x", b="z") != first


def test_reason_is_one_short_line():
    assert files.reason(ValueError("first\nsecond")) == "first"
    assert files.reason(OSError(errno.EIO, "disk error", "name")) == "disk error"
    assert files.reason(RuntimeError()) == "RuntimeError"
    assert len(files.reason(RuntimeError("x" * 999))) == 200


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 0, "a": 1}}]'])
def test_a_key_that_is_there_twice_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileError, match="not valid JSON: the key 'a' is there more than once"):
        read_json(tmp_path / "a.json")
