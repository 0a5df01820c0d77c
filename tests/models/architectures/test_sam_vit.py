import pytest
import torch

from samexport.models.architectures.sam_vit import Attention, Block
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from tests.models import golden

STAGES = {"patch_embed": 32, "blocks0": 32, "blocks2": 32, "blocks11": 32, "neck1": 16}


@pytest.fixture(scope="module")
def vit_b():
    return golden.random_sam("vit_b")


@pytest.fixture(scope="module")
def encoded(vit_b):
    """Stages as C, H, W and "embedding" of the golden picture."""
    encoder = vit_b.image_encoder
    blocks = {f"blocks{i}": encoder.blocks[i] for i in (0, 2, 11)}
    seen, handles = golden.watch({"patch_embed": encoder.patch_embed, "neck1": encoder.neck[1], **blocks})
    graph = build_graph(vit_b, find_model("vit_b"), "encoder", plain=True)[1]
    seen["embedding"] = graph(golden.framed("sam_vit_b.png"))
    for handle in handles:
        handle.remove()
    return {name: x if name in ("neck1", "embedding") else x.permute(0, 3, 1, 2) for name, x in seen.items()}


def test_names_shapes_and_types_equal_the_official_key_list(vit_b):
    ours, official = golden.tensors_of(vit_b), golden.official_keys("sam_vit_b")
    assert ours == official
    assert len(ours) == 314


def test_weights_are_those_of_the_golden_vectors(vit_b):
    state = {key: value.numpy() for key, value in vit_b.state_dict().items()}
    assert golden.checksum(state) == str(golden.read("sam_vit_b.npz")["weights_sha256"])


def test_embedding_and_stages_of_the_golden_picture(encoded):
    vectors = golden.read("sam_vit_b.npz")
    golden.close(encoded["embedding"][0, ::16, ::4, ::4], vectors["embedding"], 2e-4)
    golden.close(golden.stats(encoded["embedding"][0]), vectors["embedding.stats"], 2e-4)
    golden.close(encoded["embedding"][0].mean((1, 2)), vectors["embedding.channel_mean"], 2e-4)
    for stage, step in STAGES.items():
        golden.close(encoded[stage][0, ::step, ::8, ::8], vectors[f"stage.{stage}"], 2e-4)
        golden.close(golden.stats(encoded[stage][0]), vectors[f"stage.{stage}.stats"], 2e-4)


@pytest.mark.parametrize("plain", [True, False])
def test_click_on_the_golden_picture(vit_b, encoded, plain):
    vectors = golden.read("sam_vit_b.npz")
    decoder = build_graph(vit_b, find_model("vit_b"), "decoder", plain=plain)[1]
    outputs = decoder(encoded["embedding"], *golden.prompts_of(vectors, "one_click"))
    golden.check_masks(*outputs, vectors, "one_click", 1e-3)


def test_relative_position_is_query_minus_key():
    attention = Attention(4, 1, size=2)
    table = attention.relative_table(torch.tensor([[-1.0], [0.0], [1.0]]))[..., 0]
    assert table.tolist() == [[0, -1], [1, 0]]


def test_attention_equals_a_loop_over_the_cells():
    torch.manual_seed(0)
    size, depth, heads = 3, 4, 2
    attention = Attention(depth * heads, heads, size).requires_grad_(False)
    attention.rel_pos_h.normal_()
    attention.rel_pos_w.normal_()
    x = torch.randn(1, size, size, depth * heads)
    q, k, v = attention.qkv(x).reshape(size * size, 3, heads, depth).unbind(1)
    places = [(i // size, i % size) for i in range(size * size)]
    mixed = torch.zeros(size * size, heads, depth)
    for i, (row, column) in enumerate(places):
        for head in range(heads):
            logits = torch.stack(
                [
                    q[i, head] @ k[j, head] / depth**0.5
                    + q[i, head] @ attention.rel_pos_h[row - r + size - 1]
                    + q[i, head] @ attention.rel_pos_w[column - c + size - 1]
                    for j, (r, c) in enumerate(places)
                ]
            )
            mixed[i, head] = logits.softmax(0) @ v[:, head]
    expected = attention.proj(mixed.reshape(1, size, size, depth * heads))
    torch.testing.assert_close(attention(x), expected)


def test_padding_is_zero_after_the_norm_and_takes_part():
    """A 2x2 grid in a window of 3 is attention over a 3x3 grid whose third row and column are zero."""
    torch.manual_seed(0)
    block = Block(8, 2, window=3, grid=2)
    torch.nn.init.normal_(block.norm1.bias)
    x = torch.randn(1, 2, 2, 8)
    padded = torch.nn.functional.pad(block.norm1(x), (0, 0, 0, 1, 0, 1))
    y = x + block.attn(padded)[:, :2, :2]
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


@pytest.mark.parametrize(("name", "keys"), [("vit_l", 482), ("vit_h", 594)])
def test_larger_encoders_have_the_official_number_of_tensors(name, keys):
    with torch.device("meta"):
        sam = golden.Sam(find_model(name))
    assert len(sam.state_dict()) == keys


def test_test_model_has_a_padded_window_and_a_global_block():
    encoder = golden.random_sam("test.vit64").image_encoder
    assert [block.window for block in encoder.blocks] == [3, 0]
    assert encoder.pos_embed.shape[1] % 3
