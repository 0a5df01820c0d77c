"""``samexport verify --arm``: the same checks on ARM's kernels, without a phone.

QEMU runs a Python for ARM as a program of this machine, and that runs ``samexport verify`` with the ARM builds of ONNX
Runtime and LiteRT. Arithmetic is exact, so what rounds or overflows there does here too; time means nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

import samexport
from samexport.errors import ConfigError, MissingDependency
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.verdicts import Check, Row, Verdict

Progress = Callable[[str], None]

CPUS = ("cortex-a76", "max,sve=off")
"""As QEMU calls them; the second has all that it can emulate, for which other kernels are chosen.

But scalable vectors: with those QEMU 7.2 or OpenBLAS's kernel for them is wrong, NumPy's product of two 5x5 matrices of
float32 is off by 5 there, and by less than 1e-6 without.
"""

_FORMATS = ("onnx", "tflite")
_QEMU, _PYTHON = "qemu/usr/bin/qemu-aarch64-static", "root/usr/bin/python3.11"
# ONNX Runtime reads this and ends where it finds a processor of another kind
_CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


class _Report(msgspec.Struct):
    """What ``samexport verify --json`` prints."""

    rows: tuple[Row, ...]


def require_arm(bundle: Bundle, folder: Path) -> None:
    """Nothing if the check can run.

    Raises:
        ConfigError: the bundle is of a format that no runtime reads on ARM's Linux.
        MissingDependency: ``folder`` is not what ``tools/arm_root`` makes.
    """
    formats = {artifact.file_format for artifact in bundle.manifest.artifacts}
    if not formats <= set(_FORMATS):
        raise ConfigError(f"--arm checks {' and '.join(_FORMATS)} files, {bundle.folder.name} has {', '.join(formats)}")
    if missing := [name for name in (_QEMU, _PYTHON, "site") if not (folder / name).exists()]:
        raise MissingDependency(f"{folder} has no {missing[0]}; the repository's tools/arm_root {folder} makes it")


def verify_on_arm(bundle: Bundle, folder: Path, *, progress: Progress = lambda _: None) -> tuple[Row, ...]:
    """The rows of all that runs, on each of :data:`CPUS`; each says which.

    Raises:
        ConfigError, MissingDependency: as :func:`require_arm`.
    """
    require_arm(bundle, folder)
    rows: list[Row] = []
    for cpu in CPUS:
        progress(f"checking on {cpu}, which takes minutes")
        rows += _rows(bundle, folder.absolute(), cpu)
    return tuple(rows)


def _rows(bundle: Bundle, folder: Path, cpu: str) -> list[Row]:
    package = Path(samexport.__file__).parent
    link = folder / "site" / package.name
    if link.resolve() != package.resolve():
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    (folder / "root" / "proc").mkdir(exist_ok=True)
    (folder / "root" / "proc" / "cpuinfo").write_text(_CPUINFO, encoding="ascii")
    command: list[str | Path] = [
        folder / _QEMU, "-cpu", cpu, "-L", folder / "root", folder / _PYTHON,
        "-m", "samexport", "verify", bundle.folder.absolute(), "--threads", "1", "--json",
    ]  # fmt: skip
    environment = {
        "PATH": os.defpath, "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(folder / "site"),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    try:
        found = msgspec.json.decode(done.stdout, type=_Report).rows
    except msgspec.DecodeError:
        said = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        about = Check("case", bundle.graph_names, f"on {cpu}")
        return [Row(about, "run", Verdict.FAIL, f"ended with {done.returncode}: {said}")]
    return [_named(row, cpu) for row in found if row.check.runtime or row.verdict is not Verdict.PASS]


def _named(row: Row, cpu: str) -> Row:
    case, placement = f"{row.check.case} on {cpu}".strip(), f"{row.check.placement}, QEMU {cpu}"
    return replace(row, check=replace(row.check, case=case, placement=placement))
