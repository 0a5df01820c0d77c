"""What runs a bundle in a browser: files of npm packages, one pinned version each; sha256 sums."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samexport.errors import ConfigError, FileError, MissingDependency
from samexport.files import open_regular, reason, sha256

_NPM_SECONDS = 300


@dataclass(frozen=True)
class WebRuntime:
    """An npm package.

    Attributes:
        package, version: what is asked for.
        files: path in the package of each file that a site needs, and its sha256.
        notice: who made it, and its licence.
        replaced: in the copy of a file, by its name, one text for another.
    """

    package: str
    version: str
    files: Mapping[str, str]
    notice: str
    replaced: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        """As npm takes it."""
        return f"{self.package}@{self.version}"

    def copy(self, source: Path | None, target: Path) -> None:
        """Copy the files into a folder, from an unpacked package or, where ``source`` is None, from npm.

        Raises:
            ConfigError: the files are not those of the version.
            MissingDependency: npm is not installed, or did not get the package.
        """
        if source is None:
            with tempfile.TemporaryDirectory(prefix="samexport-") as scratch:
                unpacked = self._fetch(Path(scratch))
                self._copy_checked(unpacked, target, "npm's package", "npm cache clean --force, then try again")
        else:
            remedy = f"npm install {self.wanted}, then give its folder in node_modules"
            self._copy_checked(source, target, str(source), remedy)
        (target / "NOTICE.txt").write_text(self.notice, encoding="utf-8")

    def _copy_checked(self, folder: Path, target: Path, where: str, remedy: str) -> None:
        for path, known in self.files.items():
            name = Path(path).name
            found = next((f for f in (folder / path, folder / name) if f.is_file()), folder / path)
            try:
                with open_regular(found) as stream, (target / name).open("wb") as copy:
                    shutil.copyfileobj(stream, copy)
            except FileError as error:
                raise ConfigError(f"{where} has no {name} of {self.package} {self.version}: {remedy}") from error
            if sha256(target / name) != known:
                raise ConfigError(f"{where}: {name} is not that of {self.package} {self.version}: {remedy}")
            if name in self.replaced:
                before, after = self.replaced[name]
                text = (target / name).read_text(encoding="utf-8").replace(before, after, 1)
                (target / name).write_text(f"// Changed by samexport: {after} for {before}.\n{text}", encoding="utf-8")

    def _fetch(self, scratch: Path) -> Path:
        """The package, unpacked as far as it is needed; MissingDependency without npm or the package."""
        npm, name = shutil.which("npm"), f"{self.package} {self.version}"
        other = f"or give an unpacked {name} with --runtime"
        if npm is None:
            raise MissingDependency(f"{self.package} comes from npm, which is not installed: install Node.js, {other}")
        command = [npm, "pack", self.wanted, "--pack-destination", str(scratch), "--prefer-offline", "--silent"]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=_NPM_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingDependency(f"npm did not get {name}: {reason(error)}; try again, {other}") from error
        packed = next(scratch.glob("*.tgz"), None)
        if done.returncode or packed is None:
            said = reason(RuntimeError(done.stderr or done.stdout or f"exit code {done.returncode}"))
            raise MissingDependency(f"npm did not get {name}: {said}; mend npm, {other}")
        try:
            with tarfile.open(packed) as archive:
                for path in self.files:
                    archive.extract(f"package/{path}", scratch, filter="data")
        except (tarfile.TarError, KeyError, OSError, EOFError) as error:
            raise ConfigError(f"npm's {name} cannot be unpacked: {reason(error)}; try again, {other}") from error
        return scratch / "package"


ORT = WebRuntime(
    "onnxruntime-web",
    "1.30.0",
    # what runs on the processor, and what runs on the GPU; a browser loads one of the two
    {
        "dist/ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
        "dist/ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        "dist/ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
        "dist/ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
        "dist/ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    },
    "ONNX Runtime Web 1.30.0. Copyright (c) Microsoft Corporation. MIT License, https://opensource.org/license/mit\n",
)
LITERT = WebRuntime(
    "@litertjs/core",
    "2.5.3",
    # one thread, one thread without relaxed SIMD, several threads; a browser loads one of the three
    {
        "dist/index.js": "e7daccc3a31eef890848a737ccb863ded5f046a6b40c3fdc0556495adeb5d9b3",
        "wasm/litert_wasm_internal.js": "68efb69f770e3f76aff36a377de629ca496c131b86ac0f0f4b592a1543a898eb",
        "wasm/litert_wasm_internal.wasm": "7280cf4471774867e385e6c3cd53e2b45e2975b80fea338fff4ef359b0865614",
        "wasm/litert_wasm_compat_internal.js": "4d8f894b7883654fd6e8439730aa41e79ceaab7d19184fc4f1f0b0f1a2a2c8a5",
        "wasm/litert_wasm_compat_internal.wasm": "5255c8ad06eabdbd2522cdebf6b22fc10faf74625c23a49b9e072570cd1fa41c",
        "wasm/litert_wasm_threaded_internal.js": "92fe7a720c6deedaa1194c011c79a005ea4f6fc98f533b661cf7900760ab4849",
        "wasm/litert_wasm_threaded_internal.wasm": "b5e54eca10f043497edf9a02186332707cae260c550d7ea22b2cae55669596cf",
    },
    "LiteRT.js 2.5.3. Copyright Google LLC. Apache License 2.0, see LICENSE.txt of this site. index.js imports another"
    " loader than the package's.\n",
    # browsers look no package up, and workers have no import maps
    {"index.js": ('"@litertjs/wasm-utils"', '"../runtimes/litert_loader.js"')},
)
RUNTIMES = {"onnx": ORT, "tflite": LITERT}
"""What runs files of a format."""
