import csv
import io
import json

import pytest

from samexport.benchmarks.results.rows import CSV_COLUMNS, Job, Status, flat, read_results
from samexport.benchmarks.results.tables import to_csv
from samexport.errors import ConfigError
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
        MIXED.to_json().replace('"schema_version": 1', '"schema_version": 2'),
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

    assert json.loads(MIXED.to_json(), parse_constant=refuse)["schema_version"] == 1


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
    assert row(bundle="/x").key == row(bundle="/y").key
    for change in ({"prompts": 1}, {"batch": 4}, {"threads": 1}, {"form": "plain"}, {"runtime": "openvino"}):
        assert row(**change).key != row().key


def test_names_say_what_is_measured():
    assert job(batch=4).name == "decoder N=16 by 4, fp32, onnxruntime, 2 threads"
    assert job("encoder", prompts=0, form="plain").name == "encoder plain, fp32, onnxruntime, 2 threads"


def test_a_job_survives_the_way_to_another_process():
    made = job(checkpoints=("a.pt", "b.pt"))
    assert Job.from_json(json.loads(json.dumps(vars(made)))) == made
