import pytest

from samexport.benchmarks.contenders.baselines import write_baselines
from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx import torchscript
from samexport.exporter.to_onnx.convert import OnnxOptions, convert
from samexport.files import new_folder
from tests.conftest import copying, once


@pytest.fixture(scope="session")
def plain_bundle(tiny_bundle, tmp_path_factory):
    """The untouched architecture of ``tiny_bundle``."""

    def make(folder):
        with new_folder(folder) as private:
            write_baselines(
                tiny_bundle, private, lambda graph, module, path: convert(graph, module, path, OnnxOptions()).nodes,
                trace=torchscript.convert,
            )  # fmt: skip

    return once(tmp_path_factory, "plain", make)


@pytest.fixture(scope="session")
def split_bundle(tiny_bundle, tmp_path_factory):
    """``tiny_bundle`` with the decoder in two halves."""
    options = {"random_seed": 7, "split_decoder": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "convert", copying(tiny_bundle))
        return once(
            tmp_path_factory, "split", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, **options))
        )
