import json

import pytest

from samexport.benchmarks.contenders.known import find, why_not
from samexport.benchmarks.measuring import runner
from samexport.benchmarks.results.rows import Status, read_results
from samexport.exporter.to_onnx import convert as to_onnx
from tests.benchmarks.rows_of import results, row
from tests.command_line import one_line_error
from tests.conftest import copying


def quick(out, *more):
    return ("--runtime", "onnxruntime", "--prompts", "2", "--repeat", 3, "--seconds", 0.1, "--out", out, *more)


def test_a_table_a_row_a_graph_and_files(run, tiny_bundle, tmp_path, no_probe):
    code, out, err = run("bench", tiny_bundle.folder, *quick(tmp_path / "r", "--graph", "encoder", "--profile"))
    assert code == 0, err
    header, measured, same = out.splitlines()[:3]
    assert header.split()[:3] == ["model", "graph", "runtime"]
    assert measured.split()[:3] == ["test.tinyvit64", "encoder", "onnxruntime"]
    assert "PASS" in measured
    assert same == "in every row: bundle tiny, precision fp32, threads 2"
    assert "samexport bench " in read_results(tmp_path / "r" / "results.json").command
    assert "Where the time goes" in (tmp_path / "r" / "results.md").read_text()
    assert run("bench", tiny_bundle.folder, *quick(tmp_path / "r"))[0] == 2


def test_the_plain_export_is_made_and_called_in_turns(run, tiny_bundle, plain_bundle, tmp_path, no_probe, monkeypatch):
    monkeypatch.setattr(to_onnx, "convert", copying(plain_bundle))
    code, _, err = run("bench", tiny_bundle.folder, *quick(tmp_path, "--graph", "encoder", "--versus", "plain"))
    assert code == 0, err
    (pair,) = read_results(tmp_path / "results.json").pairs
    assert (pair.first.form, pair.second.form, pair.turns) == ("export", "plain", 3)


def test_a_graph_that_computes_something_else_ends_with_code_1(run, own_bundle, tmp_path, no_probe):
    path = own_bundle.folder / "golden" / "tensors.npz"
    path.write_bytes((own_bundle.folder / "encoder.onnx").read_bytes())
    code, out, err = run("bench", own_bundle.folder, *quick(tmp_path, "--graph", "encoder"))
    assert code == 1
    assert "FAILED" in out
    assert "1 of 1 were not measured or are wrong" in one_line_error(err)


def test_a_row_that_takes_too_long_fails(run, tiny_bundle, tmp_path, no_probe):
    arguments = ("bench", tiny_bundle.folder, "--runtime", "onnxruntime", "--graph", "encoder", "--out", tmp_path)
    code, out, err = run(*arguments, "--timeout", 1, "--repeat", 100_000)
    assert code == 1
    assert "did not end within 1 s" in out
    assert "FAIL  FAILED tiny: encoder, fp32, onnxruntime, 2 threads: did not end within 1 s" in err


def test_a_runtime_that_was_asked_for_and_is_absent_fails(run, tiny_bundle, tmp_path, no_probe):
    if not why_not(find("pytorch-cuda")):
        pytest.skip("there is a GPU here")
    code, out, err = run(
        "bench", tiny_bundle.folder, *quick(tmp_path, "--graph", "encoder", "--runtime", "pytorch-cuda")
    )
    assert code == 1
    assert "SKIPPED: there is no NVIDIA driver here" in out
    assert "1 of 2 were not measured" in one_line_error(err)
    assert len(read_results(tmp_path / "results.json").rows) == 2


def test_a_busy_machine_is_explained(run, tiny_bundle, tmp_path, no_probe, monkeypatch):
    monkeypatch.setattr(runner, "LOADED", -1.0)
    _, out, _ = run("bench", tiny_bundle.folder, *quick(tmp_path, "--graph", "encoder"))
    assert "* other programs kept more than" in out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nowhere",),
        ("BUNDLE", "--photograph", "large"),
        ("BUNDLE", "--task", "dance"),
        ("BUNDLE", "--runtime", "abacus"),
        ("BUNDLE", "--prompts", "few"),
        ("BUNDLE", "--threads", "0"),
        ("BUNDLE", "--threads", "100000"),
        ("BUNDLE", "--threads", "9" * 5000),
        ("BUNDLE", "--prompts", "99999999999"),
        ("BUNDLE", "--photograph", "0x10"),
        ("BUNDLE", "--photograph", "1000000x1000000"),
        ("BUNDLE", "--photograph", "9" * 5000 + "x1"),
        ("BUNDLE", "--photograph", "²x²"),
        ("BUNDLE", "--accelerator", "foo"),
        ("BUNDLE", "--accelerator", "cpu"),
        ("BUNDLE", "BUNDLE"),
        ("BUNDLE", "--versus", "nowhere"),
        ("BUNDLE", "--profile", "--runtime", "pytorch"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(run, tiny_bundle, tmp_path, arguments):
    words = [str(tiny_bundle.folder) if word == "BUNDLE" else word for word in arguments]
    code, _, err = run("bench", *words, "--out", tmp_path / "r")
    assert code == 2
    assert len(one_line_error(err)) < 400
    assert not (tmp_path / "r").exists()


def test_doctor_says_why_a_variant_cannot_run(run):
    findings = {f["name"]: f for f in json.loads(run("doctor", "--json")[1])}
    assert findings["bench: pytorch"]["ok"]
    for name in ("pytorch-cuda", "onnxruntime-tensorrt", "Android phones"):
        finding = findings[f"bench: {name}"]
        assert finding["ok"] != bool(finding["remedy"])


def test_compare_ends_with_code_1_on_a_regression(run, tmp_path):
    old, same, slow = (tmp_path / f"{name}.json" for name in ("old", "same", "slow"))
    old.write_text(results(row(100)).to_json())
    same.write_text(results(row(105)).to_json())
    slow.write_text(results(row(130)).to_json())
    assert run("bench", "--compare", old, same)[0] == 0
    code, out, err = run("bench", "--compare", old, slow)
    assert (code, "1.30" in out) == (1, True)
    assert "30% slower" in err
    assert run("bench", "--compare", old, slow, "--tolerance", 0.5)[0] == 0
    broken = tmp_path / "broken.json"
    for text in (json.dumps({"schema_version": 2}), '{"schema_version": 2, "rows": ' + "[" * 100_000, "NaN"):
        broken.write_text(text)
        code, _, err = run("bench", "--compare", old, broken)
        assert (code, "not a result file" in one_line_error(err)) == (2, True)
    skipped = tmp_path / "skipped.json"
    absent = row(runtime="pytorch-cuda", status=Status.SKIPPED, reason="there is no NVIDIA driver here")
    skipped.write_text(results(row(100), absent).to_json())
    code, out, err = run("bench", "--compare", old, skipped)
    assert (code, "SKIPPED: there is no NVIDIA driver here" in out) == (1, True)
