"""Verification of TFLite bundles: which entry point each check runs, and seeded faults that must be caught."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from samexport.errors import ConfigError, MissingDependency, ParityFailed
from samexport.exporter.to_tflite.graph import Graph
from samexport.runtimes.adapters import litert_gpu
from samexport.runtimes.adapters.litert import LiteRtRuntime
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.formats.tflite import constant_bytes, read_model, write_model
from samexport.runtimes.parity import gpu as verify_gpu
from samexport.runtimes.parity.against import verify_against
from samexport.runtimes.parity.golden import entry_point_cases
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.gpu import NOT_SHOWN, require_gpu, verify_on_gpu
from samexport.runtimes.parity.verify import cases_by_chain, verify_bundle
from samexport.runtimes.verdicts import Verdict
from tests.runtimes.adapters.test_litert_gpu import needs_gpu
from tests.signing import sign


def calls_of_verification(bundle, monkeypatch):
    """{(graph, entry point): the numbers of prompts of the checks that ran it}, end to end left out."""
    calls = {}
    case = []
    run, call = LiteRtRuntime.run, LiteRtRuntime._call

    def note_case(self, inputs):
        case[:] = [len(inputs["point_labels"]) if "point_labels" in inputs else 0]
        return run(self, inputs)

    def note_entry(self, bucket, inputs):
        calls.setdefault((self.graph.name, bucket.name), set()).add(case[0])
        return call(self, bucket, inputs)

    monkeypatch.setattr(LiteRtRuntime, "run", note_case)
    monkeypatch.setattr(LiteRtRuntime, "_call", note_entry)
    assert verify_bundle(bundle).failures == ()
    return calls


@pytest.mark.parametrize("graph", ["decoder", "decoder_with_mask"])
def test_each_entry_point_is_checked_below_at_and_above_its_size(tflite_bundle, monkeypatch, graph):
    calls = calls_of_verification(tflite_bundle, monkeypatch)
    assert {entry for name, entry in calls if name == graph} == {"decode_1", "decode_4"}
    # 2 and 3 prompts do not fill four, 5 are four and one more
    assert {2, 3, 4, 5} <= calls[graph, "decode_4"]
    # more points than decode_4 takes: one after the other
    assert {1, 5, 7 if graph == "decoder" else 4} <= calls[graph, "decode_1"]


def test_default_entry_points_get_cases_that_fill_them_and_one_prompt_more(tflite_bundle):
    from samexport.runtimes.adapters.entry_points import plan

    golden = load_golden(tflite_bundle.folder, tflite_bundle.manifest.frame)
    for chain, cases in cases_by_chain(tflite_bundle, golden).items():
        found = entry_point_cases(cases, tflite_bundle.graph(chain[-1]), plan((1, 4, 16)))
        made = [len(c.inputs["point_labels"]) for c in found]
        assert made == ([] if chain == ("encoder",) else [2, 4, 5, 16, 17])


def test_cases_are_repeated_prompt_by_prompt(tflite_bundle):
    golden = load_golden(tflite_bundle.folder, tflite_bundle.manifest.frame)
    case = next(c for c in golden.cases if c.name == "3x2")
    made = case.repeated(tflite_bundle.graph("decoder"), 7)
    assert made.name == "7x2 (repeats 3x2)"
    for name in ("point_coords", "point_labels"):
        np.testing.assert_array_equal(made.inputs[name], case.inputs[name][[0, 1, 2, 0, 1, 2, 0]])
    np.testing.assert_array_equal(made.expected["low_res_masks"], case.expected["low_res_masks"][[0, 1, 2, 0, 1, 2, 0]])
    assert made.inputs["image_embeddings"].shape == case.inputs["image_embeddings"].shape


def edit(bundle, folder, name, change):
    """A copy whose file of one graph is changed and whose hashes agree with that."""
    copy = open_bundle(shutil.copytree(bundle.folder, folder / "copy"))
    path = copy.folder / copy.artifact(name).path
    model = read_model(path)
    change(model)
    write_model(model, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    return sign(copy)


def failures(bundle):
    return [str(row) for row in verify_bundle(bundle).failures]


def pick_places(model, entry, output, axis, places):
    """Behind an output, a GATHER of ``places``."""
    signature = next(s for s in model.signatureDefs if s.signatureKey == entry)
    graph = Graph(model, model.subgraphs[signature.subgraphIndex])
    mapped = next(o for o in signature.outputs if o.name == output)
    options = schema.GatherOptionsT()
    options.axis = axis
    old = mapped.tensorIndex
    mapped.tensorIndex = graph.tensor_like(old, graph.shape(old))
    inputs = [old, graph.integer_constant(places)]
    kind = schema.BuiltinOptions.GatherOptions
    graph.subgraph.operators.append(graph.operator("GATHER", kind, options, inputs, [mapped.tensorIndex]))
    graph.subgraph.outputs = [mapped.tensorIndex if t == old else t for t in graph.subgraph.outputs]


@pytest.mark.parametrize("graph", ["decoder", "decoder_with_mask"])
def test_two_swapped_masks_are_caught(tflite_bundle, tmp_path, graph):
    def change(model):
        pick_places(model, b"decode_4", b"low_res_masks", 1, [0, 2, 1, 3])

    found = failures(edit(tflite_bundle, tmp_path, graph, change))
    assert any(line.startswith(f"{graph} 4x") and "low_res_masks" in line for line in found)
    assert not any(line.startswith(f"{graph} 1x") for line in found)


def test_exchanged_output_names_are_caught(tflite_bundle, tmp_path):
    def change(model):
        first, second = model.signatureDefs[0].outputs
        first.name, second.name = second.name, first.name

    assert any("entry point decode_1" in line for line in failures(edit(tflite_bundle, tmp_path, "decoder", change)))


@pytest.mark.parametrize("graph", ["decoder", "decoder_with_mask"])
def test_a_frozen_prompt_count_is_caught(tflite_bundle, tmp_path, graph):
    def change(model):
        # as if traced with one prompt: the first one's answer for all
        for output in (b"low_res_masks", b"iou_predictions"):
            pick_places(model, b"decode_4", output, 0, [0, 0, 0, 0])

    found = failures(edit(tflite_bundle, tmp_path, graph, change))
    assert {line.split(",")[0].split(" ")[1] for line in found} >= {"3x2", "4x1" if graph == "decoder" else "4x2"}
    assert not any(line.startswith(f"{graph} 1x") for line in found)


def test_a_wrong_normalisation_is_caught(tflite_bundle, tmp_path):
    def change(model):
        mean = np.float32(tflite_bundle.manifest.frame.mean)
        constants = [t for t in model.subgraphs[0].tensors if constant_bytes(model, t) is not None]
        tensor = next(t for t in constants if constant_bytes(model, t).tobytes() == mean.tobytes())
        # BGR, the mistake of everyone who reads pictures with OpenCV
        model.buffers[tensor.buffer].data = np.frombuffer(mean[::-1].tobytes(), np.uint8)

    assert any(
        line.startswith("encoder picture") for line in failures(edit(tflite_bundle, tmp_path, "encoder", change))
    )


def test_an_operation_that_would_leave_the_gpu_is_named_and_fails_a_file_for_it(tflite_bundle, tmp_path):
    def change(model):
        pick_places(model, b"decode_4", b"low_res_masks", 1, [0, 1, 2, 3])

    copy = edit(tflite_bundle, tmp_path, "decoder", change)
    row = next(r for r in verify_bundle(copy).rows if str(r.check) == "decoder lint" and "GPU" in r.output)
    assert row.output.startswith("1 of ")
    assert "decode_4 operator" in row.reason
    assert "GATHER" in row.reason
    assert row.verdict is Verdict.SKIPPED
    for_gpu = tuple(replace(a, options={"target": "gpu"}) for a in copy.manifest.artifacts)
    rows = verify_bundle(replace(copy, manifest=replace(copy.manifest, artifacts=for_gpu))).failures
    assert {str(r.check) for r in rows} <= {f"{name} lint" for name in tflite_bundle.graph_names}
    # the others are traps of phones' GPUs, which a file for the CPU may have
    assert [str(r.check) for r in rows if "GATHER" in r.reason] == ["decoder lint"]


def test_the_linter_is_in_manifest_and_card(tflite_bundle):
    manifest = tflite_bundle.manifest
    rows = [row for row in manifest.parity if row.check.kind == "lint"]
    assert len(rows) == 2 * len(manifest.artifacts)
    assert all(row.output.startswith("0 of ") for row in rows)
    assert {a.options["target"] for a in manifest.artifacts} == {"cpu"}
    assert all(a.options["converter"].startswith("litert-torch ") for a in manifest.artifacts)
    card = (tflite_bundle.folder / "README.md").read_text()
    assert "target cpu" in card
    assert all(f"{row.check}: {row.output}" in card for row in rows)


def test_two_bundles_are_compared_directly(tflite_bundle, tiny_bundle, tmp_path):
    rows = verify_against(tflite_bundle, tiny_bundle)
    assert [str(r) for r in rows if r.verdict is not Verdict.PASS] == []
    cases = {str(row.check) for row in rows}
    assert {"encoder picture (against tiny)", "decoder 64x1 (against tiny)", "end to end (against tiny)"} <= cases

    def change(model):
        pick_places(model, b"decode_4", b"low_res_masks", 1, [0, 2, 1, 3])

    wrong = verify_against(edit(tflite_bundle, tmp_path, "decoder", change), tiny_bundle)
    assert any(str(r.check).startswith("decoder 3x2") for r in wrong if r.verdict is Verdict.FAIL)


def test_bundles_of_other_models_or_weights_are_not_compared(tflite_bundle, half_bundle, tiny_bundle):
    with pytest.raises(ConfigError, match="different models or weights"):
        verify_against(tflite_bundle, half_bundle)
    weights = replace(tiny_bundle.manifest.weights, seed=8)
    other = replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, weights=weights))
    with pytest.raises(ConfigError, match="different models or weights"):
        verify_against(tflite_bundle, other)


def only(bundle, *graphs):
    artifacts = tuple(a for a in bundle.manifest.artifacts if a.graph in graphs)
    return replace(bundle, manifest=replace(bundle.manifest, artifacts=artifacts))


@needs_gpu
def test_the_gpu_agrees_with_the_cpu_and_the_rest_is_said(tflite_bundle):
    rows = verify_on_gpu(only(tflite_bundle, "encoder"))
    assert [r.verdict for r in rows] == [Verdict.PASS, Verdict.PASS, Verdict.SKIPPED]
    assert "operations compile" in rows[0].output
    assert rows[1].max_error < 1e-3 * rows[1].value_range
    assert rows[2] is NOT_SHOWN


def test_a_graph_that_cannot_be_run_is_a_failed_row(tflite_bundle, monkeypatch):
    def refuse(path, graph, cases):
        raise ParityFailed("the GPU does not open decoder.tflite: BROADCAST_TO: unsupported")

    monkeypatch.setattr(verify_gpu, "why_unavailable", lambda: "")
    monkeypatch.setattr(verify_gpu, "compare_with_cpu", refuse)
    rows = verify_on_gpu(only(tflite_bundle, "encoder"))
    assert [r.verdict for r in rows] == [Verdict.FAIL, Verdict.SKIPPED]
    assert "BROADCAST_TO" in str(rows[0])


def test_each_entry_point_has_its_case_on_the_gpu(tflite_bundle, monkeypatch):
    asked = {}

    def compare(path, graph, cases):
        asked[graph.name] = {name: {t: v.shape for t, v in inputs.items()} for name, inputs in cases.items()}
        return ()

    monkeypatch.setattr(verify_gpu, "compare_with_cpu", compare)
    monkeypatch.setattr(verify_gpu, "why_unavailable", lambda: "")
    assert verify_on_gpu(tflite_bundle) == (NOT_SHOWN,)
    assert list(asked["encoder"]) == ["picture"]
    for name in ("decoder", "decoder_with_mask"):
        assert [shapes["point_labels"][0] for shapes in asked[name].values()] == [1, 4]
        assert all(set(s) == set(tflite_bundle.graph(name).input_names) for s in asked[name].values())


def test_the_gpu_check_is_refused_for_other_formats_and_without_a_gpu(tflite_bundle, tiny_bundle, monkeypatch):
    with pytest.raises(ConfigError, match="--gpu checks TFLite bundles, tiny is onnx"):
        require_gpu(tiny_bundle)
    monkeypatch.setattr(litert_gpu.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(MissingDependency, match="no Vulkan loader: apt-get install libvulkan1 chromium"):
        verify_on_gpu(tflite_bundle)
