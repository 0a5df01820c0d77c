"""SAM's part of the model card."""

from __future__ import annotations

from samexport.exporter.deliver.card import About
from samexport.runtimes.bundle import Manifest

_EXAMPLE = """import numpy as np, onnxruntime as ort
from PIL import Image

image = Image.open("golden/picture.png").convert("RGB")
scale = {size} / max(image.size)
width, height = (int(side * scale + 0.5) for side in image.size)
pixels = np.tile(np.float32({mean}), ({size}, {size}, 1))
pixels[:height, :width] = image.resize((width, height), Image.Resampling.{filter})
encoder, {sessions}
seen = dict(zip(({seen}), encoder.run(None, {{"image": pixels.transpose(2, 0, 1)[None]}})))
x, y = image.width / 2 * scale{points}, image.height / 2 * scale{points}
prompt = {{"point_coords": np.float32([[[x, y], [0, 0]]]), "point_labels": np.float32([[1, -1]])}}
{decode}
best = 1 + scores[0, 1:].argmax()  # one click is ambiguous: the best of masks 1..3
print(f"score {{scores[0, best]:.3f}}, {{(masks[0, best] > 0).mean():.1%}} of the frame")
"""
_WHOLE = "masks, scores = decoder.run(None, {**seen, **prompt})"
_SPLIT = """shared = dict(zip(({names}), prologue.run(None, {{"image_embeddings": seen.pop("image_embeddings")}})))
masks, scores = step.run(None, {{**shared, **seen, **prompt}})"""

_COREML = """## On Apple's systems

This folder is a Swift package, `SamExport`: `Segmenter` loads the packages, frames a picture, fills in prompts,
calls, and scales the masks back, `SegmentView` is a sample of SwiftUI. Add the folder to Xcode as a local package,
and the `.mlpackage`s to the app's own target. Names, shapes and codes were read from these packages. The Swift code
was not compiled or run on Apple's systems, only parsed; `swift test` compares what needs no Apple system with numbers
of samexport. A folder `.mlpackages` holds one package for each number of prompts, for systems before iOS 18 and
macOS 15. An encoder that takes a picture gets whole numbers: pad with the rounded mean, which it replaces by the
mean itself.

## How the packages were checked

Where they were made, the saved packages were interpreted on a CPU, operation by operation. That shows that names,
shapes, graph and weights are right and what rounding to fp16 does. It does not show Apple's compiler and kernels, on
which compute unit a package runs, its speed or its memory. On a Mac, `samexport verify .` runs CoreML itself as well.
"""


def about(manifest: Manifest) -> About:
    """Prompts as SAM takes them, and an example for ONNX bundles."""
    size = manifest.frame.prompts
    prompts = [
        "Normalisation is inside the encoder. Points and boxes: multiply x by (scaled width / width) and y by (scaled",
        "height / height), each with the rounded size from above. A prompt of points ends with the padding point",
        "(0, 0), label -1; a box is two points labelled 2 and 3 and takes no padding point.",
        f"Fill shorter prompts of a batch with label -2. Masks: scale the logits to {size}x{size} (bilinear), cut the",
        "padding off, scale to the picture, threshold at 0.",
    ]
    example = []
    if all(a.file_format == "onnx" for a in manifest.artifacts):
        example += ["## Example", "", "```python", _example(manifest).rstrip(), "```", ""]
    if all(a.file_format == "coreml" for a in manifest.artifacts):
        example.append(_COREML)
    return About(prompts, example)


def _example(manifest: Manifest) -> str:
    path = {a.graph: a.path for a in manifest.artifacts}
    graphs = {g.name: g for g in manifest.graphs}
    split = "decoder_step" in path
    names = ["encoder", *(("decoder_prologue", "decoder_step") if split else ("decoder",))]
    shared = ", ".join(f'"{n}"' for n in graphs["decoder_prologue"].output_names) if split else ""
    decode = _SPLIT.format(names=shared) if split else _WHOLE
    variables = ", ".join(n.removeprefix("decoder_") for n in names[1:])
    files = ", ".join(f'"{path[n]}"' for n in names)
    sessions = f"{variables} = (ort.InferenceSession(f) for f in ({files}))"
    frame = manifest.frame
    return _EXAMPLE.format(
        size=frame.size,
        mean=[float(f"{v:g}") for v in frame.mean],
        filter="BICUBIC" if frame.filter == "bicubic" else "BILINEAR",
        points="" if frame.prompts == frame.size else f" * {frame.prompts / frame.size:g}",
        sessions=sessions,
        seen="".join(f'"{name}", ' for name in graphs["encoder"].output_names).rstrip(" "),
        decode=decode,
    )
