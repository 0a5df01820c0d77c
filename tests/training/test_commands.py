"""``samexport train-demo`` and ``samexport draw-scenes``: what they write, and what they refuse."""

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from samexport.cli import train as commands
from samexport.errors import FileError
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.training import demo
from samexport.training.loop import Stage, Trainer, TrainSettings
from samexport.training.measure import Quality
from tests.command_line import one_line_error

TINY = ("--encoder", "test.tinyvit64", "--device", "cpu")


@pytest.fixture
def quick(monkeypatch):
    """Stages of a moment, without the pictures at the end."""
    monkeypatch.setattr("samexport.training.loop.CPU_STAGES", (Stage(1.0, 32, 1, 2, 1, 0.0, 2),) * 2)
    monkeypatch.setattr(demo, "measure", lambda *_: Quality(0.5, 0.25, 0.125))
    monkeypatch.setattr(Trainer, "settle", lambda self: None)
    monkeypatch.setattr(demo, "draw_samples", lambda *_: None)
    monkeypatch.setattr(demo, "draw_curves", lambda *_: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give how long to train: --budget 9m or --steps 1000, one of them"),
        (("--budget", "9m", "--steps", "3"), "give how long to train"),
        (("--budget", "9"), "--budget is a time such as 90s, 9m or 2h, not '9'"),
        (("--budget", "0m"), "--budget is a time"),
        (("--budget", "-3m"), "--budget is a time"),
        (("--budget", "nan"), "--budget is a time"),
        (("--steps", "0"), "'--steps': Input should be greater than or equal to 1"),
        (("--steps", "1", "--seed", "-1"), "'--seed': Input should be greater than or equal to 0"),
        (("--steps", "1", "--device", "tpu"), "--device is cuda or cpu, not 'tpu'"),
        (("--steps", "1", "--encoder", "tinyvitt"), "no encoder is called 'tinyvitt'; did you mean tinyvit"),
        (("--steps", "1", "--encoder", "vit_b"), "sam.vit_b cannot see small pictures, as training does"),
        (("--steps", "1", "--blend", "0.5"), "--blend mixes the result with the weights that --checkpoint names"),
        (("--steps", "1", "--resume"), "has no state.pt to carry on from; leave --resume out"),
        (("--steps", "1", "--checkpoint", "absent.pt"), "absent.pt cannot be read"),
        (("--steps", "1", "--resume", "--checkpoint", "x.pt"), "leave --checkpoint out"),
    ],
)
def test_what_cannot_be_is_one_line(options, message, tmp_path, run, quick):
    code, _, err = run("train-demo", "--out", tmp_path / "out", "--device", "cpu", *options)
    assert code == 2
    assert message in one_line_error(err)


def test_a_gpu_that_is_not_there_is_one_line(tmp_path, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run("train-demo", "--out", tmp_path / "out", "--steps", "1", "--device", "cuda")
    assert (code, one_line_error(err)) == (2, "error: PyTorch sees no CUDA device; give --device cpu")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, run):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run("train-demo", "--out", tmp_path, "--steps", "1", *TINY)
    assert code == 2
    assert "is not empty; carry on with --resume or name another folder" in one_line_error(err)
    code, _, err = run("train-demo", "--out", tmp_path / "mine.txt", "--steps", "1", *TINY)
    assert code == 2
    assert "mine.txt is a file; --out names a folder" in one_line_error(err)
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("package", ["torch", "skimage", "matplotlib"])
def test_without_the_extra_it_says_what_installs_it_before_any_work(package, tmp_path, run, monkeypatch):
    find = commands.importlib.util.find_spec
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    code, _, err = run("train-demo", "--out", tmp_path / "out", "--steps", "1", *TINY)
    assert code == 2
    assert f"training needs {package}: pip install " in one_line_error(err)
    assert not (tmp_path / "out").exists()
    if package == "skimage":
        code, _, err = run("draw-scenes", "--out", tmp_path / "out", "--count", "1")
        assert code == 2
        assert "training needs skimage: pip install " in one_line_error(err)
        assert not list(tmp_path.iterdir())


def test_a_training_can_be_carried_on_and_gives_a_checkpoint(tmp_path, run, quick):
    code, out, err = run("train-demo", "--out", tmp_path / "out", "--steps", "2", *TINY)
    assert code == 0, err
    assert "box IoU 0.500, one click 0.250 (best of three masks), 0.125 (by its own score)" in out
    code, _, err = run("train-demo", "--out", tmp_path / "out", "--steps", "3", "--resume", *TINY)
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("final")] == [3]
    weights = tmp_path / "out/demo.0.safetensors"
    load_model(find_model("test.tinyvit64"), [weights])
    further = ("--steps", "1", "--checkpoint", weights, *TINY)
    found = {}
    for share in ("0", "0.25", "1"):
        code, _, err = run("train-demo", "--out", tmp_path / share, *further, "--blend", share)
        assert code == 0, err
        found[share] = load_file(tmp_path / share / "demo.0.safetensors")
    before = load_file(weights)
    moved = 0
    for key, value in found["0"].items():
        assert found["1"][key].equal(before[key])
        wanted = value.float().lerp(before[key].float(), 0.25)
        torch.testing.assert_close(found["0.25"][key].float(), wanted, rtol=2e-3, atol=1e-4)
        moved += not value.equal(before[key])
    assert moved > 100


STOP = """
import os, signal, sys
from samexport.training import demo
from samexport.training.loop import Stage
import samexport.training.loop as loop
loop.CPU_STAGES = (Stage(1.0, 32, 1, 2, 1, 0.0, 2),)
demo.measure = lambda *_: demo.Quality(0, 0, 0)
demo._EVERY = 0.0
save = loop.Trainer.save
def stop(self, path):
    save(self, path)
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGINT)
loop.Trainer.save = stop
command = "train-demo --steps 9 --encoder test.tinyvit64 --device cpu --out"
sys.argv = ["samexport", *command.split(), sys.argv[1]]
from samexport.cli.main import main
main()
"""


def test_ctrl_c_is_one_line_and_leaves_a_state_to_carry_on_from(tmp_path):
    done = subprocess.run([sys.executable, "-c", STOP, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert one_line_error(done.stderr) == "error: interrupted; nothing is left half written"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"demo.0.safetensors", "log.jsonl", "state.pt"}
    trainer = Trainer(find_model("test.tinyvit64"), TrainSettings((Stage(1.0, 32, 1, 2, 1, 0.0, 2),), steps=9))
    trainer.load(tmp_path / "out/state.pt")
    assert trainer.step == 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
    import resource

    trainer = Trainer(find_model("test.tinyvit64"), TrainSettings((Stage(1.0, 32, 1, 2, 1, 0.0, 2),), steps=9))
    trainer.save(tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    demo.write_weights(trainer.average, trainer.spec, tmp_path)
    names = sorted(os.listdir(tmp_path))
    usage = namedtuple("Usage", "total used free")(1, 1, 0)
    monkeypatch.setattr("samexport.files.shutil.disk_usage", lambda _: usage)
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"state.pt cannot be written: the disk is full; nothing was left there"):
            trainer.save(tmp_path / "state.pt")
        with pytest.raises(FileError, match=r"demo.0.safetensors cannot be written: the disk is full"):
            demo.write_weights(trainer.average, trainer.spec, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == names


def test_scenes_are_written_and_told(tmp_path, run):
    code, out, err = run("draw-scenes", "--out", tmp_path / "s", "--count", "2", "--size", "64", "--objects", "5")
    assert code == 0, err
    objects = len(json.loads((tmp_path / "s/annotations.json").read_text())["annotations"])
    assert f"2 scenes with {objects} objects; annotations.json has their masks" in out
    assert sorted(os.listdir(tmp_path / "s")) == ["annotations.json", "scene-00000.png", "scene-00001.png"]
    code, _, err = run("draw-scenes", "--out", tmp_path / "s", "--count", "2")
    assert code == 2
    assert "choose another --out" in one_line_error(err)
