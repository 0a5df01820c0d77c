"""A static page that segments pictures in a browser: our page, a bundle's ONNX files, ONNX Runtime's files for the web.

The page (``page/``) is JavaScript as browsers run it, so nothing is built. ONNX Runtime comes from its npm package, one
pinned version, and each file is compared with a sha256 that stands here; at run time the page asks no other host.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from samexport import __version__
from samexport.errors import BundleError, ConfigError, FileError, MissingDependency
from samexport.files import check_new_folder, new_folder, open_regular, reason, sha256, to_json
from samexport.models.families.detector import SAMPLER
from samexport.runtimes.bundle import Bundle, not_ours
from samexport.runtimes.host.grid import GridOptions

MANIFEST = "samexport.json"
PAGE = Path(__file__).with_name("page")
MODEL, RUNTIME = "model", "runtime"
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
RUNTIME_FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""Of the package's ``dist``: what runs on the processor, and what runs on the GPU. A browser loads one of the two."""
NOTICE = f"ONNX Runtime Web {VERSION}. Copyright (c) Microsoft Corporation. MIT License, https://opensource.org/license/mit\n"
_NPM_SECONDS = 300
_GRID_SIDE, _GRID_BATCH = 12, 16
"""A seventh of SAM's clicks: a processor in a browser is slow."""
_FAMILIES = ("sam", "sam_hq")
_LARGEST = 1 << 31
"""Bytes of a file: WebAssembly has 4 GB for it, its copy and what it computes."""


def write_site(bundle: Bundle, out: Path, *, runtime: Path | None = None, force: bool = False) -> None:
    """Write the page for a bundle; it appears by one rename, or not at all.

    Args:
        bundle: ONNX, of SAM's family.
        out: a path where nothing is.
        runtime: an unpacked ``onnxruntime-web`` of the pinned version; None lets npm fetch it (from its cache, or the
            network).
        force: replace a site of an earlier call, and only that.

    Raises:
        BundleError: the page cannot run such a bundle; the bundle is damaged; ``out`` is taken.
        ConfigError: the runtime's files are not those of the pinned version.
        MissingDependency: npm is not installed, or did not get the package.
    """
    check_fit(bundle)
    refusal = partial(not_ours, manifest=MANIFEST)
    check_new_folder(out, force=force, refusal=refusal)
    with new_folder(out, force=force, refusal=refusal) as folder:
        shutil.copytree(PAGE, folder, dirs_exist_ok=True)
        (folder / MODEL).mkdir()
        for name in _graphs(bundle):
            shutil.copyfile(bundle.folder / bundle.artifact(name).path, folder / MODEL / f"{name}.onnx")
        (folder / RUNTIME).mkdir()
        _copy_runtime(runtime, folder / RUNTIME)
        (folder / "config.json").write_text(to_json(config(bundle)), encoding="utf-8")
        files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        content = {"model": bundle.manifest.model, "samexport": __version__, "files": files}
        (folder / MANIFEST).write_text(to_json(content), encoding="utf-8")


def check_fit(bundle: Bundle) -> None:
    """Refuse a bundle that the page cannot run, with what to do; BundleError."""
    manifest, name = bundle.manifest, bundle.folder.name
    formats = sorted({a.file_format for a in manifest.artifacts})
    if formats != ["onnx"]:
        raise BundleError(f"{name} is {', '.join(formats)}; the page runs ONNX, `samexport onnx` makes it")
    if manifest.family not in _FAMILIES or not manifest.frame.is_sams or manifest.scores != "predicted":
        raise BundleError(
            f"the page prepares pictures, gives prompts and ranks masks as SAM does; {manifest.model} has another way"
        )
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
    graphs = {name: _graph(bundle, name) for name in _graphs(bundle)}
    sampler, grid = manifest.sampler, GridOptions(points_per_side=_GRID_SIDE, points_per_batch=_GRID_BATCH)
    return {
        "model": manifest.model,
        "summary": manifest.summary,
        "licence": manifest.licence,
        "warning": manifest.weights.warning,
        "weights": asdict(manifest.weights),
        "frame": {
            "size": manifest.frame.size,
            "mean": list(manifest.frame.mean),
            "lowRes": manifest.frame.low_res,
        },
        "maskOutputs": list(manifest.mask_outputs),
        "encoder": graphs["encoder"],
        "decoder": [graph for name, graph in graphs.items() if name not in ("encoder", SAMPLER)],
        "sampler": sampler
        and {
            **graphs[SAMPLER],
            "size": sampler.image_size,
            "rgb": sampler.rgb,
            "options": {
                "confidence": sampler.options.confidence,
                "nmsIou": sampler.options.nms_iou,
                "maxBoxes": sampler.options.max_boxes,
                "border": sampler.options.border,
            },
        },
        "grid": {
            "pointsPerSide": grid.points_per_side,
            "batch": grid.points_per_batch,
            "iou": grid.pred_iou_thresh,
            "stability": grid.stability_score_thresh,
            "offset": grid.stability_score_offset,
            "nmsIou": grid.box_nms_thresh,
        },
        "runtime": {"version": VERSION, "folder": RUNTIME},
    }


def _graphs(bundle: Bundle) -> tuple[str, ...]:
    """The graphs that the page runs; a decoder for earlier masks is none of them."""
    split = "decoder_step" in bundle.graph_names
    wanted = ("encoder", *(("decoder_prologue", "decoder_step") if split else ("decoder",)), SAMPLER)
    return tuple(name for name in wanted if name in bundle.graph_names)


def _graph(bundle: Bundle, name: str) -> dict[str, Any]:
    graph = bundle.graph(name)
    return {
        "name": name,
        "file": f"{MODEL}/{name}.onnx",
        "bytes": bundle.artifact(name).size,
        "inputs": list(graph.input_names),
        "outputs": list(graph.output_names),
    }


def _copy_runtime(source: Path | None, target: Path) -> None:
    if source is None:
        with tempfile.TemporaryDirectory(prefix="samexport-") as scratch:
            _copy_checked(_fetch(Path(scratch)), target, "npm's package", "npm cache clean --force, then try again")
    else:
        remedy = f"npm install {PACKAGE}@{VERSION}, then give its folder in node_modules"
        dist = next(
            (d for d in (source / "dist", source) if (d / next(iter(RUNTIME_FILES))).is_file()), source / "dist"
        )
        _copy_checked(dist, target, str(source), remedy)
    (target / "NOTICE.txt").write_text(NOTICE, encoding="utf-8")


def _copy_checked(dist: Path, target: Path, where: str, remedy: str) -> None:
    for name, known in RUNTIME_FILES.items():
        try:
            with open_regular(dist / name) as stream, (target / name).open("wb") as copy:
                shutil.copyfileobj(stream, copy)
        except FileError as error:
            raise ConfigError(f"{where} has no {name} of {PACKAGE} {VERSION}: {remedy}") from error
        if sha256(target / name) != known:
            raise ConfigError(f"{where}: {name} is not that of {PACKAGE} {VERSION}: {remedy}")


def _fetch(scratch: Path) -> Path:
    """The package's ``dist``, unpacked as far as it is needed; MissingDependency without npm or the package."""
    npm = shutil.which("npm")
    other = f"or give an unpacked {PACKAGE} {VERSION} with --runtime"
    if npm is None:
        raise MissingDependency(f"{PACKAGE} comes from npm, which is not installed: install Node.js, {other}")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(scratch), "--prefer-offline", "--silent"]
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=_NPM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependency(f"npm did not get {PACKAGE} {VERSION}: {reason(error)}; try again, {other}") from error
    packed = next(scratch.glob("*.tgz"), None)
    if done.returncode or packed is None:
        said = reason(RuntimeError(done.stderr or done.stdout or f"exit code {done.returncode}"))
        raise MissingDependency(f"npm did not get {PACKAGE} {VERSION}: {said}; mend npm, {other}")
    try:
        with tarfile.open(packed) as archive:
            for name in RUNTIME_FILES:
                archive.extract(f"package/dist/{name}", scratch, filter="data")
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise ConfigError(
            f"npm's {PACKAGE} {VERSION} cannot be unpacked: {reason(error)}; try again, {other}"
        ) from error
    return scratch / "package" / "dist"
