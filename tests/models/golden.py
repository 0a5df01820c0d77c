"""Golden vectors: what the official code computes with the random weights of seed 7, and how to ask ours.

``mobilesam.npz`` (ChaoningZhang/MobileSAM 34bbbfd) and ``sam_vit_b.npz`` (facebookresearch/segment-anything
dca509f), float32 on a CPU. Both hold samples of larger maps: stages as C, H, W every 16th or 32nd channel on an
8x8 grid, embeddings ``[::16, ::4, ::4]``, mask logits ``[:, :, ::15, ::15]`` (all phases of the 4x4 upscaling), of
the ONNX wrapper ``[:, ::35, ::35]``, prompt tokens ``[..., ::4]``. ``stats`` are min, max, mean, std of whole maps.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from samexport.models.architectures.sam import Sam
from samexport.models.catalog import find_model
from samexport.models.weights.random_weights import random_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("one_click", "three_clicks", "box", "box_click", "mask_click", "box_batch5")
WRAPPER_CASES = ("n2_click_pad", "n2_box", "n3_clicks_pad", "n3_box_pad", "n3_click_box", "n2_click_pad_mask")


@functools.cache
def read(name):
    with np.load(GOLDEN / name) as archive:
        return dict(archive)


def tensors_of(module):
    """{name: (shape, dtype name)} of a state dict."""
    return {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in module.state_dict().items()}


def official_keys(name):
    """The same from a list of the tensors in an official checkpoint."""
    rows = (line.split("\t") for line in (GOLDEN / "keys" / f"{name}_keys.txt").read_text().splitlines())
    return {
        key: (tuple(int(n) for n in shape.strip("()").split(",") if n.strip()), dtype.removeprefix("torch."))
        for key, shape, dtype in rows
    }


def random_sam(name, seed=7):
    sam = Sam(find_model(name))
    state = random_state_dict(tensors_of(sam), seed, find_model(name).gains)
    sam.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return sam.eval().requires_grad_(False)


def checksum(state):
    """SHA-256 over keys (sorted), dtypes, shapes and little-endian bytes; equal for equal weights anywhere."""
    digest = hashlib.sha256()
    for key in sorted(state):
        array = state[key]
        digest.update(f"{key}|{array.dtype.name}|{array.shape}|".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def framed(picture):
    """A golden picture in the 1024 frame, [1, 3, 1024, 1024] in 0..255, padded with the mean (sam1 rounding rule)."""
    frame = find_model("tinyvit").frame
    image = Image.open(GOLDEN / picture)
    scale = frame.size / max(image.size)
    image = image.resize(tuple(int(side * scale + 0.5) for side in image.size), Image.Resampling.BILINEAR)
    whole = torch.tensor(frame.mean).view(1, 3, 1, 1).repeat(1, 1, frame.size, frame.size)
    whole[0, :, : image.height, : image.width] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return whole


def synthetic_embeddings():
    """The embedding of the ``syn`` cases."""
    drawn = np.random.default_rng(11).standard_normal((1, 256, 64, 64)).astype(np.float32) * np.float32(0.5)
    np.testing.assert_array_equal(drawn[0, :4, 0, :4], read("mobilesam.npz")["syn.embedding.head"])
    return torch.from_numpy(drawn)


def prompts_of(golden, case):
    """point_coords [N, K, 2] and point_labels [N, K] by SAM's padding rule: one pad point, but none with a box."""
    points = golden.get(f"{case}.points_1024", np.zeros((0, 2)))
    labels = golden.get(f"{case}.labels", np.zeros(0))
    boxes = golden.get(f"{case}.boxes_1024")
    count = 1 if boxes is None else len(boxes)
    corners = np.zeros((1, 1, 2)) if boxes is None else boxes.reshape(-1, 2, 2)
    codes = [-1.0] if boxes is None else [2.0, 3.0]
    coords = np.concatenate([np.repeat(points[None], count, 0), corners], axis=1)
    codes = np.repeat(np.concatenate([labels, codes])[None], count, 0)
    return torch.tensor(coords, dtype=torch.float32), torch.tensor(codes, dtype=torch.float32)


def mask_prompt(low_res_mask, low_bits):
    """The mask that the official code computed and rounded to float16, from ours, which may round to a neighbour.

    ``low_bits`` has the last two bits of each official value, four values a byte, which tell neighbours apart.
    """
    ours = low_res_mask.numpy().astype(np.float16).view(np.int16)
    official = (low_bits[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(ours.shape).astype(np.int16)
    step = ((official - ours + 1) & 3) - 1
    return torch.from_numpy((ours + step).view(np.float16).astype(np.float32))


def stats(tensor):
    """Min, max, mean and std over the last two axes, or over all of a tensor without a batch."""
    axes = (-2, -1) if tensor.ndim == 4 else (0, 1, 2)
    values = tensor.double().numpy()
    return np.stack([f(values, axis=axes) for f in (np.min, np.max, np.mean, np.std)], axis=-1)


def close(ours, golden, tolerance):
    """Absolute difference, everywhere."""
    np.testing.assert_allclose(np.asarray(ours), golden, rtol=0, atol=tolerance)


def watch(modules):
    """Forward hooks on {name: module}: the dict they fill with outputs, and the handles that remove them."""
    seen = {}

    def keep(name):
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    return seen, [module.register_forward_hook(keep(name)) for name, module in modules.items()]


def check_masks(low_res_masks, iou_predictions, golden, case, tolerance):
    """Both outputs of a decoder against a golden prompt case."""
    close(low_res_masks[..., ::15, ::15], golden[f"{case}.logits"], tolerance)
    close(stats(low_res_masks), golden[f"{case}.stats"], tolerance)
    close(iou_predictions, golden[f"{case}.iou"], 1e-4)


def largest_rank(program):
    """Of any tensor in a traced graph; composite operators stay whole."""
    return max(value.ndim for node in program.graph.nodes for value in _flat(node.meta.get("val")))


def _flat(value):
    if isinstance(value, tuple | list):
        return [inner for item in value for inner in _flat(item)]
    return [value] if isinstance(value, torch.Tensor) else []
