"""Decoupled distillation at 64 pixels."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import samexport
from samexport.errors import ConfigError, FileError
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.training import cache as caching
from samexport.training.cache import EmbeddingCache, read_framed
from samexport.training.distill import Distiller, DistillSettings, check_pair, embedding_error, encoding
from samexport.training.storage import stored_pictures
from tests.command_line import one_line_error

SPEC = find_model("test.tinyvit64")
OPTIONS = ("--student", "test.tinyvit64", "--teacher-encoder", "test.tinyvit64", "--device", "cpu", "--batch", "4")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(7):
        height, width = (40, 64) if number % 2 else (64, 30)
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Random weights as a file."""
    network, _ = load_model(SPEC, random_seed=3)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save(network.state_dict(), path)
    return path


def cache_of(folder, pictures, encode):
    return EmbeddingCache(folder, tuple(sorted(pictures.iterdir())), {"model": "x"}, SPEC.frame, encode)


def filled(folder, pictures):
    """A teacher of random weights, and the cache that it filled."""
    network, _ = load_model(SPEC, random_seed=3)
    cache = cache_of(folder, pictures, encoding(network, SPEC.frame, "cpu"))
    cache.prepare()
    cache.fill()
    return network, cache


def test_the_cache_has_the_teachers_embeddings_in_half_precision(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_SHARD", 3)
    network, cache = filled(tmp_path / "c", pictures)
    assert cache.shards == 3
    for framed, found in cache.batches([6, 0, 3, 2, 5], 2):
        assert framed.ids.unique().tolist() == [-1, 0]
        with torch.no_grad():
            # what the encoder graph computes: normalised, padding 0
            picture = (framed.pixels - torch.tensor(SPEC.frame.mean).view(3, 1, 1)) / torch.tensor(SPEC.frame.std).view(
                3, 1, 1
            )
            wanted = network.image_encoder(picture * (framed.ids >= 0)[:, None])
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_the_cache_is_filled_once_by_several_processes_and_mended(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_SHARD", 2)
    calls = []

    def encode(framed):
        calls.append(len(framed.inside))
        return framed.pixels[:, :, :4, :4]

    cache = cache_of(tmp_path / "c", pictures, encode)
    cache.prepare()
    cache.fill(1, 2)
    assert sorted(p.name for p in (tmp_path / "c").glob("*.safetensors")) == [
        "shard-00001.safetensors",
        "shard-00003.safetensors",
    ]
    cache.fill(0, 2)
    assert len(calls) == 7
    again = cache_of(tmp_path / "c", pictures, encode)
    again.prepare()
    again.fill()
    assert len(calls) == 7
    shard = tmp_path / "c/shard-00001.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    (tmp_path / "c/shard-00002.safetensors").unlink()
    again.fill()
    assert len(calls) == 11
    wanted = read_framed([again.paths[3]], SPEC.frame).pixels[0, :, :4, :4]
    assert torch.equal(next(again.batches([3], 1))[1][0], wanted.half().float())


BY_RAY = """
import sys
from dataclasses import replace
from pathlib import Path
from samexport.errors import ImageError
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.training import cache as caching
from samexport.training.cache import EmbeddingCache
from samexport.training.storage import fill_by_ray, stored_pictures

folder, pictures, broken = map(Path, sys.argv[1:])
spec, caching._SHARD = find_model("test.tinyvit64"), 3
network, _ = load_model(spec, random_seed=3)
cache = EmbeddingCache(folder, stored_pictures(pictures.as_uri()), {"model": "x"}, spec.frame, None)
cache.prepare()
fill_by_ray(cache, network, "cpu", lambda *heard: print(*heard))
print("missing", cache.missing())
(folder / "shard-00001.safetensors").unlink()
try:
    fill_by_ray(replace(cache, paths=(*cache.paths[:3], broken, *cache.paths[4:])), network, "cpu")
except ImageError as error:
    print("refused", error)
"""


def test_ray_fills_the_cache_with_what_a_plain_loop_computes(pictures, tmp_path, monkeypatch):
    """In a process of its own, as users have it: where Ray ends a process, pytest-xdist would wait for ever."""
    monkeypatch.setattr(caching, "_SHARD", 3)
    _, alone = filled(tmp_path / "a", pictures)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/shard-00000.safetensors").write_bytes(b"damaged")
    (tmp_path / "b/shard-00002.safetensors").unlink()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    command = [sys.executable, "-c", BY_RAY, tmp_path / "b", pictures, broken]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *told, refused = done.stdout.splitlines()
    assert told == ["1 2", "2 2", "missing {}"]
    assert refused.startswith(f"refused {broken}")
    assert not (tmp_path / "b/shard-00001.safetensors").exists()
    paths = stored_pictures(pictures.as_uri())
    assert [(p.name, p.size) for p in paths] == [(f"{n}.png", (pictures / f"{n}.png").stat().st_size) for n in range(7)]
    shared = EmbeddingCache(tmp_path / "b", paths, {"model": "x"}, SPEC.frame, None)
    for numbers in ((0, 1, 2), (6,)):
        (framed, found), (same, wanted) = (next(each.batches(numbers, 3)) for each in (shared, alone))
        assert torch.equal(framed.pixels, same.pixels)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_another_teachers_cache_is_left_alone(pictures, tmp_path):
    cache = cache_of(tmp_path, pictures, None)
    cache.prepare()
    cache.prepare()
    other = EmbeddingCache(tmp_path, cache.paths, {"model": "y"}, SPEC.frame, None)
    with pytest.raises(FileError, match="embeddings of another teacher or of other pictures"):
        other.prepare()
    with pytest.raises(FileError, match="or of other pictures"):
        EmbeddingCache(tmp_path, cache.paths[1:], {"model": "x"}, SPEC.frame, None).prepare()


def test_the_error_of_embeddings_leaves_padding_out():
    wanted, found = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    found[0, :, :2] = 2.0  # seen
    found[0, :, 2:] = 100.0  # 20 of 64 rows show the picture: two cells of 16
    found[1, :, :, 3] = 4.0
    # 8 cells of 2 squared and 4 of 4 squared, of 8 + 16 cells
    assert embedding_error(found, wanted, ((20, 64), (64, 64)), 16).item() == pytest.approx((8 * 4 + 4 * 16) / 24)


@pytest.mark.parametrize("through", [False, True])
def test_a_student_learns_what_its_teacher_sees(pictures, teacher, tmp_path, run, through):
    options = ("--images", pictures, "--out", tmp_path / "out", "--held-out", "2", "--learning-rate", "3e-3", *OPTIONS)
    more = ("--through-decoder",) if through else ()
    code, out, err = run("distill", "--teacher", teacher, "--steps", "30", *options, *more)
    assert code == 0, err
    report = json.loads((tmp_path / "out/report.json").read_text())
    losses = [loss for _, loss in report["loss"]]
    assert losses[-1] < 0.6 * losses[0]
    assert report["pictures"] == 7
    assert f"square error {report['agreement']['error']:.5f}" in out
    assert 0 < report["agreement"]["click"] <= 1
    student, info = load_model(SPEC, [tmp_path / "out/student.safetensors"])
    assert info.kind == "checkpoint"
    master = torch.load(teacher, weights_only=True)
    for key, value in student.state_dict().items():
        if not key.startswith("image_encoder.") and "num_batches" not in key:
            assert value.equal(master[key]), key
    assert not student.state_dict()["image_encoder.neck.0.weight"].equal(master["image_encoder.neck.0.weight"])
    code, _, err = run("distill", "--teacher", teacher, "--steps", "1", *options)
    assert code == 2
    assert "has a student already; name another folder" in one_line_error(err)


def test_coupled_training_teaches_masks_to_encoder_and_decoder(pictures, tmp_path):
    network, cache = filled(tmp_path / "c", pictures)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    distiller = Distiller(network, SPEC, cache, DistillSettings(40, coupled=True, held_out=2, learning_rate=3e-3))
    start = distiller.measure()
    losses = [loss for _, loss in distiller.run()]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert distiller.measure().click > start.click + 0.05
    student = distiller.student.state_dict()
    changed = {key.split(".")[0] for key, value in student.items() if not value.equal(before[key])}
    assert changed == {"image_encoder", "mask_decoder"}
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())


def test_a_student_that_is_its_teacher_agrees_with_it(pictures, tmp_path):
    network, cache = filled(tmp_path / "c", pictures)
    distiller = Distiller(network, SPEC, cache, DistillSettings(1, held_out=3))
    before = distiller.measure()
    distiller.encoder.load_state_dict(network.image_encoder.state_dict())
    same = distiller.measure()
    assert same.error < 1e-3 < before.error
    assert min(same.click, same.box) > 0.97 > before.click


@pytest.mark.parametrize(("pictures_left", "world"), [(6, 2), (5, 2), (1, 4), (7, 3)])
def test_every_process_has_as_many_pictures_and_together_all(pictures_left, world, pictures, tmp_path):
    network, _ = load_model(SPEC, random_seed=3)
    cache = EmbeddingCache(tmp_path, tuple(sorted(pictures.iterdir())), {}, SPEC.frame, None)
    distiller = Distiller(network, SPEC, cache, DistillSettings(1, held_out=7 - pictures_left))
    orders = []
    for distiller.rank in range(world):
        distiller.world = world
        orders.append(distiller._order(0))
    assert len({len(order) for order in orders}) == 1
    assert set().union(*orders) == set(range(pictures_left))


def test_two_processes_train_one_student(pictures, teacher, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    paths = ("--teacher", teacher, "--images", pictures, "--out", tmp_path / "out")
    command = (*torchrun, "-m", "samexport", "distill", *paths, "--held-out", "1", "--steps", "3", *OPTIONS)
    root = Path(samexport.__file__).parent.parent
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("beside the teacher") == 1
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["processes"] == 2
    state = load_file(tmp_path / "out/student.safetensors")
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    ("teacher_name", "student", "message"),
    [
        ("vit_h", "test.tinyvit64", "has another frame or decoder than sam.vit_h"),
        ("test.tinyvit64", "tinyvit", "has another frame or decoder than test.tinyvit64"),
    ],
)
def test_a_student_of_another_frame_is_refused(teacher_name, student, message):
    with pytest.raises(ConfigError, match=message):
        check_pair(find_model(teacher_name), find_model(student))
    check_pair(find_model("vit_h"), find_model("tinyvit"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--held-out", "7"), "has 7 pictures, of which --held-out keeps 7; none is left, keep fewer"),
        (("--images", "nowhere"), "nowhere is no folder"),
        (("--images", "file:///nowhere"), "file:///nowhere cannot be opened"),
        (("--images", "gopher://nowhere"), "give a folder such as s3://bucket/folder"),
        (("--device", "tpu"), "--device is cuda or cpu, not 'tpu'"),
        (("--student", "nothing"), "no encoder is called 'nothing'"),
        (("--checkpoint", "x.pt"), "--checkpoint goes with a bundle as --teacher"),
        (("--coupled", "--through-decoder"), "--coupled teaches masks alone; leave --through-decoder out"),
        (("--steps", "0"), "Input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_one_line(options, message, pictures, teacher, tmp_path, run):
    defaults = ("--held-out", "2", *OPTIONS)
    code, _, err = run(
        "distill", "--teacher", teacher, "--images", pictures, "--out", tmp_path / "o", *defaults, *options
    )
    assert code == 2
    assert message in one_line_error(err)
    assert not (tmp_path / "o/student.safetensors").exists()


def test_nothing_is_written_among_the_pictures(pictures, teacher, run):
    before = sorted(pictures.iterdir())
    options = ("--teacher", teacher, "--images", pictures, "--out", pictures, "--held-out", "2", *OPTIONS)
    code, _, err = run("distill", *options)
    assert (code, sorted(pictures.iterdir())) == (2, before)
    assert "has the pictures; --out names another folder" in one_line_error(err)


@pytest.mark.parametrize(("inside", "said"), [("x", "is inside the bundle"), ("", "is a bundle, which must stay")])
def test_nothing_is_made_inside_a_bundle(tiny_bundle, pictures, run, inside, said):
    before = sorted(tiny_bundle.folder.rglob("*"))
    options = ("--images", pictures, "--out", tiny_bundle.folder / inside, "--held-out", "2")
    code, _, err = run("distill", "--teacher", tiny_bundle.folder, "--student", "test.tinyvit64", *options)
    assert (code, said in err) == (2, True)
    assert sorted(tiny_bundle.folder.rglob("*")) == before


def test_a_bundle_of_random_weights_is_a_teacher_that_is_named_so(tiny_bundle, pictures, tmp_path, run):
    options = ("--images", pictures, "--out", tmp_path / "out", "--held-out", "2", "--steps", "1")
    student = ("--student", "test.tinyvit64", "--device", "cpu")
    code, _, err = run("distill", "--teacher", tiny_bundle.folder, *student, *options)
    assert code == 0, err
    assert "note: the teacher has RANDOM weights: its masks mean nothing" in err
