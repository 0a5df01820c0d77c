"""The model card: README.md of a bundle. What each tensor is, how to preprocess, and an example that runs."""

from __future__ import annotations

from samexport.exporter.to_onnx.versions import oldest_onnxruntime
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.bundle import Manifest, SamplerInfo

_EXAMPLE = """import numpy as np, onnxruntime as ort
from PIL import Image

image = Image.open("golden/picture.png").convert("RGB")
scale = {size} / max(image.size)
width, height = (int(side * scale + 0.5) for side in image.size)
pixels = np.tile(np.float32({mean}), ({size}, {size}, 1))
pixels[:height, :width] = image.resize((width, height), Image.Resampling.BILINEAR)
encoder, {sessions}
embeddings = encoder.run(None, {{"image": pixels.transpose(2, 0, 1)[None]}})[0]
x, y = image.width / 2 * scale, image.height / 2 * scale
prompt = {{"point_coords": np.float32([[[x, y], [0, 0]]]), "point_labels": np.float32([[1, -1]])}}
{decode}
best = 1 + scores[0, 1:].argmax()  # one click is ambiguous: the best of masks 1..3
print(f"score {{scores[0, best]:.3f}}, {{(masks[0, best] > 0).mean():.1%}} of the frame")
"""
_WHOLE = 'masks, scores = decoder.run(None, {"image_embeddings": embeddings, **prompt})'
_SPLIT = """shared = dict(zip(({names}), prologue.run(None, {{"image_embeddings": embeddings}})))
masks, scores = step.run(None, {{**shared, **prompt}})"""


_COREML = """## On Apple's systems

`Segmenter.swift` loads the packages, frames a picture, fills in prompts, calls, and scales the masks back; its names,
shapes and codes were read from these packages. It was not compiled or run on Apple's systems, only parsed. A folder
`.mlpackages` holds one package for each number of prompts, for systems before iOS 18 and macOS 15. An encoder that
takes a picture gets whole numbers: pad with the rounded mean, which it replaces by the mean itself.

## How the packages were checked

Where they were made, the saved packages were interpreted on a CPU, operation by operation. That shows that names,
shapes, graph and weights are right and what rounding to fp16 does. It does not show Apple's compiler and kernels, on
which compute unit a package runs, its speed or its memory. On a Mac, `samexport verify .` runs CoreML itself as well.
"""


def write_card(manifest: Manifest) -> str:
    """Markdown text of the card."""
    weights = manifest.weights
    random = weights.kind == "random"
    origin = f"{weights.source}, sha256 `{weights.sha256}`"
    if random:
        origin = f"RANDOM weights, seed {weights.seed}: for tests and timing, the masks mean nothing"
    size, mean = manifest.frame.size, list(manifest.frame.mean)
    lines = [
        f"# {manifest.model}{' (random weights)' if random else ''}",
        "",
        f"{manifest.summary}. Made by samexport {manifest.tools['samexport']}.",
        "",
        f"- Weights: {origin}",
        f"- Licence of the weights: {manifest.licence}",
        f"- Masks that the weights were trained for: {', '.join(map(str, manifest.mask_outputs))}",
        "",
        "## Files",
        "",
        "| file | graph | recipe | size | sha256 |",
        "|---|---|---|---|---|",
        *(
            f"| `{a.path}` | {a.graph} | {a.recipe} | {a.size / 1e6:.1f} MB | `{a.sha256[:16]}...` |"
            for a in manifest.artifacts
        ),
        "",
        *_options(manifest),
        "`bundle.json` describes all of it for programs; `golden/` holds inputs and PyTorch's outputs.",
        "`samexport verify .` compares the files with them; it needs no PyTorch.",
        "",
        "## Preprocessing",
        "",
        f"Scale the long side to {size} pixels, `int(side * {size} / long + 0.5)`, with Pillow's bilinear filter on",
        f"8-bit RGB. Pad right and bottom to {size}x{size} with the pixel mean {mean}.",
        "Normalisation is inside the encoder. Points and boxes: multiply x by (scaled width / width) and y by (scaled",
        "height / height), each with the rounded size from above. A prompt of points ends with the padding point",
        "(0, 0), label -1; a box is two points labelled 2 and 3 and takes no padding point.",
        f"Fill shorter prompts of a batch with label -2. Masks: scale the logits to {size}x{size} (bilinear), cut the",
        "padding off, scale to the picture, threshold at 0.",
        "",
        *(_sampler_section(manifest.sampler) if manifest.sampler else ()),
        "## Graphs",
        "",
    ]
    for name in dict.fromkeys(a.graph for a in manifest.artifacts):
        lines += _graph_section(next(g for g in manifest.graphs if g.name == name))
    if all(a.file_format == "onnx" for a in manifest.artifacts):
        lines += ["## Example", "", "```python", _example(manifest).rstrip(), "```", ""]
    if all(a.file_format == "coreml" for a in manifest.artifacts):
        lines.append(_COREML)
    return "\n".join(lines)


def _sampler_section(sampler: SamplerInfo) -> list[str]:
    weights, size, options = sampler.weights, sampler.image_size, sampler.options
    origin = f"{weights.source}, sha256 `{weights.sha256}`" if weights.sha256 else f"RANDOM, {weights.source}"
    order = "RGB" if sampler.rgb else "BGR"
    suppressed = " The graph has applied that NMS already." if sampler.nms == "in-graph" else ""
    return [
        "## Sampler",
        "",
        f"`prompt_sampler` is {sampler.summary}; weights: {origin}; their licence: {sampler.licence}.",
        f"Scale the long side to {size} (OpenCV's bilinear filter), fill up with grey 114 to {size}x{size},",
        f"channels in the order {order}. Keep boxes with a score above {options.confidence:g}, of two that overlap",
        f"more than {options.nms_iou:g} (IoU) the better one, {options.max_boxes} at most; move sides closer than",
        f"{options.border:g} pixels to the frame onto it.{suppressed}",
        "Each box is a prompt: labels 2 and 3, mask 0 is the answer.",
        "",
    ]


def _options(manifest: Manifest) -> list[str]:
    """What the files were made with, and what the linter found: operations that leave a delegate by name."""
    options = sorted({f"{key} {value}" for a in manifest.artifacts for key, value in a.options.items()})
    opsets = sorted({a.opset for a in manifest.artifacts if a.opset})
    oldest = [f"Opset {opset} needs ONNX Runtime {oldest_onnxruntime(opset)} or newer." for opset in opsets]
    found = [row for row in manifest.parity if row.check.kind == "lint"]
    lines = [f"- {r.check}: {r.output}{f' ({r.reason})' if r.reason else ''}" for r in found]
    if not options:
        return []
    linted = ["Operations that would leave a delegate:", "", *lines] if lines else []
    return [" ".join([f"Made with {', '.join(options)}.", *oldest]), *linted, ""]


def _graph_section(graph: GraphSpec) -> list[str]:
    rows = [*(("in", t) for t in graph.inputs), *(("out", t) for t in graph.outputs)]
    shapes = [", ".join(map(str, t.shape)) for _, t in rows]
    table = [
        f"| {way} | `{t.name}` | {t.dtype} [{shape}] | {_range(t)} | {t.meaning} |"
        for (way, t), shape in zip(rows, shapes, strict=True)
    ]
    head = ["| | tensor | shape | range | meaning |", "|---|---|---|---|---|"]
    return [f"### {graph.name}: {graph.meaning}", "", *head, *table, ""]


def _range(tensor: TensorSpec) -> str:
    return "" if tensor.low is None else f"{tensor.low:g} to {tensor.high:g}"


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
    mean = [float(f"{v:g}") for v in manifest.frame.mean]
    return _EXAMPLE.format(size=manifest.frame.size, mean=mean, sessions=sessions, decode=decode)
