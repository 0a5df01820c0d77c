import pytest

from samexport.benchmarks.contenders.baselines import write_baselines
from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.to_onnx.convert import OnnxOptions, convert
from samexport.files import new_folder
from tests.conftest import once


@pytest.fixture(scope="session")
def plain_bundle(tiny_bundle, tmp_path_factory):
    """The untouched architecture of ``tiny_bundle``."""

    def make(folder):
        with new_folder(folder) as private:
            write_baselines(
                tiny_bundle, private, lambda graph, module, path: convert(graph, module, path, OnnxOptions()).nodes
            )

    return once(tmp_path_factory, "plain", make)


@pytest.fixture(scope="session")
def split_bundle(tmp_path_factory):
    """The 64-pixel TinyViT, decoder in two halves."""
    options = {"random_seed": 7, "split_decoder": True}
    return once(tmp_path_factory, "split", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, **options)))
