from dataclasses import replace

import numpy as np
import pytest

from samexport.benchmarks.contenders.known import find
from samexport.benchmarks.measuring import subject as subject_module
from samexport.benchmarks.measuring.subject import (
    GraphSubject,
    cases_of,
    judged_as,
    run_batched,
    summarise,
    timing_inputs,
)
from samexport.benchmarks.plan import Plan
from samexport.benchmarks.results.rows import Job
from samexport.models.families.detector import SAMPLER
from samexport.runtimes.base import Runtime
from samexport.runtimes.host.sam_prompts import check_tensors
from samexport.runtimes.parity.compare import TIERS, tier
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.verdicts import Check, Row, Verdict


def job_of(bundle, graph, **changes):
    artifact = bundle.artifact(graph)
    source = Plan().source(bundle, graph)
    job = Job(str(bundle.folder), graph, artifact.path, "export", artifact.recipe, "onnxruntime", 1, source=source)
    return replace(job, **changes)


def opened(job):
    subject = GraphSubject(job)
    subject.prepare()
    subject.open()
    return subject


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 7, 8])
def test_prompts_in_batches_give_what_one_call_gives(tiny_bundle, batch):
    subject = opened(job_of(tiny_bundle, "decoder", prompts=7))
    whole = subject.runtime.run(subject.inputs)
    calls = []
    run = subject.runtime.run
    subject.runtime.run = lambda inputs: calls.append(len(inputs["point_labels"])) or run(inputs)
    parts = run_batched(subject.runtime, subject.inputs, batch)
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=0, atol=1e-4)
    assert sum(calls) == 7
    assert max(calls) == (min(batch, 7) or 7)


def test_timed_prompts_are_boxes_that_a_decoder_accepts(tiny_bundle):
    frame = tiny_bundle.manifest.frame
    golden = load_golden(tiny_bundle.folder, frame)
    inputs = timing_inputs(tiny_bundle.graph("decoder_with_mask"), tiny_bundle, golden, 9)
    check_tensors(inputs["point_coords"], inputs["point_labels"])
    assert inputs["point_coords"].shape == (9, 2, 2)
    assert (inputs["point_coords"][:, 1] >= inputs["point_coords"][:, 0]).all()
    assert inputs["point_coords"].max() < frame.size
    assert inputs["mask_input"].shape == (9, 1, 16, 16)
    picture = golden.cases[0]
    np.testing.assert_array_equal(inputs["image_embeddings"], picture.expected["image_embeddings"])
    image = timing_inputs(tiny_bundle.graph("encoder"), tiny_bundle, golden, 0)["image"]
    np.testing.assert_array_equal(image, picture.inputs["image"])


def test_timed_inputs_are_the_same_in_every_process(tiny_bundle):
    frame, graph = tiny_bundle.manifest.frame, tiny_bundle.graph("decoder_with_mask")
    golden = load_golden(tiny_bundle.folder, frame)
    first, second = (timing_inputs(graph, tiny_bundle, golden, 4) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("graph", ["encoder", "decoder_prologue", "decoder_step", "decoder_with_mask"])
def test_every_graph_is_checked_against_its_golden_cases(split_bundle, graph):
    subject = opened(job_of(split_bundle, graph, prompts=2 if split_bundle.graph(graph).axis("prompts") else 0))
    subject.call()
    found = subject.check()
    assert found.verdict is Verdict.PASS
    assert found.max_error < 1e-4


def test_the_check_goes_the_way_of_the_timed_calls(tiny_bundle, monkeypatch):
    batches = []
    monkeypatch.setattr(
        subject_module, "run_batched", lambda runtime, inputs, batch: batches.append(batch) or runtime.run(inputs)
    )
    assert opened(job_of(tiny_bundle, "decoder", prompts=4, batch=3)).check().verdict is Verdict.PASS
    assert set(batches) == {3}


def test_a_wrong_number_in_the_file_fails_the_row(own_bundle):
    import onnx
    from onnx import numpy_helper

    path = own_bundle.folder / "decoder.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda w: len(w.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values.flat[::7] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    found = opened(job_of(own_bundle, "decoder", prompts=1)).check()
    assert found.verdict is Verdict.FAIL
    assert "differs by" in found.reason


def test_a_precision_without_a_tolerance_is_skipped_not_passed(tiny_bundle):
    found = opened(job_of(tiny_bundle, "encoder", precision="int3")).check()
    assert found.verdict is Verdict.SKIPPED
    assert "int3" in found.reason


def test_the_plain_decoder_is_checked_by_the_cases_of_the_halves(split_bundle):
    golden = load_golden(split_bundle.folder, split_bundle.manifest.frame)
    found = cases_of("decoder", golden.cases, {"decoder_step": "decoder"})
    assert found
    assert {chain for _, chain in found} == {("decoder",)}
    assert all(case.graphs == ("decoder_prologue", "decoder_step") for case, _ in found)


def test_the_graph_before_is_of_the_same_precision(split_bundle):
    (prologue,) = (a for a in split_bundle.manifest.artifacts if a.graph == "decoder_prologue")
    half = replace(prologue, recipe="fp16", path="decoder_prologue.half.onnx")
    manifest = replace(split_bundle.manifest, artifacts=(half, *split_bundle.manifest.artifacts))
    bundle, job = replace(split_bundle, manifest=manifest), job_of(split_bundle, "decoder_step", prompts=4, batch=2)
    found = [subject_module._sibling(replace(job, precision=p), bundle, "decoder_prologue") for p in ("fp32", "fp16")]
    assert [(j.file, j.prompts, j.batch) for j in found] == [(prologue.path, 0, 0), (half.path, 0, 0)]


def test_nothing_checked_is_skipped():
    found = summarise([])
    assert (found.verdict, found.reason) == (Verdict.SKIPPED, "no golden case checks this graph")


def test_the_summary_has_the_worst_of_each_number():
    rows = [
        Row(Check("case", ("a",)), "x", Verdict.PASS, max_error=1.0, value_range=10.0, snr_db=50.0, mask_iou=1.0),
        Row(Check("case", ("b",), "1x2"), "x", Verdict.FAIL, "why", max_error=1.0, value_range=4.0, mask_iou=0.5),
        Row(Check("case", ("a",)), "x", Verdict.PASS, max_error=1.0, value_range=20.0, snr_db=60.0, mask_iou=0.9),
    ]
    found = summarise(rows)
    assert (found.verdict, found.max_error, found.snr_db, found.mask_iou) == (Verdict.FAIL, 0.25, 50.0, 0.5)
    assert found.reason == "b 1x2, x: why"


def test_a_number_that_json_cannot_say_is_left_out():
    found = summarise([Row(Check("case"), "x", Verdict.FAIL, "why", float("nan"), 0.0, 1.0, float("-inf"), None)])
    assert (found.verdict, found.max_error, found.snr_db) == (Verdict.FAIL, None, None)


def test_the_tolerance_of_bfloat16_is_wider_than_that_of_float16():
    """Three bits of mantissa fewer."""
    narrow, wide = tier("fp16"), tier(*find("openvino-bf16").recipes("fp16"))
    assert wide is TIERS["bf16"]
    assert wide.max_error > narrow.max_error
    assert wide.snr_db == pytest.approx(narrow.snr_db - 20 * np.log10(2**3), abs=0.1)
    assert wide.mask_iou < narrow.mask_iou
    assert wide.band > narrow.band


def test_a_recipe_of_the_users_is_judged_as_integers_and_no_other_name_is(tiny_bundle):
    first, *others = tiny_bundle.manifest.artifacts
    made = replace(first, recipe="gemms", parent="0" * 64)
    bundle = replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, artifacts=(made, *others)))
    assert [judged_as(bundle, name) for name in ("gemms", "fp32", "other")] == ["quantized", "fp32", "other"]
    assert judged_as(tiny_bundle, "gemms") == "gemms"


def test_a_file_of_low_precision_is_judged_by_that_wherever_it_runs():
    assert tier(*find("openvino").recipes("fp16")) is TIERS["fp16"]
    assert tier(*find("pytorch-cuda-fp16").recipes("fp32")) is TIERS["fp16"]
    assert tier(*find("onnxruntime").recipes("fp32")) is TIERS["fp32"]


class Answers(Runtime):
    """A runtime that answers what was written down."""

    def __init__(self, graph, outputs):
        super().__init__(graph)
        self.outputs = outputs

    def _run(self, inputs):
        return self.outputs

    def placement(self):
        return "paper"


def test_boxes_of_tied_ranks_may_swap_and_others_may_not(sampler_bundle):
    subject = opened(job_of(sampler_bundle, SAMPLER))
    (case,) = (c for c in subject.golden.cases if c.graphs == (SAMPLER,))
    boxes, scores = case.expected["boxes"].copy(), case.expected["scores"].copy()
    scores[1] = scores[0]
    assert np.abs(boxes[0] - boxes[1]).max() > 1
    subject.golden = replace(subject.golden, cases=(replace(case, expected={"boxes": boxes, "scores": scores}),))
    for order, verdict in (([1, 0], Verdict.PASS), ([0, 1], Verdict.PASS), ([2, 1, 0], Verdict.FAIL)):
        answer = boxes.copy()
        answer[: len(order)] = boxes[order]
        subject._runtime = Answers(subject.graph, {"boxes": answer, "scores": scores})
        assert subject.check().verdict is verdict
