"""`samexport web`: what the site holds, what is refused, where the runtime may come from. Browsers are in tests/web."""

import json
import shutil
import tarfile
from dataclasses import replace

import pytest

from samexport.errors import BundleError, ConfigError, MissingDependency
from samexport.exporter.deliver import web
from samexport.exporter.deliver.web import MANIFEST, PAGE, RUNTIME_FILES, check_fit, config, write_site
from samexport.files import sha256
from samexport.models.spec import Preprocess
from tests.command_line import one_line_error


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Small files in place of the 40 MB of the package: its folder."""
    dist = tmp_path / "onnxruntime-web/dist"
    dist.mkdir(parents=True)
    for name in RUNTIME_FILES:
        (dist / name).write_text(f"this is {name}")
    monkeypatch.setattr(web, "RUNTIME_FILES", {name: sha256(dist / name) for name in RUNTIME_FILES})
    return dist.parent


def test_the_site_is_the_page_the_models_unchanged_and_the_runtime(tiny_bundle, runtime, tmp_path):
    out = tmp_path / "site"
    write_site(tiny_bundle, out, runtime=runtime)
    for source in PAGE.rglob("*"):
        copy = out / source.relative_to(PAGE)
        assert source.is_dir() or copy.read_bytes() == source.read_bytes()
    for name in ("encoder", "decoder"):
        assert sha256(out / f"model/{name}.onnx") == tiny_bundle.artifact(name).sha256
    assert not (out / "model/decoder_with_mask.onnx").exists()
    for name in RUNTIME_FILES:
        assert (out / "runtime" / name).read_text() == f"this is {name}"
    listed = json.loads((out / MANIFEST).read_text())["files"]
    assert listed == {
        p.relative_to(out).as_posix(): sha256(p) for p in out.rglob("*") if p.is_file() and p.name != MANIFEST
    }
    # the folder `dist` is as good, and what is there is only replaced on demand
    with pytest.raises(BundleError, match="--force"):
        write_site(tiny_bundle, out, runtime=runtime / "dist")
    write_site(tiny_bundle, out, runtime=runtime / "dist", force=True)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"mine\.txt"):
        write_site(tiny_bundle, out, runtime=runtime, force=True)
    with pytest.raises(BundleError, match="inside the bundle"):
        write_site(tiny_bundle, tiny_bundle.folder / "site", runtime=runtime)


def test_what_the_page_reads_is_what_the_manifest_says(sampler_bundle, half_bundle):
    found = config(sampler_bundle)
    assert found["frame"] == {"size": 64, "mean": [123.675, 116.28, 103.53], "lowRes": 16}
    assert found["encoder"]["bytes"] == (sampler_bundle.folder / "encoder.onnx").stat().st_size
    assert [graph["name"] for graph in found["decoder"]] == ["decoder"]
    assert found["decoder"][0]["inputs"] == ["image_embeddings", "point_coords", "point_labels"]
    info = sampler_bundle.manifest.sampler
    assert (found["sampler"]["size"], found["sampler"]["rgb"]) == (info.image_size, info.rgb)
    assert found["sampler"]["options"]["nmsIou"] == info.options.nms_iou
    assert "RANDOM" in found["warning"]
    split = config(half_bundle)
    assert [graph["name"] for graph in split["decoder"]] == ["decoder_prologue", "decoder_step"]
    assert split["sampler"] is None


def test_bundles_that_the_page_cannot_run_are_refused(tiny_bundle, sam2_bundle, own_bundle):
    check_fit(tiny_bundle)
    with pytest.raises(BundleError, match="another way"):
        check_fit(sam2_bundle)

    def changed(**fields):
        return replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, **fields))

    artifacts = tiny_bundle.manifest.artifacts
    with pytest.raises(BundleError, match="is tflite; the page runs ONNX"):
        check_fit(changed(artifacts=tuple(replace(a, file_format="tflite") for a in artifacts)))
    with pytest.raises(BundleError, match="another way"):
        check_fit(changed(frame=Preprocess(64, resize="stretch")))
    with pytest.raises(BundleError, match="another way"):
        check_fit(changed(scores="stability"))
    with pytest.raises(BundleError, match="2 GB"):
        check_fit(changed(files=tiny_bundle.manifest.files | {"encoder.onnx.data": "0" * 64}))
    (own_bundle.folder / "encoder.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        check_fit(own_bundle)


def test_a_runtime_of_another_version_or_without_a_file_is_refused(tiny_bundle, runtime, tmp_path):
    name = next(iter(RUNTIME_FILES))
    (runtime / "dist" / name).write_text("changed")
    with pytest.raises(ConfigError, match=f"{name} is not that of onnxruntime-web 1"):
        write_site(tiny_bundle, tmp_path / "site", runtime=runtime)
    (runtime / "dist" / name).unlink()
    with pytest.raises(ConfigError, match=f"has no {name}"):
        write_site(tiny_bundle, tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()


def fake_npm(folder, monkeypatch, script):
    npm = folder / "bin/npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")


def test_npm_gets_the_pinned_package_and_its_files_are_compared(tiny_bundle, runtime, tmp_path, monkeypatch):
    packed = tmp_path / "packed.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(runtime, "package")
    fake_npm(tmp_path, monkeypatch, f'echo "$@" >{tmp_path}/asked; cp {packed} "$4/onnxruntime-web-1.30.0.tgz"')
    write_site(tiny_bundle, tmp_path / "site")
    assert (tmp_path / "asked").read_text().startswith("pack onnxruntime-web@1.30.0 --pack-destination ")
    assert (tmp_path / "site/runtime/ort.wasm.min.mjs").read_text() == "this is ort.wasm.min.mjs"
    packed.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        write_site(tiny_bundle, tmp_path / "other")


def test_without_npm_or_network_one_line_says_what_helps(tiny_bundle, runtime, tmp_path, monkeypatch, run):
    fake_npm(tmp_path, monkeypatch, "echo 'npm error network unreachable' >&2; exit 1")
    code, _, err = run("web", tiny_bundle.folder, "--out", tmp_path / "site")
    assert code == 2
    assert "npm error network unreachable" in one_line_error(err)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingDependency, match="--runtime"):
        write_site(tiny_bundle, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_the_command_says_how_to_try_it(tiny_bundle, runtime, tmp_path, run):
    out = tmp_path / "site"
    code, said, _ = run("web", tiny_bundle.folder, "--out", out, "--runtime", runtime)
    assert code == 0
    assert "RANDOM weights" in said
    assert f"python -m http.server --bind 127.0.0.1 --directory {out}" in said
    code, said, _ = run("web", tiny_bundle.folder, "--out", out, "--runtime", runtime, "--force", "--json")
    assert code == 0
    assert json.loads(said)["files"]["index.html"] > 1000
