"""`samexport android`: what it puts into the demo, and what it refuses to touch."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samexport
from samexport.cli import main as cli
from samexport.errors import BundleError, ConfigError, MissingDependency
from samexport.exporter.deliver import android
from samexport.exporter.deliver.android import DEMO, MANIFEST, MODELS, demo_source, entry_points, fill_demo
from samexport.files import sha256
from samexport.runtimes.bundle import Bundle, open_bundle
from samexport.runtimes.formats import tflite as tflite_file
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.verdicts import Check, Row, Verdict

NAME = "test-tinyvit64-random"


@pytest.fixture(scope="module")
def bundle(tflite_bundle: Bundle) -> Bundle:
    return tflite_bundle


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()}


def test_the_whole_demo_appears_with_the_models_in_it(bundle, tmp_path):
    filled = fill_demo(bundle, tmp_path / "demo")
    assert (filled.new_demo, filled.folder) == (True, tmp_path / "demo" / MODELS / NAME)
    files = tree(tmp_path / "demo")
    models = {n: d for n, d in files.items() if n.startswith(MODELS.as_posix())}
    source = {n: d for n, d in tree(demo_source()).items() if not n.startswith("app/src/main/assets/")}
    assert {n: files[n] for n in files.keys() - models.keys()} == source
    assert "core/src/main/kotlin/dev/samexport/core/Segmenter.kt" in source
    assert {Path(n).name for n in models} == {
        "encoder.tflite", "decoder.tflite", "picture.png", "mask0.png", "mask1.png", MANIFEST,
    }  # fmt: skip


def test_the_manifest_tells_the_app_files_entry_points_frame_and_parity(bundle, tmp_path):
    folder = fill_demo(bundle, tmp_path / "demo").folder
    data = json.loads((folder / MANIFEST).read_text())
    assert {n: sha256(folder / n) for n in data["files"]} == data["files"]
    assert set(data["files"]) == tree(folder).keys() - {MANIFEST}
    graphs = {g["name"]: g for g in data["graphs"]}
    assert list(graphs) == ["encoder", "decoder"]
    assert graphs["decoder"]["sha256"] == bundle.artifact("decoder").sha256
    assert graphs["decoder"]["entry_points"] == [
        {"name": "decode_1", "prompts": 1, "points": 5}, {"name": "decode_4", "prompts": 4, "points": 2},
    ]  # fmt: skip
    assert graphs["encoder"]["inputs"] == [{"name": "image", "shape": [1, 3, 64, 64]}]
    shapes = {t["name"]: t["shape"] for t in graphs["decoder"]["inputs"]}
    assert shapes["point_coords"] == [0, 0, 2]
    assert (data["frame"]["size"], data["frame"]["mean"]) == (64, [123.675, 116.28, 103.53])
    assert (data["weights"]["kind"], data["mask_outputs"]) == ("random", [0, 1, 2, 3])
    assert "-2 absent" in data["labels"]
    assert data["parity"]["checks"] == len(bundle.manifest.parity)
    assert 90 < data["parity"]["min_snr_db"] < 200
    assert data["parity"]["max_error_of_range"] < 1e-4


def test_the_check_of_the_phone_holds_what_pytorch_computed(bundle, tmp_path):
    folder = fill_demo(bundle, tmp_path / "demo").folder
    check = json.loads((folder / MANIFEST).read_text())["check"]
    expected = load_golden(bundle.folder, bundle.manifest.frame)
    picture = np.asarray(Image.open(folder / check["picture"]))
    assert np.array_equal(picture, expected.picture)
    masks = np.stack([np.asarray(Image.open(folder / name)) for name in check["masks"]])
    assert np.array_equal(masks, expected.masks)
    prompts = [Prompt.make(np.reshape(p["points"], (-1, 2)), p["labels"], p["box"] or None) for p in check["prompts"]]
    with Segmenter(bundle) as segmenter:
        segmenter.set_image(picture)
        answers = segmenter.predict(prompts)
    assert np.array_equal(np.concatenate([a.masks for a in answers]), masks)


def test_a_demo_that_is_there_gets_the_model_and_keeps_everything_else(bundle, tmp_path):
    out = tmp_path / "demo"
    fill_demo(bundle, out)
    (out / "README.md").write_text("mine")
    other = out / MODELS / "another"
    shutil.move(out / MODELS / NAME, other)
    before = tree(out)
    assert fill_demo(bundle, out).new_demo is False
    after = tree(out)
    assert {n: after[n] for n in before} == before
    assert {n.split("/")[5] for n in after.keys() - before.keys()} == {NAME}


def test_only_what_samexport_wrote_is_replaced_and_only_with_force(bundle, tmp_path):
    folder = fill_demo(bundle, tmp_path / "demo").folder
    with pytest.raises(BundleError, match="--force"):
        fill_demo(bundle, tmp_path / "demo")
    (folder / "encoder.tflite").write_bytes(b"old")
    fill_demo(bundle, tmp_path / "demo", force=True)
    assert sha256(folder / "encoder.tflite") == bundle.artifact("encoder").sha256
    (folder / "check" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"check/notes\.txt, which samexport\.json does not list"):
        fill_demo(bundle, tmp_path / "demo", force=True)
    assert (folder / "check" / "notes.txt").read_text() == "mine"
    (folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match="samexport did not write it"):
        fill_demo(bundle, tmp_path / "demo", force=True)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("x"), lambda p: p.symlink_to("gone")])
def test_anything_else_at_the_target_is_left_alone(bundle, tmp_path, make):
    make(tmp_path / "demo")
    for force in (False, True):
        with pytest.raises(BundleError, match="is not the Android demo"):
            fill_demo(bundle, tmp_path / "demo", force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("name", ["n" * 300, "file/demo", "\udcff", "bundle/demo", "nul\0"])
def test_a_path_where_no_demo_can_be_is_one_line(bundle, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="choose another") as caught:
        fill_demo(copy, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["/etc/model", "../../../../../../../model", "a/b", ".hidden", ""])
def test_a_model_name_in_the_manifest_cannot_leave_the_demo(bundle, tmp_path, monkeypatch, capsys, name):
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    manifest = json.loads((copy.folder / "bundle.json").read_text())
    (copy.folder / "bundle.json").write_text(json.dumps({**manifest, "model": name}))
    assert run(monkeypatch, "android", copy.folder, "--out", tmp_path / "demo") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


def test_a_failure_halfway_leaves_nothing(bundle, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(android, "app_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        fill_demo(bundle, tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_bundles_that_are_damaged_or_not_verified_are_refused(bundle, tmp_path):
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    (copy.folder / "encoder.tflite").write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"encoder\.tflite has another sha256"):
        fill_demo(copy, tmp_path / "demo")
    passed = bundle.manifest.parity
    for rows in ((), (*passed[:-1], replace(passed[-1], verdict=Verdict.SKIPPED))):
        unverified = Bundle(bundle.folder, replace(bundle.manifest, parity=rows))
        with pytest.raises(BundleError, match="did not pass all of its checks"):
            fill_demo(unverified, tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_bundle_whose_linter_names_operations_is_taken(bundle, tmp_path):
    skipped = Row(Check("lint", ("decoder",)), "operations", Verdict.SKIPPED)
    noted = Bundle(bundle.folder, replace(bundle.manifest, parity=(*bundle.manifest.parity, skipped)))
    assert fill_demo(noted, tmp_path / "demo")


def test_files_of_another_graph_and_missing_packages_are_one_line(bundle, monkeypatch):
    with pytest.raises(BundleError, match=r"decoder\.tflite, entry point decode_1, is not encoder"):
        entry_points(bundle.folder / "decoder.tflite", bundle.graph("encoder"))

    def missing(path):
        raise ModuleNotFoundError("No module named 'ai_edge_litert'", name="ai_edge_litert")

    monkeypatch.setattr(tflite_file, "read_model", missing)
    with pytest.raises(MissingDependency, match=r"pip install .*\[litert\]"):
        entry_points(bundle.folder / "encoder.tflite", bundle.graph("encoder"))


def run(monkeypatch, *arguments) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["samexport", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_command_shows_what_it_wrote(bundle, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "android", bundle.folder, "--out", tmp_path / "demo") in (0, None)
    out = capsys.readouterr().out
    for word in ("decoder.tflite", "decode_1, decode_4", "5, 2", "RANDOM", "README.md"):
        assert word in out
    files = [p for p in (tmp_path / "demo").rglob("*") if p.is_file()]
    assert out.splitlines()[-1].startswith(f"wrote {tmp_path / 'demo'}/ ({len(files)} files, ")
    assert run(monkeypatch, "android", bundle.folder, "--out", tmp_path / "other", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {f["path"] for f in told["files"]} == set(tree(tmp_path / "other"))
    assert told["size"] == sum(p.stat().st_size for p in files)
    assert run(monkeypatch, "android", bundle.folder, "--out", tmp_path / "demo") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_format_is_refused_with_exit_code_2(tiny_bundle, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "android", tiny_bundle.folder, "--out", tmp_path / "demo") == 2
    assert "is onnx; the Android demo takes TFLite, `samexport tflite`" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_package_carries_the_demo_as_the_checkout_has_it(tmp_path):
    root = Path(samexport.__file__).parent.parent
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "build", "-b", tmp_path / "build"]
    subprocess.run([*map(str, command), "build_py", "-d", str(tmp_path / "lib")], cwd=root, check=True)
    source = {n: d for n, d in tree(demo_source()).items() if not n.startswith("app/src/main/assets/")}
    assert tree(tmp_path / "lib/samexport" / DEMO) == source
    assert "README.md" in source


def test_an_installation_without_the_demo_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(samexport, "__file__", str(tmp_path / "samexport/__init__.py"))
    with pytest.raises(ConfigError, match="this installation lacks android_demo_assets"):
        demo_source()
