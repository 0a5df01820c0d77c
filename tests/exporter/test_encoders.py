"""Every encoder in every format, at 64 pixels: what the file computes is what the architecture computes."""

import numpy as np
import pytest

from samexport.exporter.formats import FORMATS, Facts
from samexport.exporter.to_coreml.convert import CoreMLOptions
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.models.build import build_graph
from samexport.models.catalog import MODELS
from samexport.models.spec import WeightsInfo
from samexport.runtimes.adapters.pytorch import PyTorchRuntime
from samexport.runtimes.formats.tflite_lint import lint
from samexport.runtimes.registry import open_runtime
from tests.models.graphs.test_encoders import SMALL, inputs_of, network_of

OPTIONS = {"onnx": OnnxOptions(), "tflite": TfliteOptions((1,), (8,)), "coreml": CoreMLOptions("fp32")}
DECODERS = [("test.hq64", "decoder"), ("test.efficientsam64", "decoder")]
# each has operations that the others, TinyViT and SAM's ViT, have not
OWN = [(name, "encoder") for name in ("test.edge64", "test.efficientvit64", "test.nano64")]
CASES = [(*pair, "onnx") for pair in [(name, "encoder") for name in SMALL] + DECODERS]
CASES += [(*pair, file_format) for file_format in ("tflite", "coreml") for pair in OWN + DECODERS]


@pytest.mark.parametrize(("name", "graph", "file_format"), CASES)
def test_file_computes_what_the_architecture_does(name, graph, file_format, tmp_path):
    pytest.importorskip({"onnx": "onnx", "tflite": "litert_torch", "coreml": "coremltools"}[file_format])
    spec, network = MODELS[name], network_of(name)
    contract, module = build_graph(network, spec, graph)
    facts = Facts(spec, WeightsInfo("random", "seed 7", None, 7))
    artifact = FORMATS[file_format].write(contract, module, tmp_path, OPTIONS[file_format], facts)
    given = {n: x.numpy()[:1] for n, x in zip(contract.input_names, inputs_of(contract, spec), strict=True)}
    found = open_runtime(tmp_path / artifact.path, contract, file_format).run(given)
    wanted = PyTorchRuntime(build_graph(network, spec, graph, plain=True)[1], contract).run(given)
    for output, values in wanted.items():
        assert np.abs(found[output] - values).max() / np.ptp(values) < 2e-5
    if file_format == "tflite":
        assert not list(map(str, lint(tmp_path / artifact.path).of("gpu")))
