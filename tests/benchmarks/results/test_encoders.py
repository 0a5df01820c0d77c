"""Encoders side by side: rows of a bundle and its results, what replaces what, the page, the command."""

import json
import shutil
from dataclasses import replace

import pytest

from samexport.benchmarks.contenders import known
from samexport.benchmarks.results import encoders
from samexport.benchmarks.results.encoders import (
    ANSWER,
    JSON,
    PLOT,
    TABLE,
    EncoderRow,
    merged,
    page,
    plot,
    read,
    rows_of,
)
from samexport.cli import encoders as command
from samexport.cli.encoders import _targets
from samexport.errors import ConfigError, MissingDependency
from samexport.exporter.to_onnx import convert as to_onnx
from samexport.exporter.to_onnx import torchscript
from tests.benchmarks.rows_of import job, pair, results, row
from tests.command_line import one_line_error

ROW = EncoderRow(
    "mobilesam.tinyvit", 10_130_092, 1024, 37.45, "onnx", "fp32", "onnxruntime", 2, 27.8, 81.8, 9.7e-07,
    encode_ms=101.4, answer_ms=33.2, of_torchscript=0.914,
)  # fmt: skip


def test_a_row_joins_the_bundle_with_what_was_measured(tiny_bundle):
    encoder = {"graph": "encoder", "prompts": 0}
    measured = results(
        row(12.0, **encoder), row(30.0, **encoder, runtime="pytorch", file=""),
        row(3.0, graph=ANSWER, file="", prompts=1), row(20.0, **encoder, threads=1),
        row(40.0, **encoder, form="plain"),
        pairs=[
            pair(0.8, first=job(**encoder), second=job(form="plain", **encoder)),
            pair(0.9, first=job(**encoder), second=job(form="plain", options="converter=torchscript", **encoder)),
        ],
    )  # fmt: skip
    found = {made.threads: made for made in rows_of(tiny_bundle, measured)}
    assert {threads: (made.encode_ms, made.answer_ms) for threads, made in found.items()} == {
        2: (12.0, 3.0),
        1: (20.0, None),
    }
    assert [(made.of_plain, made.of_torchscript) for made in found.values()] == [(0.8, 0.9), (None, None)]
    artifact = tiny_bundle.artifact("encoder")
    assert (found[2].model, found[2].file_format, found[2].recipe) == ("test.tinyvit64", "onnx", "fp32")
    assert found[2].encoder_mb == artifact.size / 1e6
    assert found[2].files_mb == pytest.approx(sum(a.size for a in tiny_bundle.manifest.artifacts) / 1e6)
    parity = [r for r in tiny_bundle.manifest.parity if r.max_error]
    assert found[2].max_error == max(r.max_error / r.value_range for r in parity) < 1e-5


def test_a_later_row_replaces_the_same_one_alone_and_the_file_is_read_again(tmp_path):
    other, later = replace(ROW, recipe="fp16", gmac=1.0), replace(ROW, encode_ms=99.0)
    rows = merged([ROW, other], [later])
    assert rows == [other, later]
    untimed = replace(ROW, runtime="", threads=0)
    assert merged([ROW], [untimed]) == merged([untimed], [ROW]) == [ROW]
    (tmp_path / JSON).write_text(encoders.text_of(rows))
    assert read(tmp_path / JSON) == rows


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "rows": [1]}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / JSON).write_text(text)
    with pytest.raises(ConfigError, match="is not a file of samexport compare-encoders"):
        read(tmp_path / JSON)


def test_the_page_has_a_line_a_row_with_the_licence_of_the_weights():
    small = replace(ROW, model="test.nano64", parameters=52_345, gmac=0.0123, answer_ms=None)
    half = replace(
        ROW,
        recipe="fp16",
        runtime="",
        encoder_mb=13.9,
        files_mb=41.0,
        encode_ms=None,
        answer_ms=None,
        of_torchscript=None,
    )
    text = page([ROW, half, small, replace(small, model="test.vit64", gmac=None)], "a folder")
    tiny, nano, _, *measured = (line for line in text.splitlines() if line.startswith("| `") and "encoder`" not in line)
    assert tiny.split(" | ")[:6] == ["| `tinyvit`", "10.1 M", "37.5", "1024", "13.9, 41.0", "27.8, 81.8"]
    assert "](https://" in tiny
    assert nano.split(" | ")[1:6] == ["0.052 M", "0.012", "1024", "", "27.8, 81.8"]
    assert "| `vit64` | 0.052 M |  |" in text
    first, second, third, _ = (line.split(" | ") for line in measured)
    assert first[:7] == [
        "| `tinyvit`", "onnx fp32", "onnxruntime, 2 threads", "101", "33", "0.91", "9.7e-07"
    ]  # fmt: skip
    assert (second[1:3], second[3:6], third[4]) == (["onnx fp16", "not timed"], ["", "", ""], "")


def test_the_page_says_how_its_rows_are_made():
    rows = [
        ROW,
        replace(ROW, runtime="openvino"),
        replace(ROW, recipe="fp16", runtime=""),
        replace(ROW, model="test.nano64"),
    ]
    lines = page(rows, "a folder").split("```")[1].strip().splitlines()
    assert lines == [
        "samexport compare-encoders tinyvit --format onnx --recipe fp16 --seconds 0 --out 'a folder'",
        "samexport compare-encoders nano64 --format onnx --recipe fp32 --runtime onnxruntime --out 'a folder'",
        "samexport compare-encoders tinyvit --format onnx --recipe fp32 --runtime onnxruntime --runtime openvino"
        " --out 'a folder'",
    ]


def test_the_plot_is_a_picture_also_of_nothing():
    assert all(plot(rows).startswith(b"\x89PNG") for rows in ([], [ROW, replace(ROW, model="test.nano64")]))


def test_names_stand_once_a_file_and_apart():
    near = replace(ROW, model="hqsam.hq_tinyvit", encoder_mb=28.9, encode_ms=95.0)
    rows = [
        ROW,
        replace(ROW, runtime="openvino", encode_ms=120.0),
        near,
        replace(near, encode_ms=None, encoder_mb=90.0),
    ]
    assert encoders._labels(rows) == [("hq_tinyvit", (28.9, 95.0), False), ("tinyvit", (27.8, 120.0), False)]
    assert ("tinyvit fp16", (13.9, 120.0), False) in encoders._labels(
        [ROW, replace(ROW, recipe="fp16", encoder_mb=13.9, encode_ms=120.0)]
    )
    assert encoders._labels([ROW, near]) == [("hq_tinyvit", (28.9, 95.0), False), ("tinyvit", (27.8, 101.4), True)]


@pytest.mark.usefixtures("converted", "no_probe")
def test_the_command_exports_measures_and_keeps_what_is_there(run, tiny_bundle, tmp_path, monkeypatch):
    def copy(graph, _, path):
        shutil.copy(tiny_bundle.folder / tiny_bundle.artifact(graph.name).path, path)
        return 1

    monkeypatch.setattr(to_onnx, "convert_plainly", copy)
    monkeypatch.setattr(torchscript, "convert", copy)
    earlier = replace(ROW, file_format="tflite")
    (tmp_path / JSON).write_text(encoders.text_of([earlier]))
    arguments = ("test.tinyvit64", "--runtime", "onnxruntime", "--seconds", 0.1, "--out", tmp_path)
    code, out, err = run("compare-encoders", *arguments)
    assert (code, "wrote" in out) == (0, True), err
    made, kept = read(tmp_path / JSON)
    assert kept == earlier
    assert made.encode_ms > 0 < made.answer_ms
    assert made.of_plain > 0 < made.of_torchscript
    assert {file.name for file in tmp_path.iterdir()} == {JSON, TABLE, PLOT}
    # where nothing is timed, sizes and errors are known all the same
    arguments = ("compare-encoders", "test.tinyvit64", "--out", tmp_path, "--recipe")
    code, _, err = run(*arguments, "weight_only_wi8_afp32", "--seconds", 0)
    assert code == 0, err
    monkeypatch.setattr(known, "why_not", lambda _: "not here")
    code, _, err = run(*arguments, "dynamic_wi8_afp32")
    assert code == 0, err
    untimed = [row for row in read(tmp_path / JSON) if not row.runtime]
    assert [row.recipe for row in untimed] == ["dynamic_wi8_afp32", "weight_only_wi8_afp32"]
    for each in untimed:
        assert (each.encode_ms, each.gmac) == (None, made.gmac)
        assert 0.2 * made.encoder_mb < each.encoder_mb < 0.9 * made.encoder_mb
        assert each.max_error > made.max_error
    assert "| not timed |  |  |  |" in (tmp_path / TABLE).read_text()
    for wrong, message in (
        (("tinyvat",), "tinyvit"),
        (("tinyvit", "--recipe", "lut6"), "onnx have no recipe 'lut6'"),
        (("tinyvit", "--recipe", "mixed"), "mixed looks for layers by masks"),
        (("tinyvit", "--runtime", "litert"), "--runtime litert reads no onnx files"),
        (("tinyvit", "--runtime", "tensorrt"), "no runtime is called 'tensorrt'"),
    ):
        code, _, err = run("compare-encoders", *wrong, "--out", tmp_path)
        assert code == 2
        assert message in one_line_error(err)
    assert len(json.loads((tmp_path / JSON).read_text())["rows"]) == 4


@pytest.mark.usefixtures("converted")
def test_what_is_not_timed_needs_no_plot(run, tmp_path, monkeypatch):
    def missing():
        raise MissingDependency("no matplotlib")

    monkeypatch.setattr(command, "need_matplotlib", missing)
    for seconds, ending, files in (("1", 2, set()), ("0", 0, {JSON, TABLE})):
        code, _, _ = run("compare-encoders", "test.tinyvit64", "--seconds", seconds, "--out", tmp_path)
        assert (code, {file.name for file in tmp_path.iterdir()}) == (ending, files)


def test_files_of_the_users_are_not_replaced(run, tmp_path):
    (tmp_path / TABLE).write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out, message in (
        (tmp_path, f"has a {TABLE} that compare-encoders did not write"),
        (tmp_path / "file", "is a file"),
    ):
        code, _, err = run("compare-encoders", "test.tinyvit64", "--out", out)
        assert (code, message in one_line_error(err)) == (2, True)
    assert (tmp_path / TABLE).read_text() == (tmp_path / "file").read_text() == "mine"


def test_formats_take_the_recipes_that_they_have():
    made = [(type(t).__name__, t.recipe) for t in _targets(("onnx", "coreml"), ("fp16", "dynamic_wi8_afp32"))]
    assert made == [("OnnxOptions", "fp16"), ("OnnxOptions", "dynamic_wi8_afp32"), ("CoreMLOptions", "fp16")]
    assert [t.recipe for t in _targets(("onnx", "coreml"), ())] == ["fp32", "fp16"]
