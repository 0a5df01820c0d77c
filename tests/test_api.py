"""What ``import samexport`` promises: these names, at no cost."""

import subprocess
import sys

import numpy as np
import pytest

import samexport

NAMES = {
    "AnnotationError", "Bundle", "BundleError", "CheckpointError", "ConfigError", "ExportFailed", "ExportResult",
    "FileError", "ImageError", "MissingDependency", "ParityFailed", "ParityReport", "Prompt", "PromptError",
    "SamExportError", "SegmentEverything", "Segmentation", "Segmenter", "Verdict", "bench", "export", "list_models",
    "load_model", "open", "open_tracker", "read_image", "verify",
}  # fmt: skip


def test_the_public_names_are_these():
    assert set(samexport.__all__) == NAMES
    for name in NAMES:
        assert getattr(samexport, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = samexport.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import samexport; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "PIL", "onnxruntime"} & set(run.stdout.split())


def test_errors_from_python_are_those_of_the_command_line(tmp_path):
    with pytest.raises(samexport.ConfigError, match="format is one of onnx, tflite, coreml"):
        samexport.export("test.tinyvit64", "ncnn", weights="random", out=tmp_path / "x")
    with pytest.raises(samexport.ConfigError, match="onnx has no option opsets"):
        samexport.export("test.tinyvit64", weights="random", out=tmp_path / "x", opsets=3)
    with pytest.raises(samexport.BundleError, match="is not a bundle"):
        samexport.open(str(tmp_path))


@pytest.mark.usefixtures("converted")
def test_export_open_verify_from_python(tmp_path):
    result = samexport.export("test.tinyvit64", weights="random", seed=7, out=str(tmp_path / "bundle"))
    assert result.report.proves
    assert result.bundle.manifest.weights.seed == 7
    assert samexport.verify(str(tmp_path / "bundle"), result.bundle).proves


def test_a_tracker_is_opened_saved_and_resumed_from_python(sam2_bundle, tmp_path):
    pictures = np.random.default_rng(3).integers(0, 255, (3, 96, 128, 3), np.uint8)
    with samexport.open_tracker(str(sam2_bundle.folder), threads=1) as tracker:
        tracker.add(0, 1, samexport.Prompt.make([60, 40]))
        whole = [tracker.step(picture).logits() for picture in pictures]
    with samexport.open_tracker(sam2_bundle, threads=1) as tracker:
        tracker.add(0, 1, samexport.Prompt.make([60, 40]))
        parts = [tracker.step(picture).logits() for picture in pictures[:2]]
        tracker.save(str(tmp_path / "state.npz"))
    with samexport.open_tracker(sam2_bundle, resume=str(tmp_path / "state.npz"), threads=1) as tracker:
        parts.append(tracker.step(pictures[2]).logits())
    np.testing.assert_array_equal(whole, parts)


def test_a_tracker_is_refused_where_there_is_none(tiny_bundle, sam2_bundle, tmp_path):
    for bundle, options, reason in (
        (tiny_bundle, {}, "follows nothing"),
        (sam2_bundle, {"resume": tmp_path / "a.npz", "frames": 3}, "resume alone"),
    ):
        with pytest.raises(samexport.ConfigError, match=reason), samexport.open_tracker(bundle, **options):
            pass


def test_models_are_data():
    names = [model.name for model in samexport.list_models()]
    assert "mobilesam.tinyvit" in names
    assert not any(name.startswith("test.") for name in names)


@pytest.mark.usefixtures("converted", "no_probe")
def test_bench_from_python_takes_a_bundle_or_its_folder(tiny_bundle, tmp_path):
    measured = []
    given = {"runtimes": ("onnxruntime",), "graphs": ("encoder",), "repeat": 2, "seconds": 0.1}
    results = samexport.bench(tiny_bundle, str(tmp_path / "one"), show=measured.append, **given)
    assert [row.job.graph for row in results.rows] == ["encoder"]
    assert measured
    assert (tmp_path / "one" / "results.json").is_file()
    with pytest.raises(samexport.ConfigError, match="bench has no option runtime"):
        samexport.bench(str(tiny_bundle.folder), tmp_path / "two", runtime="onnxruntime")
