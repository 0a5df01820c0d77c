"""Bundles that many tests read: exported once a session, copied by tests that change them."""

import shutil
from pathlib import Path

import pytest

from samexport.exporter import to_onnx
from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.to_coreml import CoreMLOptions
from samexport.exporter.to_onnx import OnnxOptions
from samexport.models.architectures.sam import Sam
from samexport.runtimes.bundle import Bundle, open_bundle
from tests.models.golden import random_sam


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel TinyViT, fp32 ONNX."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(ExportOptions("test.tinyvit64", out, random_seed=7))[0]


@pytest.fixture(scope="session")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel ViT, fp16 ONNX, decoder in two halves."""
    out = tmp_path_factory.mktemp("bundles") / "half"
    return export_bundle(
        ExportOptions("test.vit64", out, random_seed=7, target=OnnxOptions("fp16"), split_decoder=True)
    )[0]


@pytest.fixture(scope="session")
def coreml_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel TinyViT, fp32 CoreML, flexible prompt counts."""
    pytest.importorskip("coremltools")
    out = tmp_path_factory.mktemp("bundles") / "coreml"
    options = ExportOptions("test.tinyvit64", out, random_seed=7, target=CoreMLOptions("fp32"), threads=1)
    return export_bundle(options)[0]


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """MobileSAM at 1024 pixels, random weights."""
    out = tmp_path_factory.mktemp("bundles") / "full"
    return export_bundle(ExportOptions("tinyvit", out, random_seed=7))[0]


@pytest.fixture
def converted(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files of ``tiny_bundle`` instead of converting again, for tests of what happens around that."""

    def copy(graph, module, path, options):
        shutil.copy(tiny_bundle.folder / path.name, path)
        return tiny_bundle.artifact(graph.name).nodes

    monkeypatch.setattr(to_onnx, "convert", copy)


@pytest.fixture
def own_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of ``tiny_bundle`` that a test may damage."""
    return open_bundle(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def mobile_sam() -> Sam:
    """MobileSAM at 1024 pixels in torch, random weights of seed 7; not to be changed."""
    return random_sam("tinyvit")
