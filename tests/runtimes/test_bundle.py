import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from samexport.errors import BundleError
from samexport.files import read_json, to_json
from samexport.runtimes import bundle as bundles
from samexport.runtimes.bundle import MANIFEST, not_ours, open_bundle
from samexport.runtimes.parity.golden_files import load_golden


def test_the_manifest_survives_a_round_trip(tiny_bundle):
    text = (tiny_bundle.folder / MANIFEST).read_text()
    assert open_bundle(tiny_bundle.folder).manifest.to_json() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": true}', "null"])
def test_a_damaged_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="export the bundle again"):
        open_bundle(tmp_path)


def test_a_manifest_of_a_later_version_asks_for_a_newer_samexport(tmp_path):
    (tmp_path / MANIFEST).write_text('{"schema_version": 99}')
    with pytest.raises(BundleError, match=r"newer samexport \(schema version 99\); update this one"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", [MANIFEST, "encoder.onnx"])
def test_a_file_of_a_bundle_is_answered_with_its_folder(tiny_bundle, name):
    with pytest.raises(BundleError, match=rf"{name} is one file of a bundle; give the folder, .*tiny$"):
        open_bundle(tiny_bundle.folder / name)


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
    assert own_bundle.damaged_files() == {}
    (own_bundle.folder / "README.md").write_text("other")
    (own_bundle.folder / "decoder.onnx").unlink()
    assert [*own_bundle.damaged_files()] == ["README.md", "decoder.onnx"]


def test_an_unknown_graph_is_an_error_that_lists_the_known_ones(tiny_bundle):
    with pytest.raises(BundleError, match="encoder, decoder, decoder_with_mask"):
        tiny_bundle.open("prompt_sampler")


SCHEMA = Path(bundles.__file__).with_name("bundle.schema.json")


def test_the_schema_is_in_the_package_and_in_the_docs():
    assert SCHEMA.read_text() == to_json(bundles.json_schema())
    docs = Path(bundles.__file__).parents[2] / "docs" / SCHEMA.name
    assert docs.read_bytes() == SCHEMA.read_bytes()


@pytest.mark.parametrize("kind", ["tiny", "half", "coreml", "tflite", "sampler"])
def test_every_bundle_is_strict_json_that_fits_the_schema(kind, request):
    folder = request.getfixturevalue(f"{kind}_bundle").folder
    content = read_json(folder / MANIFEST)
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "schema_version": 1}, json.loads(SCHEMA.read_text()))


def test_a_manifest_tells_what_made_each_file_and_under_which_licence(sampler_bundle):
    by_graph = {a.graph: a for a in sampler_bundle.manifest.artifacts}
    assert by_graph["encoder"].licence == sampler_bundle.manifest.licence
    assert by_graph["prompt_sampler"].licence == sampler_bundle.manifest.sampler.licence
    assert set(by_graph["encoder"].made_with) == {"onnx", "onnxruntime", "onnxscript", "onnxslim"}


def test_what_a_later_version_adds_is_ignored(own_bundle):
    path = own_bundle.folder / MANIFEST
    content = json.loads(path.read_text())
    for place in (content, content["artifacts"][0], content["graphs"][0], content["frame"], content["parity"][0]):
        place["added_later"] = {"deep": [1]}
    path.write_text(json.dumps(content))
    assert open_bundle(own_bundle.folder).manifest == own_bundle.manifest


def put(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


WRONG = {
    "mask_outputs beyond the masks": put("mask_outputs", value=[99]),
    "mask_outputs of fractions": put("mask_outputs", value=[1.5]),
    "mask_outputs as text": put("mask_outputs", value="x"),
    "mask_outputs of lists": put("mask_outputs", value=[[]]),
    "no mask_outputs": put("mask_outputs", value=[]),
    **{f"frame of size {v!r}": put("frame", "size", value=v) for v in (-64, 10**9, "64", 64.5, None, 0, 40)},
    "a mean of two numbers": put("frame", "mean", value=[1, 2]),
    "a mean of text": put("frame", "mean", value=["a", "b", "c"]),
    "a std of zero": put("frame", "std", value=[0, 1, 1]),
    "an unknown dtype": put("graphs", 0, "inputs", 0, "dtype", value="float99"),
    "an unknown role": put("graphs", 0, "inputs", 0, "role", value="boss"),
    "a shape of zero": put("graphs", 0, "inputs", 0, "shape", value=[0]),
    "a huge shape": put("graphs", 0, "inputs", 0, "shape", value=[1 << 60]),
    "a graph that is null": put("graphs", 0, value=None),
    "graphs as text": put("graphs", value="encoder"),
    "a name with a path": put("model", value="../../evil"),
    "an absolute name": put("model", value="/tmp/evil"),
    **{f"path {v!r}": put("artifacts", 0, "path", value=v) for v in (5, None, "a\0b", "", "a" * 600)},
    "a format that is a list": put("artifacts", 0, "file_format", value=["onnx"]),
    "a negative size": put("artifacts", 0, "size", value=-1),
    "a sha256 that is none": put("artifacts", 0, "sha256", value="abc"),
    "files as a list": put("files", value=[]),
    "a verdict that is none": put("parity", 0, "verdict", value="GOOD"),
    "a seed as text": put("weights", "seed", value="7"),
    "another schema version": put("schema_version", value=3),
    "a schema version as text": put("schema_version", value="2"),
    "a range that ends below its beginning": lambda content: content["graphs"][0]["inputs"][0].update(low=1, high=0),
    "an axis that ends below its beginning": lambda content: content["graphs"][1]["axes"][0].update(low=9, high=2),
    "no check of its files": put("parity", value=[]),
}


@pytest.mark.parametrize("what", WRONG)
def test_every_known_value_is_checked_in_type_and_range(own_bundle, what):
    path = own_bundle.folder / MANIFEST
    content = json.loads(path.read_text())
    WRONG[what](content)
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError) as caught:
        open_bundle(own_bundle.folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_manifest_without_checks_says_that_nothing_is_verified(own_bundle):
    path = own_bundle.folder / MANIFEST
    path.write_text(to_json(json.loads(path.read_text()) | {"parity": []}))
    with pytest.raises(BundleError, match="not verified; export the bundle again"):
        open_bundle(own_bundle.folder)
    # as a benchmark's baselines are, which are no bundle that anyone exported
    path.write_text(to_json(json.loads(path.read_text()) | {"files": {}}))
    assert not open_bundle(own_bundle.folder).manifest.parity


def test_a_manifest_that_says_two_things_is_refused(own_bundle):
    path = own_bundle.folder / MANIFEST
    path.write_text('{"model": "other", ' + path.read_text().lstrip("{ \n"))
    with pytest.raises(BundleError, match="the key 'model' is there more than once"):
        open_bundle(own_bundle.folder)


def test_a_loop_of_links_is_outside(own_bundle):
    loop = own_bundle.folder / "loop"
    loop.symlink_to(loop)
    path = own_bundle.folder / MANIFEST
    content = json.loads(path.read_text())
    content["artifacts"][0]["path"] = "loop/encoder.onnx"
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(own_bundle.folder)


def test_a_manifest_that_is_a_device_is_refused(tmp_path):
    (tmp_path / MANIFEST).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(tmp_path)


def test_only_what_the_manifest_lists_may_be_replaced(own_bundle):
    assert not_ours(own_bundle.folder) == ""
    (own_bundle.folder / ".DS_Store").write_text("left by a file manager")
    assert not_ours(own_bundle.folder) == ""
    (own_bundle.folder / "golden" / "notes.txt").write_text("mine")
    assert "golden/notes.txt" in not_ours(own_bundle.folder)
    (own_bundle.folder / MANIFEST).write_text("[]")
    assert "did not write" in not_ours(own_bundle.folder)


def test_a_file_inside_a_listed_folder_may_not_be_lost(coreml_bundle, tmp_path):
    folder = shutil.copytree(coreml_bundle.folder, tmp_path / "copy")
    assert not_ours(folder) == ""
    (folder / "encoder.mlpackage" / "notes.txt").write_text("mine")
    assert "encoder.mlpackage" in not_ours(folder)


def test_each_file_of_a_graph_is_a_variant(own_bundle):
    first = own_bundle.artifact("decoder")
    second = replace(first, path="decoder.fp16.onnx", recipe="fp16")
    both = replace(own_bundle.manifest, artifacts=(*own_bundle.manifest.artifacts, second))
    variants = list(replace(own_bundle, manifest=both).variants())
    assert [v.artifact("decoder").path for v in variants] == ["decoder.onnx", "decoder.fp16.onnx"]
    assert {v.artifact("encoder").path for v in variants} == {"encoder.onnx"}


def test_a_bundle_from_before_axes_and_families_is_read_as_it_was_meant(own_bundle):
    known = load_golden(own_bundle.folder, own_bundle.manifest.frame).cases
    manifest = read_json(own_bundle.folder / MANIFEST)
    del manifest["family"]
    for key in ("resize", "filter", "padding", "white", "stride", "mask_stride"):
        del manifest["frame"][key]
    for graph in manifest["graphs"]:
        del graph["axes"]
        for tensor in (*graph["inputs"], *graph["outputs"]):
            del tensor["fill"]
    (own_bundle.folder / MANIFEST).write_text(json.dumps(manifest))
    cases = read_json(own_bundle.folder / "golden" / "cases.json")
    for case in cases["cases"]:
        del case["made"], case["later"]
    (own_bundle.folder / "golden" / "cases.json").write_text(json.dumps(cases))
    assert open_bundle(own_bundle.folder).manifest == own_bundle.manifest
    old = load_golden(own_bundle.folder, own_bundle.manifest.frame).cases
    assert {name: made.kind for case in old for name, made in case.made.items()} == {"image": "picture"}
    for before, case in zip(old, known, strict=True):
        assert all(np.array_equal(case.inputs[name], before.inputs[name]) for name in case.inputs)
