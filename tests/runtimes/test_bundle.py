import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samexport.errors import BundleError
from samexport.runtimes import bundle as bundles
from samexport.runtimes.bundle import MANIFEST, Manifest, new_folder, open_bundle


def make(target: Path, text: str, *, force: bool = False) -> None:
    with new_folder(target, force=force) as folder:
        (folder / MANIFEST).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_whole_with_its_parents(tmp_path):
    make(tmp_path / "deep" / "bundle", "1")
    assert names(tmp_path / "deep") == ["bundle"]
    assert (tmp_path / "deep" / "bundle" / MANIFEST).read_text() == "1"


@pytest.mark.parametrize("error", [RuntimeError("converter"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_work_fails(tmp_path, error):

    def work():
        with new_folder(tmp_path / "bundle") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        work()
    assert names(tmp_path) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = "No space left on device; choose another --out"
    with pytest.raises(BundleError, match=message), new_folder(tmp_path / "bundle"):
        raise full
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(BundleError, match="exists"):
            make(tmp_path / "bundle", "1", force=force)
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["bundle"]


def test_force_replaces_a_bundle_and_only_at_the_end(tmp_path):
    make(tmp_path / "bundle", "old")
    with pytest.raises(BundleError, match="--force"):
        make(tmp_path / "bundle", "new")
    with new_folder(tmp_path / "bundle", force=True) as folder:
        (folder / MANIFEST).write_text("new")
        assert (tmp_path / "bundle" / MANIFEST).read_text() == "old"
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_a_failed_rename_puts_the_old_bundle_back(tmp_path, monkeypatch):
    make(tmp_path / "bundle", "old")
    rename = Path.rename

    def fail_for_new(self, target):
        if "samexport-new" in self.name:
            raise OSError(errno.EIO, "disk error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(BundleError, match="disk error"):
        make(tmp_path / "bundle", "new", force=True)
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_a_symlink_is_never_replaced(tmp_path):
    make(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BundleError):
        make(tmp_path / "link", "new", force=True)
    assert (tmp_path / "real" / MANIFEST).read_text() == "old"


KILLED = """
import sys, time
from pathlib import Path
from samexport.runtimes.bundle import MANIFEST, new_folder
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


def test_a_run_killed_between_the_two_renames_gives_the_old_bundle_back(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    aside = tmp_path / f".bundle.samexport-old-{int(dead.stdout)}-x" / "bundle"
    aside.mkdir(parents=True)
    (aside / MANIFEST).write_text("old")
    with pytest.raises(BundleError, match="exists"), new_folder(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_the_private_folder_of_a_running_process_is_left_alone(tmp_path):
    other = tmp_path / f".bundle.samexport-new-{os.getppid()}-x"
    other.mkdir()
    make(tmp_path / "bundle", "1")
    assert other.is_dir()


def test_the_manifest_survives_a_round_trip(tiny_bundle):
    text = (tiny_bundle.folder / MANIFEST).read_text()
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99}', "null"])
def test_a_damaged_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="export the bundle again"):
        open_bundle(tmp_path)


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_a_manifest_may_not_name_files_outside(own_bundle, name):
    path = own_bundle.folder / MANIFEST
    data = json.loads(path.read_text())
    data["artifacts"][0]["path"] = name
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(own_bundle.folder)


def test_damaged_and_missing_files_are_named(own_bundle):
    assert own_bundle.damaged_files() == []
    (own_bundle.folder / "README.md").write_text("other")
    (own_bundle.folder / "decoder.onnx").unlink()
    assert [line.split()[0] for line in own_bundle.damaged_files()] == ["README.md", "decoder.onnx"]


def test_an_unknown_graph_is_an_error_that_lists_the_known_ones(tiny_bundle):
    with pytest.raises(BundleError, match="encoder, decoder, decoder_with_mask"):
        tiny_bundle.open("prompt_sampler")


def test_a_folder_hashes_by_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = bundles.file_sha256(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert bundles.file_sha256(tmp_path / "a") != first


def test_is_running_knows_this_process_and_not_a_dead_one():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    time.sleep(0.05)
    assert bundles._is_running(os.getpid())
    assert not bundles._is_running(child.pid)
