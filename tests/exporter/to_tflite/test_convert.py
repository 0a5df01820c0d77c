import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from samexport.errors import ConfigError, ExportFailed
from samexport.exporter.to_tflite.convert import TfliteOptions, convert, signatures
from samexport.models.catalog import find_model
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.formats.tflite import read_model
from samexport.runtimes.parity.compare import compare_output, tier
from samexport.runtimes.verdicts import Check, Verdict
from tests.tflite_models import METADATA, built, prompts, read_metadata

TINY = "test.tinyvit64"


def plain_outputs(graph, module, inputs):
    values = module(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
    values = values if isinstance(values, tuple) else (values,)
    return {name: value.numpy() for name, value in zip(graph.output_names, values, strict=True)}


def assert_parity(model, entry, inputs):
    actual = Interpreter(str(model.path)).get_signature_runner(entry)(**inputs)
    expected = plain_outputs(model.graph, model.plain, inputs)
    assert list(expected) == list(model.graph.output_names)
    for spec in model.graph.outputs:
        row = compare_output(Check("case", case=entry), spec, expected[spec.name], actual[spec.name], tier("fp32"))
        assert row.verdict is Verdict.PASS, row
        assert row.snr_db > 100


def picture():
    image = np.random.default_rng(1).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)
    image[:, :, :, 48:] = np.reshape(find_model(TINY).frame.mean, (1, 3, 1, 1))
    return {"image": image}


# conversions take seconds each: both encoders and both targets, not all four
ENCODERS = [(TINY, "cpu"), ("test.vit64", "gpu")]


@pytest.mark.parametrize(("encoder", "target"), ENCODERS)
def test_the_encoder_is_the_published_one(encoder, target):
    assert_parity(built(encoder, "encoder", target), "encoder", picture())


@pytest.mark.parametrize("name", ["decoder", "decoder_with_mask"])
def test_each_entry_point_is_the_published_decoder(name):
    model = built(TINY, name)
    for entry in signatures(model.graph, model.options):
        assert_parity(model, entry.name, prompts(model.graph, entry.prompts, entry.points))


def test_names_shapes_and_types_are_those_of_the_spec():
    model = built(TINY, "decoder")
    listed = Interpreter(str(model.path)).get_signature_list()
    assert list(listed) == ["decode_1", "decode_4"]
    for names in listed.values():
        assert set(names["inputs"]) == set(model.graph.input_names)
        assert set(names["outputs"]) == set(model.graph.output_names)
    runner = Interpreter(str(model.path)).get_signature_runner("decode_4")
    details = {**runner.get_input_details(), **runner.get_output_details()}
    assert {name: tuple(d["shape"]) for name, d in details.items()} == {
        "image_embeddings": (1, 64, 4, 4), "point_coords": (4, 2, 2), "point_labels": (4, 2),
        "low_res_masks": (4, 4, 16, 16), "iou_predictions": (4, 4),
    }  # fmt: skip
    assert {d["dtype"] for d in details.values()} == {np.float32}


def test_entry_points_share_the_weights():
    model = read_model(built(TINY, "decoder").path)
    sizes = [0 if b.data is None else len(b.data) for b in model.buffers]
    per_entry = [sum(sizes[i] for i in {t.buffer for t in g.tensors}) for g in model.subgraphs]
    assert len(per_entry) == 2
    assert sum(sizes) <= 1.05 * max(per_entry)


@pytest.mark.parametrize(
    ("model", "name", "target"),
    [(TINY, "encoder", "cpu"), ("test.vit64", "encoder", "gpu"), (TINY, "decoder", "cpu"),
     (TINY, "decoder_with_mask", "cpu"), (TINY, "decoder_prologue", "cpu")],
)  # fmt: skip
def test_no_operation_leaves_a_delegate(model, name, target):
    found = built(model, name, target).found
    assert found.max_rank <= 4
    assert found.findings == ()


def test_layer_norms_that_cannot_overflow_are_in_files_for_the_gpu_only():
    cpu, gpu = (built(*of).found.operations["encoder"] for of in ((TINY, "encoder"), ("test.vit64", "encoder", "gpu")))
    assert "REDUCE_MAX" not in cpu
    assert gpu["REDUCE_MAX"] == gpu["RSQRT"] == 6


def test_metadata_is_in_the_file_and_the_file_still_runs():
    model = built(TINY, "decoder_prologue")
    assert read_metadata(model.path) == METADATA
    Interpreter(str(model.path)).allocate_tensors()
    assert len(read_model(model.path).subgraphs) == 1


def test_another_process_writes_the_same_bytes(tmp_path):
    path = tmp_path / "again.tflite"
    script = f"""
        from pathlib import Path
        from samexport.exporter.to_tflite.convert import TfliteOptions, convert
        from samexport.models.build import build_graph
        from samexport.models.catalog import find_model
        from tests.models.golden import random_sam
        from tests.tflite_models import METADATA, OPTIONS

        graph, module = build_graph(random_sam("test.vit64"), find_model("test.vit64"), "encoder")
        options = TfliteOptions(OPTIONS.prompt_buckets, OPTIONS.points, "gpu")
        convert(graph, module, Path({str(path)!r}), options, METADATA)
    """
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
    assert path.read_bytes() == built("test.vit64", "encoder", "gpu").path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_conversion_is_silent_and_leaves_one_file(tmp_path, capfd):
    model = built(TINY, "decoder_prologue")
    capfd.readouterr()
    convert(model.graph, model.export, tmp_path / "x.tflite")
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in tmp_path.iterdir()] == ["x.tflite"]


def graph_of(shape):
    tensor = TensorSpec("x", shape, "any")
    return GraphSpec("toy", "any", (tensor,), (TensorSpec("y", shape, "any"),))


class Sorts(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


class Refuses(nn.Module):
    def forward(self, x):
        raise RuntimeError("reason\nmore")


def test_a_file_for_the_gpu_with_another_operation_is_refused(tmp_path):
    with pytest.raises(ExportFailed, match=r"toy: \d+ operations would leave the GPU, first toy operator"):
        convert(graph_of((4, 8)), Sorts(), tmp_path / "x.tflite", TfliteOptions(target="gpu"))


def test_a_graph_that_picks_rows_by_whole_numbers_is_refused_for_the_gpu_before_any_work(tmp_path):
    graph = find_model("test.hiera64_sparse").graph("memory_attention_pruned")
    with pytest.raises(ExportFailed, match=r"picks rows by whole numbers \(kept_cell\).*leave out --target gpu$"):
        convert(graph, Refuses(), tmp_path / "x.tflite", TfliteOptions(target="gpu"))


def test_a_converter_that_fails_is_one_line(tmp_path):
    with pytest.raises(ExportFailed, match=r"^toy cannot be converted to TFLite: RuntimeError: reason$"):
        convert(graph_of((4, 8)), Refuses(), tmp_path / "x.tflite")
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_two_gigabytes_are_refused_before_any_work(tmp_path):
    module = nn.Module()
    module.register_buffer("weight", torch.empty(600_000_000, device="meta"))
    with pytest.raises(ConfigError, match=r"2\.4 GB of weights.*ONNX"):
        convert(graph_of((4, 8)), module, tmp_path / "x.tflite")


@pytest.mark.parametrize("wrong", [{"target": "npu"}, {"prompt_buckets": (1, 1)}, {"points": (1, 2)}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        TfliteOptions(**wrong)


def test_a_graph_without_prompts_has_one_entry_point_of_its_name():
    spec = find_model(TINY)
    names = [[b.name for b in signatures(spec.graph(g), TfliteOptions())] for g in ("encoder", "decoder_step")]
    assert names == [["encoder"], ["decode_1", "decode_4", "decode_16"]]
