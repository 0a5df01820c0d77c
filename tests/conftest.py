"""Bundles that many tests read: exported once a run, copied by tests that change them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from samexport.benchmarks.contenders.baselines import write_baselines
from samexport.benchmarks.measuring import runner
from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.sampler_export import SamplerExport
from samexport.exporter.to_coreml.convert import CoreMLOptions
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.exporter.to_tflite import convert as to_tflite
from samexport.files import new_folder
from samexport.models.architectures.sam import Sam
from samexport.runtimes.bundle import Bundle, open_bundle
from tests.command_line import photo, run
from tests.models.golden import random_sam

__all__ = ["photo", "run"]  # fixtures


# what takes long, longest first: begun late, one file would leave the other processes idle
SLOW = (
    "exporter/deliver/test_deliver.py",
    "exporter/to_tflite/test_convert.py",
    "exporter/to_coreml/test_convert.py",
    "test_mobile_sam.py",
    "exporter/to_onnx/test_convert.py",
    "benchmarks/test_command.py",
    "exporter/quantize/test_quantize.py",
    "families/test_toy.py",
    "exporter/test_encoders.py",
    "exporter/test_sampler_export.py",
    "exporter/test_sam2_files.py",
    "benchmarks/test_plan.py",
    "runtimes/adapters/test_coreml_bundle.py",
    "runtimes/test_bundle.py",
    "training/test_distill.py",
    "cli/test_hostile.py",
    "models/weights/test_identify.py",
    "models/graphs/test_sam2_forms.py",
    "runtimes/adapters/test_mil.py",
    "models/architectures/test_encoders.py",
    "runtimes/families/test_sam2_tracker.py",
    "exporter/test_pipeline.py",
    "web/test_page.py",
    "android/test_demo.py",
    "training/test_loop.py",
    "training/test_commands.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of ``SLOW``, then the others; xdist would begin with those of the most tests."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(SLOW)}
    assert all(path.is_file() for path in place), "SLOW names a file that is not there"
    items.sort(key=lambda item: place.get(item.path, len(SLOW)))


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Of this run, the same in every process of it."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def test_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where tests that are no fixtures find files that others converted."""
    os.environ["SAMEXPORT_TEST_FILES"] = str(shared_folder(tmp_path_factory))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Bundle:
    """The bundle that ``make`` writes, made by the first process that asks for it."""
    folder = shared_folder(factory) / "bundles" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return open_bundle(folder)


def copying(bundle: Bundle, *names: str) -> Callable[..., to_onnx.OnnxFile]:
    """``to_onnx.convert``, except that the graphs ``names`` (none: all) that ``bundle`` has are copied from there.

    What the pipeline then checks is as much as ever: every file is compared with the reference.
    """
    convert = to_onnx.convert

    def copy(graph, module, path, options, examples=()):
        if graph.name not in bundle.graph_names or (names and graph.name not in names):
            return convert(graph, module, path, options, examples)
        shutil.copy(bundle.folder / path.name, path)
        return to_onnx.OnnxFile(bundle.artifact(graph.name).nodes)

    return copy


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel TinyViT, fp32 ONNX."""
    return once(
        tmp_path_factory, "tiny", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, random_seed=7))
    )


@pytest.fixture(scope="session")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel ViT, fp16 ONNX, decoder in two halves."""
    options = {"random_seed": 7, "target": OnnxOptions("fp16"), "split_decoder": True}
    return once(tmp_path_factory, "half", lambda out: export_bundle(ExportOptions("test.vit64", out, **options)))


@pytest.fixture(scope="session")
def coreml_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel TinyViT, fp32 CoreML, flexible prompt counts."""
    pytest.importorskip("coremltools")
    options = {"random_seed": 7, "target": CoreMLOptions("fp32"), "threads": 1}
    return once(tmp_path_factory, "coreml", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, **options)))


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """MobileSAM at 1024 pixels, random weights."""
    return once(tmp_path_factory, "full", lambda out: export_bundle(ExportOptions("tinyvit", out, random_seed=7)))


@pytest.fixture(scope="session")
def tflite_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel TinyViT, TFLite, decoders for one prompt of five points and four of two; its files are ``built``."""
    from tests.tflite_models import OPTIONS, copied

    options = {"random_seed": 7, "target": OPTIONS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_tflite, "convert", copied)
        return once(
            tmp_path_factory, "tflite", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, **options))
        )


@pytest.fixture(scope="session")
def sam2_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The 64-pixel SAM 2.1 with all its graphs, fp32 ONNX; with this seed objects stay in the picture."""
    options = {"random_seed": 19, "features": ("sparse",), "threads": 1}
    return once(tmp_path_factory, "sam2", lambda out: export_bundle(ExportOptions("test.hiera64", out, **options)))


@pytest.fixture
def converted(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files of ``tiny_bundle`` instead of converting again, for tests of what happens around that."""

    monkeypatch.setattr(to_onnx, "convert", copying(tiny_bundle))


@pytest.fixture(scope="session")
def sampler_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """``tiny_bundle`` with a small object-aware sampler of its own."""
    options = {"random_seed": 7, "sampler": SamplerExport("test")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "convert", copying(tiny_bundle))
        return once(
            tmp_path_factory, "sampler", lambda out: export_bundle(ExportOptions("test.tinyvit64", out, **options))
        )


@pytest.fixture(scope="session")
def plain_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The untouched architecture of ``tiny_bundle``."""

    def make(folder: Path) -> None:
        with new_folder(folder) as private:
            write_baselines(tiny_bundle, private, to_onnx.convert_plainly)

    return once(tmp_path_factory, "plain", make)


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what a machine can do as known, for tests of what is measured beside it."""
    rates = {"fp32": 100.0, "copy_gb_per_s": 9.0}
    monkeypatch.setattr(runner, "probe_machine", lambda jobs, threads: runner.Machine(rates))


@pytest.fixture
def own_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of ``tiny_bundle`` that a test may damage."""
    return open_bundle(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def mobile_sam() -> Sam:
    """MobileSAM at 1024 pixels in torch, random weights of seed 7; not to be changed."""
    return random_sam("tinyvit")
