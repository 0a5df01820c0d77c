"""Fill the Android demo with a TFLite bundle: its model files, a manifest for the app, PyTorch's masks as a check.

The demo itself is the folder ``android_demo_assets`` of the repository; ``setup.py`` copies it into the package when
a wheel is built, so an installed samexport has it too.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import samexport
from samexport.errors import BundleError, ConfigError, MissingDependency
from samexport.files import new_folder, reason, sha256, to_json
from samexport.installation import install_hint
from samexport.models.families.sam import LABELS
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.entry_points import Bucket, of_file
from samexport.runtimes.bundle import Bundle, Manifest, not_ours
from samexport.runtimes.formats.tflite import signatures
from samexport.runtimes.parity.golden import Golden, picture_prompts
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.verdicts import ParityReport, Row, Verdict

DEMO = "android_demo_assets"
MODELS = Path("app/src/main/assets/models")
MANIFEST = "samexport.json"
SCHEMA_VERSION = 1
GENERATED = ("assets", "build", ".gradle", ".idea", ".kotlin", "local.properties")
"""What lies in the demo's folder but is not the demo: models, and what Gradle and Android Studio make."""
_MARK = Path("app/src/main/kotlin/dev/samexport/demo/MainActivity.kt")
_USED = ("encoder", "decoder", "decoder_prologue", "decoder_step")
_CHECK = "check"


@dataclass(frozen=True)
class Filled:
    """What :func:`fill_demo` did: the model's folder, its graphs' entry points, whether the demo was written too."""

    folder: Path
    entries: dict[str, tuple[Bucket, ...]]
    new_demo: bool


def fill_demo(bundle: Bundle, out: Path, *, force: bool = False) -> Filled:
    """Put a bundle's models into the demo at ``out``; writes the demo first if there is nothing yet.

    All or nothing: the model's folder, or the whole demo, appears by one rename.

    Args:
        bundle: TFLite, as exported, all of its checks passed.
        out: a demo, or a path where nothing is.
        force: replace the same model of an earlier call, and only that.

    Raises:
        BundleError: the bundle is of another format, damaged or not verified; ``out`` is something else than a
            demo; the model is there and may not be replaced.
        MissingDependency: ai-edge-litert is not installed.
    """
    _check_bundle(bundle)
    demo = _is_demo(out, bundle)
    golden = load_golden(bundle.folder, bundle.manifest.frame)
    model = MODELS / _model_name(bundle.manifest)
    if demo:
        with new_folder(out / model, force=force, refusal=partial(not_ours, manifest=MANIFEST)) as folder:
            entries = _write_model(bundle, golden, folder)
        return Filled(out / model, entries, new_demo=False)
    with new_folder(out) as folder:
        shutil.copytree(demo_source(), folder, ignore=shutil.ignore_patterns(*GENERATED), dirs_exist_ok=True)
        (folder / model).mkdir(parents=True)
        entries = _write_model(bundle, golden, folder / model)
    return Filled(out / model, entries, new_demo=True)


def _is_demo(out: Path, bundle: Bundle) -> bool:
    """Whether the demo is at ``out``; False where nothing is. BundleError for anything else, and inside the bundle."""
    try:
        if out.resolve().is_relative_to(bundle.folder.resolve()):
            raise BundleError(f"{out} is inside the bundle, which must stay as it was exported; choose another --out")
        if (out / _MARK).is_file():
            return True
        taken = out.exists() or out.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"--out cannot be used: {reason(error)}; choose another one") from error
    if taken:
        raise BundleError(f"{out} exists and is not the Android demo; nothing was changed, choose another --out")
    return False


def demo_source() -> Path:
    """The demo's folder: in the installed package, or beside it in a checkout; ConfigError if there is none."""
    package = Path(samexport.__file__).parent
    for folder in (package / DEMO, package.parent / DEMO):
        if (folder / _MARK).is_file():
            return folder
    raise ConfigError(f"this installation lacks {DEMO}; install samexport again, or give a checkout's as --out")


def _check_bundle(bundle: Bundle) -> None:
    formats = {a.file_format for a in bundle.manifest.artifacts}
    if formats != {"tflite"}:
        found = ", ".join(sorted(formats))
        raise BundleError(f"{bundle.folder} is {found}; the Android demo takes TFLite, `samexport tflite` makes it")
    if bundle.manifest.family != "sam":
        raise BundleError(f"the Android demo runs SAM's decoder; {bundle.manifest.model} is another kind of model")
    if not bundle.manifest.frame.is_sams or bundle.manifest.scores != "predicted":
        raise BundleError(
            f"the Android demo prepares pictures and ranks masks as SAM does; {bundle.manifest.model} has another way"
        )
    damaged = bundle.damaged_files()
    if damaged:
        name, problem = next(iter(damaged.items()))
        raise BundleError(f"{bundle.folder}: {name} {problem}; export the bundle again")
    # what the linter cannot promise is no failed check
    checks = [row for row in bundle.manifest.parity if row.check.kind != "lint"]
    if any(row.verdict is not Verdict.PASS for row in checks) or not ParityReport(tuple(checks)).proves:
        raise BundleError(f"{bundle.folder} did not pass all of its checks; export it again")


def _model_name(manifest: Manifest) -> str:
    precisions = {a.recipe for a in manifest.artifacts} - {"fp32"}
    kind = [manifest.weights.kind] if manifest.weights.kind != "checkpoint" else []
    return "-".join([manifest.model.replace(".", "-"), *sorted(precisions), *kind])


def _write_model(bundle: Bundle, golden: Golden, folder: Path) -> dict[str, tuple[Bucket, ...]]:
    entries = {}
    for name in _USED:
        if name not in bundle.graph_names:
            continue
        path = bundle.folder / bundle.artifact(name).path
        shutil.copyfile(path, folder / path.name)
        entries[name] = entry_points(folder / path.name, bundle.graph(name))
    check = folder / _CHECK
    check.mkdir()
    Image.fromarray(golden.picture).save(check / "picture.png", optimize=True)
    for number, mask in enumerate(golden.masks):
        Image.fromarray(mask).save(check / f"mask{number}.png", optimize=True)
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    content = app_manifest(bundle.manifest, entries, golden, files)
    (folder / MANIFEST).write_text(to_json(content), encoding="utf-8")
    return entries


def entry_points(path: Path, graph: GraphSpec) -> tuple[Bucket, ...]:
    """The entry points of a TFLite file, smallest first.

    Raises:
        BundleError: this is no TFLite file, or its tensors are not those of the graph.
        MissingDependency: ai-edge-litert is not installed.
    """
    try:
        found = of_file(path.name, graph, signatures(path))
    except ModuleNotFoundError as error:
        raise MissingDependency(f"reading TFLite needs {error.name}: {install_hint('litert')}") from error
    return tuple(sorted(found, key=lambda bucket: (bucket.prompts, bucket.points)))


def app_manifest(
    manifest: Manifest, entries: Mapping[str, Sequence[Bucket]], golden: Golden, files: Mapping[str, str]
) -> dict[str, Any]:
    """What the app reads beside the models, plain data; sizes N and K of the shapes are 0.

    Args:
        manifest: of the bundle.
        entries: entry points of the graphs that the app gets.
        golden: the bundle's picture and PyTorch's masks of it.
        files: name in the folder to sha256.
    """
    specs = {graph.name: graph for graph in manifest.graphs}
    artifacts = {a.graph: a for a in reversed(manifest.artifacts)}
    prompts = picture_prompts(golden.picture)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": manifest.model,
        "summary": manifest.summary,
        "licence": manifest.licence,
        "weights": asdict(manifest.weights),
        "frame": asdict(manifest.frame),
        "resize": "long side to the frame's size, Pillow's bilinear filter on 8 bits; padded right and below with mean",
        "labels": LABELS,
        "mask_outputs": list(manifest.mask_outputs),
        "graphs": [
            {
                "name": name,
                "file": artifacts[name].path,
                "sha256": files[artifacts[name].path],
                "precision": artifacts[name].recipe,
                "inputs": _shapes(specs[name], "inputs"),
                "outputs": _shapes(specs[name], "outputs"),
                "entry_points": [{"name": b.name, "prompts": b.prompts, "points": b.points} for b in buckets],
            }
            for name, buckets in entries.items()
        ],
        "check": {
            "picture": f"{_CHECK}/picture.png",
            "resized_sha256": golden.resized_sha256,
            "prompts": [
                {
                    "points": p.points.ravel().tolist(),
                    "labels": p.labels.tolist(),
                    "box": [] if p.box is None else p.box.tolist(),
                }
                for p in prompts
            ],
            "masks": [f"{_CHECK}/mask{number}.png" for number in range(len(prompts))],
        },
        "parity": _worst(manifest.parity),
        "files": dict(files),
        "tools": manifest.tools,
    }


def _shapes(graph: GraphSpec, side: str) -> list[dict[str, Any]]:
    return [{"name": t.name, "shape": [d if isinstance(d, int) else 0 for d in t.shape]} for t in getattr(graph, side)]


def _worst(rows: Sequence[Row]) -> dict[str, Any]:
    """The bundle's parity with PyTorch on the machine that exported it; a number is absent where no row has it."""
    errors = [r.max_error / r.value_range for r in rows if r.max_error is not None and r.value_range]
    worst = {
        "max_error_of_range": max(errors, default=None),
        "min_snr_db": min((r.snr_db for r in rows if r.snr_db is not None), default=None),
        "min_mask_iou": min((r.mask_iou for r in rows if r.mask_iou is not None), default=None),
    }
    finite = {name: v for name, v in worst.items() if v is not None and math.isfinite(v)}
    return {"checks": len(rows), **{name: float(f"{v:.4g}") for name, v in finite.items()}}
