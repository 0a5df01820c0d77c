"""The network as training on a GPU computes it is the network."""

import copy

import torch

from samexport.models.catalog import find_model
from samexport.training.loop import decode, embed, new_model, set_size
from samexport.training.prompts import boxes
from samexport.training.quick import quicken
from samexport.training.scenes import SceneSettings, draw

TINY = find_model("test.tinyvit64")


def test_quick_layers_give_the_same_masks_and_the_same_gradients():
    sam = new_model(TINY, 3).eval()
    for value in sam.parameters():
        if value.ndim == 1:
            value.data += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(sam)
    quicken(other)
    assert other.state_dict().keys() == sam.state_dict().keys()
    changed = sum(type(a) is not type(b) for a, b in zip(sam.modules(), other.modules(), strict=True))
    # 7 attentions of the decoder and their norms, those of the encoder, its neck and the upscaling
    assert changed > 7 + 9 + 3
    scenes = draw(2, SceneSettings(64, 4), torch.Generator().manual_seed(2))
    masks = scenes.masks(torch.tensor([[0, 1], [0, 1]])).flatten(0, 1)
    found = []
    for network in (sam, other):
        set_size(network, 64)
        embeddings = embed(network, scenes.pictures, scenes.ids, TINY.frame)
        first, _ = decode(network, embeddings, boxes(masks, None), None)
        logits, scores = decode(network, embeddings, boxes(masks, None), first[:, :1].clamp(-32, 32))
        (logits.square().mean() + scores.square().mean()).backward()
        found.append([logits, scores] + [value.grad for value in network.parameters() if value.grad is not None])
    assert len(found[0]) > 100
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max()) + 1e-7)
