"""One encode of the golden picture and its mask prompts, for every test that starts from them."""

import pytest
import torch

from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from tests.models import golden


@pytest.fixture(scope="session")
def land(mobile_sam):
    """Stages and "embedding" of the golden picture from MobileSAM's untouched encoder."""
    spec, encoder = find_model("tinyvit"), mobile_sam.image_encoder
    stages = {f"layers{i}": layer for i, layer in enumerate(encoder.layers)}
    seen, handles = golden.watch({"patch_embed": encoder.patch_embed, "neck1": encoder.neck[1], **stages})
    seen["embedding"] = build_graph(mobile_sam, spec, "encoder", plain=True)[1](golden.framed("land.png"))
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="session")
def embeddings(land):
    """Of the golden cases: ``land`` from the encoder, ``syn`` by formula."""
    return {"land": land["embedding"], "syn": golden.synthetic_embeddings()}


@pytest.fixture(scope="session")
def mask_inputs(mobile_sam, embeddings):
    """Mask prompts of the golden cases: the official first mask of ``one_click``, rounded to float16."""
    decoder = build_graph(mobile_sam, find_model("tinyvit"), "decoder", plain=True)[1]
    vectors = golden.read("mobilesam.npz")
    found = {}
    for name, image_embeddings in embeddings.items():
        masks, _ = decoder(image_embeddings, *golden.prompts_of(vectors, f"{name}.one_click"))
        found[name] = golden.mask_prompt(masks[:, :1], vectors[f"{name}.mask_click.mask_low_bits"])
    return found


@pytest.fixture(scope="session")
def decode(embeddings, mask_inputs):
    """Runs a decoder, or a pair with and without a mask prompt, on a golden picture's embedding."""

    def run(decoders, name, point_coords, point_labels, *, mask):
        without, with_mask = decoders
        count = point_coords.shape[0]
        if not mask:
            return without(embeddings[name], point_coords, point_labels)
        prompt = mask_inputs[name].expand(count, -1, -1, -1)
        return with_mask(embeddings[name], point_coords, point_labels, prompt, torch.ones(count))

    return run
