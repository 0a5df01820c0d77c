"""Golden vectors of SAM 2.1: outputs of the official code (facebookresearch/sam2 2b90b9f) with the weights of seed 7.

``sam2_tiny.npz``: encoder, prompts and decoder on ``sam2.png``; ``sam2_units.npz``: the parts of the video model alone;
``sam2_base_plus.npz``: the first 13 blocks of that trunk on the same picture; ``sam2_video.npz``: the video predictor,
first frames of a clip of 12 (the two of ``sam2_video.png``, one above the other). All are samples: ``[::a, ::b]`` as
the tests say.
``stats`` are mean, std, min, max of whole maps.
"""

import functools
import hashlib

import numpy as np
import torch
from PIL import Image

from samexport.models.architectures.sam2 import TINY, Sam2
from samexport.models.weights.random_weights import random_state_dict
from tests.models import golden

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def randomise(module, prefix=""):
    """A module with the random weights that it has in a model where its name is ``prefix``."""
    tensors = {prefix + key: value for key, value in golden.tensors_of(module).items()}
    state = random_state_dict(tensors, 7)
    module.load_state_dict({key.removeprefix(prefix): torch.from_numpy(value) for key, value in state.items()})
    return module.eval().requires_grad_(False)


@functools.cache
def tiny():
    return randomise(Sam2(TINY))


def normalised(image):
    """[1, 3, S, S] in 0..1, to what the encoder takes."""
    return (image - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)


def picture():
    """``sam2.png`` as the official image predictor sees it: stretched to a square, bilinear with antialias."""
    image = torch.from_numpy(np.array(Image.open(golden.GOLDEN / "sam2.png"))).permute(2, 0, 1)[None] / 255
    square = torch.nn.functional.interpolate(image, size=(1024, 1024), mode="bilinear", antialias=True)
    return normalised(square)


def clip_frame(index):
    """A frame of the clip as the official video predictor sees it: stretched to a square by Pillow, bicubic."""
    both = Image.open(golden.GOLDEN / "sam2_video.png")
    frame = both.crop((0, 320 * index, 480, 320 * (index + 1))).resize((1024, 1024), Image.Resampling.BICUBIC)
    return normalised(torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None] / 255)


def drawn(name, *shape, scale=1.0):
    """The synthetic input called ``name``."""
    seed = int.from_bytes(hashlib.sha256(f"7:input:{name}".encode()).digest()[:8], "little")
    return torch.from_numpy((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def mask_prompt():
    """Logits of a mask prompt, [1, 1, 256, 256]."""
    y, x = np.mgrid[:256, :256].astype(np.float32)
    logits = np.clip(8 - ((x - 96) ** 2 + (y - 110) ** 2) / np.float32(312.5), -8, 8)
    return torch.from_numpy(logits)[None, None]


def stats(tensor):
    values = tensor.double().numpy()
    return np.array([f(values) for f in (np.mean, np.std, np.min, np.max)])


def check_block(output, vectors, index, tolerance=1e-3):
    """Output [1, H, W, C] of a trunk's block against its sample."""
    height, width, channels = output.shape[1:]
    sample = output[0, :: height // 16, :: width // 16, :: channels // 24]
    golden.close(sample[::2, ::2, ::3], vectors[f"block{index}"], tolerance)
