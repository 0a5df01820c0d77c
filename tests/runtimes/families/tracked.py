"""A small SAM 2, its forms, and a clip for trackers."""

import functools

import numpy as np
from PIL import Image

from samexport.models.architectures import sam2
from samexport.models.architectures.sam2 import Sam2
from samexport.models.families.sam2 import sam2_graphs, sam2_module
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from tests.models import sam2_golden

HW = (60, 80)
FRAMES = 10
CLICK, BOX = [[20.0, 30.0]], [10.0, 10.0, 50.0, 40.0]


def forms(model):
    size = model.size
    return {
        graph.name: PyTorchRuntime(sam2_module(model, graph.name), graph)
        for graph in sam2_graphs(size.image_size, size.width)
    }


@functools.cache
def small_model():
    return sam2_golden.randomise(Sam2(sam2.TEST))


@functools.cache
def small_forms():
    return forms(small_model())


def wandering():
    """A coarse pattern that wanders, ``FRAMES`` pictures."""
    rng = np.random.default_rng(0)
    pattern = rng.uniform(0, 255, (12, 16, 3))
    frames = [np.clip(np.roll(pattern, t // 2, 1) + rng.normal(0, 5, pattern.shape), 0, 255) for t in range(FRAMES)]
    large = (Image.fromarray(frame.astype(np.uint8)).resize(HW[::-1], Image.Resampling.BICUBIC) for frame in frames)
    return [np.array(frame) for frame in large]


def a_mask():
    mask = np.zeros(HW, np.bool_)
    mask[10:40, 20:60] = True
    return mask
