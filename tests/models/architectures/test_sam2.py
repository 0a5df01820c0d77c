import pytest
import torch

from samexport.models.architectures import sam2
from samexport.models.architectures.sam2 import Features, Sam2, Sam2Size
from samexport.models.architectures.sam2_mask_decoder import Decoded, choose, stability
from tests.models import golden, sam2_golden
from tests.models.golden import checksum

SIZES = {"tiny": sam2.TINY, "small": sam2.SMALL, "base_plus": sam2.BASE_PLUS, "large": sam2.LARGE}
PARAMETERS = {"tiny": 38_962_498, "small": 46_060_354, "base_plus": 80_850_178, "large": 224_446_642}
CASES = (
    "click1_multi", "click1_single", "box_single", "box_multi", "clicks3_single", "box_click_single",
    "mask_click_single", "mask_only_multi", "boxes3_single",
)  # fmt: skip
# masks chosen by the official predictor: without and with the rule of stability, and with a delta that makes it act
CHOICES = {"dyn0": (False, 0.05), "dyn1": (True, 0.05), "delta015": (True, 0.15)}


def on_meta(size):
    with torch.device("meta"):
        return Sam2(size)


@pytest.mark.parametrize("name", SIZES)
def test_names_shapes_and_types_equal_the_official_key_list(name):
    model = on_meta(SIZES[name])
    assert golden.tensors_of(model) == golden.official_keys(f"sam2.1_{name}")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_version_2_0_lacks_exactly_the_tensors_that_2_1_added():
    new, old = (golden.tensors_of(on_meta(size)) for size in (sam2.TINY, two_point_zero(sam2.TINY)))
    added = {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
    assert {key: shape for key, shape in new.items() if key not in added} == old


def two_point_zero(size):
    return Sam2Size(size.trunk, size.image_size, size.width, size.hidden, absent_memory=False, timed_pointers=False)


def test_weights_are_those_of_the_golden_vectors():
    state = {key: value.numpy() for key, value in sam2_golden.tiny().state_dict().items()}
    assert checksum(state) == str(golden.read("sam2_tiny.npz")["weights_sha256"])


@pytest.fixture(scope="module")
def encoded():
    """Features of the golden picture, and the outputs of patches and blocks."""
    model, image = sam2_golden.tiny(), sam2_golden.picture()
    golden.close(image[0, :, 5::64, 3::64], golden.read("sam2_tiny.npz")["pre"], 1e-5)
    trunk = model.image_encoder.trunk
    seen, handles = golden.watch({"patch_embed": trunk.patch_embed, **dict(enumerate(trunk.blocks))})
    features = model.features(image)
    for handle in handles:
        handle.remove()
    return features, seen


def test_stages_of_the_trunk(encoded):
    vectors, seen = golden.read("sam2_tiny.npz"), encoded[1]
    golden.close(seen["patch_embed"][0, ::32, ::32, ::12], vectors["patch_embed"], 1e-4)
    places = sam2_golden.tiny().image_encoder.trunk.position_embedding(256)
    golden.close(places[0, ::26, ::22, ::12], vectors["pos_embed"], 1e-5)
    for index in (0, 2, 5, 9, 10, 11):
        sam2_golden.check_block(seen[index], vectors, index)
    for index, expected in enumerate(vectors["block_stats"]):
        golden.close(sam2_golden.stats(seen[index]), expected, 1e-3)


def test_features_of_the_golden_picture(encoded):
    vectors, features = golden.read("sam2_tiny.npz"), encoded[0]
    golden.close(features.s0[0, ::8, ::21, ::21], vectors["s0"], 1e-3)
    golden.close(features.s1[0, ::8, ::10, ::10], vectors["s1"], 1e-3)
    golden.close(features.vision[0, ::16, ::5, ::5], vectors["vision"], 1e-3)
    golden.close(features.vision[0, ::32, 63], vectors["vision_last_row"], 1e-3)
    golden.close(features.vision[0, ::32, :, 63], vectors["vision_last_col"], 1e-3)
    golden.close(features.vision[0].mean((1, 2)), vectors["vision.channel_mean"], 1e-3)
    embedding = sam2_golden.tiny().without_memory(features.vision)
    golden.close(embedding[0, ::32, ::5, ::5], vectors["image_embed"], 1e-3)
    for name in ("s0", "s1", "vision"):
        golden.close(sam2_golden.stats(getattr(features, name)), vectors[f"{name}.stats"], 1e-3)


def prompts(case):
    """points, labels and mask of a golden case, in the frame of 1024 pixels; boxes as two points before the clicks."""
    vectors = golden.read("sam2_tiny.npz")
    scale = torch.tensor([1024 / 800, 1024 / 500])
    boxes = torch.from_numpy(vectors["boxes_xyxy"]).view(3, 2, 2) * scale
    click, clicks = (torch.from_numpy(vectors[name])[None] * scale for name in ("points1", "points3"))
    labels, corners = torch.from_numpy(vectors["labels3"])[None], torch.tensor([[2, 3]])
    return {
        "click1": (click, torch.ones(1, 1), None),
        "box": (boxes[:1], corners, None),
        "clicks3": (clicks, labels, None),
        "box_click": (torch.cat([boxes[1:2], clicks[:, 1:2]], 1), torch.cat([corners, labels[:, 1:2]], 1), None),
        "mask_click": (click, torch.ones(1, 1), sam2_golden.mask_prompt()),
        "mask_only": (None, None, sam2_golden.mask_prompt()),
        "boxes3": (boxes, corners.expand(3, 2), None),
    }[case.rpartition("_")[0]]


@pytest.mark.parametrize("case", CASES)
def test_masks_and_scores_of_a_golden_prompt(encoded, case):
    vectors, model, features = golden.read("sam2_tiny.npz"), sam2_golden.tiny(), encoded[0]
    given = []
    hook = model.sam_mask_decoder.register_forward_pre_hook(lambda _module, inputs: given.extend(inputs))
    embedding = model.without_memory(features.vision)
    decoded = model.decode(embedding, features, *prompts(case))
    hook.remove()
    source, _, sparse, *_ = given
    golden.close(sparse[..., ::8], vectors[f"{case}.sparse"], 1e-4)
    golden.close((source - embedding)[0, ::32, ::16, ::16], vectors[f"{case}.dense"], 1e-4)
    golden.close(decoded.masks[..., ::21, ::21], vectors[f"{case}.masks"], 1e-2)
    golden.close(decoded.iou, vectors[f"{case}.iou"], 1e-3)
    golden.close(decoded.tokens[..., ::8], vectors[f"{case}.tokens"], 1e-3)
    golden.close(decoded.object_score, vectors[f"{case}.object_score"], 1e-3)
    golden.close(stability(decoded.masks), vectors[f"{case}.stability"], 1e-3)
    for name, (fallback, delta) in CHOICES.items():
        if f"{case}.{name}.iou" in vectors:
            chosen = choose(decoded, multimask=case.endswith("multi"), fallback=fallback, delta=delta)
            golden.close(chosen.iou, vectors[f"{case}.{name}.iou"], 1e-3)
            # the official predictor returns clamped logits
            golden.close(chosen.masks.clamp(-32, 32)[..., ::20, ::20], vectors[f"{case}.{name}.low_res"], 1e-2)


@pytest.mark.parametrize("kind", ["nomask", "mask"])
def test_decoder_alone(kind):
    vectors, model = golden.read("sam2_tiny.npz"), sam2_golden.tiny()
    embedding = sam2_golden.drawn("dec_image_embed", 1, 256, 64, 64)
    s0 = sam2_golden.drawn("dec_feat_s0", 1, 32, 256, 256)
    s1 = sam2_golden.drawn("dec_feat_s1", 1, 64, 128, 128)
    mask = sam2_golden.mask_prompt() * torch.tensor([1, -1, 0.5]).view(3, 1, 1, 1) if kind == "mask" else None
    points, labels = (torch.from_numpy(vectors[f"dec.{name}"]) for name in ("points", "labels"))
    decoded = model.decode(embedding, Features(s0, s1, embedding), points, labels, mask)
    golden.close(decoded.masks[..., ::20, ::20], vectors[f"dec.{kind}.masks"], 2e-3)
    golden.close(decoded.iou, vectors[f"dec.{kind}.iou"], 1e-4)
    golden.close(decoded.tokens[..., ::8], vectors[f"dec.{kind}.tokens"], 1e-3)
    golden.close(decoded.object_score, vectors[f"dec.{kind}.object_score"], 1e-3)
    golden.close(model.obj_ptr_proj(decoded.tokens)[..., ::8], vectors[f"dec.{kind}.obj_ptr"], 2e-3)
    chosen = choose(decoded, multimask=False, fallback=True)
    golden.close(chosen.masks[..., ::20, ::20], vectors[f"dec.{kind}.dyn_low_res"], 2e-3)
    golden.close(chosen.iou, vectors[f"dec.{kind}.dyn_iou"], 1e-4)
    for scale, expected in zip(vectors["dec.scales"], vectors[f"dec.{kind}.scaled_stability_iou"], strict=True):
        fainter = decoded._replace(masks=decoded.masks * float(scale))
        iou = choose(fainter, multimask=False, fallback=True).iou
        golden.close(torch.cat([stability(fainter.masks[:, :1]), iou], dim=1), expected, 1e-3)


def test_stability_of_masks_worked_by_hand():
    sure, unsure, empty = torch.full((2, 2), 9.0), torch.tensor([[9.0, 0.04], [-0.04, -9.0]]), torch.full((2, 2), -9.0)
    assert stability(torch.stack([sure, unsure, empty])).tolist() == [1.0, pytest.approx(1 / 3), 1.0]


def test_unstable_mask_falls_back_on_the_best_candidate_but_keeps_its_token():
    masks = torch.full((2, 4, 2, 2), 9.0) * torch.arange(1, 5).view(4, 1, 1)
    masks[1, 0] = 0.01
    iou, tokens = torch.tensor([[0.9, 0.2, 0.4, 0.3]] * 2), torch.arange(8.0).view(2, 4, 1)
    decoded = Decoded(masks, iou, tokens, torch.ones(2, 1))
    chosen = choose(decoded, multimask=False, fallback=True)
    assert torch.equal(chosen.masks, torch.stack([masks[0, :1], masks[1, 2:3]]))
    assert chosen.iou.tolist() == [[pytest.approx(0.9)], [pytest.approx(0.4)]]
    assert chosen.tokens.tolist() == [[[0.0]], [[4.0]]]
    assert torch.equal(choose(decoded, multimask=False, fallback=False).masks, masks[:, :1])


@pytest.fixture(scope="module")
def small():
    return sam2_golden.randomise(Sam2(sam2.TEST))


def small_features(count=1):
    torch.manual_seed(1)
    return Features(torch.randn(count, 8, 16, 16), torch.randn(count, 16, 8, 8), torch.randn(count, 64, 4, 4))


def test_prompts_of_a_batch_do_not_see_each_other(small):
    features, points, labels = small_features(), torch.rand(3, 2, 2) * 64, torch.tensor([[1, 0], [2, 3], [1, -1]])
    together = small.decode(features.vision, features, points, labels, None)
    for i in range(3):
        alone = small.decode(features.vision, features, points[i : i + 1], labels[i : i + 1], None)
        for ours, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(ours, expected[i : i + 1], rtol=1e-4, atol=1e-4)


def test_test_model_encodes_at_64_pixels(small):
    features = small.features(torch.rand(1, 3, 64, 64))
    assert [tuple(x.shape) for x in features] == [tuple(x.shape) for x in small_features()]
    windows = [block.window for block in small.image_encoder.trunk.blocks]
    assert windows == [8, 8, 4, 4, 0, 6, 6, 3]
