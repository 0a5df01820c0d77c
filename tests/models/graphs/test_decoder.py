import numpy as np
import pytest
import torch

from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from tests.models import golden

VECTORS = "mobilesam.npz"
SIZES = [(1, 1), (1, 2), (3, 2), (7, 5), (64, 1)]
# end to end, and the decoder alone
TOLERANCE = {"land": 1e-3, "syn": 5e-4}


TINY = "test.tinyvit64"


def graphs(sam, name, *wanted, plain=False, small=False):
    spec = find_model(name)
    return [build_graph(sam, spec, graph, plain=plain, small=small)[1] for graph in wanted]


@pytest.fixture(scope="module")
def tiny():
    return golden.random_sam(TINY)


def prompts(count, points, size=64, seed=0):
    """Points everywhere in the frame, every label that there is."""
    rng = np.random.default_rng(seed)
    coords = rng.uniform(0, size - 1, (count, points, 2))
    labels = rng.integers(-2, 4, (count, points))
    labels[:, 0] = np.resize([1, 0, 2, 3, -1], count)
    return torch.tensor(coords, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)


def embedding(width=64, grid=4, seed=3):
    drawn = np.random.default_rng(seed).standard_normal((1, width, grid, grid))
    return torch.tensor(drawn, dtype=torch.float32)


def mask_prompts(count, side=16):
    drawn = 5 * np.random.default_rng(4).standard_normal((count, 1, side, side))
    return torch.tensor(drawn, dtype=torch.float32), torch.arange(count).remainder(2).float()


def assert_equal_within(ours, expected, share=1e-5):
    """Each output within ``share`` of the range of the expected one."""
    for found, wanted in zip(ours, expected, strict=True):
        assert found.shape == wanted.shape
        assert torch.isfinite(found).all()
        assert (found - wanted).abs().max() <= share * (wanted.max() - wanted.min())


# Golden vectors


@pytest.fixture(scope="module")
def decoders(mobile_sam):
    return graphs(mobile_sam, "tinyvit", "decoder", "decoder_with_mask")


@pytest.mark.parametrize("picture", ["land", "syn"])
@pytest.mark.parametrize("case", golden.CASES)
def test_masks_and_scores_of_a_golden_prompt(decoders, decode, picture, case):
    vectors, name = golden.read(VECTORS), f"{picture}.{case}"
    outputs = decode(decoders, picture, *golden.prompts_of(vectors, name), mask=case == "mask_click")
    golden.check_masks(*outputs, vectors, name, TOLERANCE[picture])


@pytest.mark.parametrize("picture", ["land", "syn"])
@pytest.mark.parametrize("case", golden.WRAPPER_CASES)
def test_official_onnx_wrapper_gives_the_same_masks_and_chooses_the_same_one(decoders, decode, picture, case):
    vectors, name = golden.read(VECTORS), f"onnx.{picture}.{case}"
    coords, labels = (torch.from_numpy(vectors[f"{name}.{key}"])[None] for key in ("point_coords", "point_labels"))
    mask = bool(vectors[f"{name}.has_mask_input"])
    (masks,), (iou,) = decode(decoders, picture, coords, labels, mask=mask)
    golden.close(masks[:, ::35, ::35], vectors[f"{name}.logits4"], TOLERANCE[picture])
    golden.close(iou, vectors[f"{name}.iou4"], 1e-4)
    stability = ((masks > 1).sum((1, 2)) / (masks > -1).sum((1, 2))).numpy()
    golden.close(stability, vectors[f"{name}.stability4"], 1e-4)
    # the wrapper's rule: the first mask answers three points and more, one of the others fewer
    preference = (labels.shape[1] - 2.5) * np.array([1000, 0, 0, 0])
    assert np.argmax(iou.numpy() + preference) == vectors[f"{name}.chosen"]
    assert np.argmax(stability + preference) == vectors[f"{name}.chosen_by_stability"]


# The same function as the architecture


@pytest.mark.parametrize(("count", "points"), SIZES)
def test_decoder_equals_the_architecture(tiny, count, points):
    (export,), (plain,) = graphs(tiny, TINY, "decoder"), graphs(tiny, TINY, "decoder", plain=True)
    inputs = embedding(), *prompts(count, points)
    assert_equal_within(export(*inputs), plain(*inputs))


@pytest.mark.parametrize(("count", "points"), SIZES)
def test_decoder_with_mask_equals_the_architecture(tiny, count, points):
    wanted = "decoder_with_mask"
    (export,), (plain,) = graphs(tiny, TINY, wanted), graphs(tiny, TINY, wanted, plain=True)
    inputs = embedding(), *prompts(count, points), *mask_prompts(count)
    assert_equal_within(export(*inputs), plain(*inputs))


@pytest.mark.parametrize(("count", "points"), SIZES)
def test_prologue_and_step_are_the_decoder(tiny, count, points):
    prologue, step = graphs(tiny, TINY, "decoder_prologue", "decoder_step")
    (plain,) = graphs(tiny, TINY, "decoder", plain=True)
    inputs = embedding(), *prompts(count, points)
    assert_equal_within(step(*prologue(inputs[0]), *inputs[1:]), plain(*inputs))


def test_every_form_equals_the_architecture_at_1024_pixels(mobile_sam, embeddings):
    decoder, with_mask, prologue, step = graphs(
        mobile_sam, "tinyvit", "decoder", "decoder_with_mask", "decoder_prologue", "decoder_step"
    )
    plain, plain_with_mask = graphs(mobile_sam, "tinyvit", "decoder", "decoder_with_mask", plain=True)
    image, inputs = embeddings["syn"], prompts(16, 2, 1024)
    expected = plain(image, *inputs)
    assert_equal_within(decoder(image, *inputs), expected)
    inputs = *(x[:2] for x in inputs), *mask_prompts(2, 256)
    assert_equal_within(step(*prologue(image), *inputs[:2]), [x[:2] for x in expected])
    assert_equal_within(with_mask(image, *inputs), plain_with_mask(image, *inputs))


@pytest.mark.parametrize(("count", "points"), [(1, 2), (7, 5)])
def test_the_small_forms_equal_the_architecture(tiny, count, points):
    names = "decoder", "decoder_with_mask", "decoder_prologue", "decoder_step"
    decoder, with_mask, prologue, step = graphs(tiny, TINY, *names, small=True)
    plain, plain_with_mask = graphs(tiny, TINY, "decoder", "decoder_with_mask", plain=True)
    inputs, masks = (embedding(), *prompts(count, points)), mask_prompts(count)
    assert_equal_within(decoder(*inputs), plain(*inputs))
    assert_equal_within(step(*prologue(inputs[0]), *inputs[1:]), plain(*inputs))
    assert_equal_within(with_mask(*inputs, *masks), plain_with_mask(*inputs, *masks))


def test_the_small_forms_equal_the_architecture_at_1024_pixels_with_eleven_megabytes_less(mobile_sam, embeddings):
    names = "decoder", "decoder_with_mask"
    small, small_with_mask = graphs(mobile_sam, "tinyvit", *names, small=True)
    plain, plain_with_mask = graphs(mobile_sam, "tinyvit", *names, plain=True)
    image, inputs, masks = embeddings["syn"], prompts(2, 2, 1024), mask_prompts(2, 256)
    assert_equal_within(small(image, *inputs), plain(image, *inputs))
    assert_equal_within(small_with_mask(image, *inputs, *masks), plain_with_mask(image, *inputs, *masks))
    usual, usual_with_mask = graphs(mobile_sam, "tinyvit", *names)
    assert size(usual) - size(small) > 10e6
    assert size(usual_with_mask) - size(small_with_mask) > 10e6


def size(module):
    return sum(weight.nbytes for weight in module.parameters())


def test_without_a_mask_the_decoder_with_mask_is_the_decoder(tiny):
    decoder, with_mask = graphs(tiny, TINY, "decoder", "decoder_with_mask")
    inputs = embedding(), *prompts(3, 2)
    masks, _ = mask_prompts(3)
    assert_equal_within(with_mask(*inputs, masks, torch.zeros(3)), decoder(*inputs))


def test_mask_prompt_of_one_prompt_does_not_reach_the_others(tiny):
    (with_mask,) = graphs(tiny, TINY, "decoder_with_mask")
    inputs = embedding(), *prompts(3, 2)
    masks, _ = mask_prompts(3)
    ours = with_mask(*inputs, masks, torch.tensor([0.0, 1.0, 0.0]))
    without, every = (with_mask(*inputs, masks, torch.full((3,), flag)) for flag in (0.0, 1.0))
    assert_equal_within([x[::2] for x in ours], [x[::2] for x in without])
    assert_equal_within([x[1:2] for x in ours], [x[1:2] for x in every])
    assert (every[0] - without[0]).abs().max() > 1


# Prompts


@pytest.mark.parametrize("plain", [False, True])
def test_prompts_with_different_numbers_of_points_share_a_batch(tiny, plain):
    """An absent slot changes nothing: each prompt of the batch equals the prompt alone with its own points."""
    decoder, with_mask = graphs(tiny, TINY, "decoder", "decoder_with_mask", plain=plain)
    image, (coords, labels), masks = embedding(), prompts(5, 5), mask_prompts(5)
    present = [[0], [0, 1], [0, 2, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]
    labels = labels.clamp(min=-1)
    for i, slots in enumerate(present):
        labels[i, [slot for slot in range(5) if slot not in slots]] = -2
    batch, batch_with_mask = decoder(image, coords, labels), with_mask(image, coords, labels, *masks)
    for i, slots in enumerate(present):
        alone = coords[i : i + 1, slots], labels[i : i + 1, slots]
        assert_equal_within([x[i : i + 1] for x in batch], decoder(image, *alone))
        masked = with_mask(image, *alone, *(x[i : i + 1] for x in masks))
        assert_equal_within([x[i : i + 1] for x in batch_with_mask], masked)


def test_point_of_an_absent_slot_is_not_read(tiny):
    (decoder,) = graphs(tiny, TINY, "decoder")
    coords, labels = prompts(2, 3)
    labels[:, 2] = -2
    moved = coords.clone()
    moved[:, 2] = torch.tensor([-1e4, 1e4])
    for ours, expected in zip(decoder(embedding(), moved, labels), decoder(embedding(), coords, labels), strict=True):
        assert torch.equal(ours, expected)


def test_padding_point_is_not_neutral(tiny):
    (decoder,) = graphs(tiny, TINY, "decoder")
    coords, labels = torch.full((1, 2, 2), 20.0), torch.tensor([[1.0, -1.0]])
    with_padding, _ = decoder(embedding(), coords, labels)
    without, _ = decoder(embedding(), coords[:, :1], labels[:, :1])
    assert (with_padding - without).abs().max() > 0.1


def test_permuted_prompts_give_permuted_masks(tiny):
    decoder, with_mask = graphs(tiny, TINY, "decoder", "decoder_with_mask")
    image, inputs, order = embedding(), prompts(7, 5), torch.randperm(7, generator=torch.manual_seed(0))
    permuted = decoder(image, *(x[order] for x in inputs))
    assert_equal_within(permuted, [x[order] for x in decoder(image, *inputs)])
    inputs = *inputs, *mask_prompts(7)
    permuted = with_mask(image, *(x[order] for x in inputs))
    assert_equal_within(permuted, [x[order] for x in with_mask(image, *inputs)])


def test_order_of_the_points_of_a_prompt_does_not_matter(tiny):
    (decoder,) = graphs(tiny, TINY, "decoder")
    coords, labels = prompts(3, 5)
    reversed_points = decoder(embedding(), coords.flip(1), labels.flip(1))
    assert_equal_within(reversed_points, decoder(embedding(), coords, labels))


# The graph


@pytest.fixture(scope="module")
def traced(tiny):
    """The graph of each form, at a number of prompts that is no other size of the model."""
    names = ("decoder", "decoder_with_mask", "decoder_prologue", "decoder_step")
    decoder, with_mask, prologue, step = graphs(tiny, TINY, *names)
    image, inputs = embedding(), prompts(37, 2)
    examples = (image, *inputs), (image, *inputs, *mask_prompts(37)), (image,), (*prologue(image), *inputs)
    modules = zip(names, (decoder, with_mask, prologue, step), examples, strict=True)
    return {name: torch.export.export(module, example) for name, module, example in modules}


def test_no_tensor_is_above_rank_4(traced):
    assert max(golden.largest_rank(program) for program in traced.values()) <= 4


def test_shared_image_is_never_repeated_for_each_prompt(tiny, traced):
    """Nothing as large as [N, cells, width] exists before the first prompts have attended to the image."""
    (plain,) = graphs(tiny, TINY, "decoder", plain=True)

    def repeats_first(program):
        nodes = [node for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        attended = next(i for i, node in enumerate(nodes) if "softmax" in str(node.target))
        return any(node.meta["val"].numel() >= 37 * 16 * 64 for node in nodes[:attended])

    assert repeats_first(torch.export.export(plain, (embedding(), *prompts(37, 2))))
    assert not repeats_first(traced["decoder"])
    assert not repeats_first(traced["decoder_step"])


def test_labels_are_told_apart_without_comparisons_and_pixels_placed_without_transposed_convolution(traced):
    """Operators that some format or delegate cannot run in these places."""
    for program in traced.values():
        used = {str(node.target).split(".")[1] for node in program.graph.nodes if str(node.target).startswith("aten.")}
        assert not used & {"where", "eq", "lt", "gt", "le", "ge", "masked_fill", "_to_copy", "to", "conv_transpose2d"}
