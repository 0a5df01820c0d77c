from dataclasses import replace

import pytest

from samexport.benchmarks.results.rows import Parity, Profile, Status
from samexport.benchmarks.results.tables import (
    PAIR_COLUMNS,
    _number,
    failure_lines,
    has_marks,
    pair_cells,
    problem_lines,
    short_table,
    table,
    to_markdown,
    verdict,
)  # fmt: skip
from samexport.runtimes.verdicts import Verdict
from tests.benchmarks.rows_of import job, pair, results, row


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (0.5, "0.50"),
        (3.14159, "3.14"),
        (31.4159, "31.4"),
        (314.159, "314"),
        (31415.9, "31416"),
        (2.4e-6, "2e-06"),
    ],
)
def test_numbers_have_the_digits_that_a_person_reads(value, text):
    assert _number(value) == text


def test_the_table_has_a_line_for_each_row_and_marks_noisy_ones():
    columns, lines = table([row(), row(loaded=True, prompts=1)], ("p50 ms", "ms/prompt", "of peak", "parity"))
    found = [dict(zip(columns, line, strict=True)) for line in lines]
    assert [f["p50 ms"] for f in found] == ["100", "100*"]
    assert found[0]["ms/prompt"] == "6.25"
    assert found[0]["parity"] == "PASS 1e-06"
    assert found[0]["of peak"] == "50%"


def test_a_row_that_failed_shows_no_verdict_but_that_it_failed():
    columns, (line,) = table([row(status=Status.FAILED, reason="crashed")])
    assert dict(zip(columns, line, strict=True))["parity"] == "FAILED: crashed"


def test_the_batch_is_shown_where_it_is_smaller_than_the_number_of_prompts():
    _, lines = table([row(batch=4), row(batch=16), row(), row(form="plain", batch=1)], ["graph", "prompts"])
    assert lines == [
        ("decoder", "16 by 4"),
        ("decoder", "16"),
        ("decoder", "16"),
        ("decoder (plain)", "16 by 1"),
    ]


def test_a_pair_shows_ratio_spread_and_both_verdicts():
    cells = dict(zip(PAIR_COLUMNS, pair_cells(pair(0.5)), strict=True))
    assert (cells["A"], cells["B"]) == ("decoder 16 fp32 onnxruntime", "decoder (plain) 16 fp32 onnxruntime")
    assert (cells["A / B"], cells["A ms"], cells["B ms"]) == ("0.50", "50.0", "100")
    assert cells["parity A, B"] == "PASS 1e-06, PASS 1e-06"
    assert dict(zip(PAIR_COLUMNS, pair_cells(pair(other_cores=1.0)), strict=True))["A / B"] == "0.50*"


def test_a_failed_pair_keeps_its_place():
    cells = pair_cells(replace(pair(), status=Status.FAILED, reason="hung", ratio=None))
    assert len(cells) == len(PAIR_COLUMNS)
    assert cells[-1] == "FAILED: hung"


def test_the_report_says_machine_ratios_rows_and_what_is_not_right():
    wrong = Parity(Verdict.FAIL, "differs by 3", 0.3)
    text = to_markdown(
        results(
            row(),
            row(graph="one click", file="", prompts=1),
            row(prompts=4, status=Status.FAILED, reason="crashed with SIGSEGV"),
            row(prompts=2, parity=wrong),
            pairs=[pair()],
        ),
        [("latency.png", "times")],
    )
    for part in (
        "Test CPU, 2 cores", "fp32 100, bf16 200; copy 20 GB/s", "load average at the start: 0.1, 0.2, 0.3",
        "commit abc123", "## Ratios of calls in turns", "## Graphs", "## Whole tasks", "![times](latency.png)",
        "FAILED b: decoder N=4, fp32, onnxruntime, 2 threads: crashed with SIGSEGV",
        "parity FAIL b: decoder N=2, fp32, onnxruntime, 2 threads: differs by 3",
    ):  # fmt: skip
        assert part in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(tables) >= 4


def test_every_line_of_a_markdown_table_has_as_many_cells():
    text = to_markdown(results(row(), row(prompts=1)))
    graphs = text.split("## Graphs\n\n")[1].split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in graphs}) == 1
    assert len(graphs) == 4


def test_nothing_wrong_has_no_lines():
    assert problem_lines(results(row())) == []
    assert "Not measured" not in to_markdown(results(row()))


def test_the_verdict_has_the_largest_error():
    assert verdict(Parity(Verdict.PASS, "", 0.0)) == "PASS 0"
    assert verdict(Parity(Verdict.SKIPPED, "x")) == "SKIPPED"
    assert verdict(Parity(Verdict.PASS, mask_iou=0.99991)) == "PASS IoU 0.9999"


def test_both_sides_of_a_pair_say_what_the_other_is_not():
    for change, a, b in (
        ({"label": "c"}, "decoder 16 fp32 onnxruntime b", "decoder 16 fp32 onnxruntime c"),
        ({"threads": 1}, "decoder 16 fp32 onnxruntime 2 threads", "decoder 16 fp32 onnxruntime 1 threads"),
        ({"options": "target=gpu"}, "decoder 16 fp32 onnxruntime", "decoder 16 fp32 target=gpu onnxruntime"),
    ):
        assert pair_cells(replace(pair(), second=job(**change)))[:2] == (a, b)


def test_the_short_table_says_once_what_is_the_same_everywhere():
    columns, lines, same = short_table([row(prompts=1), row(runtime="openvino")])
    assert "bundle" not in columns
    assert columns[:3] == ("model", "graph", "prompts")
    assert same == "bundle b, precision fp32, threads 2"
    columns, lines, same = short_table([row(label="b"), row(label="c")])
    assert [line[columns.index("bundle")] for line in lines] == ["b", "c"]
    assert "bundle" not in same


def test_whatever_was_not_measured_is_a_failure_with_its_reason():
    absent = row(status=Status.SKIPPED, reason="no driver")
    unjudged = row(prompts=1, parity=Parity(Verdict.SKIPPED, "no tier"))
    profile = Profile(job(), (), "did not end within 1 s")
    found = replace(results(row(), absent, unjudged), profiles=(profile,))
    assert failure_lines(found) == [
        "SKIPPED b: decoder N=16, fp32, onnxruntime, 2 threads: no driver",
        "FAILED profile of b: decoder N=16, fp32, onnxruntime, 2 threads: did not end within 1 s",
    ]
    assert problem_lines(replace(found, notes=("left out",)))[0] == "left out"
    assert problem_lines(found)[0] == "parity SKIPPED b: decoder N=1, fp32, onnxruntime, 2 threads: no tier"


@pytest.mark.parametrize("side", ["first_parity", "second_parity"])
def test_either_side_of_a_pair_that_computes_something_else_is_a_failure(side):
    wrong = pair(**{side: Parity(Verdict.FAIL, "differs by 3")})
    (line,) = failure_lines(results(row(), pairs=(pair(), wrong)))
    assert line.startswith("parity FAIL b: decoder N=16")
    assert line.endswith(": differs by 3")


def test_the_mark_of_a_busy_machine_is_known_to_be_there():
    assert has_marks(results(row(loaded=True)))
    assert has_marks(results(row(), pairs=[pair(other_cores=1.0)]))
    assert not has_marks(results(row(), pairs=[pair()]))


def test_stages_come_in_the_order_in_which_they_happen():
    measured = replace(row().measured, stages={"decode": 2.0, "encode": 1.0, "upscale": 3.0, "sample": 0.0})
    _, ((cell,),) = table([replace(row(), measured=measured)], ["stages, ms"])
    assert cell == "sample 0, encode 1, decode 2, upscale 3"
