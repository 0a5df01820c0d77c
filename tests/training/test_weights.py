"""The weights that come with the package."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import samexport
from samexport.errors import ConfigError
from samexport.exporter.deliver.card import write_card
from samexport.models.catalog import MODELS, find_model
from samexport.models.loading import load_model, reload_model
from samexport.models.weights.demo import demo_checkpoint
from samexport.runtimes.bundle import Artifact
from samexport.runtimes.torch_bundle import plain_bundle
from samexport.training.loop import new_model
from samexport.training.measure import measure
from tests.command_line import one_line_error

SPEC = find_model("tinyvit")
WARNING = "DEMO weights, trained on drawn scenes: no substitute for the official ones"


@pytest.fixture(scope="module")
def demo():
    return load_model(SPEC, demo_checkpoint(SPEC))


def test_they_are_told_from_a_users_file_by_where_they_are(demo, tmp_path):
    _, info = demo
    assert (info.kind, info.seed) == ("demo", None)
    assert info.warning == WARNING
    copies = [tmp_path / path.name for path in demo_checkpoint(SPEC)]
    for copy, path in zip(copies, demo_checkpoint(SPEC), strict=True):
        copy.write_bytes(path.read_bytes())
    _, other = load_model(SPEC, copies)
    assert (other.kind, other.warning, other.sha256) == ("checkpoint", "", info.sha256)


def test_a_bundle_of_them_is_loaded_again_without_a_file(demo):
    network, info = demo
    again = reload_model(SPEC, info)
    assert all(value.equal(again.state_dict()[key]) for key, value in network.state_dict().items())


def test_a_bundle_of_them_takes_copies_of_their_files(demo, tmp_path):
    network, info = demo
    copies = [Path(shutil.copy(path, tmp_path)) for path in demo_checkpoint(SPEC)]
    again = reload_model(SPEC, info, copies[::-1])
    assert all(value.equal(again.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(ConfigError, match="the bundle was made from"):
        reload_model(SPEC, replace(info, sha256=str(info.sha256).replace("a", "b")), copies)


def test_the_card_says_what_they_are(demo):
    manifest = plain_bundle(SPEC, *demo).manifest
    artifacts = tuple(Artifact(g.name, f"{g.name}.onnx", "onnx", "fp32", "0" * 64, 1) for g in manifest.graphs)
    card = write_card(replace(manifest, artifacts=artifacts, tools={"samexport": "1.0"}))
    assert card.startswith("# mobilesam.tinyvit (demo weights)\n")
    assert f"- Weights: {WARNING} (demo.0.safetensors + demo.1.safetensors, sha256 `" in card


def test_what_is_made_with_them_says_what_they_are(demo, photo, run, monkeypatch):
    """A small model that says it has them."""
    small = find_model("test.tinyvit64")
    bundle = plain_bundle(small, load_model(small, random_seed=7)[0], demo[1])
    monkeypatch.setattr("samexport.runtimes.bundle.open_bundle", lambda _: bundle)
    for command in (["segment", "x", photo, "--point", "30,20"], ["everything", "x", photo, "--points-per-side", "2"]):
        code, out, err = run(*command)
        assert code == 0, err
        assert f"this bundle has {WARNING}" in out


@pytest.mark.parametrize("name", [model.name for model in MODELS.values() if model != SPEC])
def test_no_other_model_has_any(name):
    with pytest.raises(
        ConfigError, match=re.escape(f"there are no demo weights of {name}; --encoder tinyvit has some")
    ):
        demo_checkpoint(find_model(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "vit_b", "--weights", "demo"], "there are no demo weights of sam.vit_b"),
        (["--encoder", "tinyvit", "--weights", "demo", "--checkpoint", "x.pt"], "name two sources of weights"),
        (["--encoder", "tinyvit", "--weights", "demo", "--seed", "1"], "--seed is of random weights"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options, message, tmp_path, run):
    code, _, err = run("onnx", *options, "--out", tmp_path / "out")
    assert code == 2
    assert message in one_line_error(err)


def test_they_find_objects_in_held_out_scenes_and_new_weights_do_not(demo):
    """Two scenes at half of their size, where they reach 0.67 and 0.56."""
    network, _ = demo
    cpu = torch.device("cpu")
    trained, new = (
        measure(network, SPEC.frame, 512, 2, cpu, 8),
        measure(new_model(SPEC, 0).eval(), SPEC.frame, 256, 1, cpu, 8),
    )
    network.prompt_encoder.image_size, network.prompt_encoder.grid = 1024, 64
    assert trained.box > 0.6
    assert trained.click > 0.5
    assert new.box < 0.3


def test_they_are_small_and_the_package_carries_them(tmp_path):
    source = {path.name: path.read_bytes() for path in demo_checkpoint(SPEC)}
    assert sum(map(len, source.values())) < 21_000_000
    assert max(map(len, source.values())) < 16_000_000
    root = Path(samexport.__file__).parent.parent
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "build", "-b", tmp_path / "build"]
    subprocess.run([*map(str, command), "build_py", "-d", str(tmp_path / "lib")], cwd=root, check=True)
    carried = {p.name: p.read_bytes() for p in (tmp_path / "lib/samexport/models/weights").glob("*.safetensors")}
    assert carried == source
