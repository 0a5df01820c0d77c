import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from samexport.errors import CheckpointError, ConfigError, ParityFailed
from samexport.exporter import pipeline
from samexport.exporter.deliver.card import write_card
from samexport.exporter.pipeline import ExportOptions, export_bundle, verify_against_pytorch
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.verdicts import ParityReport, Verdict
from tests.conftest import copying


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("fixture", ["tiny_bundle", "half_bundle"])
def test_the_example_of_the_card_runs_as_printed(fixture, request):
    bundle = request.getfixturevalue(fixture)
    code = code_of((bundle.folder / "README.md").read_text())
    assert len(code.strip().splitlines()) <= 17
    run = subprocess.run([sys.executable, "-c", code], cwd=bundle.folder, capture_output=True, text=True)
    assert run.stdout.startswith("score "), run.stderr


def test_the_card_describes_every_tensor_and_says_random(tiny_bundle):
    card = (tiny_bundle.folder / "README.md").read_text()
    assert card == write_card(tiny_bundle.manifest)
    for graph in tiny_bundle.manifest.graphs:
        for tensor in (*graph.inputs, *graph.outputs):
            assert f"`{tensor.name}`" in card
            assert tensor.meaning in card
    assert "RANDOM weights, seed 7" in card


def test_the_manifest_tells_weights_tools_parity_and_every_file(tiny_bundle):
    manifest = tiny_bundle.manifest
    assert (manifest.weights.kind, manifest.weights.seed) == ("random", 7)
    assert manifest.tools["torch"] == torch.__version__
    assert {row.verdict for row in manifest.parity} == {"PASS"}
    on_disk = {p.relative_to(tiny_bundle.folder).as_posix() for p in tiny_bundle.folder.rglob("*") if p.is_file()}
    assert set(manifest.files) == on_disk - {"bundle.json"}


def test_default_folder_names_tell_precision_and_random_weights():
    spec = find_model("tinyvit")
    assert str(ExportOptions("tinyvit").folder(spec)) == "mobilesam-tinyvit-onnx-fp32"
    options = ExportOptions("tinyvit", random_seed=1, target=OnnxOptions("fp16"))
    assert str(options.folder(spec)) == "mobilesam-tinyvit-onnx-fp16-random"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "tinyvt"}, "did you mean tinyvit"),
        ({"encoder": "tinyvit", "random_seed": 1, "checkpoints": ("x.pt",)}, "exclude each other"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export_bundle(ExportOptions(out=tmp_path / "out", **options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "message"), [(("int8",), "fp32 or fp16"), (("fp32", 12), "use 18 to 23")])
def test_onnx_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        OnnxOptions(*options)


def test_a_failed_check_leaves_no_bundle(tmp_path, monkeypatch, converted):
    reference = pipeline.reference_golden

    def wrong(*args):
        golden = reference(*args)
        case = golden.cases[0]
        shifted = {name: np.roll(value, 1, -1) for name, value in case.expected.items()}
        return replace(golden, cases=(replace(case, expected=shifted), *golden.cases[1:]))

    monkeypatch.setattr(pipeline, "reference_golden", wrong)
    with pytest.raises(ParityFailed) as caught:
        export_bundle(ExportOptions("test.tinyvit64", tmp_path / "out", random_seed=7))
    assert caught.value.details[0].startswith("encoder picture, image_embeddings: differs by")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    sam, _ = load_model(find_model("test.tinyvit64"), random_seed=7)
    torch.save(sam.state_dict(), path)
    return path


def test_verify_compares_with_pytorch_on_a_checkpoint(tiny_bundle, checkpoint):
    report = verify_against_pytorch(tiny_bundle, ParityReport(()), [checkpoint])
    assert report.verdict is Verdict.PASS
    assert all(row.check.against == "PyTorch" for row in report.rows)


def test_verify_names_the_cause_when_the_weights_are_others(tiny_bundle, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["image_encoder.neck.0.weight"][3] *= 1.1
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"made from seed 7, not other\.pt"):
        verify_against_pytorch(tiny_bundle, ParityReport(()), [tmp_path / "other.pt"])
    trained = replace(tiny_bundle.manifest.weights, kind="checkpoint", source="mine.pt", sha256="0" * 64, seed=None)
    bundle = replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, weights=trained))
    with pytest.raises(ConfigError, match=r"made from mine.pt, not tiny.pt \(sha256 00000000, not [0-9a-f]{8}\)"):
        verify_against_pytorch(bundle, ParityReport(()), [checkpoint])


def test_verify_fails_where_the_files_compute_something_else(own_bundle, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["image_encoder.neck.0.weight"][3] *= 1.1
    torch.save(state, tmp_path / "other.pt")
    digest = hashlib.sha256((tmp_path / "other.pt").read_bytes()).hexdigest()
    # a manifest that lies about the weights of its files
    claimed = replace(own_bundle.manifest.weights, kind="checkpoint", source="other.pt", sha256=digest, seed=None)
    bundle = replace(own_bundle, manifest=replace(own_bundle.manifest, weights=claimed))
    report = verify_against_pytorch(bundle, verify_bundle(own_bundle), [tmp_path / "other.pt"])
    assert {str(row.check).split(" ")[0] for row in report.failures} == {"encoder", "end"}


def test_a_checkpoint_is_recorded_by_name_and_hash(checkpoint, tiny_bundle):
    _, weights = load_model(find_model("test.tinyvit64"), [checkpoint])
    assert (weights.kind, weights.source) == ("checkpoint", "tiny.pt")
    assert weights.sha256 is not None
    assert len(weights.sha256) == 64


def test_a_model_without_official_weights_says_what_to_do():
    with pytest.raises(CheckpointError, match="--checkpoint FILE, or use --weights random"):
        load_model(find_model("test.tinyvit64"))


def test_small_decoders_hold_fewer_numbers_and_compute_the_same(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "convert", copying(tiny_bundle, "encoder"))
    bundle, report = export_bundle(ExportOptions("test.tinyvit64", tmp_path / "small", random_seed=7, small=True))
    assert report.proves
    for name in ("decoder", "decoder_with_mask"):
        assert bundle.artifact(name).size < tiny_bundle.artifact(name).size
        assert bundle.artifact(name).options["form"] == "small"
    assert bundle.artifact("encoder").sha256 == tiny_bundle.artifact("encoder").sha256
    with pytest.raises(ConfigError, match="--small is of ONNX files"):
        ExportOptions("test.tinyvit64", small=True, target=TfliteOptions())
