"""Export forms of every encoder, at 64 pixels, against their architectures."""

from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samexport.models.architectures import efficient_vit, rep_vit
from samexport.models.build import build_graph
from samexport.models.catalog import MODELS, find_family
from samexport.models.graphs import efficient_vit as efficient_vit_form
from samexport.models.graphs import nano_sam
from samexport.models.graphs import rep_vit as rep_vit_form
from samexport.models.graphs.layers import Bicubic
from samexport.models.weights.random_weights import random_state_dict
from samexport.runtimes.families.sam_cases import random_masks, random_prompts
from samexport.runtimes.parity.golden import structured_picture
from tests.models import golden

SMALL = [name for name, model in MODELS.items() if model.hidden and name not in ("test.tinyvit64", "test.vit64")]


def network_of(name):
    spec = MODELS[name]
    network = resolve_name(find_family(spec.family).network)(spec)
    state = random_state_dict(golden.tensors_of(network), 7, spec.gains)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=SMALL)
def model(request):
    return MODELS[request.param], network_of(request.param)


def inputs_of(graph, spec):
    """A picture, a normal embedding, valid prompts and masks, three of each."""
    rng = np.random.default_rng(5)
    made = {"image": structured_picture(rng, spec.frame.size)[: spec.frame.size, : spec.frame.size]}
    if made["image"].shape[:2] != (spec.frame.size, spec.frame.size):
        made["image"] = rng.integers(0, 256, (spec.frame.size, spec.frame.size, 3))
    made["image"] = made["image"].transpose(2, 0, 1)[None].astype(np.float32)
    made |= random_prompts(rng, spec.frame, 3, 6) | random_masks(rng, spec.frame, 3)
    if spec.family == "efficient_sam":
        made["point_labels"] = np.float32([[1, -1, -1, -1, -1, -1], [2, 3, 1, -1, -1, -1], [1] * 6])
    for tensor in graph.inputs:
        if tensor.name not in made:
            made[tensor.name] = rng.standard_normal(tensor.shape).astype(np.float32)
    return [torch.from_numpy(made[name]) for name in graph.input_names]


def outputs(module, given):
    found = module(*given)
    return found if isinstance(found, tuple) else (found,)


def test_every_export_form_equals_its_architecture(model):
    spec, network = model
    for name in resolve_name(find_family(spec.family).plain):
        graph, plain = build_graph(network, spec, name, plain=True)
        given = inputs_of(graph, spec)
        for small in (False, True):
            export = build_graph(network, spec, name, small=small)[1]
            for ours, wanted in zip(outputs(export, given), outputs(plain, given), strict=True):
                assert ((ours - wanted).abs().max() / (wanted.max() - wanted.min())).item() < 1e-5


def test_no_tensor_is_above_rank_4_and_no_batch_norm_is_left(model):
    spec, network = model
    for name in ("encoder",) if spec.family == "sam" else ("encoder", "decoder"):
        graph, export = build_graph(network, spec, name)
        program = torch.export.export(export, tuple(inputs_of(graph, spec)))
        assert golden.largest_rank(program) <= 4
        words = ("batch_norm", "group_norm", "upsample", "interpolate", "convolution_transpose", "conv_transpose")
        found = {str(node.target).split(".")[1] for node in program.graph.nodes if "aten." in str(node.target)}
        assert not [op for op in found if any(word in op for word in words)]


def test_halves_of_hq_sams_decoder_are_the_decoder():
    spec, network = MODELS["test.hq64"], network_of("test.hq64")
    graph, whole = build_graph(network, spec, "decoder", plain=True)
    given = dict(zip(graph.input_names, inputs_of(graph, spec), strict=True))
    prologue, step = (build_graph(network, spec, name)[1] for name in ("decoder_prologue", "decoder_step"))
    shared = prologue(given.pop("image_embeddings"))
    for ours, wanted in zip(step(*shared, *given.values()), whole(*inputs_of(graph, spec)), strict=True):
        assert ((ours - wanted).abs().max() / (wanted.max() - wanted.min())).item() < 1e-5


@pytest.mark.parametrize("mixer", [rep_vit.EdgeMixer, rep_vit.RepMixer])
def test_the_branches_of_a_mixer_are_one_convolution(mixer):
    torch.manual_seed(0)
    branches = mixer(8).double().eval().requires_grad_(False)
    for name, value in (*branches.named_parameters(), *branches.named_buffers()):
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.normal_()
    single = rep_vit_form._fused(branches)
    assert (single.kernel_size, single.groups) == ((3, 3), 8)
    x = torch.randn(1, 8, 5, 6)
    torch.testing.assert_close(single(x), branches(x.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(32, 64), (16, 64), (3, 6), (2, 8)])
def test_a_bicubic_resize_is_two_products(source, target):
    x = torch.randn(1, 3, source, source, generator=torch.manual_seed(0))
    wanted = F.interpolate(x.double(), (target, target), mode="bicubic", align_corners=False)
    torch.testing.assert_close(Bicubic(source, target)(x), wanted.float(), rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_is_one_convolution_and_a_rearrangement():
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose2d(3, 5, 3, 2, 1, 1)
    x = torch.randn(1, 3, 4, 6)
    torch.testing.assert_close(nano_sam.Doubled(conv)(x), conv(x), rtol=1e-5, atol=1e-5)


def attention(scale):
    """Linear attention on a 16x16 grid, and its input, which makes sums of about scale^2 x 1e4."""
    torch.manual_seed(0)
    module = efficient_vit.LiteMLA(64, 3).eval().requires_grad_(False)
    return module, scale * torch.randn(1, 64, 16, 16)


def test_linear_attention_stays_in_the_range_of_half_precision():
    """As published its sums leave it, and 1e-15 is 0 there."""
    module, x = attention(30)
    wanted = module(x)
    half, plain = (form.half() for form in (efficient_vit_form.Attention(module), attention(30)[0]))
    assert not plain(x.half()).isfinite().all()
    assert ((half(x.half()).float() - wanted).abs().max() / wanted.abs().max()).item() < 0.01


def test_linear_attention_of_nothing_is_nothing():
    module, x = attention(1)
    module.qkv.conv.weight.zero_()
    form = efficient_vit_form.Attention(module)
    for ours in (form(x), form.half()(x.half()).float()):
        torch.testing.assert_close(ours, module.float()(x), rtol=1e-3, atol=1e-3)
