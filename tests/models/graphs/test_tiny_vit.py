import pytest
import torch

from samexport.models.architectures import tiny_vit
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.graphs.layers import FromPicture, fold_batch_norm
from samexport.models.graphs.tiny_vit import Block
from tests.models import golden

VECTORS = "mobilesam.npz"
TINY = "test.tinyvit64"


def encoders(sam, name):
    """Export form and plain form."""
    return [build_graph(sam, find_model(name), "encoder", plain=plain)[1] for plain in (False, True)]


@pytest.fixture(scope="module")
def tiny():
    return golden.random_sam(TINY)


def picture(kind, size=64):
    """Pixels 0..255 [1, 3, size, size]."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, size, size)).float()
    if kind == "padded":
        image[:, :, :, -size // 4 :] = torch.tensor(find_model(TINY).frame.mean).view(1, 3, 1, 1)
    return {"noise": image, "padded": image, "black": 0 * image, "white": 0 * image + 255}[kind]


def largest_share(ours, expected):
    """Largest difference as a share of the range."""
    return ((ours - expected).abs().max() / (expected.max() - expected.min())).item()


@pytest.mark.parametrize("kind", ["noise", "padded", "black", "white"])
def test_export_form_equals_the_architecture(tiny, kind):
    export, plain = encoders(tiny, TINY)
    assert largest_share(export(picture(kind)), plain(picture(kind))) < 1e-5


def test_export_form_equals_the_architecture_and_the_golden_vectors_at_1024_pixels(mobile_sam, land):
    export, _ = encoders(mobile_sam, "tinyvit")
    embedding = export(golden.framed("land.png"))
    assert largest_share(embedding, land["embedding"]) < 1e-5
    vectors = golden.read(VECTORS)
    golden.close(embedding[0, ::16, ::4, ::4], vectors["land.embedding"], 2e-4)
    golden.close(golden.stats(embedding[0]), vectors["land.embedding.stats"], 2e-4)


def random_block(window):
    """Biases as large as the signal: an error in what a padding token contributes cannot hide."""
    torch.manual_seed(window)
    block = tiny_vit.TinyViTBlock(8, 2, window).eval().requires_grad_(False)
    for name, value in (*block.named_parameters(), *block.named_buffers()):
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.normal_(std=1.0 if value.ndim < 3 else 0.3)
    return block


@pytest.mark.parametrize(("window", "height", "columns"), [(3, 3, 3), (3, 4, 4), (3, 8, 8), (3, 7, 5), (7, 2, 9)])
def test_block_equals_the_architecture_on_any_grid(window, height, columns):
    block, x = random_block(window), torch.randn(1, 8, height, columns)
    ours = Block(block)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert largest_share(ours, block(x)) < 1e-5


def test_padding_token_is_the_bias_of_the_layer_norm_and_has_a_say():
    """The constants that stand for it matter: without either bias the padded result is another one."""
    x = torch.randn(1, 8, 4, 4)
    for silent in ("attn.norm.bias", "attn.qkv.bias"):
        block = random_block(3)
        before = block(x)
        block.get_parameter(silent).zero_()
        assert largest_share(block(x), before) > 0.01
        assert largest_share(Block(block)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), block(x)) < 1e-5


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_folded_batch_norm_is_one_convolution(groups, stride):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 8, 3, stride, 1, groups=groups, bias=False)
    norm = torch.nn.BatchNorm2d(8).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(value)
    torch.nn.init.uniform_(norm.running_var, 0.1, 2)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(fold_batch_norm(conv, norm)(x), norm(conv(x)), rtol=1e-5, atol=1e-5)


def test_batch_norm_and_classifier_are_gone(tiny):
    export, plain = encoders(tiny, TINY)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in form.modules()) for form in (export, plain)]
    assert norms == [0, 18]
    dead = [tiny.image_encoder.norm_head.weight, tiny.image_encoder.head.weight, tiny.image_encoder.head.weight.T]
    kept = list(export.parameters())
    assert not any(torch.equal(ours, weight) for ours in kept for weight in dead)


def operators(program):
    """(name, shape of the result) of every operator of a traced graph."""
    calls = (node for node in program.graph.nodes if str(node.target).startswith("aten."))
    return [(str(n.target).split(".")[1], tuple(n.meta["val"].shape)) for n in calls if hasattr(n.meta["val"], "shape")]


@pytest.fixture(scope="module")
def traced(tiny):
    return torch.export.export(encoders(tiny, TINY)[0], (picture("noise"),))


def test_no_tensor_is_above_rank_4(traced):
    assert golden.largest_rank(traced) <= 4


def test_layer_norms_see_real_tokens_only_and_are_layer_norms(traced, tiny):
    """Grids of 8 and 4 in windows of 3: a normalised padding token would make a 9 or a 6."""
    norms = [shape for name, shape in operators(traced) if name == "layer_norm"]
    attention_blocks = sum(len(layer.blocks) for layer in tiny.image_encoder.layers[1:])
    assert len(norms) == 2 * attention_blocks + 2
    assert {shape[:3] for shape in norms} == {(1, 8, 8), (1, 4, 4)}


def test_nothing_is_computed_from_weights_alone(traced):
    """Tables and folded weights are baked: no gather, and every operator depends on the image."""
    assert not {name for name, _ in operators(traced)} & {
        "index",
        "gather",
        "index_select",
        "batch_norm",
        "native_batch_norm",
    }
    weights = {node for node in traced.graph.nodes if node.op == "placeholder" and node.name != "image"}
    for node in traced.graph.nodes:
        if node.op == "call_function":
            assert not node.all_input_nodes or not set(node.all_input_nodes) <= weights, node


def test_a_picture_padded_with_whole_numbers_gives_what_the_exact_mean_gives(tiny):
    """All 8-bit pixels but the padding stay as they are; a neighbour of the padding colour is not touched."""
    frame = find_model(TINY).frame
    image = picture("padded").round()
    image[0, :, 0, :3] = torch.tensor([[124.0, 125, 124], [116, 116, 115], [104, 104, 104]])
    seen = FromPicture(torch.nn.Identity(), frame)(image)
    padding = (image == torch.tensor([124.0, 116, 104]).view(1, 3, 1, 1)).all(1, keepdim=True).expand_as(image)
    mean = torch.tensor(frame.mean).view(1, 3, 1, 1).expand_as(image)
    assert padding.sum() > 3 * 64 * 15
    assert torch.equal(seen[~padding], image[~padding])
    torch.testing.assert_close(seen[padding], mean[padding], rtol=0, atol=1e-5)
    plain = encoders(tiny, TINY)[1]
    expected = plain(picture("padded"))
    exact = picture("padded").round()
    assert largest_share(FromPicture(plain, frame)(exact), expected) < 1e-5 < largest_share(plain(exact), expected)
