"""A static page that segments pictures in a browser: our page, a bundle's files, and what runs them there.

The page (``page/``) is JavaScript as browsers run it, so nothing is built. ONNX Runtime or LiteRT.js comes from its npm
package (``web_runtime.py``); at run time the page asks no other host.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from samexport import __version__
from samexport.errors import BundleError
from samexport.exporter.deliver.web_runtime import RUNTIMES, WebRuntime
from samexport.files import check_new_folder, new_folder, sha256, to_json
from samexport.models.catalog import find_family
from samexport.models.families import efficient_sam, sam, sam2
from samexport.models.families.detector import SAMPLER
from samexport.models.spec import GraphSpec, Preprocess, TensorSpec
from samexport.runtimes.bundle import Bundle, Manifest, not_ours
from samexport.runtimes.host.grid import GridOptions

MANIFEST = "samexport.json"
PAGE = Path(__file__).with_name("page")
MODEL, RUNTIME = "model", "runtime"
_GRID_SIDE, _GRID_BATCH = 12, 16
"""A seventh of SAM's clicks: a processor in a browser is slow."""
_LARGEST = 1 << 31
"""Bytes of a file: WebAssembly has 4 GB for it, its copy and what it computes."""
_ANSWERS = ("low_res_masks", "iou_predictions")


@dataclass(frozen=True)
class _Rules:
    """What the page must know of a family, ``PromptRules`` and ``AnswerRule`` in ``page/host/prompts.js``.

    Attributes:
        graphs: in the order in which they run, the encoder first.
        box_first: the corners of a box before the points.
        padding: when SAM's padding point ends a prompt.
        slots: of every prompt; 0 for as many as are needed.
        absent: label and coordinates of a slot without a point.
        answer: which mask answers.
    """

    graphs: tuple[str, ...] = ("encoder", "decoder")
    box_first: bool = False
    padding: Literal["without box", "always", "never"] = "without box"
    slots: int = 0
    absent: tuple[float, float] = (sam.ABSENT, 0)
    answer: Literal["sam", "sam2"] = "sam"


_FAMILIES = {
    "sam": _Rules(),
    "sam_hq": _Rules(),
    "sam2": _Rules((sam2.IMAGE_ENCODER, sam2.MASK_DECODER), box_first=True, padding="always", answer="sam2"),
    "efficient_sam": _Rules(
        box_first=True, padding="never", slots=efficient_sam.SLOTS, absent=(efficient_sam.ABSENT, -1)
    ),
}  # fmt: skip


def write_site(bundle: Bundle, out: Path, *, runtime: Path | None = None, force: bool = False) -> None:
    """Write the page for a bundle; it appears by one rename, or not at all.

    Args:
        bundle: ONNX or TFLite.
        out: a path where nothing is.
        runtime: the unpacked npm package of the pinned version, ``onnxruntime-web`` or ``@litertjs/core``; None lets
            npm fetch it (from its cache, or the network).
        force: replace a site of an earlier call, and only that.

    Raises:
        BundleError: the page cannot run such a bundle; the bundle is damaged; ``out`` is taken.
        ConfigError: the runtime's files are not those of the pinned version.
        MissingDependency: npm is not installed, or did not get the package.
    """
    check_fit(bundle)
    package = _runtime(bundle.manifest)
    refusal = partial(not_ours, manifest=MANIFEST)
    check_new_folder(out, force=force, refusal=refusal)
    with new_folder(out, force=force, refusal=refusal) as folder:
        shutil.copytree(PAGE, folder, dirs_exist_ok=True)
        (folder / MODEL).mkdir()
        for name in _graphs(bundle):
            shutil.copyfile(bundle.folder / bundle.artifact(name).path, folder / _file(bundle, name))
        (folder / RUNTIME).mkdir()
        package.copy(runtime, folder / RUNTIME)
        (folder / "config.json").write_text(to_json(config(bundle)), encoding="utf-8")
        files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        content = {"model": bundle.manifest.model, "samexport": __version__, "files": files}
        (folder / MANIFEST).write_text(to_json(content), encoding="utf-8")


def check_fit(bundle: Bundle) -> None:
    """Refuse a bundle that the page cannot run, with what to do; BundleError."""
    manifest, name = bundle.manifest, bundle.folder.name
    formats = sorted({a.file_format for a in manifest.artifacts})
    if len(formats) != 1 or formats[0] not in RUNTIMES:
        raise BundleError(f"{name} is {', '.join(formats)}; the page runs ONNX, `samexport onnx` makes it, or TFLite")
    if manifest.family not in _FAMILIES:
        raise BundleError(f"the page does not know how models of the family {manifest.family} take prompts")
    if len(set(_graphs(bundle)) - {SAMPLER}) < 2:
        raise BundleError(f"{name} has no encoder or no decoder; export the bundle again")
    if any(artifact.size > _LARGEST for artifact in manifest.artifacts) or any(
        path.endswith(".onnx.data") for path in manifest.files
    ):
        raise BundleError(
            f"{manifest.model} has more than 2 GB of weights, too many for a browser; take a smaller model"
        )
    for path, problem in bundle.damaged_files().items():
        raise BundleError(f"{bundle.folder}: {path} {problem}; export the bundle again")


def config(bundle: Bundle) -> dict[str, Any]:
    """What the page reads first, plain data; ``Config`` in ``page/session.js`` says what it is."""
    manifest = bundle.manifest
    encoder, *decoder = (name for name in _graphs(bundle) if name != SAMPLER)
    package = _runtime(manifest)
    grid = GridOptions(points_per_side=_GRID_SIDE, points_per_batch=_GRID_BATCH)
    return {
        "model": manifest.model,
        "summary": manifest.summary,
        "licence": manifest.licence,
        "warning": manifest.weights.warning,
        "weights": asdict(manifest.weights),
        "frame": frame_rules(manifest.frame),
        "prompts": prompt_rules(manifest.family),
        "answer": "stability" if manifest.scores == "stability" else _FAMILIES[manifest.family].answer,
        "maskOutputs": list(manifest.mask_outputs),
        "encoder": _graph(bundle, encoder),
        "decoder": [_graph(bundle, name) for name in decoder],
        "sampler": _sampler(bundle),
        "grid": {
            "pointsPerSide": grid.points_per_side,
            "batch": grid.points_per_batch,
            "iou": grid.pred_iou_thresh,
            "stability": grid.stability_score_thresh,
            "offset": grid.stability_score_offset,
            "nmsIou": grid.box_nms_thresh,
        },
        "runtime": {"name": package.package, "version": package.version, "folder": RUNTIME},
    }


def _runtime(manifest: Manifest) -> WebRuntime:
    return RUNTIMES[manifest.artifacts[0].file_format]


def frame_rules(frame: Preprocess) -> dict[str, Any]:
    """``Frame`` in ``page/host/frame.js``."""
    return {
        "size": frame.size,
        "prompts": frame.prompts,
        "lowRes": frame.low_res,
        "resize": frame.resize,
        "rounding": frame.rounding,
        "filter": frame.filter,
        "padding": list(frame.mean) if frame.padding == "mean" else [0, 0, 0],
        "white": frame.white,
    }


def prompt_rules(family: str) -> dict[str, Any]:
    """``PromptRules`` in ``page/host/prompts.js``; KeyError for a family that the page does not know."""
    rules = _FAMILIES[family]
    return {
        "boxFirst": rules.box_first,
        "padding": rules.padding,
        "slots": rules.slots,
        "absent": {"label": rules.absent[0], "at": rules.absent[1]},
        "background": resolve_name(find_family(family).session).background,
    }


def _graphs(bundle: Bundle) -> tuple[str, ...]:
    """The graphs that the page runs; a decoder for earlier masks is none of them."""
    encoder, decoder = _FAMILIES[bundle.manifest.family].graphs
    halves = ("decoder_prologue", "decoder_step")
    wanted = (encoder, *(halves if halves[1] in bundle.graph_names else (decoder,)), SAMPLER)
    return tuple(name for name in wanted if name in bundle.graph_names)


def _file(bundle: Bundle, name: str) -> str:
    """Of a graph, in the site."""
    return f"{MODEL}/{name}.{bundle.artifact(name).file_format}"


def _graph(bundle: Bundle, name: str) -> dict[str, Any]:
    graph = bundle.graph(name)
    read = {tensor.name for other in _graphs(bundle) for tensor in bundle.graph(other).inputs}
    return {
        "name": name,
        "file": _file(bundle, name),
        "bytes": bundle.artifact(name).size,
        "inputs": [_input(graph, tensor) for tensor in graph.inputs],
        "outputs": [n for n in graph.output_names if name == SAMPLER or n in read or n in _ANSWERS],
    }


def _sampler(bundle: Bundle) -> dict[str, Any] | None:
    sampler = bundle.manifest.sampler
    if sampler is None:
        return None
    return {
        **_graph(bundle, SAMPLER),
        "size": sampler.image_size,
        "rgb": sampler.rgb,
        "options": {
            "confidence": sampler.options.confidence,
            "nmsIou": sampler.options.nms_iou,
            "maxBoxes": sampler.options.max_boxes,
            "border": sampler.options.border,
        },
    }


def _input(graph: GraphSpec, tensor: TensorSpec) -> dict[str, Any]:
    """``Input`` in ``page/host/entry_points.js``."""
    axes = {axis.name: {"prompts": "N", "points": "K"}[axis.role] for axis in graph.axes}
    return {"name": tensor.name, "shape": [axes.get(str(d), d) for d in tensor.shape], "fill": tensor.fill}
