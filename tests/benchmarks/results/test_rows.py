import contextlib
import csv
import io
import json
import os
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samexport.benchmarks.results.compare import change_cells, compare
from samexport.benchmarks.results.rows import CSV_COLUMNS, Job, Status, flat, from_plain, read_results
from samexport.benchmarks.results.tables import to_csv, to_markdown
from samexport.errors import ConfigError, SamExportError
from tests.benchmarks.rows_of import job, pair, results, row

MIXED = results(
    row(),
    row(graph="encoder", prompts=0, checkpoints=("w.pt",)),
    row(status=Status.FAILED, reason="crashed"),
    pairs=[pair()],
)


def test_a_result_file_reads_back_as_it_was_written(tmp_path):
    (tmp_path / "r.json").write_text(MIXED.to_json())
    assert read_results(tmp_path / "r.json") == MIXED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        MIXED.to_json().replace('"schema_version": 2', '"schema_version": 1'),
        MIXED.to_json().replace('"schema_version": 2', '"schema_version": true'),
        MIXED.to_json().replace('"DONE"', '"PERHAPS"'),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.json is not a result file") as caught:
        read_results(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a result file"):
        read_results(tmp_path / "none.json")


def test_the_json_is_strict_and_says_its_version():
    def refuse(constant):
        raise ValueError(constant)

    assert json.loads(MIXED.to_json(), parse_constant=refuse)["schema_version"] == 2


def test_the_csv_has_every_number_of_every_row():
    lines = list(csv.DictReader(io.StringIO(to_csv(MIXED))))
    assert [line["graph"] for line in lines] == ["decoder", "encoder", "decoder"]
    assert tuple(lines[0]) == CSV_COLUMNS
    first = lines[0]
    assert (first["p50_ms"], first["ms_per_prompt"], first["verdict"], first["snr_db"]) == (
        "100.0",
        "6.25",
        "PASS",
        "118.0",
    )
    assert lines[2]["reason"] == "crashed"
    assert set(flat(MIXED.rows[0])) == set(CSV_COLUMNS)


def test_a_row_is_the_same_row_whatever_folder_the_bundle_is_in():
    assert row(bundle="/x", label="x").key == row(bundle="/y", label="y").key
    for change in (
        {"prompts": 1},
        {"batch": 4},
        {"threads": 1},
        {"form": "plain"},
        {"runtime": "openvino"},
        {"precision": "fp16"},
        {"options": "target=gpu"},
        {"weights": "seed 8"},
        {"model": "test.vit64"},
        {"photograph": (40, 30)},
    ):
        assert row(**change).key != row().key


def test_names_say_what_is_measured():
    assert job(batch=4).name == "b: decoder N=16 by 4, fp32, onnxruntime, 2 threads"
    plain = job("encoder", prompts=0, form="plain", threads=1, label="x/b", options="target=gpu")
    assert plain.name == "x/b: encoder plain, fp32 target=gpu, onnxruntime, 1 thread"


def test_a_job_survives_the_way_to_another_process():
    made = job(checkpoints=("a.pt", "b.pt"))
    assert from_plain(json.loads(json.dumps(asdict(made))), Job) == made


def replaced(path, value):
    """MIXED as plain data with one value replaced."""
    data = json.loads(MIXED.to_json())
    *above, last = path
    target = data
    for key in above:
        target = target[key]
    target[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows", 0, "measured", "p50_ms"), "12"),
        (("rows", 0, "measured", "p50_ms"), -1),
        (("rows", 0, "measured", "p50_ms"), 1e300),
        (("rows", 0, "measured", "stages"), {"encode": None}),
        (("rows", 0, "job", "graph"), ["encoder"]),
        (("rows", 0, "job", "photograph"), [1]),
        (("rows", 0, "job", "form"), "plane"),
        (("rows", 0, "job", "threads"), 0),
        (("rows", 0, "loaded"), 1),
        (("rows",), {}),
        (("environment",), None),
        (("environment", "load_average"), [1, 2]),
        (("roofline", "fp32"), "fast"),
        (("pairs", 0, "turns"), 1.5),
        (("pairs", 0, "first_parity", "verdict"), "MAYBE"),
    ],
)
def test_values_of_another_type_or_range_are_refused_in_one_line(tmp_path, path, value):
    (tmp_path / "r.json").write_text(json.dumps(replaced(path, value)))
    with pytest.raises(ConfigError, match=r"r\.json is not a result file") as caught:
        read_results(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_fields_of_a_later_version_are_ignored(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(replaced(("rows", 0, "measured", "joules"), 3)))
    assert read_results(tmp_path / "r.json") == MIXED


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_median_that_is_no_number_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(MIXED.to_json().replace('"p50_ms": 100.0', f'"p50_ms": {text}'))
    with pytest.raises(ConfigError, match="is not a result file"):
        read_results(tmp_path / "r.json")


def places(value, path=()):
    """The path of every value inside a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([p for p in places(json.loads(MIXED.to_json())) if p]), value=VALUES)
def test_any_value_anywhere_is_compared_or_refused_with_an_error_of_ours(tmp_path, path, value):
    (tmp_path / "r.json").write_text(json.dumps(replaced(path, value)))
    with contextlib.suppress(SamExportError):
        found = read_results(tmp_path / "r.json")
        to_markdown(found)
        to_csv(found)
        [change_cells(c) for c in compare(MIXED, found) + compare(found, MIXED)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 6000), length=st.integers(0, 40), put=st.binary(max_size=20))
def test_any_bytes_anywhere_are_read_or_refused_with_an_error_of_ours(tmp_path, start, length, put):
    text = MIXED.to_json().encode()
    (tmp_path / "r.json").write_bytes(text[:start] + put + text[start + length :])
    with contextlib.suppress(SamExportError):
        read_results(tmp_path / "r.json")


def test_a_file_that_is_nested_deep_or_no_file_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"schema_version": 2, "x": ' + "[" * 100_000)
    with pytest.raises(ConfigError, match="nested"):
        read_results(tmp_path / "r.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_results(tmp_path / "pipe")
