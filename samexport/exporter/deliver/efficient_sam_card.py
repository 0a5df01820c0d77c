"""EfficientSAM's part of the model card."""

from __future__ import annotations

from samexport.exporter.deliver.card import About
from samexport.runtimes.bundle import Manifest

_EXAMPLE = """from samexport import Prompt, Segmenter, open

with Segmenter(open(".")) as segmenter:
    segmenter.set_image("golden/picture.png")
    for answer in segmenter.predict([Prompt.make([100, 100])]):
        print(answer.masks.shape, answer.scores)
"""


def about(manifest: Manifest) -> About:
    """Prompts as EfficientSAM takes them."""
    size = manifest.frame.size
    prompts = [
        f"Normalisation is inside the encoder. Points: multiply x by ({size} / width) and y by ({size} / height). A",
        "prompt has six: the corners of a box, labels 2 and 3, then points, label 1, then (-1, -1) with label -1.",
        "There are no background points and no earlier masks. The best score of masks 1..3 answers; scale its logits",
        "to the picture (bilinear), a mask is where they are above 0.",
    ]
    return About(prompts, ["## Example", "", "```python", _EXAMPLE.rstrip(), "```", ""])
