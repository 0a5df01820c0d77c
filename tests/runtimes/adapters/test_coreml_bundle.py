"""CoreML bundles through verify and segment: where they ran, and seeded faults, with the sha256 list made to agree."""

import shutil
import types
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from samexport.cli.segment import SegmentRequest, run_segment
from samexport.exporter.deliver.sam_swift import CONTRACT, contract
from samexport.exporter.formats import FORMATS, Facts
from samexport.exporter.to_coreml.convert import CoreMLOptions
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.runtimes import registry
from samexport.runtimes.adapters.mil import MilRuntime
from samexport.runtimes.bundle import Bundle, open_bundle
from samexport.runtimes.formats.mlpackage import read_package
from samexport.runtimes.parity.report import where_it_ran, write_report
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.verdicts import ParityReport, Verdict
from tests.signing import sign

pytest.importorskip("coremltools")

LIMIT = "shows what was written, not Apple's kernels"


def failures(bundle: Bundle) -> list[str]:
    return [str(row) for row in verify_bundle(bundle, threads=1).failures]


@pytest.fixture(scope="module")
def report(coreml_bundle) -> ParityReport:
    return verify_bundle(coreml_bundle, threads=1)


def test_a_report_says_on_which_runtime_each_file_ran_and_what_that_does_not_show(report, tmp_path):
    assert report.verdict is Verdict.PASS
    ran = {(r.check.runtime, r.check.placement) for r in report.rows if r.check.kind in ("case", "end_to_end")}
    assert ran == {("mil", f"interpreted, cpu, fp32; {LIMIT}")}
    line = f"encoder, decoder, decoder_with_mask, end to end on mil: interpreted, cpu, fp32; {LIMIT}"
    assert where_it_ran(report) == [line]
    for ending in ("json", "md", "xml"):
        write_report(report, tmp_path / f"report.{ending}", "verify")
    assert LIMIT in (tmp_path / "report.json").read_text()
    assert f"- {line}" in (tmp_path / "report.md").read_text()
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert [p.get("value") for p in suite.iter("property")] == [line]


def test_the_manifest_names_the_runtime_and_nothing_of_the_machine(coreml_bundle):
    assert {row.check.runtime for row in coreml_bundle.manifest.parity} == {"mil"}


class StandIn(MilRuntime):
    """CoreML on a Mac that agrees, or not."""

    name = "coreml"
    shift = 0.0

    def _run(self, inputs):
        return {name: value + np.float32(self.shift) for name, value in super()._run(inputs).items()}

    def placement(self):
        return "coreml, allowed: ALL"


@pytest.fixture
def macos(monkeypatch):
    monkeypatch.setattr(registry, "sys", types.SimpleNamespace(platform="darwin"))
    monkeypatch.setattr("samexport.runtimes.adapters.coreml.CoreMLRuntime", StandIn)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_on_macos_both_coreml_and_the_interpreter_are_asked(coreml_bundle, report, macos, monkeypatch, shift):
    monkeypatch.setattr(StandIn, "shift", shift)
    found = verify_bundle(coreml_bundle, threads=1)
    assert len(found.rows) == 2 * (len(report.rows) - 2) + 2
    assert [line.split(" on ")[1] for line in where_it_ran(found)] == [
        "coreml: coreml, allowed: ALL",
        f"mil: interpreted, cpu, fp32; {LIMIT}",
    ]
    assert (found.verdict is Verdict.PASS) == (shift == 0)
    assert all(row.check.runtime == "coreml" for row in found.failures)


def test_which_runtimes_check_a_format(monkeypatch):
    assert [registry.checkers(name) for name in ("onnx", "tflite", "coreml")] == [
        ("onnxruntime",),
        ("litert",),
        ("mil",),
    ]
    monkeypatch.setattr(registry, "sys", types.SimpleNamespace(platform="darwin"))
    assert [registry.checkers(name) for name in ("onnx", "coreml")] == [("onnxruntime",), ("coreml", "mil")]


def test_segment_says_that_interpreting_is_slow(coreml_bundle, tiny_bundle, tmp_path, capsys):
    Image.new("RGB", (30, 20), (90, 10, 200)).save(tmp_path / "p.png")
    nothing = {"out": None, "masks": None, "logits": None, "runtime": None, "threads": 1, "force": False}
    for bundle in (coreml_bundle, tiny_bundle):
        run_segment(SegmentRequest(bundle.folder, (str(tmp_path / "p.png"),), ("10,10",)), **nothing)
    coreml, onnx = capsys.readouterr().out.split("on interpreted, cpu, fp32")
    assert "interpreted, which is slow" in coreml
    assert "interpreted" not in onnx.removeprefix(f"; {LIMIT}")


def test_the_card_says_what_was_not_shown_and_that_swift_was_not_run(coreml_bundle):
    card = (coreml_bundle.folder / "README.md").read_text()
    assert "not compiled or run" in card
    assert "does not show Apple's compiler and kernels" in card


@pytest.fixture(scope="module")
def older_bundle(coreml_bundle, tmp_path_factory) -> Bundle:
    """As ``coreml --prompts 1,4 --input image`` writes it for iOS 16; the decoder with masks is the flexible one."""
    folder = shutil.copytree(coreml_bundle.folder, tmp_path_factory.mktemp("older") / "bundle")
    spec = find_model("test.tinyvit64")
    sam, _ = load_model(spec, random_seed=7)
    options = CoreMLOptions("fp32", "iOS16", image_input=True, prompt_buckets=(1, 4))
    artifacts = {a.graph: a for a in coreml_bundle.manifest.artifacts}
    for name in ("encoder", "decoder"):
        shutil.rmtree(folder / artifacts[name].path)
        graph, module = build_graph(sam, spec, name)
        facts = Facts(spec, coreml_bundle.manifest.weights)
        artifacts[name] = FORMATS["coreml"].write(graph, module, folder, options, facts)
    bundle = Bundle(folder, replace(coreml_bundle.manifest, artifacts=tuple(artifacts.values())))
    (folder / CONTRACT).write_text(contract(bundle))
    return sign(bundle)


def test_packages_of_fixed_size_and_a_picture_make_a_bundle_that_passes_as_fp32(older_bundle, coreml_bundle):
    """The golden picture is padded: a padding of whole numbers that stays as it is leaves 34 dB."""
    assert [a.path for a in older_bundle.manifest.artifacts][1] == "decoder.mlpackages"
    assert read_package(older_bundle.folder / "encoder.mlpackage").image_inputs == {"image"}
    assert failures(older_bundle) == []
    sizes = [a.size for bundle in (older_bundle, coreml_bundle) for a in bundle.manifest.artifacts[1:2]]
    assert sizes[0] > 1.8 * sizes[1]
    text = (older_bundle.folder / CONTRACT).read_text()
    assert 'file: "decoder.mlpackages/decoder.decode_4", function: nil' in text
    assert "encoderTakesPicture = true" in text


def test_a_change_in_one_of_several_packages_is_seen(older_bundle, tmp_path):
    copy = open_bundle(shutil.copytree(older_bundle.folder, tmp_path / "copy"))
    file = copy.folder / "decoder.mlpackages/decoder.decode_4.mlpackage/Manifest.json"
    file.write_text(file.read_text() + " ")
    assert copy.damaged_files() == {"decoder.mlpackages": "has another sha256 than when it was exported"}


# Faults


def change_program(bundle: Bundle, folder: Path, graph: str, change) -> Bundle:
    """A copy of the bundle whose program of ``graph`` is changed, with hashes that agree."""
    from coremltools.proto import Model_pb2

    copy = open_bundle(shutil.copytree(bundle.folder, folder / "copy"))
    file = copy.folder / copy.artifact(graph).path / "Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model.FromString(file.read_bytes())
    function = model.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    file.write_bytes(model.SerializeToString(deterministic=True))
    return sign(copy)


def maker(block, name):
    return next(o for o in block.operations if o.outputs and o.outputs[0].name == name)


def constant(block, model, name, values):
    """A new integer constant in the form of another one."""
    made = block.operations.add()
    made.CopyFrom(model)
    made.outputs[0].name = name
    made.attributes["val"].immediateValue.tensor.ints.values[:] = values
    return made


def test_two_swapped_masks_are_caught(coreml_bundle, tmp_path):
    def swap(block):
        last = maker(block, "low_res_masks")
        last.outputs[0].name = "in_order"
        constant(block, maker(block, last.inputs["shape"].arguments[0].name), "order", [0, 2, 1, 3])
        model = next(o for o in block.operations if o.type == "gather")
        constant(block, maker(block, model.inputs["indices"].arguments[0].name), "one", [1])
        gather = block.operations.add()
        gather.CopyFrom(model)
        for parameter, name in (("x", "in_order"), ("indices", "order"), ("axis", "one")):
            gather.inputs[parameter].arguments[0].name = name
        gather.outputs[0].CopyFrom(last.outputs[0])
        gather.outputs[0].name = "low_res_masks"

    found = failures(change_program(coreml_bundle, tmp_path, "decoder", swap))
    assert found
    assert all("low_res_masks" in line or "end to end" in line for line in found)


def test_the_mean_in_bgr_order_is_caught(coreml_bundle, tmp_path):
    def reverse(block):
        mean = next(o for o in block.operations if o.type == "const" and "mean" in o.outputs[0].name)
        values = mean.attributes["val"].immediateValue.tensor.floats.values
        assert len(values) == 3
        values[:] = values[::-1]

    found = failures(change_program(coreml_bundle, tmp_path, "encoder", reverse))
    assert any(line.startswith("encoder picture, image_embeddings") for line in found)


def test_a_frozen_prompt_count_is_caught(coreml_bundle, tmp_path):
    def freeze(block):
        # N is read from the shape of the labels; now it is always the 3 of the trace
        labels = next(
            o for o in block.operations if o.type == "shape" and o.inputs["x"].arguments[0].name.endswith("labels")
        )
        count = next(
            o
            for o in block.operations
            if o.type == "gather" and o.inputs["x"].arguments[0].name == labels.outputs[0].name
        )
        name = count.outputs[0].name
        count.CopyFrom(maker(block, count.inputs["indices"].arguments[0].name))
        count.outputs[0].name = name
        count.attributes["val"].immediateValue.tensor.ints.values[:] = [3]

    found = failures(change_program(coreml_bundle, tmp_path, "decoder", freeze))
    assert any(line.startswith("decoder 1x1") for line in found)
    assert not any(line.startswith("decoder 3x2") for line in found)


def test_the_faults_above_are_the_only_difference(coreml_bundle, tmp_path):
    copy = change_program(coreml_bundle, tmp_path, "decoder", lambda block: None)
    assert failures(copy) == []
    before, after = (read_package(b.folder / b.artifact("decoder").path) for b in (coreml_bundle, copy))
    assert before.functions["main"].operations == after.functions["main"].operations
