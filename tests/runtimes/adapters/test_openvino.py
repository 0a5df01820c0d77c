import numpy as np
import pytest

from samexport.errors import BundleError, ConfigError, RuntimeFailed
from samexport.runtimes.adapters.ort import OrtRuntime
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.compare import signal_to_noise
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.registry import checkers, paths
from samexport.runtimes.tasks.segment import Segmenter

pytest.importorskip("openvino")

from samexport.runtimes.adapters.openvino import OpenVinoBf16Runtime, OpenVinoRuntime


def cases(bundle, graph):
    golden = load_golden(bundle.folder, bundle.manifest.frame)
    return [case for case in golden.cases if case.graphs == (graph,)]


@pytest.mark.parametrize("graph", ["encoder", "decoder", "decoder_with_mask"])
def test_openvino_computes_what_onnx_runtime_computes(tiny_bundle, graph):
    path, spec = tiny_bundle.folder / f"{graph}.onnx", tiny_bundle.graph(graph)
    with OpenVinoRuntime(path, spec, threads=1) as runtime, OrtRuntime(path, spec, threads=1) as other:
        for case in cases(tiny_bundle, graph):
            expected, found = other.run(case.inputs), runtime.run(case.inputs)
            for name in spec.output_names:
                assert signal_to_noise(expected[name], found[name]) > 100, (case.name, name)


def test_bfloat16_is_used_only_when_asked_for(tiny_bundle):
    path, spec = tiny_bundle.folder / "encoder.onnx", tiny_bundle.graph("encoder")
    (case,) = cases(tiny_bundle, "encoder")
    expected = case.expected["image_embeddings"]
    with OpenVinoRuntime(path, spec) as runtime:
        assert signal_to_noise(expected, runtime.run(case.inputs)["image_embeddings"]) > 100
        assert "bf16" not in runtime.placement()
    try:
        half = OpenVinoBf16Runtime(path, spec)
    except ConfigError:
        pytest.skip("this processor has no bfloat16")
    with half:
        assert 25 < signal_to_noise(expected, half.run(case.inputs)["image_embeddings"]) < 60
        assert "bf16" in half.placement()


def test_a_processor_without_bfloat16_is_told_so(tiny_bundle, monkeypatch):
    monkeypatch.setattr(OpenVinoBf16Runtime, "capability", "FP4")
    with pytest.raises(ConfigError, match="no FP4 arithmetic; take the runtime openvino"):
        OpenVinoBf16Runtime(tiny_bundle.folder / "encoder.onnx", tiny_bundle.graph("encoder"))


def test_a_segmenter_takes_bfloat16_by_name_and_checks_of_files_never(tiny_bundle):
    click = Prompt.make(points=[[20, 13]], labels=[1])
    picture = load_golden(tiny_bundle.folder, tiny_bundle.manifest.frame).picture
    found = {}
    for name in ("openvino", "openvino-bf16"):
        with Segmenter(tiny_bundle, runtime=name) as segmenter:
            try:
                segmenter.set_image(picture)
            except ConfigError:
                pytest.skip("this processor has no bfloat16")
            (found[name],) = segmenter.predict([click])
    exact, rough = (found[name].low_res_masks for name in ("openvino", "openvino-bf16"))
    assert 15 < signal_to_noise(exact, rough) < 60
    assert "openvino" in paths("onnx")
    assert "openvino-bf16" not in (*paths("onnx"), *checkers("onnx"))


def test_outputs_are_not_overwritten_by_the_next_run(tiny_bundle):
    one, two = cases(tiny_bundle, "decoder")[1:3]
    with OpenVinoRuntime(tiny_bundle.folder / "decoder.onnx", tiny_bundle.graph("decoder")) as runtime:
        first = runtime.run(one.inputs)["low_res_masks"]
        copy = first.copy()
        runtime.run({name: value + np.float32(0) for name, value in two.inputs.items()})
        np.testing.assert_array_equal(first, copy)


def test_damaged_files_and_files_of_other_graphs_are_refused(own_bundle):
    (own_bundle.folder / "damaged.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"damaged\.onnx cannot be opened by OpenVINO"):
        OpenVinoRuntime(own_bundle.folder / "damaged.onnx", own_bundle.graph("encoder"))
    with pytest.raises(BundleError, match="not those of the graph decoder"):
        OpenVinoRuntime(own_bundle.folder / "encoder.onnx", own_bundle.graph("decoder"))
    with pytest.raises(BundleError, match=r"none\.onnx"):
        OpenVinoRuntime(own_bundle.folder / "none.onnx", own_bundle.graph("encoder"))


def test_a_run_that_fails_inside_is_one_line(tiny_bundle, monkeypatch):
    (case, *_) = cases(tiny_bundle, "encoder")
    with OpenVinoRuntime(tiny_bundle.folder / "encoder.onnx", tiny_bundle.graph("encoder")) as runtime:

        class Broken:
            def infer(self, *arguments, **options):
                raise RuntimeError("Exception from src/x.cpp:3:\nno memory\n")

        monkeypatch.setattr(runtime, "_request", Broken())
        with pytest.raises(RuntimeFailed, match="encoder does not run with") as caught:
            runtime.run(case.inputs)
    assert "\n" not in str(caught.value)
