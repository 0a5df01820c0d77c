"""Encoders of SAM's decoder, and families with a decoder of their own, against the official code.

``encoders.npz`` has official outputs with the random weights of seed 7, float32 on a CPU: embeddings as ``[::16]``
on an 8x8 grid, stages as C, H, W on the same grid, logits on a coarse grid. ``encoder_keys.json`` has, for each
official checkpoint, the number of its tensors and a hash of their names, shapes and types.
"""

import hashlib
import json
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from PIL import Image

from samexport.models.architectures import efficient_vit
from samexport.models.architectures.sam import empty_sam
from samexport.models.architectures.sam_vit import SamViT
from samexport.models.build import build_graph
from samexport.models.catalog import find_family, find_model
from samexport.models.graphs.sam_vit import SamViTEncoder
from samexport.models.spec import Preprocess
from samexport.models.weights.random_weights import random_state_dict
from samexport.runtimes.host.frames import FrameMap, resize, to_frame
from samexport.runtimes.host.sam_prompts import stability
from tests.models import golden

VECTORS = "encoders.npz"
OFFICIAL = json.loads((golden.GOLDEN / "encoder_keys.json").read_text())
KEYS = {
    "edge_sam": "edge_sam",
    "edge_sam_3x": "edge_sam",
    "repvit_m2_3": "repvit_sam",
    "efficientvit_l0": "efficientvit_sam_l0",
    "efficientvit_l1": "efficientvit_sam_l1",
    "efficientvit_l2": "efficientvit_sam_l2",
    "efficientvit_xl0": "efficientvit_sam_xl0",
    "efficientvit_xl1": "efficientvit_sam_xl1",
    "nanosam_resnet18": "nanosam_resnet18",
    "slimsam_50": "slimsam_50_uniform",
    "slimsam_77": "slimsam_77_uniform",
    "hq_tinyvit": "sam_hq_vit_tiny",
    "hq_vit_b": "sam_hq_vit_b",
    "efficient_sam_ti": "efficient_sam_vitt",
    "efficient_sam_s": "efficient_sam_vits",
}


def empty(name):
    spec = find_model(name)
    return resolve_name(find_family(spec.family).network)(spec)


def random_network(name, keep=("",)):
    """With the weights of seed 7, of the parts that begin with one of ``keep``; others have no values."""
    network, spec = empty(name), find_model(name)
    tensors = {k: v for k, v in golden.tensors_of(network).items() if k.startswith(tuple(keep))}
    # NanoSAM's encoder was trained apart, and its vectors are those of its own names
    bare = {k.removeprefix("image_encoder.") if name == "nanosam_resnet18" else k: v for k, v in tensors.items()}
    state = random_state_dict(bare, 7, spec.gains)
    named = {k: torch.from_numpy(v) for k, v in zip(tensors, state.values(), strict=True)}
    network.load_state_dict(named, strict=False, assign=True)
    return network.eval().requires_grad_(False), state


def picture_of(file, name):
    """A golden picture in the model's frame, not yet normalised."""
    return torch.from_numpy(to_frame(np.array(Image.open(golden.GOLDEN / file)), find_model(name).frame))


def normalised(file, name):
    frame = find_model(name).frame
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (frame.mean, frame.std))
    return (picture_of(file, name) - mean) / std


def check_stages(seen, name, tolerance, rows=16):
    vectors = golden.read(VECTORS)
    for stage, found in seen.items():
        wanted = vectors[f"{name}.{stage}"]
        channels = -(-found.shape[1] // wanted.shape[0])
        step = found.shape[-1] // rows * 2
        golden.close(found[0, ::channels, ::step, ::step][: len(wanted)], wanted, tolerance * np.abs(wanted).max())
        golden.close(golden.stats(found[0]), vectors[f"{name}.{stage}.stats"], tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(("name", "official"), KEYS.items())
def test_names_shapes_and_types_equal_the_official_key_list(name, official):
    found = golden.tensors_of(empty(name))
    if name == "nanosam_resnet18":
        found = {k.removeprefix("image_encoder."): v for k, v in found.items() if k.startswith("image_encoder.")}
    lines = sorted(f"{key} {list(shape)} {dtype}" for key, (shape, dtype) in found.items())
    assert [len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()] == OFFICIAL["keys"][official]


def check_embedding(name, file, vectors_name, tolerance):
    """Export form and architecture; returns the network and its embedding."""
    network, state = random_network(name)
    official = "nanosam_resnet18" if name == "nanosam_resnet18" else KEYS[name]
    if name != "nanosam_resnet18":
        assert golden.checksum(state) == OFFICIAL["weights"][official]
    vectors, spec = golden.read(VECTORS), find_model(name)
    image = picture_of(file, name)
    for plain in (False, True):
        embedding = build_graph(network, spec, "encoder", plain=plain)[1](image)
        golden.close(embedding[0, ::16, ::8, ::8], vectors[f"{vectors_name}.embedding"], tolerance)
        golden.close(golden.stats(embedding[0]), vectors[f"{vectors_name}.embedding.stats"], tolerance)
    return network, embedding


def test_edge_sam():
    """The embedding, and the masks in the order of stability that its web demo goes by."""
    network, embedding = check_embedding("edge_sam", "repvit.png", "edge_sam", 2e-4)
    vectors = golden.read(VECTORS)
    # the resize of the export scripts is another one
    assert np.abs(vectors["edge_sam.bilinear"] - vectors["edge_sam.embedding.stats"]).max() > 0.005
    decoder = build_graph(network, find_model("edge_sam"), "decoder")[1]
    for case in ("one_click", "three_clicks", "box"):
        logits, _ = decoder(embedding, *golden.prompts_of(vectors, f"edge_sam.{case}"))
        found = stability(logits.numpy())
        golden.close(found, vectors[f"edge_sam.{case}.stability"], 5e-4)
        choice = 0 if case == "box" else found[0].argmax()
        assert choice == vectors[f"edge_sam.{case}.choice"]


def test_repvit_sam_up_to_its_first_stage():
    network, state = random_network("repvit_m2_3")
    assert golden.checksum(state) == OFFICIAL["weights"]["repvit_sam"]
    features = network.image_encoder.features
    mixer = features[1].token_mixer
    seen, _ = golden.watch({"mixer1": mixer, "block1": features[1], "stage0": features[7]})
    x = normalised("repvit.png", "repvit_m2_3")
    for block in features[:8]:
        x = block(x)
    check_stages(seen, "repvit", 2e-5)


def test_efficientvit_sam_sees_512_pixels_and_takes_points_of_1024():
    spec, vectors = find_model("efficientvit_l0"), golden.read(VECTORS)
    picture = np.array(Image.open(golden.GOLDEN / "efficientvit.png"))
    resized = np.ascontiguousarray(resize(picture, spec.frame))
    assert hashlib.sha256(resized.tobytes()).hexdigest() == str(vectors["efficientvit.resized_sha256"])
    place = FrameMap(picture.shape[:2], spec.frame)
    for case, key in (("one_click", "points"), ("box", "boxes")):
        given = vectors[f"efficientvit.{case}.{key}"].reshape(-1, 2)
        scaled = vectors[f"efficientvit.{case}.{key}_1024"].reshape(-1, 2)
        golden.close(place.to_frame(given), scaled, 1e-3)
    network, embedding = check_embedding("efficientvit_l0", "efficientvit.png", "efficientvit", 1e-4)
    decoder = build_graph(network, spec, "decoder")[1]
    for case in ("one_click", "box"):
        logits, scores = decoder(embedding, *golden.prompts_of(vectors, f"efficientvit.{case}"))
        golden.close(logits[:, 1:, ::21, ::21], vectors[f"efficientvit.{case}.multi.logits"], 5e-4)
        golden.close(scores[:, 1:], vectors[f"efficientvit.{case}.multi.iou"], 1e-5)


def test_every_layer_norm_of_efficientvits_decoder_has_the_smaller_eps():
    for name, eps in (("efficientvit_l0", 1e-6), ("tinyvit", 1e-5)):
        decoder = empty_sam(find_model(name)).mask_decoder
        assert {m.eps for m in decoder.modules() if isinstance(m, torch.nn.LayerNorm)} == {eps}


def test_linear_attention_is_a_weighted_mean_over_all_cells():
    torch.manual_seed(0)
    attention = efficient_vit.LiteMLA(32, 3).requires_grad_(False).eval()
    x = torch.randn(1, 32, 2, 3)
    here = attention.qkv(x)
    both = torch.cat([here, attention.aggreg[0](here)], 1).view(2, 3, 32, 6)
    heads = []
    for q, k, v in both:
        q, k = q.relu(), k.relu()
        rows = [sum((q[:, n] @ k[:, m]) * v[:, m] for m in range(6)) for n in range(6)]
        totals = [sum(q[:, n] @ k[:, m] for m in range(6)) for n in range(6)]
        heads.append(torch.stack([row / total for row, total in zip(rows, totals, strict=True)], dim=1))
    torch.testing.assert_close(attention(x), attention.proj(torch.stack(heads).view(1, 64, 2, 3)))


def test_nanosam_rounds_down_and_resizes_with_a_bicubic_filter():
    picture = np.array(Image.open(golden.GOLDEN / "nanosam.png"))
    resized = np.ascontiguousarray(resize(picture, find_model("nanosam").frame))
    wanted = str(golden.read(VECTORS)["nanosam.resized_sha256"])
    assert hashlib.sha256(resized.tobytes()).hexdigest() == wanted
    assert FrameMap((421, 640), find_model("nanosam").frame).inside == (673, 1024)
    assert FrameMap((421, 640), find_model("tinyvit").frame).inside == (674, 1024)
    check_embedding("nanosam_resnet18", "nanosam.png", "nanosam", 2e-4)


def test_a_pruned_vit_is_the_whole_one_without_the_channels_that_are_zero():
    """Unequal widths, which no published vector has: the whole network with zeros computes what the pruned one must."""
    torch.manual_seed(5)
    sizes = {"grid": 8, "window": 4, "out_channels": 16}
    heads, kept, hidden = 4, (4, 2, 6), (40, 72, 32)
    whole = SamViT(24, 3, heads, (2,), **sizes).eval().requires_grad_(False)
    inner = [heads * width for width in kept]
    slim = SamViT(24, 3, heads, (2,), **sizes, inner=inner, hidden=hidden).eval().requires_grad_(False)
    for parameter in whole.parameters():
        parameter.normal_(0, 0.3)
    state = whole.state_dict()
    for number, (width, units) in enumerate(zip(kept, hidden, strict=True)):
        block, chosen = whole.blocks[number], torch.randperm(6)[:width].sort().values
        channels = (torch.arange(heads)[:, None] * 6 + chosen).flatten()
        rows = torch.cat([channels + 24 * part for part in range(3)])
        gone = torch.ones(72, dtype=torch.bool)
        gone[rows] = False
        block.attn.qkv.weight[gone], block.attn.qkv.bias[gone] = 0, 0
        block.mlp.lin2.weight[:, units:] = 0
        # the pruned attention divides by the root of its own width
        scale = torch.ones(len(rows), 1)
        scale[: len(channels)] = (width / 6) ** 0.5
        name = f"blocks.{number}."
        state[name + "attn.qkv.weight"] = block.attn.qkv.weight[rows] * scale
        state[name + "attn.qkv.bias"] = block.attn.qkv.bias[rows] * scale[:, 0]
        state[name + "attn.proj.weight"] = block.attn.proj.weight[:, channels]
        for axis in "hw":
            table = getattr(block.attn, f"rel_pos_{axis}")
            state[name + f"attn.rel_pos_{axis}"] = table[:, chosen] / (width / 6) ** 0.5
        state[name + "mlp.lin1.weight"] = block.mlp.lin1.weight[:units]
        state[name + "mlp.lin1.bias"] = block.mlp.lin1.bias[:units]
        state[name + "mlp.lin2.weight"] = block.mlp.lin2.weight[:, :units]
    slim.load_state_dict(state)
    image = torch.rand(1, 3, 128, 128) * 255
    frame = Preprocess(128)
    normalised = (image - torch.tensor(frame.mean)[:, None, None]) / torch.tensor(frame.std)[:, None, None]
    expected = whole(normalised)
    torch.testing.assert_close(slim(normalised), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(SamViTEncoder(slim, frame)(image), expected, rtol=1e-4, atol=1e-4)


def test_slimsam_up_to_its_first_global_block():
    network, state = random_network("slimsam_77")
    assert golden.checksum(state) == OFFICIAL["weights"]["slimsam_77_uniform"]
    encoder, vectors = network.image_encoder, golden.read(VECTORS)
    x = encoder.patch_embed(normalised("slimsam.png", "slimsam_77")) + encoder.pos_embed
    for number, block in enumerate(encoder.blocks[:3]):
        x = block(x)
        if number in (0, 2):
            golden.close(x.permute(0, 3, 1, 2)[0, ::8, ::8, ::8], vectors[f"slimsam.blocks{number}"], 2e-4)
    golden.close(golden.stats(x.permute(0, 3, 1, 2)[0]), vectors["slimsam.blocks2.stats"], 2e-4)


def test_hq_sams_decoder():
    """Official code returns one mask: SAM's first, or the best of its next three, plus the one of high quality."""
    network, _ = random_network("hq_tinyvit", ("prompt_encoder.", "mask_decoder."))
    vectors, spec = golden.read(VECTORS), find_model("hq_tinyvit")
    drawn = np.random.default_rng(12).standard_normal((1, 64, 64, 160)).astype(np.float32)
    embedding = golden.synthetic_embeddings()
    features = network.mask_decoder.features(embedding, torch.from_numpy(drawn).permute(0, 3, 1, 2))
    for plain in (True, False):
        decoder = build_graph(network, spec, "decoder", plain=plain)[1]
        for case in ("one_click", "box"):
            logits, scores = decoder(embedding, features, *golden.prompts_of(vectors, f"hq.{case}"))
            best = 1 + int(scores[0, 1:].argmax())
            for kind, index in (("single", 0), ("multi", best)):
                wanted = vectors[f"hq.{case}.{kind}.logits"]
                golden.close(logits[:, index : index + 1, ::20, ::20], wanted, 2e-3)
                golden.close(scores[:, index : index + 1], vectors[f"hq.{case}.{kind}.iou"], 1e-4)


def test_efficient_sam_up_to_its_first_block():
    network, state = random_network("efficient_sam_ti")
    assert golden.checksum(state) == OFFICIAL["weights"]["efficient_sam_vitt"]
    vectors, encoder = golden.read(VECTORS), network.image_encoder
    image = normalised("efficientsam.png", "efficient_sam_ti")
    golden.close(image[0, :, 5::62, 3::62], vectors["efficientsam.input"], 1e-5)
    x = encoder.patch_embed(image)
    added = x + encoder.positions(64)
    block = encoder.blocks[0](added.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (64, 64))
    check_stages({"pos_added": added, "blocks0": block}, "efficientsam", 1e-4)


def test_efficient_sams_decoder():
    network, _ = random_network("efficient_sam_ti", ("prompt_encoder.", "mask_decoder."))
    vectors, embedding = golden.read(VECTORS), golden.synthetic_embeddings()
    for plain, case in ((True, "one_click"), (False, "one_click"), (True, "box"), (False, "three_clicks")):
        # the embedding of these cases is that of a picture of 1024 pixels
        points, labels = vectors[f"efficientsam.{case}.points"], vectors[f"efficientsam.{case}.labels"]
        coords, codes = torch.full((1, 6, 2), -1.0), torch.full((1, 6), -1.0)
        coords[:, : points.shape[1]], codes[:, : points.shape[1]] = torch.tensor(points), torch.tensor(labels).float()
        decoder = build_graph(network, find_model("efficient_sam_ti"), "decoder", plain=plain)[1]
        logits, scores = decoder(embedding, coords, codes)
        golden.close(logits[:, 1:, ::20, ::20], vectors[f"efficientsam.{case}.logits"], 1e-3)
        golden.close(scores[:, 1:], vectors[f"efficientsam.{case}.iou"], 1e-4)
