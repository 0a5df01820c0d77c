"""The model card: README.md of a bundle. What each tensor is, how to preprocess, and an example that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name

from samexport.exporter.to_onnx.versions import oldest_onnxruntime
from samexport.models.catalog import find_family
from samexport.models.spec import GraphSpec, Preprocess, TensorSpec
from samexport.runtimes.bundle import Manifest, SamplerInfo


@dataclass(frozen=True)
class About:
    """A family's part of the card, lines of Markdown: how prompts become inputs and masks come back; and an example."""

    prompts: list[str]
    example: list[str]


def write_card(manifest: Manifest) -> str:
    """Markdown text of the card."""
    weights = manifest.weights
    origin = f"{weights.source}, sha256 `{weights.sha256}`"
    if weights.kind == "random":
        origin = f"RANDOM weights, seed {weights.seed}: for tests and timing, the masks mean nothing"
        origin += f"; {weights.untrained}" if weights.untrained else ""
    elif weights.warning:
        origin = f"{weights.warning} ({origin})"
    about = resolve_name(find_family(manifest.family).card)(manifest)
    lines = [
        f"# {manifest.model}{f' ({weights.remark})' if weights.remark else ''}",
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
        *_quantized(manifest),
        "`bundle.json` describes all of it for programs; `golden/` holds inputs and PyTorch's outputs.",
        "`samexport verify .` compares the files with them; it needs no PyTorch.",
        "",
        "## Preprocessing",
        "",
        *_preprocessing(manifest.frame),
        *about.prompts,
        "",
        *(_sampler_section(manifest.sampler) if manifest.sampler else ()),
        "## Graphs",
        "",
    ]
    for name in dict.fromkeys(a.graph for a in manifest.artifacts):
        lines += _graph_section(next(g for g in manifest.graphs if g.name == name))
    lines += about.example
    return "\n".join(lines)


def _preprocessing(frame: Preprocess) -> list[str]:
    """In words, what ``runtimes.host.frames.to_frame`` does."""
    size, mean = frame.size, list(frame.mean)
    kinds = {"bilinear": "Pillow's bilinear filter on\n8-bit RGB", "bicubic": "Pillow's bicubic filter on\n8-bit RGB"}
    kinds["bilinear_plain"] = "a bilinear filter on\nfloating-point RGB that never widens (torch's, antialias off)"
    kind = kinds.get(frame.filter, "a bilinear filter on\nfloating-point RGB that widens when it shrinks")
    fill = f"the pixel mean {mean}" if frame.padding == "mean" else "black"
    rule = f"int(side * {size} / long + 0.5)" if frame.rounding == "nearest" else f"int({size} / (long / side))"
    scaled = f"Scale the long side to {size} pixels, `{rule}`, with {kind}."
    rest = f"Pad right and bottom to {size}x{size} with {fill}."
    if frame.resize == "stretch":
        scaled, rest = f"Scale to {size}x{size} pixels, whatever the picture's proportions, with {kind}.", ""
    whole = f"{scaled} {rest}" if rest else scaled
    if frame.prompt_size:
        whole += (
            f"\nPoints are in pixels of the same picture scaled to {frame.prompt_size}, and masks are placed there."
        )
    return [*whole.split("\n"), *([] if frame.white == 255 else [f"Multiply the pixels by {frame.white:g} / 255."])]


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


def _quantized(manifest: Manifest) -> list[str]:
    """How the quantized files were made, what shows that they are, and how far their masks agree with the parents'."""
    gate, files = manifest.gate, [(a, a.quantized) for a in manifest.artifacts if a.quantized]
    if gate is None or not files:
        return []
    modes = (
        f"| {m.mode} | {m.prompts} | {m.mean:.4f} | {m.p5:.4f} | {m.worst:.4f} | {m.same_best:.3f} |"
        for m in gate.modes
    )
    shown = (
        f"| `{a.path}` | {q.size_ratio:.2f} | {100 * q.integer_macs:.0f} % | {q.quantized_weights} | {q.pairs} |"
        for a, q in files
    )
    kept = [f"- {layer} of `{a.path}` is left as it was: {why}." for a, q in files for layer, why in q.kept.items()]
    return [
        "## Quantized",
        "",
        f"Masks of these files against those of the files that they were made from, on {len(gate.pictures)} pictures:",
        f"the mean IoU is at least {1 - gate.max_drop:g}, the 5th percentile at least {1 - 5 * gate.max_drop:g}.",
        "",
        "| prompts | number | mean IoU | p5 | worst | same mask chosen |",
        "|---|---|---|---|---|---|",
        *modes,
        "",
        "| file | size, of the parent's | integer multiplications | integer weights | Q/DQ operations |",
        "|---|---|---|---|---|",
        *shown,
        "",
        *kept,
        *([""] if kept else []),
    ]


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
