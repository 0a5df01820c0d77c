import dataclasses

import pytest
import torch

from samexport.errors import ConfigError
from samexport.models.architectures.object_detector import DETECTOR_TEST, ObjectDetector
from samexport.models.graphs.detector import PlainPromptSampler, PromptSampler, count_anchors
from samexport.models.weights.random_weights import random_state_dict

SIZE, CANDIDATES = 96, 50


def detector_of(size=DETECTOR_TEST):
    detector = ObjectDetector(size).eval().requires_grad_(False)
    tensors = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in detector.state_dict().items()}
    detector.load_state_dict({k: torch.from_numpy(v) for k, v in random_state_dict(tensors, 3).items()})
    for branch in detector.head.cv3:
        branch[2].weight *= 30  # spread the scores
    return detector


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("classes", [1, 3])
def test_export_form_equals_the_architecture(classes, image):
    detector = detector_of(dataclasses.replace(DETECTOR_TEST, classes=classes))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    boxes, scores = PromptSampler(detector, SIZE, CANDIDATES)(image)
    plain_boxes, plain_scores = PlainPromptSampler(detector, SIZE, CANDIDATES)(image)
    assert (plain_scores[:-1] - plain_scores[1:]).min() > 1e-6  # otherwise rounding may swap two boxes
    torch.testing.assert_close(scores, plain_scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, plain_boxes, atol=2e-3, rtol=0)
    assert all(torch.equal(before[k], v) for k, v in detector.state_dict().items())


def test_candidates_are_the_best_of_all_anchors_in_order(image):
    detector = detector_of()
    everything = PromptSampler(detector, SIZE, count_anchors(SIZE))(image)
    best = PromptSampler(detector, SIZE, CANDIDATES)(image)
    assert everything[0].shape == (12 * 12 + 6 * 6 + 3 * 3, 4)
    assert (everything[1][:-1] >= everything[1][1:]).all()
    for some, full in zip(best, everything, strict=True):
        torch.testing.assert_close(some, full[:CANDIDATES], atol=1e-4, rtol=0)


def test_export_form_has_no_batch_norm_no_mask_branch_and_no_tensor_above_rank_4(image):
    sampler = PromptSampler(detector_of(), SIZE, CANDIDATES)
    assert not [m for m in sampler.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not [name for name, _ in sampler.named_parameters() if ".cv4." in name]
    graph = torch.export.export(sampler, (image,)).graph
    values = [node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert len(values) > 100
    assert max(value.dim() for value in values) == 4


def test_sizes_and_counts_that_cannot_be_are_refused():
    detector = detector_of()
    for size in (0, 33, -32, 1000):
        with pytest.raises(ConfigError, match="multiple of 32"):
            PromptSampler(detector, size, 1)
    for count in (0, 85):
        with pytest.raises(ConfigError, match="1 to 84"):
            PromptSampler(detector, 64, count)
    assert count_anchors(1024) == 21504
