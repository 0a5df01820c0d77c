"""A second family goes the whole way, in every format, without a line of the package knowing it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from samexport.benchmarks.measuring import runner
from samexport.benchmarks.measuring.runner import Machine
from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.to_coreml.convert import CoreMLOptions
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.models import catalog
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.session import OpenGraphs, open_session
from samexport.runtimes.verdicts import Verdict
from tests.conftest import once
from tests.families.toy import CHAIN, FAMILY

ROOT = Path(__file__).parents[2]
FORMATS = {"onnx": OnnxOptions(), "tflite": TfliteOptions(), "coreml": CoreMLOptions("fp32")}
RUNTIMES = {"onnx": "onnxruntime", "tflite": "litert", "coreml": "mil"}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The family as an installed package would bring it: by an entry point, here and in processes begun here."""
    site = tmp_path_factory.mktemp("site")
    info = site / "toy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{catalog.PLUGINS}]\ntoy = tests.families.toy:FAMILY\n")
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    catalog.load_plugins.cache_clear()
    with (
        mock.patch.dict(catalog.FAMILIES),
        mock.patch.dict(catalog.MODELS),
        mock.patch.dict(catalog._BY_NAME),
        mock.patch.dict(os.environ, {"PYTHONPATH": path}),
        mock.patch.object(sys, "path", [str(site), *sys.path]),
    ):
        yield
    catalog.load_plugins.cache_clear()


@pytest.fixture(scope="module", params=FORMATS)
def bundle(request, tmp_path_factory):
    if request.param != "onnx":
        pytest.importorskip({"tflite": "litert_torch", "coreml": "coremltools"}[request.param])
    target = FORMATS[request.param]
    return once(
        tmp_path_factory,
        f"toy-{request.param}",
        lambda out: export_bundle(ExportOptions("toy.blob", out, random_seed=3, target=target)),
    )


def test_the_family_is_found_by_its_entry_point_alone():
    code = "from samexport.models.catalog import find_model; print(find_model('blob').family)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert found.stdout == "toy\n", found.stderr
    assert catalog.find_family("toy") == FAMILY


def test_every_graph_is_verified_on_three_frames(bundle):
    assert bundle.manifest.family == "toy"
    assert bundle.graph_names == CHAIN
    report = verify_bundle(bundle, threads=1)
    assert report.proves
    frames = {row.check.case for row in report.rows if row.check.graphs == CHAIN and row.check.kind == "case"}
    assert frames == {"video, frame 1", "video, frame 2", "video, frame 3"}
    compared = {row.output for row in report.rows if row.check.case == "video, frame 3"}
    assert compared == {"shapes", "marks", "used", "kept"}
    assert any(row.check.kind == "end_to_end" and row.verdict is Verdict.PASS for row in report.rows)


def test_labels_stay_whole_numbers_of_64_bits(bundle):
    case = load_golden(bundle.folder, bundle.manifest.frame).cases[0]
    assert {step.inputs["kinds"].dtype for step in case.steps} == {np.dtype(np.int64)}
    assert {step.expected["used"].dtype for step in case.steps} == {np.dtype(np.int64)}
    assert [step.expected["used"].tolist() for step in case.steps] == [[2], [3], [3]]


def test_what_can_be_made_again_is_not_stored(bundle):
    cases = json.loads((bundle.folder / "golden" / "cases.json").read_text())["cases"]
    noise = next(case for case in cases if case["name"] == "noise")
    assert noise["inputs"] == {}
    assert {name: made["kind"] for name, made in noise["made"].items()} == {"seen": "normal", "memory": "uniform"}


def test_memory_goes_from_frame_to_frame(bundle):
    golden = load_golden(bundle.folder, bundle.manifest.frame)
    session = open_session(OpenGraphs(bundle, threads=1))
    first, state = session.step(golden.picture, None)
    again, _ = session.step(golden.picture, state)
    assert np.abs(first.logits - again.logits).max() > 1e-3
    session.graphs.close()


def test_the_command_line_segments_verifies_and_measures(bundle, run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "probe_machine", lambda jobs, threads: Machine({"fp32": 100.0, "copy_gb_per_s": 9.0}))
    picture = tmp_path / "wide.png"
    Image.fromarray(load_golden(bundle.folder, bundle.manifest.frame).picture).resize((90, 30)).save(picture)
    out = tmp_path / "masks.json"
    code, _, err = run("segment", bundle.folder, picture, "--point", "45,15", "--masks", out)
    assert code == 0, err
    assert json.loads(out.read_text())
    assert run("verify", bundle.folder)[0] == 0
    runtime = RUNTIMES[bundle.manifest.artifacts[0].file_format]
    measured = tmp_path / "bench"
    options = ("--runtime", runtime, "--graph", "point_out", "--repeat", 2, "--seconds", 0, "--threads", 1)
    code, _, err = run("bench", bundle.folder, *options, "--out", measured)
    assert code == 0, err
    rows = json.loads((measured / "results.json").read_text())["rows"]
    assert [(row["job"]["graph"], row["measured"]["parity"]["verdict"]) for row in rows] == [("point_out", "PASS")]


def test_a_bundle_of_a_family_that_is_not_installed_says_so(bundle, monkeypatch):
    monkeypatch.delitem(catalog.FAMILIES, "toy")
    monkeypatch.setattr(catalog, "load_plugins", lambda: None)
    opened = open_bundle(bundle.folder)
    with pytest.raises(Exception, match="no family is called 'toy'"):
        open_session(OpenGraphs(opened))
