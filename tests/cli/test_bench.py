import json

import pytest

from samexport.benchmarks.measuring import runner
from samexport.benchmarks.results.rows import read_results
from tests.benchmarks.rows_of import results, row
from tests.command_line import one_line_error


@pytest.fixture
def no_probe(monkeypatch):
    monkeypatch.setattr(runner, "probe_machine", lambda threads: {"fp32": 100.0, "copy_gb_per_s": 9.0})


def quick(out, *more):
    return ("--runtime", "onnxruntime", "--prompts", "2", "--repeat", 3, "--seconds", 0.1, "--out", out, *more)


def test_a_table_a_row_a_graph_and_files(run, tiny_bundle, tmp_path, no_probe):
    code, out, err = run("bench", tiny_bundle.folder, *quick(tmp_path / "r", "--graph", "encoder", "--profile"))
    assert code == 0, err
    header, measured = out.splitlines()[:2]
    assert header.split()[:3] == ["graph", "prompts", "precision"]
    assert measured.split()[0] == "encoder"
    assert "PASS" in measured
    assert "Where the time goes" in (tmp_path / "r" / "results.md").read_text()
    assert run("bench", tiny_bundle.folder, *quick(tmp_path / "r"))[0] == 2


def test_the_plain_export_is_made_and_called_in_turns(run, tiny_bundle, tmp_path, no_probe):
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
    assert "1 rows failed" in one_line_error(err)


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
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(run, tiny_bundle, tmp_path, arguments):
    words = [str(tiny_bundle.folder) if word == "BUNDLE" else word for word in arguments]
    code, _, err = run("bench", *words, "--out", tmp_path / "r")
    assert code == 2
    one_line_error(err)
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
    broken.write_text(json.dumps({"schema_version": 1}))
    assert run("bench", "--compare", old, broken)[0] == 2
