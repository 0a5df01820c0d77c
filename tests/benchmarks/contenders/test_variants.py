from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from samexport.benchmarks.contenders.baselines import detector_graph, rebuild, torch_bundle
from samexport.benchmarks.contenders.known import find, why_not
from samexport.benchmarks.contenders.ort_variants import profile, save_optimised
from samexport.benchmarks.measuring import roofline
from samexport.benchmarks.measuring.roofline import probe
from samexport.errors import BundleError, ConfigError
from samexport.files import sha256
from samexport.models.build import build_graph
from samexport.models.families.detector import SAMPLER, find_sampler
from samexport.models.weights import detector_checkpoint
from samexport.models.weights.detector_checkpoint import random_detector
from samexport.runtimes.verdicts import Verdict
from tests.benchmarks.measuring.test_subject import job_of, opened


@pytest.mark.parametrize("runtime", ["onnxruntime-basic", "onnxruntime-extended", "onnxruntime-saved"])
def test_every_level_of_optimisation_computes_the_same(tiny_bundle, runtime):
    subject = opened(job_of(tiny_bundle, "decoder", runtime=runtime, prompts=2))
    assert subject.check().verdict is Verdict.PASS
    assert subject.placement().startswith("CPUExecutionProvider ")


def test_what_computes_in_float32_is_told_whatever_the_file_holds():
    computes = {name: find(name).computes("fp16") for name in ("onnxruntime", "openvino", "openvino-bf16", "pytorch")}
    assert computes == {"onnxruntime": "fp16", "openvino": "fp32", "openvino-bf16": "bf16", "pytorch": "fp32"}


def test_the_levels_are_those_of_their_names(tiny_bundle):
    for name, level in (("basic", "ORT_ENABLE_BASIC"), ("extended", "ORT_ENABLE_EXTENDED")):
        runtime = opened(job_of(tiny_bundle, "encoder", runtime=f"onnxruntime-{name}")).runtime
        assert runtime._session.get_session_options().graph_optimization_level.name == level


def test_the_saved_graph_is_another_file(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job = job_of(tiny_bundle, "encoder", runtime="onnxruntime-saved")
    saved = Path(save_optimised(job, tiny_bundle).file)
    assert saved.is_file()
    assert saved.parent != tiny_bundle.folder
    assert saved.read_bytes() != (tiny_bundle.folder / job.file).read_bytes()


def test_a_damaged_file_is_refused_in_one_line(own_bundle):
    (own_bundle.folder / "encoder.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be opened"):
        opened(job_of(own_bundle, "encoder", runtime="onnxruntime-basic"))


def test_the_profile_says_where_the_time_goes(tiny_bundle):
    subject = opened(job_of(tiny_bundle, "encoder"))
    found = profile(tiny_bundle.folder / "encoder.onnx", subject.inputs, 1, runs=2)
    assert sum(f.share for f in found) == pytest.approx(1)
    assert [f.ms for f in found] == sorted((f.ms for f in found), reverse=True)
    names = {f.operator for f in found}
    assert names & {"Gemm", "MatMul", "FusedMatMul"}
    assert any("Conv" in name for name in names)
    # the calls that warm up are left out: a convolution runs once a call
    convolutions = [n for n in onnx.load(tiny_bundle.folder / "encoder.onnx").graph.node if n.op_type == "Conv"]
    assert sum(f.nodes for f in found if "Conv" in f.operator) == len(convolutions) > 10


@pytest.mark.parametrize("runtime", ["pytorch", "pytorch-bf16"])
@pytest.mark.parametrize("graph", ["encoder", "decoder_step"])
def test_pytorch_runs_the_graph_with_the_bundles_weights(split_bundle, runtime, graph):
    prompts = 3 if graph == "decoder_step" else 0
    subject = opened(job_of(split_bundle, graph, runtime=runtime, file="", prompts=prompts))
    subject.call()
    found = subject.check()
    assert found.verdict is Verdict.PASS, found
    assert (found.max_error > 1e-4) == (runtime == "pytorch-bf16")


@pytest.mark.parametrize("form", ["export", "plain"])
def test_pytorch_runs_the_detector_with_the_bundles_weights(sampler_bundle, form):
    found = opened(job_of(sampler_bundle, SAMPLER, runtime="pytorch", file="", form=form)).check()
    assert found.verdict is Verdict.PASS, found


def test_a_detectors_weights_come_from_the_file_that_it_was_made_from(sampler_bundle, tmp_path, monkeypatch):
    info = sampler_bundle.manifest.sampler
    (tmp_path / "mine.pt").write_bytes(b"the detector")
    (tmp_path / "other.pt").write_bytes(b"something else")
    weights = replace(info.weights, kind="checkpoint", seed=None, sha256=sha256(tmp_path / "mine.pt"), source="mine.pt")
    manifest = replace(sampler_bundle.manifest, sampler=replace(info, weights=weights))
    bundle = replace(sampler_bundle, manifest=manifest)
    with pytest.raises(ConfigError, match=r"made from: mine\.pt; give --checkpoint"):
        torch_bundle(bundle, [], detector=True)
    with pytest.raises(ConfigError, match=r"made from: mine\.pt; give --checkpoint"):
        detector_graph(bundle, [tmp_path / "other.pt"], plain=True)
    read = []

    def load(path):
        read.append(path.name)
        return random_detector(find_sampler(info.name), 7), weights.sha256

    monkeypatch.setattr(detector_checkpoint, "load_detector", load)
    made = torch_bundle(bundle, [tmp_path / "mine.pt"], detector=True)
    assert (read, SAMPLER in made.graph_names) == (["mine.pt"], True)


def test_pytorch_with_other_weights_fails_the_check(tiny_bundle):
    other = replace(tiny_bundle.manifest, weights=replace(tiny_bundle.manifest.weights, seed=8))
    spec, sam = rebuild(other)
    _, module = build_graph(sam, spec, "encoder")
    subject = opened(job_of(tiny_bundle, "encoder", runtime="pytorch", file=""))
    subject.runtime._module.load_state_dict(module.state_dict(), strict=True)
    assert subject.check().verdict is Verdict.FAIL


def test_cuda_without_a_gpu_is_refused(tiny_bundle):
    if not why_not(find("pytorch-cuda")):
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="needs a GPU"):
        opened(job_of(tiny_bundle, "encoder", runtime="pytorch-cuda", file=""))
    assert why_not(find("onnxruntime-cuda"))


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="known: onnxruntime"):
        find("caffe")


@pytest.mark.parametrize(("seconds", "measured"), [(0.2, [256]), (1e-4, [256, 1536])])
def test_large_matrices_are_left_out_where_they_would_take_minutes(monkeypatch, seconds, measured):
    sizes = []
    monkeypatch.setattr(roofline, "_best", lambda size: sizes.append(size) or seconds)
    assert roofline._rate(lambda size: size) == pytest.approx(measured[-1] ** 3 / 1e9 / seconds)
    assert sizes == measured


def test_the_probe_finds_rates_that_a_processor_can_have(monkeypatch):
    monkeypatch.setattr("samexport.benchmarks.measuring.roofline._SIZES", (64, 256))
    monkeypatch.setattr("samexport.benchmarks.measuring.roofline._COPY_BYTES", 1 << 22)
    monkeypatch.setattr("samexport.benchmarks.measuring.roofline._SECONDS", 0.05)
    found = probe(1)
    assert {"fp32", "bf16", "int8", "copy_gb_per_s"} <= set(found)
    assert all(0 < rate < 1e5 for rate in found.values())
    assert np.isfinite(list(found.values())).all()
