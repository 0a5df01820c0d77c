import pytest
import torch

from samexport.models.architectures.tiny_vit import Attention, PatchMerging, TinyViTBlock
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from tests.models import golden

VECTORS = "mobilesam.npz"


def test_names_shapes_and_types_equal_the_official_key_list(mobile_sam):
    ours, official = golden.tensors_of(mobile_sam), golden.official_keys("mobile_sam")
    assert ours == official
    assert len(ours) == 439


def test_weights_are_those_of_the_golden_vectors(mobile_sam):
    state = {key: value.numpy() for key, value in mobile_sam.state_dict().items()}
    assert golden.checksum(state) == str(golden.read(VECTORS)["weights_sha256"])


def test_embedding_of_the_golden_picture(land):
    vectors, embedding = golden.read(VECTORS), land["embedding"]
    golden.close(embedding[0, ::16, ::4, ::4], vectors["land.embedding"], 2e-4)
    golden.close(golden.stats(embedding[0]), vectors["land.embedding.stats"], 2e-4)
    golden.close(embedding[0].mean((1, 2)), vectors["land.embedding.channel_mean"], 2e-4)


@pytest.mark.parametrize("stage", ["patch_embed", "layers0", "layers1", "layers2", "layers3", "neck1"])
def test_stage_of_the_golden_picture(land, stage):
    vectors, ours = golden.read(VECTORS), land[stage]
    step = ours.shape[-1] // 8
    golden.close(ours[0, ::16, ::step, ::step], vectors[f"land.stage.{stage}"], 2e-4)
    golden.close(golden.stats(ours[0]), vectors[f"land.stage.{stage}.stats"], 2e-4)


def test_attention_biases_loaded_after_eval_are_used():
    """The official builder gathers them in eval() and loads the weights later, which leaves all of them zero."""
    encoder = golden.random_sam("test.tinyvit64").image_encoder
    image = torch.randn(1, 3, 64, 64, generator=torch.manual_seed(0))
    before = encoder(image)
    for name, parameter in encoder.named_parameters():
        if name.endswith("attention_biases"):
            parameter.zero_()
    assert (encoder(image) - before).abs().max() > 0.05


def test_bias_of_a_pair_depends_on_the_distances_by_row_and_column():
    attention = Attention(4, 1, window=3)
    attention.attention_biases.data = torch.arange(9.0)[None]
    table = attention.bias_table()[0]
    assert table.shape == (9, 9)
    # cells of a 3x3 window row by row; an entry is 3 * rows apart + columns apart
    assert table[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert table[4].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4]
    assert table[2, 6] == table[6, 2] == table[0, 8] == 8


def test_qkv_rows_are_grouped_by_head():
    torch.manual_seed(0)
    attention, x = Attention(8, 2, window=2), torch.randn(3, 4, 8)
    normed, outputs = attention.norm(x), []
    for head in range(2):
        rows = slice(12 * head, 12 * head + 12)
        q, k, v = (normed @ attention.qkv.weight[rows].T + attention.qkv.bias[rows]).split(4, dim=-1)
        outputs.append((q @ k.mT / 2).softmax(-1) @ v)
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(outputs, dim=-1)))


@pytest.mark.parametrize(("width", "stride"), [(128, 2), (160, 2), (320, 1), (448, 1), (576, 1), (640, 2)])
def test_merge_to_mobile_sams_widths_keeps_the_grid(width, stride):
    with torch.device("meta"):
        assert PatchMerging(4, width).eval()(torch.empty(1, 4, 8, 8)).shape == (1, width, 8 // stride, 8 // stride)


def test_padding_tokens_take_part_in_the_attention():
    """A 2x2 grid in a window of 3 is a 3x3 grid with zeros, seen before the LayerNorm."""
    torch.manual_seed(0)
    small, whole = TinyViTBlock(8, 2, window=3).eval(), TinyViTBlock(8, 2, window=3).eval()
    whole.load_state_dict(small.state_dict())
    for block in (small, whole):
        torch.nn.init.dirac_(block.local_conv.c.weight, groups=8)
    x = torch.randn(1, 8, 2, 2)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(small(x), whole(padded)[:, :, :2, :2])


def test_classifier_does_not_touch_the_embedding():
    sam = golden.random_sam("test.tinyvit64")
    encoder = build_graph(sam, find_model("test.tinyvit64"), "encoder", plain=True)[1]
    image = torch.rand(1, 3, 64, 64) * 255
    before = encoder(image)
    for part in (sam.image_encoder.head, sam.image_encoder.norm_head):
        part.weight.fill_(float("nan"))
    torch.testing.assert_close(encoder(image), before, rtol=0, atol=0)


def test_test_model_has_every_kind_of_stage_and_padding():
    spec = find_model("test.tinyvit64")
    encoder = golden.random_sam("test.tinyvit64").image_encoder
    x = torch.zeros(1, 3, spec.frame.size, spec.frame.size)
    seen, _ = golden.watch({str(i): layer for i, layer in enumerate(encoder.layers)})
    encoder(x)
    assert [seen[str(i)].shape[-1] for i in range(4)] == [8, 4, 4, 4]
    windows = [layer.blocks[0].attn.window for layer in encoder.layers[1:]]
    assert all(side % window for side, window in zip((8, 4, 4), windows, strict=True))
