"""One way to load a model, and a bundle's weights again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from samexport.benchmarks.contenders.baselines import rebuild
from samexport.errors import CheckpointError, ConfigError
from samexport.models.catalog import find_model
from samexport.models.loading import load_model, reload_model, require_same
from samexport.models.weights import checkpoints

SPEC = find_model("test.vit64")


@pytest.fixture
def files(tmp_path):
    """A base model, and a few keys of a decoder that was trained further, with bare keys."""
    base, other = (load_model(SPEC, random_seed=seed)[0].state_dict() for seed in (7, 8))
    few = {k.removeprefix("mask_decoder."): v for k, v in other.items() if k.startswith("mask_decoder.transformer.")}
    torch.save(base, tmp_path / "base.pt")
    torch.save(few, tmp_path / "decoder.pt")
    return tmp_path / "base.pt", tmp_path / "decoder.pt"


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_a_model_has_its_weights_and_is_ready_to_run(files):
    sam, info = load_model(SPEC, files[:1])
    assert (info.kind, info.source, info.seed) == ("checkpoint", "base.pt", None)
    assert equal(sam, load_model(SPEC, random_seed=7)[0])
    assert not sam.training
    assert not any(p.requires_grad or p.is_meta for p in (*sam.parameters(), *sam.buffers()))


def test_loading_draws_no_weights_that_are_thrown_away(files, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "normal_", lambda *_: pytest.fail("weights were drawn"))
    load_model(SPEC, files[:1])


def test_a_bundle_with_a_decoder_of_its_own_is_loaded_again_from_its_files(files):
    base, decoder = files
    sam, info = load_model(SPEC, [base], decoder=decoder)
    assert not equal(sam, load_model(SPEC, [base])[0])
    assert equal(sam, reload_model(SPEC, info, [base], decoder))
    assert equal(sam, reload_model(SPEC, info, [base, decoder]))
    manifest = SimpleNamespace(model=SPEC.name, frame=SPEC.frame, weights=info, sampler=None)
    assert equal(sam, rebuild(manifest, [base, decoder])[1])
    with pytest.raises(ConfigError, match=r"made from base\.pt \+ decoder\.pt, not base\.pt"):
        rebuild(manifest, [base])
    with pytest.raises(CheckpointError, match="No such file"):
        rebuild(manifest, [base, decoder.with_name("absent.pt")])


def test_the_order_of_files_that_complete_each_other_does_not_matter(tmp_path):
    state = load_model(SPEC, random_seed=7)[0].state_dict()
    paths = [tmp_path / "encoder.pt", tmp_path / "rest.pt"]
    for path, wanted in zip(paths, (True, False), strict=True):
        torch.save({k: v for k, v in state.items() if k.startswith("image_encoder.") == wanted}, path)
    sam, info = load_model(SPEC, paths)
    assert equal(sam, reload_model(SPEC, info, paths[::-1]))


def test_random_weights_come_from_the_seed_or_from_a_file_with_the_same_numbers(files):
    sam, info = load_model(SPEC, random_seed=7)
    assert equal(sam, reload_model(SPEC, info))
    assert equal(sam, reload_model(SPEC, info, files[:1]))
    with pytest.raises(ConfigError, match=r"made from seed 8, not base\.pt \(sha256 none, not "):
        reload_model(SPEC, replace(info, source="seed 8", seed=8), files[:1])


def test_nothing_is_downloaded_for_a_bundle_of_other_weights(files, monkeypatch):
    _, info = load_model(SPEC, files[:1])
    for spec in (SPEC, find_model("tinyvit")):
        monkeypatch.setattr(checkpoints, "official_checkpoint", lambda spec: pytest.fail("asked for the official file"))
        with pytest.raises(ConfigError, match=r"made from base\.pt; give the files with --checkpoint"):
            reload_model(spec, info)


def test_other_weights_are_told_in_one_line_with_both_names_and_hashes(files):
    _, info = load_model(SPEC, files[:1])
    require_same(info, info)
    other = replace(info, sha256="0" * 64)
    with pytest.raises(ConfigError) as caught:
        require_same(other, info)
    message = str(caught.value)
    assert message.startswith("the bundle was made from base.pt, not base.pt (sha256 00000000, not ")
    assert info.sha256[:8] in message
    assert message.isprintable()


def test_what_was_not_trained_is_said_with_the_weights():
    spec = find_model("test.hiera64", features=["sparse-shortcut"])
    network, weights = load_model(spec, random_seed=7)
    assert not any(key.startswith("bypass.") for key in network.state_dict())
    assert weights.warning.startswith("RANDOM weights: its masks mean nothing; and a shortcut that is not trained")
    trained = replace(weights, kind="checkpoint")
    remarks = [each.remark for each in (weights, trained, replace(trained, untrained=""))]
    assert remarks == ["random weights", "not trained", ""]


def test_bypass_of_a_sparse_model_comes_from_a_file_of_its_own(tmp_path):
    spec = find_model("test.hiera128_sparse")
    state = load_model(spec, random_seed=7)[0].state_dict()
    own = {key.removeprefix("bypass."): value for key, value in state.items() if key.startswith("bypass.")}
    torch.save({"model": {key: value for key, value in state.items() if "bypass." not in key}}, tmp_path / "sam2.pt")
    torch.save(own, tmp_path / "bypass_bottleneck.pth")  # as it was published
    network, weights = load_model(spec, [tmp_path / "sam2.pt", tmp_path / "bypass_bottleneck.pth"])
    assert len(own) == 6
    assert weights.source == "sam2.pt + bypass_bottleneck.pth"
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    with pytest.raises(CheckpointError, match="it has no bypass"):
        load_model(spec, [tmp_path / "sam2.pt"])
