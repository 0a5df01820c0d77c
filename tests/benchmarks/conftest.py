import pytest

from samexport.benchmarks.rebuild import write_baselines
from samexport.exporter.to_onnx import OnnxOptions, convert


@pytest.fixture(scope="session")
def plain_bundle(tiny_bundle, tmp_path_factory):
    """The untouched architecture of ``tiny_bundle``."""
    folder = tmp_path_factory.mktemp("plain")
    return write_baselines(tiny_bundle, folder, lambda graph, module, path: convert(graph, module, path, OnnxOptions()))


@pytest.fixture(scope="session")
def split_bundle(tmp_path_factory):
    """The 64-pixel TinyViT, decoder in two halves."""
    from samexport.exporter.pipeline import ExportOptions, export_bundle

    out = tmp_path_factory.mktemp("split") / "split"
    return export_bundle(ExportOptions("test.tinyvit64", out, random_seed=7, split_decoder=True))[0]
