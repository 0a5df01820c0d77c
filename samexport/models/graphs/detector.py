"""Export form of the object-aware detector.

What differs from ``architectures/object_detector.py``, and why it is the same function:

- Conv and BatchNorm are one convolution; the division by 255 is in the first one (its padding is 0 either
  way); the mask-coefficient branch, which nothing reads, is gone.
- The sigmoid is monotone, so the best anchors are chosen on logits, and only their boxes are decoded:
  the softmax over distance bins runs on K columns instead of 21504. For runtimes whose delegates know no top-K
  there is a form without it, which returns every anchor; sorting 21504 numbers costs the host 2 ms.
- Box bins and scores are never one tensor: they would share a scale once quantized.
- The batch axis is dropped before the decoding, and no tensor is above rank 4.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from samexport.errors import ConfigError
from samexport.models.architectures.object_detector import STRIDES, Conv, ObjectDetector, anchors
from samexport.models.graphs.layers import fold_batch_norm, frozen


def count_anchors(image_size: int) -> int:
    """Boxes that the detector looks at in a square image: the largest K.

    Raises:
        ConfigError: the size is not a positive multiple of 32.
    """
    if image_size < 32 or image_size % 32:
        raise ConfigError(f"the sampler's image size must be a multiple of 32, got {image_size}")
    return sum((image_size // stride) ** 2 for stride in STRIDES)


def _check_candidates(candidates: int | None, image_size: int) -> None:
    most = count_anchors(image_size)
    if candidates is not None and not 1 <= candidates <= most:
        raise ConfigError(f"at {image_size} pixels a sampler gives 1 to {most} boxes, not {candidates}")


def _folded(detector: ObjectDetector) -> ObjectDetector:
    """A copy without BatchNorm and without the mask-coefficient branch, for pixels in 0..255."""
    folded = copy.deepcopy(detector)
    del folded.head.cv4
    for name, module in list(folded.named_modules()):
        if isinstance(module, Conv):
            parent, _, child = name.rpartition(".")
            conv = fold_batch_norm(module.conv, module.bn)
            setattr(folded.get_submodule(parent), child, nn.Sequential(conv, nn.SiLU()))
    first = folded.get_parameter("model.0.0.weight")
    first.copy_(first.double() / 255)
    return folded


class PromptSampler(nn.Module):
    """Image [1, 3, S, S] in 0..255 to the K best candidates: boxes [K, 4] and scores [K], descending.

    With ``candidates`` None to all A anchors in their order: boxes [A, 4] and scores [A].

    Boxes are xyxy in pixels of the input and may reach beyond it. They are candidates: the confidence
    threshold and NMS come after, so K must be well above the number of boxes that are wanted in the end.
    A detector of several classes gives each anchor the best of its scores.
    """

    def __init__(self, detector: ObjectDetector, image_size: int, candidates: int | None) -> None:
        super().__init__()
        _check_candidates(candidates, image_size)
        self.detector, self.candidates = _folded(detector), candidates
        points, strides = anchors([(image_size // s, image_size // s) for s in STRIDES])
        self.points, self.strides = frozen(points.T), frozen(strides.T)
        self.bins = frozen(torch.arange(float(detector.size.reg_max))[:, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Sample."""
        head = self.detector.head
        levels = self.detector.features(image)
        logits = torch.cat([branch(x).flatten(2) for branch, x in zip(head.cv3, levels, strict=True)], dim=2)
        boxes = torch.cat([branch(x).flatten(2) for branch, x in zip(head.cv2, levels, strict=True)], dim=2)
        best, bins = logits.amax(1).flatten(), boxes[0]
        points: Tensor = self.points
        strides: Tensor = self.strides
        if self.candidates is not None:
            best, index = best.topk(self.candidates)
            bins, points, strides = (x.index_select(1, index) for x in (bins, points, strides))
        near, far = self._expect(bins).chunk(2)
        return (torch.cat([points - near, points + far]) * strides).T, best.sigmoid()

    def _expect(self, logits: Tensor) -> Tensor:
        """Bins [4 * reg_max, K] to distances in cells [4, K]."""
        columns = logits.shape[1]
        weights = logits.reshape(4, -1, columns).transpose(1, 2).softmax(-1)
        return (weights @ self.bins).reshape(4, columns)


class PlainPromptSampler(nn.Module):
    """The same from the untouched architecture: everything is decoded, then sorted (or not)."""

    def __init__(self, detector: ObjectDetector, image_size: int, candidates: int | None) -> None:
        super().__init__()
        _check_candidates(candidates, image_size)
        self.detector, self.candidates = detector, candidates

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Sample."""
        boxes, scores = self.detector.decode(self.detector(image / 255))
        best = scores[0].amax(1)
        if self.candidates is None:
            return boxes[0], best
        best, index = best.topk(self.candidates)
        return boxes[0, index], best
