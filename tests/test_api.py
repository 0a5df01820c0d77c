"""What ``import samexport`` promises: these names, at no cost."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import samexport
from samexport.exporter.to_onnx import convert as to_onnx
from tests.conftest import copying

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


TAKING_A_BUNDLE = {
    "open": samexport.open,
    "verify": samexport.verify,
    "bench": lambda given, **options: samexport.bench(given, "never", **options),
    "open_tracker": lambda given, **options: ExitStack().enter_context(samexport.open_tracker(given, **options)),
    "Segmenter": samexport.Segmenter,
    "SegmentEverything": samexport.SegmentEverything,
}


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("given", [None, 3, b"x", {}, []], ids=repr)
@pytest.mark.parametrize("name", TAKING_A_BUNDLE)
def test_what_is_neither_a_bundle_nor_its_folder_is_refused(name, given):
    with pytest.raises(samexport.ConfigError) as caught:
        TAKING_A_BUNDLE[name](given)
    assert "give a bundle or the path of its folder" in one_line(caught) or (name == "bench" and not given)


def test_a_bundle_that_is_open_stays_open_and_a_reference_is_checked_too(tiny_bundle):
    assert samexport.open(tiny_bundle) is tiny_bundle
    with pytest.raises(samexport.ConfigError, match="give a bundle or the path of its folder, not 3"):
        samexport.verify(tiny_bundle, 3)


@pytest.mark.parametrize("kind", [str, Path])
def test_tasks_take_the_folder_of_a_bundle(tiny_bundle, kind):
    picture = np.zeros((40, 50, 3), np.uint8)
    with samexport.Segmenter(kind(tiny_bundle.folder), threads=1) as segmenter:
        segmenter.set_image(picture)
        assert segmenter.predict(samexport.Prompt.make([3, 4])).masks.shape == (1, 40, 50)
    with samexport.SegmentEverything(kind(tiny_bundle.folder), threads=1) as everything:
        assert everything.bundle == tiny_bundle


@pytest.mark.parametrize("count", [0, -1, "2", 2.0, True], ids=repr)
@pytest.mark.parametrize("name", [name for name in TAKING_A_BUNDLE if name != "open"])
def test_a_number_of_threads_that_cannot_be_is_refused_before_any_work(name, count, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(samexport.ConfigError, match="threads"):
        TAKING_A_BUNDLE[name](tiny_bundle, threads=count)
    with pytest.raises(samexport.ConfigError, match=f"--threads takes 1 to .*, not {count!r}"):
        samexport.export("test.tinyvit64", weights="random", threads=count)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [2, ("2",), (2.0,)], ids=repr)
def test_bench_takes_several_numbers_of_threads(count, tiny_bundle):
    with pytest.raises(samexport.ConfigError, match=r"threads are numbers such as \(1, 2\)"):
        samexport.bench(tiny_bundle, "never", threads=count)


@pytest.mark.parametrize("weights", [None, 3, b"x", [], [3], {}], ids=repr)
def test_weights_are_named_or_files(weights):
    for use in (samexport.load_model, samexport.export):
        with pytest.raises(
            samexport.ConfigError, match="weights are 'official', 'demo', 'random' or the path of a file"
        ):
            use("test.tinyvit64", weights=weights)


@pytest.mark.parametrize("model", [None, 3, b"tinyvit"], ids=repr)
def test_a_model_is_named_by_a_text(model):
    for use in (samexport.load_model, samexport.export):
        with pytest.raises(samexport.ConfigError, match="a model is named by a text such as 'mobilesam', not"):
            use(model)


def test_what_is_written_or_read_goes_by_its_path(tiny_bundle):
    for use, reason in (
        (lambda: samexport.export("test.tinyvit64", weights="random", out=3), "out is the path of the bundle's folder"),
        (lambda: samexport.bench(tiny_bundle, 3), "out is the path of a folder for the results, not 3"),
        (lambda: samexport.open_tracker(tiny_bundle, resume=3).__enter__(), "resume is the path of a saved tracker"),
        (lambda: samexport.export("test.tinyvit64", [], weights="random"), "format is one of onnx"),
    ):
        with pytest.raises(samexport.ConfigError, match=reason):
            use()


@pytest.mark.parametrize("weights", ["official", "demo", "random", "absent.pt"])
def test_without_torch_the_extra_is_named_before_anything_is_downloaded(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "requests", None)
    monkeypatch.chdir(tmp_path)
    for use in (samexport.load_model, samexport.export):
        with pytest.raises(samexport.MissingDependency) as caught:
            use("tinyvit", weights=weights)
        assert " needs torch: pip install" in one_line(caught)
    assert not list(tmp_path.iterdir())


def test_models_are_data():
    names = [model.name for model in samexport.list_models()]
    assert "mobilesam.tinyvit" in names
    assert not any(name.startswith("test.") for name in names)


@pytest.mark.usefixtures("no_probe")
def test_bench_from_python_has_the_rivals_of_the_command(tiny_bundle, plain_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "convert", copying(plain_bundle))
    given = {"runtimes": ("onnxruntime",), "graphs": ("encoder",), "repeat": 2, "seconds": 0.1}
    results = samexport.bench(tiny_bundle, tmp_path / "out", rivals=("plain", "torchscript"), **given)
    assert [pair.second.options for pair in results.pairs] == ["", "converter=torchscript"]


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


@pytest.mark.parametrize("folder", ["nofolder", 3])
def test_a_calibration_folder_is_looked_at_before_anything_is_made(folder, tmp_path):
    options = {"weights": "random", "out": tmp_path / "x", "recipe": "int8", "calibration": folder}
    with pytest.raises(samexport.errors.ConfigError, match=r"(is no|path of a) folder"):
        samexport.export("test.tinyvit64", **options, progress=pytest.fail)
