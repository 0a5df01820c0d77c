import pytest

from samexport.errors import ParityFailed
from samexport.runtimes.accuracy.evaluate import Scores
from samexport.runtimes.accuracy.report import difference, judge, table, to_markdown


def drop(value):
    return {"mIoU click": {"all": value, "small": -1.0}}


@pytest.mark.parametrize("values", [{}, drop(None), drop(float("nan")), drop(float("inf")), {"AR@10": {}}])
def test_what_was_not_measured_never_passes_the_gate(values):
    with pytest.raises(ParityFailed):
        judge(values, 1.0)
    with pytest.raises(ParityFailed):
        judge({"mIoU box": {"all": 0.0}} | values if values else values, 1.0)


def test_the_gate_is_over_all_sizes_and_its_limit_belongs_to_it():
    judge(drop(-0.25), 0.25)
    judge(drop(0.5), 0.0)
    with pytest.raises(ParityFailed) as caught:
        judge(drop(-0.26), 0.25)
    assert caught.value.details == ("mIoU click is 0.2600 below PyTorch",)
    with pytest.raises(ParityFailed):
        judge(drop(-0.1), float("nan"))


def test_a_difference_needs_both_values():
    one = Scores({"AR@10": {"all": 0.5, "small": None}}, 3.0)
    other = Scores({"AR@10": {"all": 0.75, "small": 0.5}}, 4.0)
    assert difference(one, other) == {"AR@10": {"all": -0.25, "small": None}}


def test_the_table_has_a_line_a_model_and_one_for_the_difference():
    one, other = (Scores({"AR@10": {"all": value}}, 3.0) for value in (0.5, 0.75))
    columns, rows = table({"all": 7}, {"bundle": one, "PyTorch": other}, difference(one, other))
    assert columns == ("metric", "model", "all")
    assert rows == [
        ("objects", "", "7"),
        ("AR@10", "bundle", "0.5000"),
        ("AR@10", "PyTorch", "0.7500"),
        ("AR@10", "difference", "-0.2500"),
    ]


def test_the_page_says_what_is_missing():
    model = {"model": "m", "weights": {"source": "seed 7"}, "placement": "CPU", "proposals": None, "images": 1}
    report = {"images": 1, "annotations": "a|b.json", "complete": False, "models": {"b": model}}
    report |= {"notes": ["left out: 2"], "problems": ["x.png is no picture"]}
    text = to_markdown(report, ("metric",), [("AR@10",)])
    for part in ("a\\|b.json", "**Not complete**", "- left out: 2", "- not measured: x.png is no picture"):
        assert part in text
