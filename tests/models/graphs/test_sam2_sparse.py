"""Export forms of Efficient-SAM2 against its architecture."""

import numpy as np
import pytest
import torch

from samexport.models.architectures.hiera import HieraSize
from samexport.models.architectures.sam2 import Sam2, Sam2Size
from samexport.models.architectures.sam2_sparse import Bypass, RoutedEncoder
from samexport.models.architectures.sam2_sparse import PrunedMemoryAttention as Reference
from samexport.models.families.sam2 import Sam2Numbers, all_graphs
from samexport.models.families.sam2_sparse import Cut
from samexport.models.graphs.sam2_plain import PlainTrackedDecoder
from samexport.models.graphs.sam2_sparse import PrunedMemoryAttention, Routed, SalientDecoder, Stem, Tail
from samexport.models.graphs.sam2_sparse_plain import (
    PlainPrunedAttention,
    PlainRouted,
    PlainSalientDecoder,
    PlainStem,
    PlainTail,
)
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.host.windows import Windows
from tests.models import sam2_golden
from tests.models.graphs.test_decoder import assert_equal_within
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures

BLOCKS = {"blocks": (1, 1, 6, 1), "global_blocks": (4, 7)}
# a map of 8 x 8: four windows that fit, or four of 6 x 6 that reach beyond it
SIZES = {
    "whole": Sam2Size(HieraSize(16, 1, **BLOCKS, windows=(8, 4, 4, 2)), 128, 64, 64),
    "padded": Sam2Size(HieraSize(16, 1, **BLOCKS, windows=(8, 4, 6, 3)), 128, 64, 64),
}


@pytest.fixture(scope="module", params=SIZES)
def sparse(request):
    """The model, its bypass, and the form of each graph."""
    size = SIZES[request.param]
    model = sam2_golden.randomise(Sam2(size))
    torch.manual_seed(0)
    bypass = model.bypass = Bypass(size.trunk.widths[2]).eval().requires_grad_(False)
    forms = {
        "encoder_stem": Stem(model),
        "encoder_routed": Routed(model),
        "encoder_tail": Tail(model),
        "memory_attention_pruned": PrunedMemoryAttention(model, chunk=24),
        "mask_decoder_salient": SalientDecoder(model),
    }
    return model, bypass, {name: form.eval() for name, form in forms.items()}


def windows_of(model):
    return Windows(model.size.image_size // 16, model.size.trunk.windows[2])


def graphs_of(model):
    cut = Cut(windows_of(model).window, model.size.trunk.widths[2])
    graphs = all_graphs(model.size.image_size, Sam2Numbers("", model.size.width, cut=cut))
    return {graph.name: graph for graph in graphs}


def picture(model):
    side = model.size.image_size
    return 255 * torch.from_numpy(np.random.default_rng(3).random((1, 3, side, side), np.float32))


@pytest.mark.parametrize("chosen", [[2], [0, 3], [0, 1, 2, 3]])
def test_three_parts_are_the_routed_encoder(sparse, chosen):
    model, bypass, forms = sparse
    image, chosen = picture(model), torch.tensor(chosen)
    high, middle, vision = RoutedEncoder(model.image_encoder, bypass, model.size.trunk)(
        sam2_golden.normalised(image / 255), chosen
    )
    s0, s1, windows, merged = forms["encoder_stem"](image)
    merged = merged.clone()
    inside = torch.from_numpy(windows_of(model).inside.astype(np.float32))
    merged[chosen] = forms["encoder_routed"](windows[chosen], inside[chosen])
    embedding, found = forms["encoder_tail"](merged)
    decoder = model.sam_mask_decoder
    assert_equal_within([s0, s1], [decoder.conv_s0(high), decoder.conv_s1(middle)], 1e-4)
    assert_equal_within([found, embedding], [vision, model.without_memory(vision)], 1e-4)


def test_without_a_bypass_windows_go_on_as_they_are(sparse):
    model, bypass, forms = sparse
    *fine, windows, _ = forms["encoder_stem"](picture(model))
    model.bypass = None
    try:
        alone = [Stem(model).eval()(picture(model)), PlainStem(model)(picture(model))]
        merged = PlainTail(model).routed.bypass(windows)
    finally:
        model.bypass = bypass
    for found in alone:
        assert_equal_within(list(found), [*fine, windows], 1e-4)
    assert merged is windows


def test_rows_that_are_no_windows_change_nothing(sparse):
    model, _, forms = sparse
    windows = forms["encoder_stem"](picture(model))[2]
    inside = torch.from_numpy(windows_of(model).inside.astype(np.float32))
    rows = torch.tensor([1, 2])
    expected = forms["encoder_routed"](windows[rows], inside[rows])
    filled, nowhere = (torch.cat([each[rows], torch.zeros_like(each[:2])]) for each in (windows, inside))
    assert_equal_within([forms["encoder_routed"](filled, nowhere)[:2]], [expected], 1e-5)
    assert (forms["encoder_routed"](filled, torch.ones_like(nowhere))[:2] - expected).abs().max() > 1e-3


def remembered(objects, whole, old, kept, pointers):
    """Inputs of memory attention: ``whole`` memories, and the kept tokens of ``old`` ones [objects, old, 64, 64]."""
    rng = np.random.default_rng(objects + whole + old)
    memories = rng.standard_normal((objects, old, 64, 64))
    cells = np.stack([np.sort(rng.permutation(64)[:kept]) for _ in range(objects * 4 * old)])
    cells = cells.reshape(objects, 4, old, kept)
    at = np.arange(objects)[:, None, None, None], np.arange(old)[:, None]
    arrays = {
        "vision": rng.standard_normal((1, 64, 8, 8)),
        "newest": rng.standard_normal((objects, 64, 64)),
        "memory": rng.standard_normal((objects, whole, 64, 64)),
        "memory_row": np.tile([6.0, *range(5, 0, -1)][:whole], (objects, 1)),
        "kept": memories[(*at, cells)].reshape(objects, 4, old * kept, 64),
        "kept_cell": cells.reshape(objects, 4, old * kept),
        "kept_row": np.tile(np.repeat(np.arange(old, 0, -1), kept), (objects, 1)),
        "pointers": rng.standard_normal((objects, pointers, 64)),
        "pointer_age": np.tile(np.linspace(0.1, 1, pointers), (objects, 1)),
        "pointer_present": np.ones((objects, pointers)),
    }
    given = {k: torch.from_numpy(v if k == "kept_cell" else v.astype(np.float32)) for k, v in arrays.items()}
    return given, torch.from_numpy(memories.astype(np.float32))


def reference(model, given, memories, item):
    """The architecture on whole memories, of which it reads those tokens."""
    whole = zip(given["memory"][item], given["memory_row"][item].tolist(), strict=True)
    old = memories.shape[1]
    bank = [*whole, *zip(memories[item], range(old, 0, -1), strict=True), (given["newest"][item], 0)]
    seen = [model.memory_tokens(cells.T.reshape(1, 64, 8, 8), int(row)) for cells, row in bank]
    made = [pointer[None] for pointer in given["pointers"][item]]
    pointers, times = model.pointer_tokens(made, given["pointer_age"][item].tolist(), 1)
    memory = torch.cat([tokens for tokens, _ in seen] + [pointers], dim=1)
    places = torch.cat([place for _, place in seen] + [times], dim=1)
    first = len(bank) - 1 - old
    kept = [
        torch.cat([
            torch.arange(64 * first),
            *(64 * (first + i) + cells for i, cells in enumerate(layer.view(old, -1))),
            torch.arange(64 * (first + old), 64 * len(bank)),
        ])
        for layer in given["kept_cell"][item]
    ]  # fmt: skip
    attention = Reference(model.memory_attention)
    return attention(given["vision"], memory, places, pointers.shape[1], kept, len(bank) - 1)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1, 1, 5, 7, 6), (2, 3, 1, 5, 2)])
def test_pruned_attention_is_the_architecture(sparse, sizes):
    model, _, forms = sparse
    given, memories = remembered(*sizes)
    found, saliency = forms["memory_attention_pruned"](**given)
    for item in range(sizes[0]):
        expected = reference(model, given, memories, item)
        assert_equal_within([found[item : item + 1], saliency[item]], expected, 1e-4)


@torch.no_grad()
def test_absent_slots_change_nothing(sparse):
    _, _, forms = sparse
    given, _ = remembered(1, 1, 2, 7, 3)
    found = forms["memory_attention_pruned"](**given)
    padded = dict(given)
    for name, fill in (("memory", 3), ("memory_row", -1)):
        value = given[name]
        padded[name] = torch.cat([value, torch.full_like(value[:, :1], fill)], dim=1)
    padded["kept"] = torch.cat([given["kept"], torch.full((1, 4, 5, 64), 2.0)], dim=2)
    padded["kept_cell"] = torch.cat([given["kept_cell"], torch.zeros(1, 4, 5, dtype=torch.int64)], dim=2)
    padded["kept_row"] = torch.cat([given["kept_row"], torch.full((1, 5), -1.0)], dim=1)
    assert_equal_within(list(forms["memory_attention_pruned"](**padded)), list(found), 1e-5)


@torch.no_grad()
def test_decoder_tells_where_it_looked(sparse):
    model, _, forms = sparse
    generator = torch.Generator().manual_seed(0)
    embedding, s0, s1 = (
        torch.randn(*shape, generator=generator) for shape in ((2, 64, 8, 8), (1, 8, 32, 32), (1, 16, 16, 16))
    )
    *decoded, saliency = forms["mask_decoder_salient"](embedding, s0, s1)
    transformer, weights = model.sam_mask_decoder.transformer, []

    def note(attention, args):
        q, k = (
            projection(x).unflatten(-1, (8, -1)).transpose(1, 2)
            for projection, x in ((attention.q_proj, args[0]), (attention.k_proj, args[1]))
        )
        weights.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)[:, :, :7].mean((1, 2)))

    watched = [layer.cross_attn_token_to_image for layer in transformer.layers]
    hooks = [each.register_forward_pre_hook(note) for each in (*watched, transformer.final_attn_token_to_image)]
    expected = PlainTrackedDecoder(model)(embedding, s0, s1)
    for hook in hooks:
        hook.remove()
    assert_equal_within(decoded, expected, 1e-4)
    assert_equal_within([saliency.flatten(1)], [torch.stack(weights).mean(0)], 1e-4)


PLAIN = {
    "encoder_stem": PlainStem,
    "encoder_routed": PlainRouted,
    "encoder_tail": PlainTail,
    "memory_attention_pruned": PlainPrunedAttention,
    "mask_decoder_salient": PlainSalientDecoder,
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_form_computes_what_the_export_form_computes(sparse, name):
    model, _, forms = sparse
    graph, plain = graphs_of(model)[name], PLAIN[name](model)
    for inputs in inputs_of(model, graph):
        if "memory_row" in inputs and len(inputs["memory_row"]) > 1:
            inputs["memory_row"][1, -1] = inputs["kept_row"][0, -1] = -1
            inputs["pointer_present"][1, 0] = 0
        found, expected = (PyTorchRuntime(form, graph).run(inputs) for form in (forms[name], plain))
        for output, wanted in expected.items():
            assert np.abs(found[output] - wanted).max() <= 1e-4 * max(np.ptp(wanted), 0.1), output


def inputs_of(model, graph):
    """Of the smallest sizes and of others."""
    if graph.name == "memory_attention_pruned":
        for sizes in ((1, 1, 1, 1, 1), (2, 2, 3, 6, 5)):
            yield {name: value.numpy() for name, value in remembered(*sizes)[0].items()}
        return
    rng = np.random.default_rng(0)
    for count in (1, 3):
        shapes = {t.name: [count if isinstance(d, str) else d for d in t.shape] for t in graph.inputs}
        drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        if "inside" in drawn:
            drawn["inside"] = windows_of(model).inside[-count:].astype(np.float32)
        yield drawn
