"""Layouts that load, files that are merged, and what does not fit."""

import hashlib
import logging
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samexport.errors import CheckpointError, ConfigError
from samexport.models.architectures.sam import Sam, empty_sam
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.models.weights import checkpoints
from samexport.models.weights.checkpoints import load_weights
from samexport.models.weights.random_weights import random_state_dict
from tests.models.golden import read
from tests.models.weights.small import EXPECTED, SPEC, STATE, assert_is_state, part, refusal, saved

COUNTER = "image_encoder.norm.num_batches_tracked"


@pytest.fixture
def notes(monkeypatch):
    """What reading checkpoints says, as it is said."""
    said = []
    monkeypatch.setattr(
        logging.getLogger(checkpoints.__name__), "warning", lambda *text: said.append(text[0] % text[1:])
    )
    return said


def empty_like(model, value=0.0):
    """A state dict of a model of the catalogue with one number everywhere."""
    return {k: torch.full(v.shape, value).to(v.dtype) for k, v in empty_sam(find_model(model)).state_dict().items()}


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


OTHER = {key: value + 1 for key, value in STATE.items()}
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 2)}}, "param_groups": [{"lr": 0.1}]}
# what the file holds, and what is said about it
LAYOUTS = {
    "plain": (STATE, ""),
    "parameters": ({k: nn.Parameter(v) if v.is_floating_point() else v for k, v in STATE.items()}, ""),
    "plain with an epoch beside": (STATE | {"epoch": 3, "name": "x", "step": torch.tensor(7)}, ""),
    "under model": ({"model": STATE, "epoch": 3, "optimizer": OPTIMIZER}, "took off 'model.'; left out optimizer"),
    "under state_dict": ({"state_dict": STATE}, "took off 'state_dict.'"),
    "under model_state_dict": ({"epoch": 3, "model_state_dict": STATE, "loss": 0.1}, "took off 'model_state_dict.'"),
    "under net": ({"net": STATE, "epoch": 1}, "took off 'net.'"),
    "nested twice": ({"model": {"state_dict": STATE}}, "took off 'model.state_dict.'"),
    "distributed": (prefixed("module."), "took off 'module.'"),
    "distributed under model": ({"model": prefixed("module.")}, "took off 'model.module.'"),
    "Lightning": (
        {"state_dict": prefixed("model."), "epoch": 7, "hyper_parameters": {"lr": 1e-4}, "callbacks": {}},
        "took off 'state_dict.model.'",
    ),
    "a module around it": (prefixed("sam."), "took off 'sam.'"),
    "two modules around it": (prefixed("net.sam_model."), "took off 'net.sam_model.'"),
    "compiled": (prefixed("_orig_mod."), "took off '_orig_mod.'"),
    "compiled and distributed": (prefixed("module._orig_mod."), "took off 'module._orig_mod.'"),
    "the encoder alone compiled": (
        {k.replace("image_encoder.", "image_encoder._orig_mod."): v for k, v in STATE.items()},
        "",
    ),
    "sharded and checkpointed inside": (
        {
            "_fsdp_wrapped_module." + k.replace("embed.", "embed._checkpoint_wrapped_module."): v
            for k, v in STATE.items()
        },
        "took off '_fsdp_wrapped_module.'",
    ),
    "DeepSpeed": ({"module": STATE, "global_steps": 3}, "took off 'module.'"),
    "some keys without the prefix": (prefixed("module.") | {"epoch_done": torch.tensor(3)}, "took off 'module.'"),
    "other modules beside": (
        prefixed("sam.") | {"loss.weight": torch.ones(3), "loss.bias": torch.ones(3)},
        "took off 'sam.'; left out loss",
    ),
    "parts in dictionaries": (
        {name: part(f"{name}.") for name in ("image_encoder", "prompt_encoder", "mask_decoder")},
        "",
    ),
    "bare parts in dictionaries": (
        {
            "encoder": part("image_encoder."),
            "PromtEncoder": part("prompt_encoder."),
            "MaskDecoder": part("mask_decoder."),
        },
        "took off 'encoder.', 'PromtEncoder.', 'MaskDecoder.'",
    ),
    "two that fit": ({"model": STATE, "model_ema": OTHER}, "took off 'model.'; 'model_ema.' would fit as well"),
    "two that fit in one dictionary": (
        prefixed("student.") | prefixed("teacher.", OTHER),
        "took off 'student.'; 'teacher.' would fit as well",
    ),
    "the same dictionary twice": ({"model": STATE, "state_dict": STATE}, "took off 'model.'"),
    "part of it once more": (
        {"ema": {"mask_decoder.iou_token.weight": torch.zeros(1, 4)}, "model": STATE},
        "took off 'model.'; 'ema.' would fit as well",
    ),
    "the pixels' values beside": (
        STATE
        | {
            "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
            "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
        },
        "",
    ),
    "the pixels' values on another scale, prefixed, in half precision": (
        prefixed("sam.") | {"sam.pixel_mean": torch.tensor([[[0.485]], [[0.456]], [[0.406]]]).bfloat16()},
        "took off 'sam.'",
    ),
    "without the counters": ({k: v for k, v in STATE.items() if "num_batches_tracked" not in k}, ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_state_and_what_was_done_is_said(tmp_path, layout, notes):
    content, note = LAYOUTS[layout]
    path = saved(tmp_path, content)
    weights = load_weights(SPEC, EXPECTED, checkpoints=[path])
    assert_is_state(weights, STATE if layout != "without the counters" else STATE | {COUNTER: torch.tensor(0)})
    assert (weights.kind, weights.source, weights.seed) == ("checkpoint", "weights.pt", None)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert notes == ([f"note: weights.pt: {note}"] if note else [])


@pytest.mark.parametrize("ending", ["pt", "PTH", "ckpt", "bin", "pth.tar", "safetensors", "model", ""])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_the_content_decides_not_the_ending(tmp_path, form, ending):
    path = tmp_path / f"weights.{ending}".rstrip(".")
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[path]))


def test_the_notes_reach_the_terminal_where_nobody_configured_logging(tmp_path):
    code = (
        "import torch; from pathlib import Path; from samexport.models.loading import load_model\n"
        "from samexport.models.catalog import find_model\n"
        f"load_model(find_model('test.vit64'), [Path({str(tmp_path / 'w.pt')!r})])"
    )
    model = {f"model.{key}": value for key, value in empty_like("test.vit64").items()}
    torch.save({"state_dict": model}, tmp_path / "w.pt")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "note: w.pt: took off 'state_dict.model.'\n"
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}, "pixel_mean [0.0, 0.0, 0.0]"),
        ({"pixel_mean": torch.tensor([103.53, 116.28, 123.675])}, "pixel_mean [103.53, 116.28, 123.675]"),
        ({"pixel_std": torch.tensor(58.395)}, "pixel_std [58.395]"),
        (
            {"pixel_mean": torch.tensor([0.485, 0.456, 0.406]), "pixel_std": torch.tensor([58.395, 57.12, 57.375])},
            "0.485",
        ),
        ({"pixel_mean": torch.full((3,), torch.nan)}, "nan"),
    ],
)
def test_other_pixel_values_are_refused_with_both(tmp_path, stored, reason):
    message = refusal(saved(tmp_path, STATE | stored))
    assert reason in message
    assert "mean [123.675, 116.28, 103.53] and std [58.395, 57.12, 57.375]" in message


@pytest.mark.parametrize("prefix", ["", "sam.", "module."])
def test_more_than_the_model_has_is_refused_though_it_stands_in_another_dictionary(tmp_path, prefix):
    # HQ-SAM, adapters and LoRA: the model computes something else
    for name in ("mask_decoder.hf_token.weight", "image_encoder.blocks.0.attn.qkv.linear_a_q.weight"):
        state = prefixed(prefix) | {prefix + name: torch.ones(2, 2)}
        for content in (state, {"model": state}):
            message = refusal(saved(tmp_path, content))
            assert f"1 unexpected ({name})" in message


def test_a_key_twice_with_other_values_is_refused(tmp_path):
    key = "mask_decoder.iou_token.weight"
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, STATE | {f"module.{key}": STATE[key]})]))
    message = refusal(saved(tmp_path, STATE | {f"module.{key}": STATE[key] + 1}))
    assert f"1 unexpected (module.{key} (twice))" in message


def test_deep_and_circular_dictionaries_end(tmp_path):
    inner = STATE
    for _ in range(50):
        inner = {"a": inner, "b": inner}
    with pytest.raises(CheckpointError, match="no tensors"):
        load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, inner)])
    circle = {"model": STATE}
    circle["again"] = circle
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, circle)]))


def test_the_old_torch_format_and_safetensors_give_the_same_state(tmp_path):
    old = saved(tmp_path, STATE, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(old)
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[old]))
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[tmp_path / "weights.safetensors"]))


def test_a_real_model_takes_its_own_checkpoint_strictly(tmp_path):
    spec = find_model("test.tinyvit64")
    model, other = Sam(spec), Sam(spec)
    path = saved(tmp_path, model.state_dict())
    other.load_state_dict(load_weights(spec, other.state_dict(), checkpoints=[path]).state, strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_counters_stay_integers(tmp_path, dtype):
    stored = {key: value.to(dtype) if value.is_floating_point() else value.int() for key, value in STATE.items()}
    expected = {key: value.to(STATE[key].dtype) for key, value in stored.items()}
    weights = load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, stored)])
    assert_is_state(weights, expected)


def test_a_bare_encoder_and_the_prompt_guided_decoder_make_a_model_in_either_order(tmp_path):
    encoder = saved(tmp_path, {"model": part("image_encoder."), "epoch": 9}, "encoder.pt")
    halves = {"PromtEncoder": part("prompt_encoder."), "MaskDecoder": part("mask_decoder.")}
    decoder = saved(tmp_path, halves, "decoder.pt")
    for paths in ([encoder, decoder], [decoder, encoder]):
        weights = load_weights(SPEC, EXPECTED, checkpoints=paths)
        assert_is_state(weights)
        assert weights.source == " + ".join(p.name for p in paths)
        assert weights.sha256 == " + ".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in paths)


def test_a_file_of_whole_parts_takes_their_place_in_an_earlier_one(tmp_path, notes):
    base = saved(tmp_path, STATE, "base.pt")
    for name in ("image_encoder.", "mask_decoder."):
        tuned = {key: value + 1 for key, value in part(name).items()}
        expected = STATE | prefixed(name, tuned)
        for content in (prefixed(name, tuned), tuned, {"model": prefixed(f"module.{name}", tuned)}):
            path = saved(tmp_path, content, "tuned.pt")
            weights = load_weights(SPEC, EXPECTED, checkpoints=[base, path])
            assert_is_state(weights, expected)
            assert weights.source == "base.pt + tuned.pt"
            assert notes[-1] == f"note: tuned.pt: took its {name[:-1]} instead of the other file's"
            assert "last the one that holds a whole part" in refusal([path, base])


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_decoder_of_its_own_replaces_exactly_what_it_holds(tmp_path, stored):
    base = saved(tmp_path, STATE, "base.pt")
    tuned = {key: (value + 1).to(stored) for key, value in part("mask_decoder.").items()}
    prompts = {key: (value + 2).to(stored) for key, value in part("prompt_encoder.").items()}
    decoder, encoder = prefixed("mask_decoder.", tuned), prefixed("prompt_encoder.", prompts)
    cases = {
        "bare": (tuned, decoder),
        "prefixed": (decoder, decoder),
        "wrapped": ({"state_dict": prefixed("model.mask_decoder.", tuned)}, decoder),
        "in a dictionary": ({"MaskDecoder": tuned, "epoch": 3}, decoder),
        "prompt encoder, bare": (prompts, encoder),
        "both": ({"PromtEncoder": prompts, "MaskDecoder": tuned}, decoder | encoder),
        "a whole model": (STATE | {"image_encoder.norm.running_mean": torch.zeros(3)} | decoder, decoder),
    }
    for name, (content, replaced) in cases.items():
        path = saved(tmp_path, content, "decoder.pt")
        weights = load_weights(SPEC, EXPECTED, checkpoints=[base], decoder=path)
        assert_is_state(weights, STATE | {key: value.float() for key, value in replaced.items()})
        assert weights.source == "base.pt + decoder.pt", name
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (base, path)]
        assert weights.sha256 == " + ".join(hashes)


def test_a_few_keys_of_the_decoder_alone_are_taken_too(tmp_path):
    spec = find_model("test.vit64")
    base, tuned = empty_like(spec.name, 1), empty_like(spec.name, 2)
    keys = [key for key in base if key.startswith("mask_decoder.output_hypernetworks_mlps.0.")]
    files = [saved(tmp_path, base, "base.pt"), saved(tmp_path, {key: tuned[key] for key in keys}, "few.pt")]
    state = load_weights(spec, base, checkpoints=files[:1], decoder=files[1]).state
    assert {key for key, value in state.items() if value.flatten()[0] == 2} == set(keys)
    with pytest.raises(CheckpointError, match="--decoder-checkpoint takes any keys of the decoder"):
        load_weights(spec, base, checkpoints=files)


def test_a_decoder_with_more_than_the_model_has_is_refused(tmp_path):
    base = saved(tmp_path, STATE, "base.pt")
    hq = prefixed("mask_decoder.", part("mask_decoder.")) | {"mask_decoder.hf_token.weight": torch.ones(1, 4)}
    with pytest.raises(CheckpointError, match=r"1 unexpected \(mask_decoder\.hf_token\.weight"):
        load_weights(SPEC, EXPECTED, checkpoints=[base], decoder=saved(tmp_path, hq, "hq.pt"))
    encoder = saved(tmp_path, part("image_encoder."), "encoder.pt")
    with pytest.raises(CheckpointError, match="no prompt encoder and no mask decoder"):
        load_weights(SPEC, EXPECTED, checkpoints=[base], decoder=encoder)


def test_what_no_graph_reads_does_not_decide(tmp_path):
    spec = find_model("test.tinyvit64")
    whole = empty_like(spec.name, 1.0)
    unread = [key for key in whole if key.startswith(spec.unread) or key.endswith("num_batches_tracked")]
    assert len(unread) > 20
    odd = dict(whole) | {key: torch.full((7, 3), torch.nan) for key in unread}
    without = {key: value for key, value in whole.items() if key not in unread}
    for name, state in {"odd": odd, "without": without, "whole": whole}.items():
        found = load_weights(spec, whole, checkpoints=[saved(tmp_path, state, f"{name}.pt")]).state
        assert all(found[key].shape == value.shape and found[key].isfinite().all() for key, value in whole.items())
        assert all(torch.equal(found[key], whole[key]) for key in without)
    lacking = {key: value for key, value in whole.items() if not key.endswith("running_mean")}
    with pytest.raises(CheckpointError, match="18 missing"):
        load_weights(spec, whole, checkpoints=[saved(tmp_path, lacking)])


@pytest.mark.parametrize("plain", [True, False])
def test_no_graph_reads_what_is_called_unread(plain):
    spec = find_model("test.tinyvit64")
    sam, _ = load_model(spec, random_seed=7)
    image = torch.full((1, 3, 64, 64), 100.0)
    before = build_graph(sam, spec, "encoder", plain=plain)[1](image)
    changed = 0
    for key, value in sam.state_dict().items():
        if key.startswith(spec.unread) or key.endswith("num_batches_tracked"):
            value.fill_(torch.nan if value.is_floating_point() else 9)
            changed += 1
    assert changed == 4 + 18
    assert torch.equal(build_graph(sam, spec, "encoder", plain=plain)[1](image), before)


def test_weights_of_another_model_of_the_catalogue_are_named(tmp_path):
    state = {f"module.{key}": value.half() for key, value in empty_like("tinyvit").items()}
    path = saved(tmp_path, {"model": state}, "a: b.pt")
    spec = find_model("test.vit64")
    with pytest.raises(CheckpointError, match="give --encoder tinyvit") as caught:
        load_weights(spec, empty_like(spec.name), checkpoints=[path])
    assert str(caught.value).startswith(f"{path} does not fit test.vit64: these are weights of mobilesam.tinyvit")


# ---------------------------------------------------------------- transformers


def transformers_state():
    """A SamModel of transformers 5.24 as large as test.vit64: its names and shapes, weights of seed 5."""
    rows = (row.split("\t") for row in read("transformers_sam.npz")["names"])
    shapes = {name: (tuple(int(n) for n in re.findall(r"\d+", shape)), "float32") for name, shape in rows}
    state = {key: torch.from_numpy(value) for key, value in random_state_dict(shapes, 5).items()}
    return state | {IMAGE_POSITIONS: state[POSITIONS].clone()}


IMAGE_POSITIONS = "shared_image_embedding.positional_embedding"
POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.mark.parametrize("absent", [None, IMAGE_POSITIONS, POSITIONS])
def test_a_checkpoint_of_transformers_computes_what_transformers_computes(tmp_path, absent, notes):
    golden = read("transformers_sam.npz")
    spec = find_model("test.vit64")
    path = tmp_path / "model.safetensors"
    save_file({key: value for key, value in transformers_state().items() if key != absent}, path)
    sam, _ = load_model(spec, [path])
    assert notes[-1] == "note: model.safetensors: translated the names of transformers"
    pixels = np.random.default_rng(3).standard_normal((1, 3, 64, 64)).astype(np.float32)
    coords, labels = torch.tensor([[[20.0, 30], [50, 10], [0, 0]]]), torch.tensor([[1.0, 0, -1]])
    with torch.inference_mode():
        embedding = sam.image_encoder(torch.from_numpy(pixels))
        masks, iou = build_graph(sam, spec, "decoder", plain=True)[1](embedding, coords, labels)
    np.testing.assert_allclose(embedding, golden["embedding"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(masks[..., ::2, ::2], golden["masks"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(iou, golden["iou"], rtol=0, atol=5e-5)


def test_transformers_names_may_be_wrapped_or_a_part_and_must_agree(tmp_path):
    spec = find_model("test.vit64")
    state = transformers_state()
    whole = saved(tmp_path, {"state_dict": prefixed("model.", state)}, "whole.pt")
    wanted = load_weights(spec, empty_like(spec.name), checkpoints=[whole]).state
    base = saved(tmp_path, empty_like(spec.name), "base.pt")
    for prefix in ("", "mask_decoder."):
        decoder = {
            prefix + key.removeprefix("mask_decoder."): value
            for key, value in state.items()
            if key.startswith("mask_decoder.")
        }
        path = saved(tmp_path, decoder, "decoder.pt")
        found = load_weights(spec, empty_like(spec.name), checkpoints=[base], decoder=path).state
        for key, value in found.items():
            assert torch.equal(value, wanted[key] if key.startswith("mask_decoder.") else torch.zeros_like(value)), key
    torn = saved(tmp_path, state | {IMAGE_POSITIONS: state[POSITIONS] + 1}, "torn.pt")
    with pytest.raises(CheckpointError, match="twice"):
        load_weights(spec, empty_like(spec.name), checkpoints=[torn])


# ---------------------------------------------------------------- what training leaves behind


def test_tensors_may_be_views_tied_or_in_another_memory_format(tmp_path):
    spec = find_model("test.vit64")
    sam = empty_like(spec.name)
    sam = {k: torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, (k, v) in enumerate(sam.items())}
    flat = torch.cat([value.flatten() for value in sam.values()])
    pieces = torch.split(flat, [value.numel() for value in sam.values()])
    layouts = {
        "views of one tensor": {k: p.view(v.shape) for (k, v), p in zip(sam.items(), pieces, strict=True)},
        "transposed": {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in sam.items()},
        "channels last": {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in sam.items()},
        "with gradients": {k: v.clone().requires_grad_() for k, v in sam.items()},
    }
    for name, state in layouts.items():
        model, _ = load_model(spec, [saved(tmp_path, state)])
        for key, value in model.state_dict().items():
            assert torch.equal(value, sam[key]), (name, key)
            assert value.is_contiguous()
            assert not value.requires_grad


def test_tensors_on_a_gpu_are_read_without_one(tmp_path):
    path = saved(tmp_path, STATE)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            moved = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1")
            archive.writestr(name, moved if name.endswith("data.pkl") else content)
    assert b"cuda:1" in path.read_bytes()
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[path]))


def test_the_state_of_an_optimizer_beside_may_be_anything(tmp_path):
    beside = {
        "optimizer": {"state": {0: {"exp_avg": torch.full((3, 2), torch.nan)}}},
        "scaler": {"scale": torch.tensor(torch.inf)},
        "rng": torch.zeros(5, dtype=torch.uint8),
        "sparse": {"x": torch.ones(2, 2).to_sparse()},
    }
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, {"model": STATE} | beside)]))


def test_half_a_model_says_which_keys_are_missing_and_asks_for_a_second_file(tmp_path):
    message = refusal(saved(tmp_path, part("image_encoder."), "encoder.pt"))
    assert "2 missing (prompt_encoder.no_mask_embed.weight, mask_decoder.iou_token.weight)" in message
    assert "no mask_decoder and no prompt_encoder: a second file is needed, repeat --checkpoint" in message
    assert "unexpected" not in message


def test_a_key_in_two_files_must_be_equal_in_both(tmp_path):
    whole = saved(tmp_path, STATE, "whole.pt")
    same = saved(tmp_path, part("image_encoder."), "same.pt")
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[whole, same]))
    other = {"patch_embed.weight": STATE["image_encoder.patch_embed.weight"] + 1}
    message = refusal([whole, saved(tmp_path, other, "other.pt")])
    assert "other.pt: image_encoder.patch_embed.weight has other values than in an earlier file" in message


def test_a_mismatch_names_and_counts_missing_unexpected_and_misshapen_keys(tmp_path):
    state = dict(STATE) | {f"extra.{n}": torch.ones(1) for n in range(5)}
    state["image_encoder.patch_embed.weight"] = torch.ones(2, 3)
    state["image_encoder.norm.running_mean"] = torch.ones(3, dtype=torch.int64)
    del state["mask_decoder.iou_token.weight"]
    message = refusal(saved(tmp_path, state))
    assert "weights.pt does not fit mobilesam.tinyvit" in message
    assert "1 missing (mask_decoder.iou_token.weight)" in message
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in message
    assert "image_encoder.patch_embed.weight float (2, 3), not float (3, 2)" in message
    assert "image_encoder.norm.running_mean integer (3,), not float (3,)" in message


def test_a_file_of_another_network_is_not_asked_for_a_second_one(tmp_path):
    message = refusal(saved(tmp_path, {"conv1.weight": torch.ones(2)}))
    assert "4 missing" in message
    assert "1 unexpected (conv1.weight)" in message
    assert "second" not in message


def test_random_weights_fit_and_say_so():
    weights = load_weights(SPEC, EXPECTED, random_seed=3)
    assert_is_state(weights)
    assert (weights.kind, weights.source, weights.sha256, weights.seed) == ("random", "seed 3", None, 3)


def test_random_weights_and_a_checkpoint_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="exclude each other"):
        load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, STATE)], random_seed=0)
