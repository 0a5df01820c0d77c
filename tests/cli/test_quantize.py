"""The commands of quantizing: what they print, write and refuse, and with which exit code."""

import json
import shutil
import sys
from typing import NamedTuple

import onnx
import pytest

from samexport.exporter.quantize import table
from samexport.exporter.recipes import RECIPES
from samexport.installation import install_hint
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.parity.golden_files import FOLDER, PICTURE


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(run):
    return lambda *arguments: Result(*run(*arguments))


@pytest.fixture
def pictures(tiny_bundle, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(tiny_bundle.folder / FOLDER / PICTURE, folder / "a.png")
    return folder


def test_a_bundle_is_quantized_and_tells_how_near_its_masks_are(cli, tiny_bundle, pictures, tmp_path):
    out = tmp_path / "made"
    # random weights: a fifth lower is as near as their masks come
    arguments = ("--recipe", "weight_only_wi8_afp32", "--calibration", pictures, "--max-drop", 0.2)
    result = cli("quantize", tiny_bundle.folder, *arguments, "--out", out, "--threads", 1)
    assert result.code == 0
    for text in ("mean IoU", "box+click", "encoder.weight_only_wi8_afp32.onnx", "RANDOM weights", "wrote"):
        assert text in result.out
    assert "1 pictures are few" in result.err
    assert open_bundle(out).artifact("encoder").recipe == "weight_only_wi8_afp32"
    assert cli("verify", out, "--threads", 1, "--runtime", "onnxruntime").code == 0
    again = cli("quantize", tiny_bundle.folder, *arguments, "--out", out, "--threads", 1)
    assert (again.code, "exists" in again.err) == (2, True)


def test_a_gate_that_is_not_met_ends_with_1_the_table_and_no_bundle(cli, tiny_bundle, pictures, tmp_path):
    arguments = ("--recipe", "static_wi8_ai8", "--calibration", pictures, "--out", tmp_path / "made", "--threads", 1)
    result = cli("quantize", tiny_bundle.folder, *arguments)
    assert result.code == 1
    assert "FAIL" in result.out
    assert "click: mean mask IoU" in result.err
    assert "the recipe mixed" in result.err
    assert not (tmp_path / "made").exists()
    told = json.loads(cli("quantize", tiny_bundle.folder, *arguments, "--json").out)
    assert told["verdict"] == "FAIL"
    assert {mode["mode"] for mode in told["gate"]["modes"]} >= {"click", "box"}


def test_an_export_quantizes_as_the_command_does(cli, tiny_bundle, converted, pictures, tmp_path):
    options = ("--calibration", pictures, "--max-drop", 0.2, "--threads", 1)
    recipe = ("--recipe", "weight_only_wi8_afp32")
    made = cli("onnx", "--encoder", "test.tinyvit64", "--weights", "random", *recipe, *options, "--out", tmp_path / "a")
    assert made.code == 0
    assert "box+click" in made.out
    assert cli("quantize", tiny_bundle.folder, *recipe, *options, "--out", tmp_path / "b").code == 0
    first, second = (open_bundle(tmp_path / name).manifest for name in "ab")
    assert first.artifacts == second.artifacts
    assert first.gate == second.gate


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--recipe", "fp16", "--precision", "fp16"), "two recipes"),
        (("--recipe", "palettized_w6"), "onnx is written as fp32"),
        (("--max-drop", "0.1"), "are for recipes that quantize"),
    ],
)
def test_options_that_do_not_go_together_are_refused(cli, arguments, reason):
    result = cli("onnx", "--encoder", "test.tinyvit64", "--weights", "random", *arguments)
    assert result.code == 2
    assert reason in result.err


def test_recipes_are_listed(cli):
    out = cli("list", "--recipes").out
    assert "int8 is mixed of onnx, mixed_dynamic of tflite" in out
    assert all(name in out for name in RECIPES)
    assert [recipe["name"] for recipe in json.loads(cli("list", "--recipes", "--json").out)] == list(RECIPES)


def test_sensitivity_orders_layers_by_what_they_cost(cli, tiny_bundle, pictures, tmp_path):
    recipe = tmp_path / "convolutions.json"
    content = {"name": "convolutions", "weights": "int8", "compute": "float32", "formats": ["onnx"], "parent": "fp32"}
    recipe.write_text(json.dumps(content | {"operations": {"onnx": ["Conv"]}}))
    plot = tmp_path / "layers.png"
    # it has two convolutions, of earlier masks
    arguments = ("sensitivity", tiny_bundle.folder, "--graph", "decoder_with_mask", "--recipe", recipe)
    result = cli(*arguments, "--calibration", pictures, "--threads", 1, "--json", "--out", plot)
    assert result.code == 0
    layers = json.loads(result.out)["decoder_with_mask"]
    snr = [layer["snr_db"] for layer in layers]
    assert snr == sorted(snr)
    assert len(layers) == 2
    assert all(0 < layer["mask_iou"] <= 1 for layer in layers)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_sensitivity_of_half_precision_is_how_far_its_end_is(cli, tiny_bundle, half_bundle, pictures, tmp_path):
    arguments = ("--recipe", "fp16", "--calibration", pictures, "--threads", 1)
    result = cli("sensitivity", tiny_bundle.folder, *arguments, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert set(found) == set(tiny_bundle.graph_names)
    largest = [peak["largest"] for peak in found["encoder"]]
    assert largest == sorted(largest, reverse=True)
    sums = [peak for peak in found["encoder"] if peak["source"].startswith("squares in LayerNormalization")]
    norms = [n for n in onnx.load(tiny_bundle.folder / "encoder.onnx").graph.node if n.op_type == "LayerNormalization"]
    assert len(sums) == len(norms) > 5
    shown = cli("sensitivity", half_bundle.folder, *arguments, "--graph", "encoder").out
    assert "may grow" in shown
    assert "squares in LayerNormalization" in shown
    refused = cli("sensitivity", tiny_bundle.folder, *arguments, "--out", tmp_path / "plot.png")
    assert (refused.code, "draws no plot" in refused.err) == (2, True)


def test_a_plot_that_cannot_be_drawn_is_told_before_the_layers_are_measured(cli, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = cli("sensitivity", tiny_bundle.folder, "--out", tmp_path / "layers.png")
    assert (result.code, result.out) == (2, "")
    assert install_hint("bench") in result.err


def test_recipes_are_compared_on_one_page(cli, tiny_bundle, pictures, tmp_path):
    page = tmp_path / "page.md"
    names = "dynamic_wi8_afp32,static_wi8_ai8"
    arguments = ("--recipes", names, "--calibration", pictures, "--rounds", 1, "--threads", 1, "--out", page)
    result = cli("compare-recipes", tiny_bundle.folder, *arguments)
    assert result.code == 0
    text = page.read_text()
    for part in ("| fp32 |", "| static_wi8_ai8 | FAIL |", "time on onnxruntime", "RANDOM weights", "| box+click |"):
        assert part in text
    lost = cli("compare-recipes", tiny_bundle.folder, "--annotations", page)
    assert (lost.code, "go together" in lost.err) == (2, True)


def test_what_is_known_of_recipes_outlives_an_interruption(cli, tiny_bundle, pictures, tmp_path, monkeypatch):
    page, done = tmp_path / "page.md", []
    quantize_files = table.quantize_files

    def once(job):
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return quantize_files(job)

    monkeypatch.setattr(table, "quantize_files", once)
    names = "dynamic_wi8_afp32,static_wi8_ai8"
    arguments = ("--recipes", names, "--calibration", pictures, "--rounds", 1, "--threads", 1, "--out", page)
    assert cli("compare-recipes", tiny_bundle.folder, *arguments).code == 130
    text = page.read_text()
    assert "| dynamic_wi8_afp32 |" in text
    assert "Not finished" in text
    assert "| static_wi8_ai8 |" not in text
