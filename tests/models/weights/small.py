"""A state dict of five tensors, files of it, and what must hold when one is refused."""

import pytest
import torch

from samexport.errors import CheckpointError
from samexport.models.catalog import find_model
from samexport.models.weights.checkpoints import load_weights
from samexport.models.weights.random_weights import random_state_dict

SPEC = find_model("mobilesam.tinyvit")
SHAPES = {
    "image_encoder.patch_embed.weight": ((3, 2), "float32"),
    "image_encoder.norm.running_mean": ((3,), "float32"),
    "image_encoder.norm.num_batches_tracked": ((), "int64"),
    "prompt_encoder.no_mask_embed.weight": ((1, 4), "float32"),
    "mask_decoder.iou_token.weight": ((1, 4), "float32"),
}
EXPECTED = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in SHAPES.items()}
STATE = {key: torch.from_numpy(array) for key, array in random_state_dict(SHAPES, 3).items()}


def part(prefix):
    return {key.removeprefix(prefix): value for key, value in STATE.items() if key.startswith(prefix)}


def saved(folder, content, name="weights.pt", **options):
    path = folder / name
    torch.save(content, path, **options)
    return path


def refusal(paths, expected=EXPECTED):
    """The message with which a file is refused; it must be one printable line."""
    paths = paths if isinstance(paths, list | tuple) else (paths,)
    with pytest.raises(CheckpointError) as caught:
        load_weights(SPEC, expected, checkpoints=paths)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 900
    assert "weights_only" not in message
    return message


def assert_is_state(weights, expected=STATE):
    assert weights.state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert weights.state[key].dtype == tensor.dtype
        assert torch.equal(weights.state[key], tensor)
