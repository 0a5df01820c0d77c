"""Whose weights a file holds: synthetic files of every kind that people have, in their wrappings, without values."""

import collections
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samexport.errors import CheckpointError
from samexport.models.architectures.sam_vit import SamViT
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.models.weights.checkpoints import own_state, read_weights
from samexport.models.weights.identify import encoder_of, identify


def state(name, dtype=None):
    """Zeros; expanded from one number, and stored whole."""
    tensors = own_state(find_model(name)).items()
    return {k: torch.zeros(v.shape, dtype=dtype if dtype and v.is_floating_point() else v.dtype) for k, v in tensors}


def part(content, *prefixes):
    return {key: value for key, value in content.items() if key.startswith(prefixes)}


def prefixed(content, prefix):
    return {prefix + key: value for key, value in content.items()}


def bare(content, prefix):
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def without(content, key):
    return {name: value for name, value in content.items() if name != key}


DECODER = ("prompt_encoder.", "mask_decoder.")
MOVES = {"exp_avg": torch.zeros(4, 4), "step": torch.zeros(())}
FILES = {
    "fine-tuned.pth": (lambda: prefixed(state("tinyvit"), "module."), "tinyvit", "took off 'module.'"),
    "last.ckpt": (
        lambda: {"state_dict": prefixed(state("edge_sam", torch.float16), "model."), "optimizer_states": [{0: MOVES}]},
        "edge_sam",
        "took off 'state_dict.model.'",
    ),
    "compiled.pt": (lambda: {"model": prefixed(state("nanosam"), "_orig_mod.")}, "nanosam_resnet18", "_orig_mod"),
    "bf16.pt": (lambda: state("hq_tinyvit", torch.bfloat16), "hq_tinyvit", ""),
    "efficient_sam_vitt.pt": (lambda: {"model": state("efficient_sam_ti")}, "efficient_sam_ti", "took off 'model.'"),
    "slim.pth": (lambda: prefixed(state("slimsam_77"), "sam."), "slimsam_77", "took off 'sam.'"),
    "tinysam_42.3.pth": (lambda: state("tinysam"), "tinysam", ""),
    "edge_sam_3x.pth": (lambda: state("edge_sam"), "edge_sam_3x", ""),
    "repvit.pt": (lambda: {"epoch": 3, "ema": state("repvit_m2_3")}, "repvit_m2_3", "took off 'ema.'"),
    "weights.safetensors": (lambda: state("efficientvit_l0"), "efficientvit_l0", ""),
}


def saved(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_whole_model_is_recognised_in_its_wrapping(name, tmp_path):
    make, encoder, note = FILES[name]
    path = saved(tmp_path / name, make())
    found = identify(path)
    assert (found.models[0], found.complete) == (encoder, True)
    assert note in "; ".join(found.notes)
    assert (found.missing, found.unknown, found.differing) == ((), (), ())
    assert all(part.present == part.needed for part in found.parts)
    assert found.command == f"samexport export {encoder} --format onnx --checkpoint {path}"
    assert encoder_of(path) == encoder
    assert found.licence == find_model(encoder).licence


def test_models_with_the_same_network_are_all_named(tmp_path):
    found = identify(saved(tmp_path / "x.pt", state("tinyvit")))
    assert found.models == ("tinyvit", "tinysam")


def test_an_encoder_alone_needs_a_second_file(tmp_path):
    found = identify(saved(tmp_path / "x.pt", bare(state("tinyvit"), "image_encoder.")))
    assert found.models[0] == "tinyvit"
    assert [part.present == part.needed for part in found.parts] == [True, False, False]
    assert found.command.endswith("--checkpoint FILE_WITH_PROMPT_ENCODER_AND_MASK_DECODER")


def test_a_decoder_alone_is_a_decoder_of_every_model_of_the_family(tmp_path):
    found = identify(saved(tmp_path / "x.pt", part(state("tinyvit"), *DECODER)))
    assert {"tinyvit", "vit_b", "edge_sam", "nanosam_resnet18"} <= set(found.models)
    assert "hq_tinyvit" not in found.models
    assert "--decoder-checkpoint" in found.command


def test_what_is_missing_and_unknown_is_named(tmp_path):
    content = without(state("edge_sam"), "image_encoder.neck.0.weight") | {"image_encoder.extra": torch.zeros(3)}
    path = saved(tmp_path / "x.pt", content)
    found = identify(path)
    assert (found.models[0], found.complete, found.command) == ("edge_sam", False, "")
    assert found.missing == ("image_encoder.neck.0.weight",)
    assert found.unknown == ("image_encoder.extra",)
    with pytest.raises(CheckpointError, match="samexport inspect"):
        encoder_of(path)


def test_a_file_of_something_else_is_nobodys(tmp_path):
    path = saved(tmp_path / "x.pt", {"layer.weight": torch.zeros(3, 4)})
    assert identify(path).models == ()
    with pytest.raises(CheckpointError, match="not recognised"):
        encoder_of(path)
    with pytest.raises(CheckpointError, match="no tensors"):
        identify(saved(tmp_path / "y.pt", {"a": 1}))


def pruned(inner, hidden):
    """A SlimSAM of three blocks whose widths are nobody's, and its decoder."""
    encoder = SamViT(24, 3, 4, (2,), grid=64, inner=inner, hidden=hidden)
    return prefixed(encoder.state_dict(), "image_encoder.") | part(state("tinyvit"), *DECODER)


def test_pruned_widths_are_those_of_the_file(tmp_path):
    path = saved(tmp_path / "x.pt", pruned((16, 8, 24), (40, 72, 32)))
    assert identify(path).models == ("slimsam",)
    network, _ = load_model(find_model("slimsam"), [path])
    blocks = network.image_encoder.blocks
    assert [block.attn.proj.in_features for block in blocks] == [16, 8, 24]
    assert [block.mlp.lin1.out_features for block in blocks] == [40, 72, 32]
    assert [block.window for block in blocks] == [14, 14, 0]
    assert {block.attn.heads for block in blocks} == {4}
    assert [block.attn.scale for block in blocks] == [4**-0.5, 2**-0.5, 6**-0.5]


def test_widths_beyond_any_model_are_refused(tmp_path):
    content = pruned((16, 8, 24), (40, 72, 32))
    one = torch.zeros(1)
    content["image_encoder.blocks.0.mlp.lin1.weight"] = one.expand(1 << 20, 24)
    path = saved(tmp_path / "x.pt", content)
    with pytest.raises(CheckpointError, match="beyond any"):
        load_model(find_model("slimsam"), [path])


SCRIPT = """
import sys, types, torch
from torch import nn
from samexport.models.architectures.sam_vit import SamViT

def package(name, **classes):
    module = types.ModuleType(name)
    sys.modules[name] = module
    for key, made in classes.items():
        made.__module__, made.__qualname__ = name, key
        setattr(module, key, made)

class Sam(nn.Module): pass
class ImageEncoderViT(nn.Module): pass
class Split(nn.Module): pass
for name in ("segment_anything_kd", "segment_anything_kd.modeling"): package(name)
package("segment_anything_kd.modeling.sam", Sam=Sam)
package("segment_anything_kd.modeling.image_encoder", ImageEncoderViT=ImageEncoderViT, Attention=Split)

def copied(source, kind):
    made = kind()
    for name, value in source.named_parameters(recurse=False):
        made.register_parameter(name, value)
    for name, child in source.named_children():
        made.add_module(name, split(child) if name == "attn" else copied(child, ImageEncoderViT))
    return made

def split(attention):
    made = copied(attention, Split)
    del made.qkv
    rows = attention.qkv.weight.shape[0] // 3
    for number, name in enumerate("qkv"):
        layer = nn.Linear(24, rows)
        layer.weight = nn.Parameter(attention.qkv.weight[number * rows:(number + 1) * rows].detach().clone())
        layer.bias = nn.Parameter(attention.qkv.bias[number * rows:(number + 1) * rows].detach().clone())
        setattr(made, name, layer)
    return made

torch.manual_seed(0)
encoder = SamViT(24, 3, 4, (2,), grid=4, inner=(16, 8, 24), hidden=(40, 72, 32))
torch.save(encoder.state_dict(), sys.argv[2])
sam = Sam()
sam.image_encoder = nn.DataParallel(copied(encoder, ImageEncoderViT))
sam.image_encoder.module.forward = sam.image_encoder.module.eval
sam.prompt_encoder = nn.Sequential()
torch.save(sam, sys.argv[1])
"""


def test_a_whole_pickled_model_is_read_without_its_code(tmp_path):
    """As SlimSAM's global files: wrapped for several GPUs, q, k and v apart, with a bound method inside."""
    whole, plain = tmp_path / "whole.pth", tmp_path / "plain.pth"
    subprocess.run([sys.executable, "-c", SCRIPT, whole, plain], check=True)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(whole, weights_only=True)
    found = {k.removeprefix("image_encoder.module."): v for k, v in read_weights(whole).content.items()}
    wanted = torch.load(plain, weights_only=True)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert "segment_anything_kd" not in sys.modules


def test_a_pickled_model_that_asks_for_anything_else_is_refused(tmp_path):
    module = types.ModuleType("evil")
    made = type("Thing", (nn.Module,), {"__module__": "evil", "__qualname__": "Thing"})
    module.Thing = made
    sys.modules["evil"] = module
    try:
        torch.save(made(), tmp_path / "x.pt")
    finally:
        del sys.modules["evil"]
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_weights(tmp_path / "x.pt")


def test_an_ordered_dictionary_is_a_state_dict(tmp_path):
    path = saved(tmp_path / "x.pt", collections.OrderedDict(state("efficient_sam_s")))
    assert identify(path).models == ("efficient_sam_s",)
