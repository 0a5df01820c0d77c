from dataclasses import replace

import pytest

from samexport.benchmarks.results.compare import COMPARE_COLUMNS, change_cells, compare
from samexport.benchmarks.results.rows import Parity, Status
from samexport.errors import ConfigError
from samexport.runtimes.verdicts import Verdict
from tests.benchmarks.rows_of import job, pair, results, row

FAIL = Parity(Verdict.FAIL, "differs by 3")


def only(old, new, **options):
    (change,) = compare(results(old), results(new), **options)
    return change


def test_equal_results_have_ratio_one_and_no_regression():
    change = only(row(), row())
    assert (change.p50, change.fastest, change.peak_mb, change.regression) == (1, 1, 1, "")


@pytest.mark.parametrize(
    ("p50", "fastest", "regression"),
    [
        (109, 98, ""),
        (120, 108, "20% slower"),
        (150, 90, ""),  # noise moves the median alone
        (100, 120, ""),
        (150, 105, "17% slower"),  # 105 / 90
        (50, 45, ""),
    ],
)
def test_slower_means_median_and_fastest_run_alike(p50, fastest, regression):
    assert only(row(100, fastest=90), row(p50, fastest=fastest)).regression == regression


def test_the_tolerance_is_the_users():
    assert only(row(100), row(104), tolerance=0.03).regression == "4% slower"
    assert only(row(100), row(140), tolerance=0.5).regression == ""


def test_more_memory_is_a_regression():
    assert only(row(memory=200), row(memory=260)).regression == "30% more memory"


def test_a_worse_verdict_is_a_regression_however_fast():
    assert only(row(), row(10, parity=FAIL)).regression == "parity PASS became FAIL: differs by 3"
    assert only(row(parity=FAIL), row()).regression == ""
    unjudged = Parity(Verdict.SKIPPED, "no reference")
    assert only(row(), row(parity=unjudged)).regression == "parity PASS became SKIPPED: no reference"
    assert only(row(parity=unjudged), row(parity=FAIL)).regression == "parity SKIPPED became FAIL: differs by 3"


def test_a_row_that_failed_or_is_gone_is_a_regression():
    failed = row(status=Status.FAILED, reason="crashed with SIGSEGV")
    assert only(row(), failed).regression == "FAILED: crashed with SIGSEGV"
    kept, gone = compare(results(row(), row(prompts=1)), results(row()))
    assert (kept.regression, gone.regression) == ("", "is not there any more")
    assert [c.regression for c in compare(results(failed, row(prompts=1)), results(row(), row(prompts=1)))] == [""]


GPU = {"options": "target=gpu"}


def test_two_targets_and_two_weights_of_one_model_are_told_apart():
    """Three times slower on one target alone."""
    for change in (GPU, {"precision": "fp16"}, {"weights": "0" * 64}):
        old, new = results(row(), row(**change)), results(row(), row(300, **change))
        assert [c.regression for c in compare(old, new)] == ["", "200% slower"]
        assert [c.regression for c in compare(old, results(*reversed(new.rows)))] == ["", "200% slower"]


def test_one_runtime_on_two_devices_is_two_rows():
    one, other = row(), replace(row(), device="Phone, Android 15")
    slower = replace(row(300), device="Phone, Android 15")
    assert [c.regression for c in compare(results(one, other), results(slower, one))] == ["", "200% slower"]


def test_two_bundles_that_differ_in_nothing_else_are_told_apart_by_their_names():
    old, new = results(row(label="a"), row(label="b")), results(row(300, label="b"), row(label="a"))
    assert [c.regression for c in compare(old, new)] == ["", "200% slower"]
    left = compare(old, results(row(label="a")))
    assert [c.regression for c in left] == ["", "is not there any more"]


def test_one_bundle_may_have_another_name():
    (change,) = compare(results(row(label="before")), results(row(label="after")))
    assert (change.regression, change.name.endswith("(now after)")) == ("", True)


@pytest.mark.parametrize("which", [0, 1])
def test_files_that_cannot_be_compared_are_refused(which):
    good = results(row())
    for bad, message in (
        (results(row(), row()), "twice"),
        (results(row(), pairs=[pair(), pair()]), "twice"),
        (results(row(None, fastest=1)), "no median"),
        (results(row(float("nan"), fastest=1)), "no median"),
        (results(row(0.0, fastest=1)), "no median"),
        (results(row(), pairs=[pair(), replace(pair(), ratio=None, first=job(threads=1))]), "no ratio"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(*((bad, good) if which == 0 else (good, bad)))


def test_a_runtime_that_is_only_checked_has_no_median():
    untimed = row(None, fastest=1, memory=None, runtime="mil")
    assert compare(results(row(), untimed), results(row(), untimed))[1].regression == ""


def test_what_the_new_file_was_to_measure_and_did_not_counts():
    absent = row(status=Status.SKIPPED, reason="there is no NVIDIA driver here", runtime="pytorch-cuda")
    wrong = row(parity=FAIL, runtime="openvino")
    extra = row(prompts=1)
    found = compare(results(row()), results(row(), absent, wrong, extra))
    assert [c.regression for c in found] == [
        "",
        "SKIPPED: there is no NVIDIA driver here",
        "parity FAIL: differs by 3",
    ]
    still = row(status=Status.FAILED, reason="crashed")
    old = results(row(prompts=1), still)
    assert [c.regression for c in compare(old, old)] == ["", "FAILED: crashed"]
    hung = replace(pair(), status=Status.FAILED, reason="hung", ratio=None)
    assert compare(results(row()), results(row(), pairs=[hung]))[1].regression == "FAILED: hung"


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -0.1])
def test_a_tolerance_that_nothing_exceeds_is_refused(tolerance):
    with pytest.raises(ConfigError, match="tolerance"):
        compare(results(row()), results(row(300)), tolerance)


def test_ratios_of_calls_in_turns_are_compared_too():
    old, new = results(row(), pairs=[pair(0.5)]), results(row(), pairs=[pair(0.6)])
    assert [c.regression for c in compare(old, new)] == ["", "ratio 20% worse"]
    assert [c.regression for c in compare(new, old)] == ["", ""]
    assert compare(old, results(row()))[1].regression == "is not there any more"
    hung = replace(pair(), status=Status.FAILED, reason="hung", ratio=None)
    assert compare(old, results(row(), pairs=[hung]))[1].regression == "FAILED: hung"
    for side in ("first_parity", "second_parity"):
        wrong = results(row(), pairs=[replace(pair(), **{side: FAIL})])
        assert compare(old, wrong)[1].regression == "parity PASS became FAIL: differs by 3"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"cpu": "Other CPU"}, "Test CPU and Other CPU"), ({"cores": 8}, "cores: 2 and 8"), ({"gpu": "G"}, "gpu:  and G")],
)
def test_other_machines_are_not_compared_unless_asked(change, message):
    old, new = results(row()), results(row(), **change)
    with pytest.raises(ConfigError, match=message):
        compare(old, new)
    assert compare(old, new, other_machine=True)[0].regression == ""


def test_files_without_a_common_row_are_refused():
    with pytest.raises(ConfigError, match="no row in common"):
        compare(results(row()), results(row(prompts=1)))


def test_cells_fit_the_columns():
    change = only(row(100), row(120))
    assert len(change_cells(change)) == len(COMPARE_COLUMNS)
    assert change_cells(change)[1:] == ("1.20", "1.20", "1.00", "20% slower")
