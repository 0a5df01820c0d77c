"""Damaged bundles whose hashes agree with the damage, so that only the numbers can tell."""

from dataclasses import replace

from samexport.files import sha256
from samexport.runtimes.bundle import MANIFEST, Bundle, Manifest, open_bundle, relative_files


def sign(bundle: Bundle, manifest: Manifest | None = None) -> Bundle:
    """Write ``bundle.json`` anew, with the hashes of the files that are there."""
    manifest = manifest or bundle.manifest
    artifacts = tuple(
        replace(a, sha256=sha256(bundle.folder / a.path)) if (bundle.folder / a.path).exists() else a
        for a in manifest.artifacts
    )
    files = relative_files(bundle.folder, {a.path: a for a in artifacts})
    (bundle.folder / MANIFEST).write_text(replace(manifest, artifacts=artifacts, files=files).to_json())
    return open_bundle(bundle.folder)
