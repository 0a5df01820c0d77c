"""Every converter on a full disk: one line, nothing left. Native code writes too, so it is a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

CONVERT = """
import collections, resource, shutil, signal, sys
from pathlib import Path
import torch
from samexport.errors import SamExportError
from samexport.files import new_folder
from samexport.models.spec import GraphSpec, TensorSpec

class Product(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(400, 400))
    def forward(self, x):
        return x @ self.weight

graph = GraphSpec("encoder", "", (TensorSpec("x", (1, 400), ""),), (TensorSpec("y", (1, 400), ""),))
out, module = Path(sys.argv[2]) / "out", Product()
if sys.argv[1] == "onnx":
    from samexport.exporter.to_onnx.convert import OnnxOptions, convert
    write = lambda folder: convert(graph, module, folder / "x.onnx", OnnxOptions())
elif sys.argv[1] == "tflite":
    from samexport.exporter.to_tflite.convert import convert
    write = lambda folder: convert(graph, module, folder / "x.tflite")
else:
    from samexport.exporter.to_coreml.convert import CoreMLOptions, convert
    from samexport.exporter.to_coreml.package import PackageTexts
    write = lambda folder: convert(graph, module, folder / "x.mlpackage", CoreMLOptions(), PackageTexts("", "", ""))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
shutil.disk_usage = lambda _: collections.namedtuple("Usage", "total used free")(1, 1, 0)
try:
    with new_folder(out) as folder:
        write(folder)
except SamExportError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("file_format", ["onnx", "tflite", "coreml"])
def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path, file_format):
    package = {"onnx": "onnx", "tflite": "litert_torch", "coreml": "coremltools"}[file_format]
    if importlib.util.find_spec(package) is None:
        pytest.skip("the converter is not installed")
    run = subprocess.run([sys.executable, "-c", CONVERT, file_format, tmp_path], capture_output=True, text=True)
    assert run.stdout.endswith("out cannot be written: the disk is full; nothing was left there\n"), run.stderr
    assert run.stdout.count("\n") == 1
    assert run.returncode == 2
    assert os.listdir(tmp_path) == []
