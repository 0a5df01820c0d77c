"""A bundle of quantized files from a bundle that is there; torch is not needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from samexport.errors import BundleError, ConfigError
from samexport.exporter.pipeline import finish, proven
from samexport.exporter.quantize.job import Progress, Request, check_request, quantize_here
from samexport.files import check_new_folder, new_folder
from samexport.runtimes.bundle import Bundle, not_ours, open_bundle
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.verdicts import ParityReport


def quantize_bundle(
    bundle: Bundle, request: Request, out: Path, *, force: bool = False, progress: Progress = lambda _: None
) -> tuple[Bundle, ParityReport]:
    """Write ``out``: the bundle with the files of some graphs quantized; it appears complete and judged, or not at all.

    Raises:
        BundleError: a file of the bundle is missing or changed; ``out`` cannot be written.
        ConfigError: ``out`` is the bundle itself; see :func:`check_request`.
        MissingDependency: see :func:`check_request`.
        ExportFailed: a file cannot be quantized.
        ParityFailed: the masks are too far from those of the files before, or a file fails its golden cases.
    """
    check_request(bundle, request)
    if out.resolve() == bundle.folder.resolve():
        raise ConfigError(f"{out} is the bundle that is quantized; --out names another folder")
    check_new_folder(out, force=force, refusal=not_ours)
    if problems := bundle.damaged_files():
        name, problem = next(iter(problems.items()))
        raise BundleError(f"{bundle.folder}: {name} {problem}; export the bundle again")
    with new_folder(out, force=force, refusal=not_ours) as folder:
        copy_files(bundle, folder)
        made = quantize_here(Bundle(folder, bundle.manifest), request, progress)
        golden = load_golden(folder, made.manifest.frame)
        report = proven(made, golden, request.threads, progress)
        finish(made, report)
    return open_bundle(out), report


def copy_files(bundle: Bundle, folder: Path) -> None:
    """Every file that the manifest lists."""
    for name in bundle.manifest.files:
        source, target = bundle.folder / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
