"""SAM 2's checkpoints: the official wrapping, fine-tuned ones, 2.0 and 2.1."""

from dataclasses import replace

import pytest
import torch

from samexport.errors import CheckpointError
from samexport.models.architectures.sam2 import empty_sam2
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.models.weights import checkpoints
from tests.models.weights.small import saved

TEST = find_model("test.hiera64")


@pytest.fixture(scope="module")
def state():
    return load_model(TEST, random_seed=3)[0].state_dict()


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [("", {}), ("", {"optimizer": {"state": {}}, "epoch": 40, "steps": {"train": 7}}), ("module.", {"epoch": 1})],
)
def test_official_and_fine_tuned_files_load(state, prefix, beside, tmp_path):
    path = saved(tmp_path, {"model": {prefix + key: value for key, value in state.items()}, **beside})
    loaded = load_model(TEST, [path])[0].state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_what_nothing_reads_may_be_absent(state, tmp_path):
    path = saved(tmp_path, {key: value for key, value in state.items() if key != "no_mem_pos_enc"})
    assert load_model(TEST, [path])[0].no_mem_pos_enc.abs().sum() == 0


def test_a_decoders_own_file_leaves_encoder_and_memory_as_they_are(state, tmp_path):
    path = saved(tmp_path, {"model": state})
    tuned = saved(tmp_path, {"model": {key: value + 1 for key, value in state.items()}}, "tuned.pt")
    loaded = load_model(TEST, [path], decoder=tuned)[0].state_dict()
    changed = {key.split(".")[0] for key, value in state.items() if not torch.equal(loaded[key], value)}
    assert changed == {"sam_prompt_encoder", "sam_mask_decoder"}


def test_a_2_0_file_for_a_2_1_model_is_answered_with_the_name_to_use(tmp_path, monkeypatch):
    old = replace(TEST, name="test.old", hidden=False, size=replace(TEST.size, version="2.0"))
    monkeypatch.setattr(checkpoints, "MODELS", {TEST.name: TEST, old.name: old})
    state = load_model(old, random_seed=3)[0].state_dict()
    path = saved(tmp_path, {"model": state})
    with pytest.raises(CheckpointError, match=r"these are weights of test\.old; give --encoder old"):
        load_model(TEST, [path])
    assert load_model(old, [path])[0].size.timed_pointers is False


def test_the_two_versions_differ_in_what_2_1_added():
    new, old = (set(empty_sam2(find_model(name)).state_dict()) for name in ("hiera_t", "sam2_hiera_t"))
    assert new - old == {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
    assert not old - new
