"""SAM 2's export forms against its architecture, and the tiny model's against the official vectors."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samexport.models.architectures import sam2
from samexport.models.architectures.hiera import HieraSize
from samexport.models.architectures.sam2 import Features, Sam2, Sam2Size
from samexport.models.families.sam2 import VIDEO_GRAPHS, fixed, sam2_constants, sam2_graphs, sam2_module
from samexport.models.graphs import sam2 as sam2_modules
from samexport.models.graphs.sam2_encoder import Sam2ImageEncoder
from samexport.models.graphs.sam2_memory import Sam2MemoryAttention
from samexport.models.graphs.sam2_plain import PlainImageEncoder, PlainMemoryAttention
from samexport.runtimes.adapters.entry_points import Bucket, pad_prompts
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from tests.models import golden, sam2_golden
from tests.models.graphs.test_decoder import assert_equal_within
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures

# the official numbers of blocks, heads and windows with narrow channels; large has maps that need no padding
SIZES = {
    "test": sam2.TEST,
    "test at 96 pixels": replace(sam2.TEST, image_size=96),
    "tiny": Sam2Size(replace(sam2.TINY.trunk, width=16), 128, 64, 128),
    "small": Sam2Size(replace(sam2.SMALL.trunk, width=16), 128, 64, 128),
    "base+": Sam2Size(replace(sam2.BASE_PLUS.trunk, width=16), 256, 64, 128),
    "large": Sam2Size(replace(sam2.LARGE.trunk, width=16), 256, 64, 128),
    "large at 160 pixels": Sam2Size(replace(sam2.LARGE.trunk, width=16), 160, 64, 128),
    "global blocks alone": Sam2Size(HieraSize(16, 1, (1, 1, 1, 1), (0,), windows=(8, 4, 2, 1)), 64, 64, 128),
}


FORMS = {"exported": sam2_modules.FORMS, "plain": sam2_modules.PLAIN_FORMS}


def build(size):
    return sam2_golden.randomise(Sam2(size))


@pytest.fixture(scope="module")
def small():
    return build(sam2.TEST)


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def features():
    return Features(drawn(0, 1, 8, 16, 16), drawn(1, 1, 16, 8, 8), drawn(2, 1, 64, 4, 4))


@pytest.mark.parametrize("name", SIZES)
def test_encoder_gives_what_the_architecture_gives(name):
    model = build(SIZES[name])
    side = model.size.image_size
    image = 255 * torch.from_numpy(np.random.default_rng(3).random((1, 3, side, side), np.float32))
    expected = model.features(sam2_golden.normalised(image / 255))
    embed = model.without_memory(expected.vision)
    for form in (Sam2ImageEncoder, PlainImageEncoder):
        assert_equal_within(form(model)(image), (embed, expected.s0, expected.s1, expected.vision))


def test_global_attention_in_chunks_is_the_same(small):
    image, whole, chunked = drawn(0, 1, 3, 64, 64), Sam2ImageEncoder(small), Sam2ImageEncoder(small)
    for block in chunked.blocks:
        block.attention.chunk = 5
    assert_equal_within(chunked(image), whole(image))


def heads(model, decoded):
    return decoded.masks, decoded.iou, decoded.object_score, model.obj_ptr_proj(decoded.tokens)


def slots():
    """Prompts as the architecture takes them, and as the graph does: a padding point, then absent slots."""
    points = 64 * torch.from_numpy(np.random.default_rng(5).random((3, 2, 2), np.float32))
    labels = torch.tensor([[1.0, 0.0], [2.0, 3.0], [1.0, -1.0]])
    absent = torch.tensor([[-1.0, -2.0, -2.0]]).expand(3, 3)
    return (points, labels), (F.pad(points, (0, 0, 0, 3), value=9.0), torch.cat([labels, absent], dim=1))


@pytest.mark.parametrize("form", FORMS)
def test_decoder_gives_what_the_architecture_gives_whatever_is_in_absent_slots(small, form):
    seen, (given, packed) = features(), slots()
    expected = heads(small, small.decode(seen.vision, seen, *given, None))
    assert_equal_within(FORMS[form]["mask_decoder"](small)(seen.vision, seen.s0, seen.s1, *packed), expected)


@pytest.mark.parametrize("form", FORMS)
def test_decoder_with_mask_uses_it_where_it_is_told_to(small, form):
    seen, (given, packed), mask = features(), slots(), 5 * drawn(6, 3, 1, 16, 16)
    found = FORMS[form]["mask_decoder_with_mask"](small)(
        seen.vision, seen.s0, seen.s1, *packed, mask, torch.tensor([1.0, 0.0, 1.0])
    )
    for item in range(3):
        one = slice(item, item + 1)
        wanted = small.decode(seen.vision, seen, *(x[one] for x in given), mask[one] if item != 1 else None)
        assert_equal_within([x[one] for x in found][:1], heads(small, wanted)[:1])
        torch.testing.assert_close(found[3][one], heads(small, wanted)[3], rtol=1e-4, atol=1e-4)


def test_mask_alone_is_a_prompt_whose_slots_are_all_absent(small):
    seen, mask = features(), 5 * drawn(6, 2, 1, 16, 16)
    expected = heads(small, small.decode(seen.vision, seen, None, None, mask))
    found = sam2_module(small, "mask_decoder_with_mask")(
        seen.vision, seen.s0, seen.s1, torch.zeros(2, 1, 2), torch.full((2, 1), -2.0), mask, torch.ones(2)
    )
    assert_equal_within(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_tracked_decoder_has_an_embedding_for_each_object(small, form):
    seen, embeds = features(), drawn(7, 3, 64, 4, 4)
    found = FORMS[form]["mask_decoder_tracked"](small)(embeds, seen.s0, seen.s1)
    nothing = torch.zeros(1, 1, 2), torch.full((1, 1), -1.0)
    each = [heads(small, small.decode(embed[None], seen, *nothing, None)) for embed in embeds]
    assert_equal_within(found, [torch.cat(parts) for parts in zip(*each, strict=True)])


@pytest.mark.parametrize("made", [partial(Sam2MemoryAttention, chunk=3), Sam2MemoryAttention, PlainMemoryAttention])
@pytest.mark.parametrize("timed", [True, False])
def test_memory_attention_of_objects_with_histories_of_different_lengths(made, timed):
    model = build(replace(sam2.TEST, timed_pointers=timed))
    vision, memory, pointers = drawn(0, 1, 64, 4, 4), 2 * drawn(1, 2, 3, 16, 64), drawn(2, 2, 4, 64)
    rows = torch.tensor([[6.0, 1.0, 0.0], [6.0, 0.0, -1.0]])
    ages = torch.tensor([[4.0, 3.0, 2.0, 1.0], [2.0, -1.0, 5.0, 5.0]]) / 15
    present = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    found = made(model)(vision, memory, rows, pointers, ages, present)
    for item, (frames, count) in enumerate([(3, 4), (2, 2)]):
        maps = (m.T.reshape(1, 64, 4, 4) for m in memory[item, :frames])
        parts = [model.memory_tokens(m, int(row)) for m, row in zip(maps, rows[item], strict=False)]
        offsets = [round(15 * age) for age in ages[item, :count].tolist()]
        parts.append(model.pointer_tokens([p[None] for p in pointers[item, :count]], offsets, 15))
        tokens, places = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
        assert_equal_within([found[item : item + 1]], [model.with_memory(vision, tokens, places, count)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("marked", [True, False])
def test_memory_encoder_gives_what_the_architecture_gives(marked, form):
    model = build(replace(sam2.TEST, absent_memory=marked))
    vision, logits, scores = drawn(0, 1, 64, 4, 4), 5 * drawn(1, 4, 1, 16, 16), torch.tensor([1.0, -1.0, 1.0, -1.0])
    binary = torch.tensor([0.0, 0.0, 1.0, 1.0])
    logits[3] *= 1e-4  # a step at 0 is that steep
    found = FORMS[form]["memory_encoder"](model)(vision, logits, binary, (scores > 0).float())
    for item in range(4):
        one = slice(item, item + 1)
        whole = model.whole_frame(logits[one])
        expected = model.encode_memory(vision, whole, scores[one, None], binary=bool(binary[item]))
        assert_equal_within([found[one]], [expected.flatten(2).transpose(1, 2)])


@pytest.mark.parametrize("name", VIDEO_GRAPHS)
def test_graphs_have_the_shapes_of_their_contract_and_no_tensor_above_rank_4(small, name):
    graph = {g.name: g for g in sam2_graphs(64, 64)}[name]
    one = fixed(graph, {"N": 2, "K": 3, "F": 3, "R": 5})
    assert not one.axes
    assert not one.named_sizes
    inputs = tuple(torch.zeros(tensor.shape) for tensor in one.inputs)
    outputs = sam2_module(small, name)(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(x.shape) for x in outputs] == [tensor.shape for tensor in one.outputs]
    assert golden.largest_rank(torch.export.export(sam2_module(small, name), inputs)) <= 4


def test_axes_that_are_fixed_are_none_any_more():
    graph = {g.name: g for g in sam2_graphs(64, 64)}["memory_attention"]
    assert [axis.name for axis in fixed(graph, {"N": 1}).axes] == ["F", "R"]


@pytest.mark.parametrize("name", ["mask_decoder", "mask_decoder_with_mask", "memory_attention"])
def test_slots_that_are_filled_up_change_nothing(small, name):
    graph, rng = {g.name: g for g in sam2_graphs(64, 64)}[name], np.random.default_rng(0)
    inputs = {
        t.name: rng.standard_normal(t.resolved({"N": 1, "K": 3, "F": 3, "R": 4})).astype(np.float32)
        for t in graph.inputs
    }
    for flag in {"point_labels", "has_mask_input", "memory_row", "pointer_present"} & set(inputs):
        inputs[flag] = np.ones_like(inputs[flag])
    padded = pad_prompts(graph, inputs, Bucket("", 2, 6))
    assert all(len(padded[t.name]) == 2 for t in graph.inputs if t.shape[0] == "N")
    runtime = PyTorchRuntime(sam2_module(small, name), graph)
    found, expected = runtime.run(padded), runtime.run(inputs)
    for output in graph.output_names:
        np.testing.assert_allclose(found[output][:1], expected[output], rtol=1e-4, atol=1e-4)


def test_constants_are_what_the_graphs_leave_to_the_host(small):
    constants = sam2_constants(small)
    assert {name: value.shape for name, value in constants.items()} == {
        "no_object_pointer": (64,), "mask_downsample": (4, 4), "mask_downsample_bias": (1,),
    }  # fmt: skip
    np.testing.assert_array_equal(constants["no_object_pointer"], small.no_obj_ptr[0])


def test_tiny_encoder_gives_the_official_features():
    vectors, model = golden.read("sam2_tiny.npz"), sam2_golden.tiny()
    pixels = 255 * (sam2_golden.picture() * sam2_golden.STD.view(1, 3, 1, 1) + sam2_golden.MEAN.view(1, 3, 1, 1))
    embed, s0, s1, vision = Sam2ImageEncoder(model)(pixels)
    golden.close(s0[0, ::8, ::21, ::21], vectors["s0"], 1e-3)
    golden.close(s1[0, ::8, ::10, ::10], vectors["s1"], 1e-3)
    golden.close(vision[0, ::16, ::5, ::5], vectors["vision"], 1e-3)
    golden.close(embed[0, ::32, ::5, ::5], vectors["image_embed"], 1e-3)
