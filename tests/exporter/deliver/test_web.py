"""`samexport web`: what the site holds, what is refused, where the runtime may come from. Browsers are in tests/web."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from samexport.errors import BundleError, ConfigError, MissingDependency
from samexport.exporter.deliver.web import MANIFEST, PAGE, check_fit, config, frame_rules, write_site
from samexport.exporter.deliver.web_runtime import LITERT, ORT, RUNTIMES
from samexport.files import sha256
from samexport.models.catalog import MODELS
from tests.command_line import one_line_error

NAMES = [Path(path).name for path in ORT.files]


def unpacked(package, folder, monkeypatch):
    """Small files in place of the 40 MB of a package: its folder."""
    file_format = next(name for name, runtime in RUNTIMES.items() if runtime is package)
    for path in package.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"this is {Path(path).name}, {package.replaced.get(Path(path).name, ('',))[0]}")
    known = {path: sha256(folder / path) for path in package.files}
    monkeypatch.setitem(RUNTIMES, file_format, replace(package, files=known))
    return folder


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    return unpacked(ORT, tmp_path / "onnxruntime-web", monkeypatch)


def test_the_site_is_the_page_the_models_unchanged_and_the_runtime(tiny_bundle, runtime, tmp_path):
    out = tmp_path / "site"
    write_site(tiny_bundle, out, runtime=runtime)
    for source in PAGE.rglob("*"):
        copy = out / source.relative_to(PAGE)
        assert source.is_dir() or copy.read_bytes() == source.read_bytes()
    for name in ("encoder", "decoder"):
        assert sha256(out / f"model/{name}.onnx") == tiny_bundle.artifact(name).sha256
    assert not (out / "model/decoder_with_mask.onnx").exists()
    for name in NAMES:
        assert (out / "runtime" / name).read_text() == f"this is {name}, "
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
    assert found["frame"] == {
        "size": 64, "prompts": 64, "lowRes": 16, "resize": "longest", "rounding": "nearest", "filter": "bilinear",
        "padding": [123.675, 116.28, 103.53], "white": 255.0,
    }  # fmt: skip
    assert frame_rules(MODELS["test.efficientvit64"].frame) == found["frame"] | {"prompts": 128, "lowRes": 32}
    assert found["runtime"]["name"] == "onnxruntime-web"
    assert found["encoder"]["bytes"] == (sampler_bundle.folder / "encoder.onnx").stat().st_size
    assert [graph["name"] for graph in found["decoder"]] == ["decoder"]
    inputs = {each["name"]: (each["shape"], each["fill"]) for each in found["decoder"][0]["inputs"]}
    assert list(inputs) == ["image_embeddings", "point_coords", "point_labels"]
    assert inputs["point_coords"] == (["N", "K", 2], 0)
    assert inputs["point_labels"] == (["N", "K"], -2)
    info = sampler_bundle.manifest.sampler
    assert (found["sampler"]["size"], found["sampler"]["rgb"]) == (info.image_size, info.rgb)
    assert found["sampler"]["options"]["nmsIou"] == info.options.nms_iou
    assert "RANDOM" in found["warning"]
    split = config(half_bundle)
    assert [graph["name"] for graph in split["decoder"]] == ["decoder_prologue", "decoder_step"]
    assert split["sampler"] is None


def test_of_sam2_the_page_has_what_pictures_need(sam2_bundle):
    found = config(sam2_bundle)
    assert [found["encoder"]["name"], *(graph["name"] for graph in found["decoder"])] == [
        "image_encoder",
        "mask_decoder",
    ]
    # of the encoder without what memories are made from, of the decoder without what objects are followed by
    assert found["encoder"]["outputs"] == ["image_embed", "feat_s0", "feat_s1"]
    assert found["decoder"][0]["outputs"] == ["low_res_masks", "iou_predictions"]
    assert (found["answer"], found["prompts"]["padding"]) == ("sam2", "always")
    assert (found["frame"]["resize"], found["frame"]["filter"]) == ("stretch", "bilinear_float")


def test_a_tflite_bundle_runs_on_litert(tflite_bundle, tmp_path, monkeypatch):
    source, out = unpacked(LITERT, tmp_path / "core", monkeypatch), tmp_path / "site"
    write_site(tflite_bundle, out, runtime=source)
    found = json.loads((out / "config.json").read_text())
    assert found["runtime"] == {"name": "@litertjs/core", "version": LITERT.version, "folder": "runtime"}
    assert found["encoder"]["file"] == "model/encoder.tflite"
    assert sha256(out / "model/encoder.tflite") == tflite_bundle.artifact("encoder").sha256
    assert (out / "LICENSE.txt").read_bytes() == (PAGE.parents[3] / "LICENSE").read_bytes()
    # the one line that is changed names a file of the page
    text = (out / "runtime/index.js").read_text()
    assert text.startswith("// Changed by samexport")
    assert 'this is index.js, "../runtimes/litert_loader.js"' in text
    assert (out / "runtimes/litert_loader.js").is_file()


def test_bundles_that_the_page_cannot_run_are_refused(tiny_bundle, own_bundle):
    check_fit(tiny_bundle)

    def changed(**fields):
        return replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, **fields))

    artifacts = tiny_bundle.manifest.artifacts
    with pytest.raises(BundleError, match="is coreml; the page runs ONNX"):
        check_fit(changed(artifacts=tuple(replace(a, file_format="coreml") for a in artifacts)))
    with pytest.raises(BundleError, match="does not know how models of the family toy"):
        check_fit(changed(family="toy"))
    with pytest.raises(BundleError, match="no encoder or no decoder"):
        check_fit(changed(artifacts=artifacts[:1]))
    with pytest.raises(BundleError, match="2 GB"):
        check_fit(changed(files=tiny_bundle.manifest.files | {"encoder.onnx.data": "0" * 64}))
    (own_bundle.folder / "encoder.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        check_fit(own_bundle)


def test_a_runtime_of_another_version_or_without_a_file_is_refused(tiny_bundle, runtime, tmp_path):
    name = NAMES[0]
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
    assert (tmp_path / "site/runtime/ort.wasm.min.mjs").read_text() == "this is ort.wasm.min.mjs, "
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
