"""The real model at 1024 pixels: one export, shared, checked on photographs and against the plain decoder."""

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.host.frames import FrameMap, to_frame, upscale_mask
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.host.sam_prompts import pack
from samexport.runtimes.parity.compare import intersection_over_union, signal_to_noise
from samexport.runtimes.tasks.segment import Segmenter


@pytest.fixture(scope="module")
def plain():
    """The untouched architecture with the weights of ``full_bundle``."""
    spec = find_model("tinyvit")
    sam, _ = load_model(spec, random_seed=7)
    runtimes = {}
    for name in ("encoder", "decoder"):
        graph, module = build_graph(sam, spec, name, plain=True)
        runtimes[name] = PyTorchRuntime(module, graph)
    return runtimes


def photographs() -> dict[str, np.ndarray]:
    china, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    portrait = np.ascontiguousarray(china[:, 100:300])
    tiny = np.asarray(Image.fromarray(flower).resize((19, 11)))
    return {"china": china, "flower": flower, "portrait": portrait, "tiny": tiny}


@pytest.mark.parametrize("name", ["china", "flower", "portrait", "tiny"])
def test_masks_of_photographs_equal_pytorch(full_bundle, plain, name):
    picture = photographs()[name]
    height, width = picture.shape[:2]
    frame = full_bundle.manifest.frame
    prompts = [
        Prompt.make(points=[[width / 2, height / 2]], labels=[1]),
        Prompt.make(points=[[width / 3, height / 2], [1, 1]], labels=[1, 0]),
        Prompt.make(box=[width / 5, height / 5, width / 1.5, height / 1.2]),
    ]
    embeddings = plain["encoder"].run({"image": to_frame(picture, frame)})
    tensors = pack(prompts, FrameMap((height, width), frame))
    expected = plain["decoder"].run({**embeddings, **tensors})
    with Segmenter(full_bundle) as segmenter:
        segmenter.set_image(picture)
        answers = segmenter.predict(prompts, multimask=True)
    logits = np.stack([a.low_res_masks for a in answers])
    span = np.ptp(expected["low_res_masks"])
    np.testing.assert_allclose(logits, expected["low_res_masks"], atol=1e-4 * span)
    assert signal_to_noise(expected["low_res_masks"], logits) > 90
    reference = upscale_mask(expected["low_res_masks"], FrameMap((height, width), frame))
    assert intersection_over_union(reference, np.stack([a.masks for a in answers])).min() >= 0.9999
    scores = np.stack([a.scores for a in answers])
    assert np.array_equal(scores.argmax(-1), expected["iou_predictions"].argmax(-1))


@pytest.mark.parametrize(("prompts", "points"), [(1, 1), (1, 2), (3, 2), (7, 5), (64, 1), (16, 2)])
def test_the_exported_decoder_equals_the_plain_one_to_1e_5_of_the_range(full_bundle, plain, prompts, points):
    rng = np.random.default_rng(prompts)
    labels = rng.integers(-2, 4, (prompts, points)).astype(np.float32)
    inputs = {
        "image_embeddings": rng.normal(0, 1, (1, 256, 64, 64)).astype(np.float32),
        "point_coords": rng.uniform(0, 1023, (prompts, points, 2)).astype(np.float32),
        "point_labels": labels,
    }
    expected = plain["decoder"].run(inputs)
    with full_bundle.open("decoder") as decoder:
        actual = decoder.run(inputs)
    for name, value in expected.items():
        assert np.abs(actual[name] - value).max() <= 1e-5 * np.ptp(value)


def test_the_encoder_has_at_most_420_nodes(full_bundle):
    nodes = onnx.load(full_bundle.folder / "encoder.onnx").graph.node
    assert len(nodes) == full_bundle.artifact("encoder").nodes <= 420


def test_golden_tensors_take_at_most_8_megabytes(full_bundle):
    assert sum(p.stat().st_size for p in (full_bundle.folder / "golden").iterdir()) <= 8_000_000


def test_the_dead_classifier_is_not_in_the_file(full_bundle):
    model = onnx.load(full_bundle.folder / "encoder.onnx")
    assert not [w.name for w in model.graph.initializer if list(w.dims) in ([1000, 320], [320, 1000], [1000])]


def test_the_export_is_in_single_precision_throughout(full_bundle):
    model = onnx.load(full_bundle.folder / "decoder.onnx")
    kinds = {w.data_type for w in model.graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert torch.get_default_dtype() == torch.float32
