"""What other projects' CI runs: `tools/ci-parity.sh` as it is, and `action.yml` as far as it can be read here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from samexport.files import sha256

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools/ci-parity.sh"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the script is for bash")


@pytest.fixture
def ci(tmp_path):
    """Run the script in a folder of its own, with this samexport: the process, its folder."""
    tool = tmp_path / "bin/samexport"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >>calls.txt\nexec "{sys.executable}" -m samexport "$@"\n')
    tool.chmod(0o755)
    (tmp_path / "work").mkdir()

    def run(**variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SAMEXPORT_", "GITHUB_"))}
        environment |= {"PATH": f"{tool.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **variables}
        return subprocess.run(
            ["bash", SCRIPT], cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=300
        )

    return run, tmp_path / "work", tool


def test_a_bundle_that_is_there_is_verified_and_the_report_posted(ci, tiny_bundle):
    run, folder, _ = ci
    (folder / "samexport-parity.md").write_text("of an earlier run")
    found = run(SAMEXPORT_BUNDLE=str(tiny_bundle.folder), GITHUB_STEP_SUMMARY=str(folder / "summary"))
    assert found.returncode == 0, found.stderr
    report = (folder / "samexport-parity.md").read_text()
    assert "PASS" in report
    assert "earlier" not in report
    assert (folder / "summary").read_text() == report


def test_a_broken_parity_fails_and_is_posted_too(ci, own_bundle):
    run, folder, _ = ci
    path = own_bundle.folder / "decoder.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda w: np.prod(w.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    onnx.save(model, path)
    # the hash is right, the numbers are not
    manifest = own_bundle.folder / "bundle.json"
    content = json.loads(manifest.read_text())
    for artifact in content["artifacts"]:
        if artifact["path"] == path.name:
            artifact |= {"sha256": sha256(path), "size": path.stat().st_size}
    content["files"][path.name] = sha256(path)
    manifest.write_text(json.dumps(content))
    summary = folder / "summary"
    found = run(SAMEXPORT_BUNDLE=str(own_bundle.folder), SAMEXPORT_REPORT="r.md", GITHUB_STEP_SUMMARY=str(summary))
    assert found.returncode == 1
    assert "FAIL" in (folder / "r.md").read_text()
    assert summary.read_text() == (folder / "r.md").read_text()


def test_words_of_the_environment_are_arguments_and_nothing_else(ci, tiny_bundle):
    run, folder, tool = ci
    tool.write_text('#!/bin/sh\nprintf "%s|" "$@" >>calls.txt; echo >>calls.txt\n')
    found = run(
        SAMEXPORT_EXPORT="onnx --encoder tinyvit; $(touch hurt) *",
        SAMEXPORT_BUNDLE="a folder",
        SAMEXPORT_VERIFY="--runtime onnxruntime",
    )
    assert found.returncode == 0, found.stderr
    assert (folder / "calls.txt").read_text().splitlines() == [
        "onnx|--encoder|tinyvit;|$(touch|hurt)|*|--out|a folder|--force|",
        "verify|a folder|--report|samexport-parity.md|--runtime|onnxruntime|",
    ]
    assert not (folder / "hurt").exists()


def test_what_cannot_be_used_is_exit_code_2(ci):
    run, folder, _ = ci
    found = run(SAMEXPORT_BUNDLE="nowhere")
    assert found.returncode == 2
    assert "nowhere" in found.stderr
    assert not (folder / "samexport-parity.md").exists()


def test_the_action_runs_that_script_and_hands_its_inputs_over_as_data():
    assert ACTION["runs"]["using"] == "composite"
    assert all("uses" in step or step["shell"] == "bash" for step in STEPS)
    scripts = [step["run"] for step in STEPS if "run" in step]
    assert any('"$GITHUB_ACTION_PATH/tools/ci-parity.sh"' in script for script in scripts)
    for script in scripts:
        # an expression inside a script would be code of whoever wrote the input
        assert "${{" not in script
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION)))
    assert used == set(ACTION["inputs"])
    given = {name for step in STEPS for name in step.get("env", {}) if name.startswith("SAMEXPORT_")}
    assert given <= set(re.findall(r"SAMEXPORT_\w+", SCRIPT.read_text()))


def test_the_script_is_clean_shell():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    if (checker := shutil.which("shellcheck")) is not None:
        assert subprocess.run([checker, SCRIPT]).returncode == 0
