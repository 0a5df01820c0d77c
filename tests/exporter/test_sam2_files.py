"""SAM 2's graphs as files of each format, against their export forms, and the whole loop on ONNX files."""

import numpy as np
import pytest

from samexport.errors import ConfigError
from samexport.exporter.to_coreml import convert as to_coreml
from samexport.exporter.to_coreml.package import PackageTexts
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_tflite import convert as to_tflite
from samexport.models.catalog import find_model
from samexport.models.families.sam2 import VIDEO_GRAPHS, fixed, sam2_constants, sam2_module
from samexport.models.graphs.sam2_memory import Sam2MemoryAttention
from samexport.models.loading import load_model
from samexport.runtimes.adapters.litert import LiteRtRuntime
from samexport.runtimes.adapters.mil import MilRuntime
from samexport.runtimes.adapters.ort import OrtRuntime
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.host.prompts import Prompt
from tests.single_thread import one_thread

__all__ = ["one_thread"]  # fixtures

FLAGS = {"memory_row", "point_labels", "pointer_present", "binary", "object_present", "has_mask_input"}
FLAGS |= {"inside", "kept_row", "kept_cell"}
SPEC = find_model("test.hiera64_sparse")


@pytest.fixture(scope="session")
def model(sam2_bundle):
    return load_model(SPEC, random_seed=sam2_bundle.manifest.weights.seed)[0]


def form(model, name):
    """The form of a graph; queries go in chunks here too."""
    return Sam2MemoryAttention(model, chunk=8).eval() if name == "memory_attention" else sam2_module(model, name)


def graph_of(name, **sizes):
    return fixed(SPEC.graph(name), sizes)


def inputs_of(graph, sizes, seed=0):
    rng = np.random.default_rng(seed)
    drawn = {}
    for tensor in graph.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
        value = rng.standard_normal(shape) if tensor.low is None else rng.uniform(tensor.low, tensor.high, shape)
        drawn[tensor.name] = (np.round(value) if tensor.name in FLAGS else value).astype(tensor.dtype)
    return drawn


def assert_same(runtime, module, graph, inputs):
    found, expected = runtime.run(inputs), PyTorchRuntime(module, graph).run(inputs)
    for name, wanted in expected.items():
        # one score alone has no range
        assert np.abs(found[name] - wanted).max() <= 1e-4 * max(np.ptp(wanted), 0.1), name


@pytest.mark.parametrize("name", [graph.name for graph in SPEC.graphs])
def test_onnx_file_computes_what_the_form_computes_at_every_size(model, sam2_bundle, name, tmp_path):
    graph, path = graph_of(name), sam2_bundle.folder / f"{name}.onnx"
    if name == "memory_attention":
        # queries in chunks, which so small a map does not need
        path = tmp_path / path.name
        assert to_onnx.convert(graph, form(model, name), path, to_onnx.OnnxOptions()).refused == ""
    with OrtRuntime(path, graph, threads=1) as runtime:
        for sizes in (dict.fromkeys("NKFRMW", 1), {"N": 2, "K": 4, "F": 9, "R": 16, "M": 7, "W": 4}):
            assert_same(runtime, form(model, name), graph, inputs_of(graph, sizes))


def test_objects_are_followed_on_onnx_files_as_on_the_forms(model, sam2_bundle):
    rng = np.random.default_rng(0)
    clip = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(4)]

    def follow(runtimes):
        tracker = Tracker(runtimes, sam2_constants(model), frames=len(clip))
        tracker.add(0, 1, Prompt.make([[20, 30]]))
        tracker.add(0, 1, Prompt.make([[20, 30], [5, 5]], [1, 0]))
        tracker.add(1, 2, rng.random((48, 64)) > 2)
        return list(tracker.propagate(clip))

    graphs = {name: graph_of(name) for name in VIDEO_GRAPHS}
    files = {name: sam2_bundle.open(name, threads=1) for name in graphs}
    forms = {name: PyTorchRuntime(form(model, name), graph) for name, graph in graphs.items()}
    for one, other in zip(follow(files), follow(forms), strict=True):
        assert one.objects == other.objects
        for a, b in zip(one.found, other.found, strict=True):
            # bfloat16 turns the last bit of a memory into more than that
            assert np.abs(a.low_res - b.low_res).mean() < 0.05
            assert a.score == pytest.approx(b.score, abs=0.02)


def test_tflite_file_takes_windows_in_entry_points_and_fills_them_up(model, tmp_path):
    name = "encoder_routed"
    graph, path = graph_of(name), tmp_path / f"{name}.tflite"
    assert to_tflite.convert(graph, form(model, name), path).of("gpu") == ()
    with LiteRtRuntime(path, graph, threads=1) as runtime:
        assert [entry.name for entry in runtime.entry_points] == ["windows_1", "windows_2"]
        runtime.entry_points = runtime.entry_points[1:]
        for count in (1, 2):
            assert_same(runtime, form(model, name), graph, inputs_of(graph, {"W": count}))
        with pytest.raises(ConfigError, match="at most 2 windows, got"):
            runtime.run(inputs_of(graph, {"W": 3}))


# one file of one size in each format, of the graphs that converters had trouble with
PRUNED = ("memory_attention_pruned", {"N": 1, "F": 1, "R": 2, "M": 3})


@pytest.mark.parametrize(("name", "sizes"), [("memory_encoder", {"N": 1}), PRUNED])
def test_tflite_file_computes_what_the_form_computes(model, tmp_path, name, sizes):
    graph, path = graph_of(name, **sizes), tmp_path / f"{name}.tflite"
    to_tflite.convert(graph, form(model, name), path)
    with LiteRtRuntime(path, graph, threads=1) as runtime:
        assert_same(runtime, form(model, name), graph, inputs_of(graph, {}))


@pytest.mark.parametrize(("name", "sizes"), [("mask_decoder", {"N": 1, "K": 3}), PRUNED])
def test_coreml_package_computes_what_the_form_computes(model, tmp_path, name, sizes):
    graph, path = graph_of(name, **sizes), tmp_path / f"{name}.mlpackage"
    texts = PackageTexts("samexport", "Apache-2.0", "0.1.0")
    to_coreml.convert(graph, form(model, name), path, to_coreml.CoreMLOptions("fp32"), texts)
    with MilRuntime(path, graph, precision="fp32") as runtime:
        assert_same(runtime, form(model, name), graph, inputs_of(graph, {}))


@pytest.mark.parametrize("spec", [SPEC, find_model("hiera_b+", features=("sparse",))], ids=lambda s: s.name)
def test_the_usual_size_of_every_axis_is_one_that_the_graph_takes(spec):
    for graph in spec.graphs:
        for axis in graph.axes:
            assert axis.low <= axis.usual <= axis.high, (graph.name, axis.name)
