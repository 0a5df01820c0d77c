"""SAM 2's part of the model card."""

from __future__ import annotations

from samexport.exporter.deliver.card import About
from samexport.models.families.sam2 import IMAGE_ENCODER, MASK_DECODER, MEMORY_ATTENTION
from samexport.models.families.sam2_sparse import ENCODER_STEM, MEMORY_ATTENTION_PRUNED
from samexport.runtimes.bundle import Manifest

_EXAMPLE = """import numpy as np, onnxruntime as ort
from PIL import Image

image = Image.open("golden/picture.png").convert("RGB")
channels = [Image.fromarray(np.float32(image)[..., c]) for c in range(3)]
pixels = [channel.resize(({size}, {size}), Image.Resampling.BILINEAR) for channel in channels]
encoder, decoder = (ort.InferenceSession(f) for f in ("{encoder}", "{decoder}"))
names = [output.name for output in encoder.get_outputs()]
seen = dict(zip(names, encoder.run(None, {{"image": np.stack(pixels)[None]}})))
x, y = {size} / 2, {size} / 2
prompt = {{"point_coords": np.float32([[[x, y], [0, 0]]]), "point_labels": np.float32([[1, -1]])}}
features = {{name: seen[name] for name in ("image_embed", "feat_s0", "feat_s1")}}
masks, scores = decoder.run(["low_res_masks", "iou_predictions"], {{**features, **prompt}})
best = 1 + scores[0, 1:].argmax()  # one click is ambiguous: the best of masks 1..3
print(f"score {{scores[0, best]:.3f}}, {{(masks[0, best] > 0).mean():.1%}} of the frame")
"""

_VIDEO = """## Video

Frames are scaled with Pillow's bicubic filter on 8-bit RGB. A frame where an object gets its first prompt is decoded
as a picture is. Later frames go through `memory_attention` with what is remembered of the object, then through
`mask_decoder_tracked`: the best of masks 1..3 answers, its pointer is kept, and `memory_encoder` makes the frame's
memory. Where `object_score` is 0 or less, the object is not in the picture: its mask logits count as -1024, its pointer
is `no_object_pointer` of `constants.npz`. Memories are kept as bfloat16, those of all frames with prompts and of the
last six others, and the pointers of fifteen. `samexport.runtimes.families.sam2_tracker` is this loop in numpy.
"""


_SPARSE = """## Leaving out what does not matter

`memory_attention_pruned` reads the newest memory, those of frames with prompts, and of five older ones the tokens (5 in
100) that had the highest `saliency` when they were the newest.
`samexport.runtimes.families.sam2_sparse_tracker` is what follows in numpy.
"""

_WINDOWS = """`encoder_stem`, `encoder_routed` and `encoder_tail` are Efficient-SAM2's encoder: take
`{passed}`, put the `routed` rows of `windows` in their places, and that is `merged`. Frames with prompts and the ones
after them go through `image_encoder`. Windows of the next frame: those that a candidate mask touches, grown by two
pixels, and where `object_score` is below 5 the fewest that hold 0.7 of `saliency` of `mask_decoder_salient`. A file
that takes certain numbers of windows is filled up with those that hold most of it.
"""


def about(manifest: Manifest) -> About:
    """Prompts as SAM 2 takes them, how a video is followed, and an example for ONNX bundles."""
    size, low = manifest.frame.size, manifest.frame.low_res
    prompts = [
        "Normalisation is inside the encoder. Points and boxes: multiply x by",
        f"{size} / width and y by {size} / height.",
        "A box is two points labelled 2 and 3, before the others. Every prompt of points or a box ends with the",
        "padding point (0, 0), label -1. Fill shorter prompts of a batch with label -2. One point is ambiguous: the",
        "best of masks 1..3 answers it. What says more is answered by mask 0, or where that is unstable (less than",
        "98% of the pixels above -0.05 are above 0.05) by the best of masks 1..3. Masks: scale the",
        f"{low}x{low} logits to the picture (bilinear), threshold at 0.",
    ]
    paths = {artifact.graph: artifact.path for artifact in manifest.artifacts}
    example = []
    if MEMORY_ATTENTION in paths:
        example.append(_VIDEO)
    if MEMORY_ATTENTION_PRUNED in paths:
        example.append(_SPARSE)
    if ENCODER_STEM in paths:
        passed = next(graph.outputs[-1].name for graph in manifest.graphs if graph.name == ENCODER_STEM)
        example.append(_WINDOWS.format(passed=passed))
    if all(a.file_format == "onnx" for a in manifest.artifacts):
        code = _EXAMPLE.format(size=size, encoder=paths[IMAGE_ENCODER], decoder=paths[MASK_DECODER])
        example += ["## Example", "", "```python", code.rstrip(), "```", ""]
    return About(prompts, example)
