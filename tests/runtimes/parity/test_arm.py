"""``verify --arm``: what a run in the emulation becomes; it runs itself where SAMEXPORT_ARM names its folder."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from samexport.errors import ConfigError, MissingDependency
from samexport.runtimes.parity.arm import CPUS, require_arm, verify_on_arm
from samexport.runtimes.verdicts import Check, Row, Verdict

ROWS = (
    Row(Check("files"), "9 files", Verdict.PASS),
    Row(
        Check("case", ("encoder",), "picture", ("encoder.onnx",), "onnxruntime", "CPU"),
        "out",
        Verdict.FAIL,
        "differs by 3",
    ),
)


def emulation(folder: Path, script: str) -> Path:
    """A folder whose qemu is a shell script; ``$2`` is the processor."""
    for name in ("qemu/usr/bin/qemu-aarch64-static", "root/usr/bin/python3.11"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "site").mkdir()
    return folder


def test_rows_of_each_processor_say_which(tiny_bundle, tmp_path):
    (tmp_path / "said.json").write_text(json.dumps({"verdict": "FAIL", "rows": [row.to_json() for row in ROWS]}))
    folder = emulation(tmp_path / "arm", f'echo "$@" >> {tmp_path}/asked; cat {tmp_path}/said.json; exit 1')
    rows = verify_on_arm(tiny_bundle, folder)
    assert [row.check.case for row in rows] == [f"picture on {cpu}" for cpu in CPUS]
    assert {(row.verdict, row.reason) for row in rows} == {(Verdict.FAIL, "differs by 3")}
    assert [row.check.placement for row in rows] == [f"CPU, QEMU {cpu}" for cpu in CPUS]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[1] for line in asked] == list(CPUS)
    assert all(f"-m samexport verify {tiny_bundle.folder}" in line for line in asked)
    # the package that runs there is this one
    assert (folder / "site" / "samexport" / "runtimes" / "parity" / "arm.py").is_file()


def test_an_emulation_that_breaks_is_a_failed_row(tiny_bundle, tmp_path):
    folder = emulation(tmp_path / "arm", "echo 'Illegal instruction' >&2; exit 132")
    rows = verify_on_arm(tiny_bundle, folder)
    assert {(row.verdict, row.reason) for row in rows} == {(Verdict.FAIL, "ended with 132: Illegal instruction")}


def test_what_cannot_run_is_refused_with_the_remedy(tiny_bundle, tmp_path):
    with pytest.raises(MissingDependency, match=r"has no qemu/.*; the repository's tools/arm_root .* makes it"):
        require_arm(tiny_bundle, tmp_path)
    artifacts = tuple(replace(artifact, file_format="coreml") for artifact in tiny_bundle.manifest.artifacts)
    with pytest.raises(ConfigError, match="--arm checks onnx and tflite files"):
        require_arm(replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, artifacts=artifacts)), tmp_path)


@pytest.mark.skipif("SAMEXPORT_ARM" not in os.environ, reason="tools/arm_root FOLDER, then SAMEXPORT_ARM=FOLDER")
def test_a_small_bundle_passes_on_arm(tiny_bundle):
    rows = verify_on_arm(tiny_bundle, Path(os.environ["SAMEXPORT_ARM"]))
    assert {row.verdict for row in rows} == {Verdict.PASS}
    assert {cpu for cpu in CPUS for row in rows if cpu in row.check.placement} == set(CPUS)
