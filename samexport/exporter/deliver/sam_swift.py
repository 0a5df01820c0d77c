"""The Swift package of a CoreML bundle: fixed code (``swift/``) and a ``Contract`` read from this bundle.

The fixed code knows no name, shape or size: whatever the model or a package decides stands in the contract, so the two
cannot drift apart. ``Host.swift`` needs no Apple system, and its tests compare it with what our Python code computes.
"""

from __future__ import annotations

from pathlib import Path

from samexport.models.families.sam import ABSENT
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.packages import buckets_of
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.formats.mlpackage import Package, read_package
from samexport.runtimes.host import sam_prompts as prompts
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK

SOURCES = Path(__file__).with_name("swift")
CONTRACT = "Sources/SamExport/Contract.swift"
_HEAD = """// What the packages of this bundle take and return.
// Made by samexport {version} for {model}; made anew with every export, so change a copy.
//
// This package was NOT compiled with Apple's SDK and not run on a device or a Mac by those who made it: no such machine
// was there. What samexport's tests check: its files parse, and this contract is that of the packages.
// Preprocessing follows samexport's Python code: Pillow's bilinear filter to a long side of {size}, the pixel mean
// right and below; masks are scaled back with half-pixel centres. Licence of these files: Apache-2.0.

"""
_AXES: dict[str, str] = {"prompts": ".prompts", "points": ".points"}
# the names by which the fixed code calls tensors
_TENSORS = {
    "image": "image",
    "pointCoords": "point_coords",
    "pointLabels": "point_labels",
    "maskInput": "mask_input",
    "hasMaskInput": "has_mask_input",
    "lowResMasks": "low_res_masks",
    "iouPredictions": "iou_predictions",
}
_LABELS = {
    "labelInside": 1,
    "labelOutside": 0,
    "labelBoxTopLeft": prompts.BOX_TOP_LEFT,
    "labelBoxBottomRight": prompts.BOX_BOTTOM_RIGHT,
    "labelPadding": prompts.PADDING,
    "labelAbsent": ABSENT,
}


def files(bundle: Bundle) -> dict[str, str]:
    """What a CoreML bundle of SAM gets besides its packages; nothing for pictures or scores of another kind."""
    if not bundle.manifest.frame.is_sams or bundle.manifest.scores != "predicted":
        return {}
    fixed = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    texts = {path.relative_to(SOURCES).as_posix(): path.read_text(encoding="utf-8") for path in fixed}
    return {**texts, CONTRACT: contract(bundle)}


def contract(bundle: Bundle) -> str:
    """The text of ``Contract.swift`` for a CoreML bundle.

    Raises:
        BundleError: a package cannot be read.
    """
    manifest = bundle.manifest
    head = _HEAD.format(version=manifest.tools["samexport"], model=manifest.model, size=manifest.frame.size)
    return head + _contract(bundle)


def _contract(bundle: Bundle) -> str:
    manifest, names = bundle.manifest, bundle.graph_names
    packages = {name: read_package(bundle.folder / bundle.artifact(name).path) for name in names}
    split = "decoder_step" in names
    masks = next(t for t in bundle.graph("decoder_with_mask").outputs if t.name == _TENSORS["lowResMasks"])
    roles = {
        "encoder": "encoder",
        "prologue": "decoder_prologue" if split else None,
        "decoder": "decoder_step" if split else "decoder",
        "maskDecoder": "decoder_with_mask",
    }
    mean = ", ".join(f"{value:g}" for value in manifest.frame.mean)
    lines = [
        "enum Contract {",
        f"    static let frameSize = {manifest.frame.size}",
        f"    static let lowRes = {manifest.frame.low_res}",
        "    static let frame = Frame(size: frameSize, lowRes: lowRes)",
        "    /// RGB, 0 to 255. The encoder normalises; this is what the picture is padded with.",
        f"    static let pixelMean: [Float] = [{mean}]",
        f"    static let encoderTakesPicture = {str(bool(packages['encoder'].image_inputs)).lower()}",
        f"    static let maskCount = {masks.shape[1]}",
        "    /// The masks that the weights were trained for.",
        f"    static let maskOutputs = [{', '.join(map(str, manifest.mask_outputs))}]",
        "    static let threshold: Float = 0",
        "    /// Prompts of one call of a flexible decoder; more need much memory.",
        f"    static let chunk = {DEFAULT_CHUNK}",
        *(f"    static let {name}: Float = {code}" for name, code in _LABELS.items()),
        *(f'    static let {name} = "{tensor}"' for name, tensor in _TENSORS.items()),
    ]
    for role, name in roles.items():
        if name is None:
            lines.append(f"    static let {role}: Graph? = nil")
        else:
            kind = "Graph?" if role == "prologue" else "Graph"
            lines += _graph(role, kind, bundle.graph(name), bundle, packages[name])
    lines += ["    static let all = [encoder, prologue, decoder, maskDecoder].compactMap { $0 }", "}", ""]
    return "\n".join(lines)


def _graph(role: str, kind: str, graph: GraphSpec, bundle: Bundle, package: Package) -> list[str]:
    return [
        f"    static let {role}: {kind} = Graph(",
        "        entryPoints: [",
        *(f"            {entry}," for entry in _entry_points(graph, bundle.folder, package)),
        "        ],",
        "        inputs: [",
        *(f"            {_tensor(graph, tensor)}," for tensor in graph.inputs),
        "        ],",
        "        outputs: [",
        *(f"            {_tensor(graph, tensor)}," for tensor in graph.outputs),
        "        ])",
    ]


def _entry_points(graph: GraphSpec, folder: Path, package: Package) -> list[str]:
    """One each; a function is named only where its package has several."""
    sizes = {b.name: (b.prompts, b.points, b.flexible) for b in buckets_of(package, graph)}
    lines = []
    for name in sizes or package.functions:
        file = package.files[name]
        several = [*package.files.values()].count(file) > 1
        function = f'"{name}"' if several else "nil"
        count, points, flexible = sizes.get(name, (1, 1, False))
        place = file.relative_to(folder).with_suffix("").as_posix()
        lines.append(
            f'EntryPoint(\n                file: "{place}", function: {function},\n'
            f"                prompts: {count}, points: {points}, flexible: {str(flexible).lower()})"
        )
    return lines


def _tensor(graph: GraphSpec, tensor: TensorSpec) -> str:
    named = {axis.name: _AXES[axis.role] for axis in graph.axes}
    axes = ", ".join(f".fixed({size})" if isinstance(size, int) else named[size] for size in tensor.shape)
    return f'Tensor(name: "{tensor.name}", axes: [{axes}])'
