"""Graphs are traced once, and what torch.onnx knows decomposed alone is translated to the same function."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx.capture import TRANSLATIONS
from samexport.models.families.sam import PROMPTS
from samexport.models.spec import GraphSpec, TensorSpec


def graph_of(size):
    given, made = TensorSpec("x", ("N", 3, 4, 6), ""), TensorSpec("y", ("N", size), "")
    return GraphSpec("toy", "", (given,), (made,), (PROMPTS,))


class All(nn.Module):
    """Every operation of ``TRANSLATIONS``, with arguments that are not the usual ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3, eps=0.1)
        self.first = nn.ConvTranspose2d(3, 4, 3, stride=(2, 1), padding=(1, 2), output_padding=(1, 0), bias=False)
        self.second = nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.requires_grad_(False).eval()

    def forward(self, x):
        x = self.second(self.first(self.norm(x).square()))
        return torch.rsub(2 - x.flatten(1, 2), 0.5, alpha=3).flatten(1)


def check(module, size, path):
    to_onnx.convert(graph_of(size), module, path, to_onnx.OnnxOptions())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 4):
        x = torch.randn(count, 3, 4, 6, generator=torch.Generator().manual_seed(count))
        expected = module(x).numpy()
        assert expected.shape == (count, size)
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5 * np.ptp(expected))


def test_every_translation_is_the_same_function_and_nothing_is_traced_again(tmp_path, monkeypatch):
    module, traced = All(), torch.export.export(All(), (torch.zeros(2, 3, 4, 6),))
    assert set(TRANSLATIONS) <= {node.target for node in traced.graph.nodes}

    def again(*_):
        raise AssertionError("traced again")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", again)
    check(module, 360, tmp_path / "x.onnx")


class Decomposed(nn.Module):
    """Of an operation that nobody translates as it is."""

    def forward(self, x):
        return torch.addcmul(x, x, x, value=0.3).flatten(1)


@pytest.mark.parametrize("fails", [False, True])
def test_what_cannot_be_captured_or_translated_is_left_to_torch_onnx(tmp_path, monkeypatch, fails):
    def refuse(*_):
        raise ValueError("no")

    if fails:
        monkeypatch.setattr("samexport.exporter.to_onnx.capture.capture", refuse)
    check(Decomposed(), 72, tmp_path / "x.onnx")
