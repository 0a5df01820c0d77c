import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from samexport.errors import ExportFailed
from samexport.exporter.to_onnx import half
from samexport.exporter.to_onnx.convert import OnnxOptions, convert
from samexport.models.families.sam import PROMPTS
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.onnx_ranges import half_range

WIDTH = 8
GRAPH = GraphSpec("mlp", "", (TensorSpec("x", ("N", WIDTH), ""),), (TensorSpec("y", ("N", WIDTH), ""),), (PROMPTS,))
HALF = OnnxOptions("fp16")


class Mlp(nn.Module):
    """Weights far inside half precision; between them two channels are ``scale`` times larger than the others."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.requires_grad_(False)
        self.first.weight[:2] *= scale
        self.first.bias[:2] *= scale
        self.second.weight[:, :2] /= scale

    def forward(self, x):
        return self.second(nn.functional.gelu(self.first(x)))


def examples(module):
    x = torch.linspace(-4, 4, 3 * WIDTH).reshape(3, WIDTH)
    return {"x": x.numpy()}, module(x).numpy()


def in_half(path, inputs):
    """The file computed in numpy, where half precision is half precision."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(onnx.load(path)).run(None, inputs)[0]


def test_what_overflows_on_the_examples_stays_in_single_precision(tmp_path):
    module = Mlp(2.0**15)
    inputs, expected = examples(module)
    blind, seeing = tmp_path / "blind.onnx", tmp_path / "seeing.onnx"
    convert(GRAPH, module, blind, HALF)
    assert not np.isfinite(in_half(blind, inputs)).all()
    assert half_range(blind, [inputs]).reason

    written = convert(GRAPH, module, seeing, HALF, [inputs])
    np.testing.assert_allclose(in_half(seeing, inputs), expected, atol=2e-3 * np.ptp(expected))
    assert not half_range(seeing, [inputs]).reason
    assert [name.split()[0] for name in written.kept_in_fp32] == ["Gemm", "Gelu", "Gemm"]
    names = {node.name for node in onnx.load(seeing).graph.node}
    assert {name.split()[1] for name in written.kept_in_fp32} <= names


def test_what_fits_is_in_half_precision_and_nothing_is_recorded(tmp_path):
    module = Mlp(1.0)
    inputs, expected = examples(module)
    written = convert(GRAPH, module, tmp_path / "x.onnx", HALF, [inputs])
    assert (written.kept_in_fp32, written.near_limit) == ((), ())
    weights = {w.data_type for w in onnx.load(tmp_path / "x.onnx").graph.initializer}
    assert weights == {TensorProto.FLOAT16}
    np.testing.assert_allclose(in_half(tmp_path / "x.onnx", inputs), expected, atol=2e-3 * np.ptp(expected))


def test_what_comes_near_the_end_is_told(tmp_path):
    module = Mlp(1.0)
    inputs, _ = examples(module)
    largest = float(module.first(torch.from_numpy(inputs["x"]))[:, :2].abs().max())
    module = Mlp(50000 / largest)
    written = convert(GRAPH, module, tmp_path / "x.onnx", HALF, [inputs])
    assert written.kept_in_fp32 == ()
    assert written.near_limit
    assert "reaches 5e+04" in written.near_limit[0]


def test_a_weight_beyond_half_precision_stays_in_single_precision_without_any_example(tmp_path):
    module = Mlp(1.0)
    module.second.weight[0, 0] = 1e6
    written = convert(GRAPH, module, tmp_path / "x.onnx", HALF)
    assert len(written.kept_in_fp32) == 1
    x = np.full((2, WIDTH), 0.5, np.float32)
    np.testing.assert_allclose(in_half(tmp_path / "x.onnx", {"x": x}), module(torch.from_numpy(x)).numpy(), rtol=2e-3)


def test_an_overflow_that_stays_is_an_error_that_names_the_node(tmp_path, monkeypatch):
    to_half = half.to_half
    monkeypatch.setattr(half, "to_half", lambda model, wide: to_half(model))
    module = Mlp(2.0**15)
    with pytest.raises(ExportFailed, match=r"^mlp cannot be written in fp16: .*Gemm \S+ reaches"):
        convert(GRAPH, module, tmp_path / "x.onnx", HALF, [examples(module)[0]])
    assert not (tmp_path / "x.onnx").exists()
