from dataclasses import replace

import onnx
import pytest
import torch

from samexport.benchmarks.contenders.baselines import gmac, rebuild, write_baselines
from samexport.errors import ConfigError
from samexport.exporter.to_onnx import torchscript
from samexport.exporter.to_onnx.convert import OnnxOptions
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.runtimes.parity.verify import verify_bundle
from tests.conftest import copying

MOBILE = "mobilesam.tinyvit"


@pytest.mark.parametrize(
    ("graph", "form", "prompts", "expected"),
    [
        # counted with FlopCounterMode on the official code
        ("encoder", "plain", 0, 38.77),
        # windows of the third stage without the padding: 1.32 fewer
        ("encoder", "export", 0, 38.77 - 1.32),
        # by hand from the shapes: 4096 cells, 256 channels, 7 tokens
        ("decoder", "plain", 1, 1.811),
        ("decoder", "plain", 16, 16 * 1.811),
        # keys, values and queries of the first layer, 4096 * 256 * 128 each
        ("decoder_prologue", "export", 0, 3 * 0.1342177),
    ],
)
def test_multiply_accumulates_are_those_of_the_literature(graph, form, prompts, expected):
    assert gmac(MOBILE, graph, form, prompts, 2) == pytest.approx(expected, rel=2e-3)


def test_the_decoder_is_the_sum_of_its_halves():
    whole, step = (gmac(MOBILE, g, "export", 5, 2) for g in ("decoder", "decoder_step"))
    assert whole - step == pytest.approx(gmac(MOBILE, "decoder_prologue", "export", 0, 2))


def test_a_graph_without_a_plain_form_has_no_count():
    assert gmac(MOBILE, "decoder_step", "plain", 1, 2) is None


def test_the_model_of_a_bundle_is_made_again_from_its_seed(tiny_bundle):
    spec, sam = rebuild(tiny_bundle.manifest)
    expected, _ = load_model(find_model("test.tinyvit64"), random_seed=7)
    assert spec.name == "test.tinyvit64"
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in sam.state_dict().items())


def test_other_weights_than_the_bundles_are_refused(tiny_bundle, tmp_path):
    weights = replace(tiny_bundle.manifest.weights, kind="checkpoint", source="mine.pt", sha256="0" * 64, seed=None)
    other, _ = load_model(find_model("test.tinyvit64"), random_seed=8)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"made from mine\.pt, not other\.pt"):
        rebuild(replace(tiny_bundle.manifest, weights=weights), [tmp_path / "other.pt"])


def test_the_baseline_is_a_bundle_whose_files_compute_the_same(plain_bundle):
    assert plain_bundle.graph_names == ("encoder", "decoder", "decoder_with_mask")
    rows = [r for r in verify_bundle(plain_bundle).rows if r.check.kind not in ("files", "resize")]
    assert {r.verdict.value for r in rows} == {"PASS"}
    assert len(rows) > 10


def test_the_older_exporter_stands_beside_where_sizes_are_fixed(tiny_bundle, plain_bundle, tmp_path):
    copy = copying(plain_bundle)
    made = write_baselines(
        tiny_bundle, tmp_path, lambda graph, module, path: copy(graph, module, path, OnnxOptions()).nodes,
        trace=torchscript.convert,
    )  # fmt: skip
    found = {a.path: a for a in made.manifest.artifacts}
    traced = found.pop("encoder.torchscript.onnx")
    assert set(found) == {f"{name}.plain.onnx" for name in made.graph_names}
    assert traced.options == {"converter": "torchscript"}
    model = onnx.load(tmp_path / traced.path)
    assert (model.producer_name, [o.version for o in model.opset_import]) == ("pytorch", [17])
    alone = replace(made, manifest=replace(made.manifest, artifacts=(traced,), graphs=made.manifest.graphs[:1]))
    checked = [r for r in verify_bundle(alone, threads=1).rows if r.check.kind == "case"]
    assert {r.verdict.value for r in checked} == {"PASS"}
