import json

import pytest

from samexport.errors import BundleError
from samexport.runtimes.bundle import MANIFEST, open_bundle


def test_the_manifest_survives_a_round_trip(tiny_bundle):
    text = (tiny_bundle.folder / MANIFEST).read_text()
    assert open_bundle(tiny_bundle.folder).manifest.to_json() == text


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
    assert own_bundle.damaged_files() == {}
    (own_bundle.folder / "README.md").write_text("other")
    (own_bundle.folder / "decoder.onnx").unlink()
    assert [*own_bundle.damaged_files()] == ["README.md", "decoder.onnx"]


def test_an_unknown_graph_is_an_error_that_lists_the_known_ones(tiny_bundle):
    with pytest.raises(BundleError, match="encoder, decoder, decoder_with_mask"):
        tiny_bundle.open("prompt_sampler")
