"""A folder that another program takes as it is: its files, its configuration, what was checked, how to load it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from string import Template

from samexport import __version__
from samexport.errors import BundleError, ConfigError, ParityFailed
from samexport.exporter.deliver.adapt import write_adapted
from samexport.exporter.deliver.feed import Compared, compare
from samexport.exporter.deliver.profile import Profile, Values
from samexport.exporter.deliver.refused import REFUSED
from samexport.files import check_new_folder, new_folder, sha256, to_json
from samexport.models.catalog import FAMILIES, load_plugins
from samexport.runtimes.bundle import Bundle, Manifest, not_ours
from samexport.runtimes.parity.golden_files import load_golden

MANIFEST, CARD = "samexport.json", "README.md"
SAME, SAME_IN_LOW_PRECISION = 0.999, 0.99
"""IoU that a program's masks of a picture that it need not scale must have with ours."""


def profiles() -> list[tuple[str, Profile]]:
    """Every profile and the family that it is of."""
    load_plugins()
    return [(f.name, p) for f in FAMILIES.values() if f.consumers for p in resolve_name(f.consumers)]


def find_profile(name: str, family: str) -> Profile:
    """A family's profile called ``name``; ConfigError names those that there are."""
    own = {profile.name: profile for kind, profile in profiles() if kind == family}
    if name in own:
        return own[name]
    if reason := REFUSED.get((name, family)):
        raise ConfigError(f"{reason}; `samexport deliver --list` shows who takes what")
    if name in {profile.name for _, profile in profiles()}:
        raise ConfigError(f"{name} takes no models of the family {family}; `samexport deliver --list` shows who does")
    raise ConfigError(f"there is no program {name!r}; for {family} there are {', '.join(own) or 'none'}")


def deliver(
    bundle: Bundle, profile: Profile, out: Path, *, force: bool = False, threads: int | None = None
) -> tuple[Compared, ...]:
    """Write a folder for a program and compare it, fed as the program feeds it, with the bundle's own segmenter.

    All or nothing: it appears by one rename once the masks were compared.

    Args:
        bundle: as exported; it stays as it is.
        profile: of the program.
        out: a path where nothing is.
        force: replace a folder of an earlier call, and only that.
        threads: of the comparison; None is ONNX Runtime's own choice.

    Raises:
        ConfigError: the program does not take such a bundle; the bundle is damaged; ``out`` is taken.
        ExportFailed: a file cannot be made or run.
        ParityFailed: the masks are others than the segmenter's.
    """
    check_fit(bundle, profile)
    refusal = partial(not_ours, manifest=MANIFEST)
    check_new_folder(out, force=force, refusal=refusal)
    values = _values(bundle.manifest, profile)
    with new_folder(out, force=force, refusal=refusal) as folder:
        models = [folder / Template(name).substitute(values) for name in profile.files]
        for path, (name, text) in zip(models, profile.files.items(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            adapted = Template(text).substitute(values)
            write_adapted(adapted, bundle, path, dict(profile.metadata.get(name, {})))
        values |= {f"SHA256_{number}": sha256(path) for number, path in enumerate(models)}
        for name, text in profile.texts.items():
            path = folder / Template(name).substitute(values)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(values), encoding="utf-8")
        golden = load_golden(bundle.folder, bundle.manifest.frame)
        compared = compare(profile, models, bundle, golden.picture, threads)
        _check(profile, bundle, compared)
        text = Template(card(profile, bundle.manifest, compared)).substitute(values)
        (folder / CARD).write_text(text, encoding="utf-8")
        _write_manifest(folder, profile, bundle.manifest, compared)
    return compared


def check_fit(bundle: Bundle, profile: Profile) -> None:
    """Refuse a bundle that the program cannot use, with what to do; ConfigError."""
    manifest, name = bundle.manifest, bundle.folder.name
    formats = sorted({a.file_format for a in manifest.artifacts})
    if formats != ["onnx"]:
        raise BundleError(f"{profile.title} takes ONNX, {name} is {', '.join(formats)}; `samexport onnx` makes one")
    if manifest.family == "sam" and not manifest.frame.is_sams:
        raise BundleError(f"{profile.title} prepares pictures as SAM does; {manifest.model} has another way")
    if profile.size is not None and manifest.frame.size != profile.size:
        raise BundleError(
            f"{profile.title} has {profile.size} pixels in its code, {manifest.model} has {manifest.frame.size};"
            f" export a model of {profile.size} pixels, `samexport list` shows all"
        )
    if missing := [graph for graph in profile.graphs if graph not in bundle.graph_names]:
        remedy = " without --split-decoder" if "decoder_step" in bundle.graph_names else ""
        raise BundleError(f"{profile.title} needs {missing[0]}, which {name} lacks; export it again{remedy}")
    for path, problem in bundle.damaged_files().items():
        raise BundleError(f"{bundle.folder}: {path} {problem}; export the bundle again")


def _values(manifest: Manifest, profile: Profile) -> Values:
    name = manifest.model.replace(".", "-")
    title = manifest.summary + (f" ({manifest.weights.remark})" if manifest.weights.remark else "")
    texts = {"NAME": name, "MODEL": manifest.model, "SUMMARY": _quoted(title), "LICENCE": _quoted(manifest.licence)}
    return {**texts, "VERSION": __version__, **profile.values(manifest)}


def _quoted(text: str) -> str:
    """For JSON and YAML."""
    return to_json(text).strip()


def _check(profile: Profile, bundle: Bundle, compared: Iterable[Compared]) -> None:
    exact = next(iter(compared))
    bar = SAME if {bundle.artifact(graph).recipe for graph in profile.graphs} == {"fp32"} else SAME_IN_LOW_PRECISION
    if failed := [f"{what}: IoU {iou:.4f}, wanted {bar}" for what, iou in exact.iou.items() if not iou >= bar]:
        what = f"{profile.title} would get other masks than the bundle gives; nothing was written"
        raise ParityFailed(what, tuple(failed))


def card(profile: Profile, manifest: Manifest, compared: Iterable[Compared]) -> str:
    """Markdown: whose weights, how to load them, what was compared and how; ``$NAME`` and its like as in texts."""
    weights = manifest.weights
    origin = f"{weights.warning} ({weights.source})" if weights.warning else weights.source
    rows = [
        f"| {c.picture}, {c.size[0]}x{c.size[1]} | {what} | {iou:.4f} |"
        for c in compared
        for what, iou in c.iou.items()
    ]
    lines = [
        *(f"---\n{profile.front_matter}\n---\n".splitlines() if profile.front_matter else ()),
        f"# {manifest.model} for {profile.title}",
        "",
        f"{manifest.summary}. Made by samexport {__version__}.",
        "",
        f"- Weights: {origin}, sha256 `{weights.sha256}`" if weights.sha256 else f"- Weights: {origin}",
        f"- Licence of the weights: {manifest.licence}",
        f"- Files: {', '.join(f'`{name}`' for name in (*profile.files, *profile.texts))}",
        "",
        "## How to load it",
        "",
        *profile.load,
        "",
        "## What was checked",
        "",
        f"Facts from {profile.read}. Tried with {profile.tried}.",
        "When this folder was made, its files were fed by those rules and the masks compared with samexport's own:",
        "",
        "| picture | prompt | mask IoU |",
        "|---|---|---|",
        *rows,
        "",
        "On a picture that the program need not scale they must agree; what is lower on the other one is its scaling.",
        "",
    ]
    return "\n".join(lines)


def _write_manifest(folder: Path, profile: Profile, manifest: Manifest, compared: Iterable[Compared]) -> None:
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    content = {
        "for": profile.name,
        "model": manifest.model,
        "licence": manifest.licence,
        "weights": {key: getattr(manifest.weights, key) for key in ("kind", "source", "sha256")},
        "samexport": __version__,
        "files": files,
        "compared": [asdict(c) for c in compared],
    }
    (folder / MANIFEST).write_text(to_json(content), encoding="utf-8")
