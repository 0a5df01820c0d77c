import pytest

from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.to_onnx import convert as to_onnx
from tests.conftest import copying, once


@pytest.fixture(scope="session")
def split_bundle(tiny_bundle, tmp_path_factory):
    """``tiny_bundle`` with the decoder in two halves."""
    options = {"random_seed": 7, "split_decoder": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "convert", copying(tiny_bundle))
        return once(
            tmp_path_factory, "split", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, **options))
        )
