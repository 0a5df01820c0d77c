"""The sampler in a bundle: every format against PyTorch, NMS in the graph against the host's, and seeded faults."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from samexport.errors import CheckpointError, ConfigError
from samexport.exporter.pipeline import ExportOptions, verify_against_pytorch
from samexport.exporter.sampler_export import SamplerExport, load_sampler, reload_sampler, write_sampler
from samexport.exporter.to_coreml.convert import CoreMLOptions
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.exporter.to_onnx.half import to_half
from samexport.exporter.to_onnx.nms import append_nms
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.models.catalog import find_model
from samexport.models.families.detector import SAMPLER, SAMPLERS, find_sampler, sampler_graph
from samexport.models.loading import load_model
from samexport.models.weights.checkpoints import load_weights
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.formats.tflite_lint import lint
from samexport.runtimes.host.detector import SamplerOptions, nms
from samexport.runtimes.parity.golden import structured_picture
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import compare_step, verify_bundle
from samexport.runtimes.registry import open_runtime
from samexport.runtimes.verdicts import Check, ParityReport, Verdict
from tests.signing import sign


def sampler_rows(report):
    return [row for row in report.rows if row.check.graphs == (SAMPLER,)]


def test_a_bundle_says_all_that_a_host_must_know(sampler_bundle):
    info = sampler_bundle.manifest.sampler
    assert (info.name, info.image_size, info.rgb, info.nms) == ("test", 96, False, "host")
    assert info.options == SamplerOptions(0.4, 0.9, 300, 20)
    assert (info.weights.kind, info.weights.seed) == ("random", 7)
    graph = sampler_bundle.graph(SAMPLER)
    assert [(t.name, t.shape) for t in (*graph.inputs, *graph.outputs)] == [
        ("image", (1, 3, 96, 96)), ("boxes", (60, 4)), ("scores", (60,)),
    ]  # fmt: skip
    assert open_bundle(sampler_bundle.folder).manifest == sampler_bundle.manifest
    card = (sampler_bundle.folder / "README.md").read_text()
    for word in ("## Sampler", "96x96", "BGR", "0.4", "0.9", "300", "RANDOM, seed 7", "### prompt_sampler"):
        assert word in card
    assert "AGPL" in find_sampler("object-aware").licence


def test_random_scores_spread_and_the_golden_ones_are_the_best_of_all(sampler_bundle):
    golden = load_golden(sampler_bundle.folder, sampler_bundle.manifest.frame)
    (case,) = (case for case in golden.cases if case.graphs == (SAMPLER,))
    scores = case.expected["scores"]
    assert np.ptp(scores) > 0.4
    assert (np.diff(scores) <= 0).all()
    rows = sampler_rows(verify_bundle(sampler_bundle))
    assert [row.verdict for row in rows] == [Verdict.PASS] * 2
    assert max(row.max_error / row.value_range for row in rows) < 1e-5


@pytest.mark.parametrize(
    "target",
    [TfliteOptions(target="gpu"), CoreMLOptions(recipe="fp32"), CoreMLOptions()],
    ids=["tflite", "coreml-fp32", "coreml-fp16"],
)
def test_every_format_finds_the_boxes_that_pytorch_finds(target, tmp_path):
    sampler = load_sampler(SamplerExport("test"), ranked=False, random_seed=7)
    case = sampler.golden(structured_picture(np.random.default_rng(20), 64))
    artifact = write_sampler(sampler, tmp_path, target, find_model("test.tinyvit64"))
    with open_runtime(tmp_path / artifact.path, sampler.graph, artifact.file_format) as runtime:
        found = runtime.run(case.inputs)
    rows = list(compare_step(Check("case"), case, [sampler.graph], found, [artifact.recipe]))
    assert [str(row) for row in rows if row.verdict is not Verdict.PASS] == []
    assert len(rows) == 2
    if artifact.file_format == "tflite":
        assert lint(tmp_path / artifact.path).findings == ()


def test_half_precision_finds_them_too_and_keeps_coordinates_in_full(sampler_bundle):
    golden = load_golden(sampler_bundle.folder, sampler_bundle.manifest.frame)
    (case,) = (case for case in golden.cases if case.graphs == (SAMPLER,))
    half = to_half(onnx.load(sampler_bundle.folder / "prompt_sampler.onnx"))
    onnx.checker.check_model(half, full_check=True)
    assert {w.data_type for w in half.graph.initializer if len(w.dims) == 4} == {onnx.TensorProto.FLOAT16}
    boxes, scores = run_onnx(half, case.inputs["image"])
    graph = sampler_bundle.graph(SAMPLER)
    rows = list(compare_step(Check("case"), case, [graph], {"boxes": boxes, "scores": scores}, ["fp16"]))
    assert [str(row) for row in rows if row.verdict is not Verdict.PASS] == []
    assert rows[0].max_error < 0.05  # pixels


# NMS in the graph


SUPPRESSED = SamplerExport("test", nms="in-graph")


def run_onnx(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["boxes", "scores"], {"image": image})


@pytest.mark.parametrize(("iou", "most"), [(0.9, 30), (0.5, 30), (0.3, 60), (0.0, 5)])
def test_nms_in_the_graph_keeps_what_the_host_keeps(sampler_bundle, iou, most):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1, 3, 96, 96)).astype(np.float32)
    model = onnx.load(sampler_bundle.folder / "prompt_sampler.onnx")
    boxes, scores = run_onnx(model, image)
    kept = nms(boxes, scores, iou, most)
    append_nms(model, sampler_graph(96, most, ranked=True), iou)
    onnx.checker.check_model(model, full_check=True)
    found_boxes, found_scores = run_onnx(model, image)
    assert (found_boxes.shape, found_scores.shape) == ((most, 4), (most,))
    np.testing.assert_array_equal(found_boxes[: len(kept)], boxes[kept])
    np.testing.assert_array_equal(found_scores[: len(kept)], scores[kept])
    assert not found_boxes[len(kept) :].any()
    assert not found_scores[len(kept) :].any()
    if most > 5:
        assert 5 < len(kept) < 60 or iou == 0.9  # something was suppressed, something stayed
    again = nms(found_boxes, found_scores, iou, len(kept))
    np.testing.assert_array_equal(again, np.arange(len(kept)))


def test_a_file_with_nms_is_compared_with_the_hosts(sampler_bundle):
    sampler = load_sampler(SUPPRESSED, ranked=True, random_seed=7)
    sampler = replace(sampler, options=SamplerOptions(nms_iou=0.5))
    assert sampler.graph.outputs[0].shape == (60, 4)
    case = sampler.golden(structured_picture(np.random.default_rng(20), 64))
    model = onnx.load(sampler_bundle.folder / "prompt_sampler.onnx")
    append_nms(model, sampler.graph, sampler.options.nms_iou)
    boxes, scores = run_onnx(model, case.inputs["image"])
    rows = list(compare_step(Check("case"), case, [sampler.graph], {"boxes": boxes, "scores": scores}, ["fp32"]))
    assert {row.verdict for row in rows} == {Verdict.PASS}
    assert 0 < np.count_nonzero(case.expected["scores"] == 0) < 60


# Faults


def edited(bundle, tmp_path, change):
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "copy"))
    path = copy.folder / "prompt_sampler.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return sign(copy)


def shuffle_a_weight(model):
    weight = max(model.graph.initializer, key=lambda w: np.prod(w.dims))
    values = numpy_helper.to_array(weight).copy()
    values[[0, 1]] = values[[1, 0]]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def rewire(model, name, kind, *more):
    """Put a node between what computes the output ``name`` and the output."""
    for node in model.graph.node:
        node.output[:] = [f"{name}.true" if output == name else output for output in node.output]
    model.graph.node.append(onnx.helper.make_node(kind, [f"{name}.true", *more], [name]))


def exchange_rows(model):
    order = np.arange(60)
    order[[0, 59]] = order[[59, 0]]
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    rewire(model, "boxes", "Gather", "order")


def exchange_corners(model):
    for node in model.graph.node:
        if node.op_type == "Concat":
            last = node
    last.input[:] = [last.input[1], last.input[0], *last.input[2:]]


def not_sorted(model):
    order = np.arange(60)
    order[[0, 59]] = order[[59, 0]]
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    for name in ("boxes", "scores"):
        rewire(model, name, "Gather", "order")


def a_box_twice(model):
    order = np.arange(60)
    order[10] = 11
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    rewire(model, "boxes", "Gather", "order")


FAULTS = [shuffle_a_weight, exchange_rows, exchange_corners, not_sorted, a_box_twice]


@pytest.mark.parametrize("fault", FAULTS, ids=[f.__name__ for f in FAULTS])
def test_faults_of_the_file_are_caught(sampler_bundle, tmp_path, fault):
    rows = sampler_rows(verify_bundle(edited(sampler_bundle, tmp_path, fault)))
    assert Verdict.FAIL in {row.verdict for row in rows}


# Options and weights


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sampler": SamplerExport("object-aware")}, CheckpointError, "--sampler-checkpoint FILE"),
        ({"random_seed": 1, "sampler": SUPPRESSED, "target": TfliteOptions()}, ConfigError, "needs ONNX"),
        ({"random_seed": 1, "sampler": SUPPRESSED, "target": OnnxOptions("fp16")}, ConfigError, "fp32"),
        ({"random_seed": 1, "decoder_checkpoint": "x.pt"}, ConfigError, "exclude each other"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ExportOptions("test.tinyvit64", **options)


def test_samplers_and_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="object-aware"):
        SamplerExport("yolo")
    with pytest.raises(ConfigError, match="host or in-graph"):
        SamplerExport("test", nms="both")
    with pytest.raises(ConfigError, match="multiple of 32"):
        SamplerExport("test", image_size=100)
    for size in (0, 320_000):  # 0 is not the default
        with pytest.raises(ConfigError, match=f"4096 at most, got {size}"):
            SamplerExport("test", image_size=size)
    assert {name for name, spec in SAMPLERS.items() if not spec.hidden} == {"object-aware"}


def test_a_smaller_input_has_fewer_anchors_and_a_pickle_is_read_once(detector_file, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path / "cache"))
    small = load_sampler(SamplerExport("test", detector_file, 32), ranked=True)
    assert small.graph.outputs[0].shape == (21, 4)
    assert load_sampler(SamplerExport("test", detector_file, 32), ranked=False).graph.outputs[0].role == "tensor"
    assert small.weights.kind == "checkpoint"
    assert (small.weights.source, len(small.weights.sha256)) == (detector_file.name, 64)


@pytest.fixture
def detector_file(tmp_path):
    """The weights of the test sampler at seed 7, as a converted checkpoint."""
    from safetensors.torch import save_file

    detector = load_sampler(SamplerExport("test"), ranked=True, random_seed=7).detector
    path = tmp_path / "detector.safetensors"
    save_file({k: v.contiguous() for k, v in detector.state_dict().items()}, path, {"batch_norm_eps": "0.001"})
    return path


def test_verify_compares_the_sampler_with_pytorch_or_says_that_it_did_not(
    sampler_bundle, detector_file, tmp_path, monkeypatch
):
    sam, _ = load_model(find_model("test.tinyvit64"), random_seed=7)
    torch.save(sam.state_dict(), tmp_path / "sam.pt")
    nothing = ParityReport(())
    report = verify_against_pytorch(sampler_bundle, nothing, [tmp_path / "sam.pt"])
    assert report.verdict is Verdict.PASS
    assert [row.verdict for row in sampler_rows(report)] == [Verdict.SKIPPED]
    report = verify_against_pytorch(sampler_bundle, nothing, [tmp_path / "sam.pt"], sampler=detector_file)
    assert [row.verdict for row in sampler_rows(report)] == [Verdict.PASS] * 2


def test_another_detector_than_the_bundles_is_told_as_the_cause(detector_file):
    made = load_sampler(SamplerExport("test", detector_file), ranked=True)
    assert reload_sampler(made.info, made.graph, detector_file).weights == made.weights
    other = replace(made.info, weights=replace(made.weights, source="mine.pt", sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"made from mine\.pt, not detector\.safetensors .*--sampler-checkpoint"):
        reload_sampler(other, made.graph, detector_file)


def test_a_prompt_guided_decoder_takes_the_place_of_the_models_own(tmp_path):
    spec = find_model("test.tinyvit64")
    own, other = (load_model(spec, random_seed=seed)[0].state_dict() for seed in (7, 8))
    parts = {"PromtEncoder": "prompt_encoder.", "MaskDecoder": "mask_decoder."}
    guided = {
        part: {k.removeprefix(prefix): v for k, v in other.items() if k.startswith(prefix)}
        for part, prefix in parts.items()
    }
    torch.save(own, tmp_path / "mobile_sam.pt")
    torch.save(guided, tmp_path / "guided.pt")
    found = load_weights(spec, own, checkpoints=[tmp_path / "mobile_sam.pt"], decoder=tmp_path / "guided.pt")
    for key, value in found.state.items():
        wanted = own if key.startswith("image_encoder.") else other
        assert torch.equal(value, wanted[key].to(value.dtype)), key
    assert found.source == "mobile_sam.pt + guided.pt"
    torch.save({k: v for k, v in own.items() if k.startswith("image_encoder.")}, tmp_path / "encoder.pt")
    with pytest.raises(CheckpointError, match="no prompt encoder"):
        load_weights(spec, own, checkpoints=[tmp_path / "mobile_sam.pt"], decoder=tmp_path / "encoder.pt")
