import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from samexport.benchmarks.results.page import to_html
from samexport.benchmarks.results.plots import PLOT_FILES, _line_names, draw
from samexport.benchmarks.results.rows import Status
from samexport.errors import MissingDependency
from samexport.installation import install_hint
from tests.benchmarks.rows_of import pair, results, row

pytest.importorskip("matplotlib")

MANY = results(
    row(graph="encoder", prompts=0),
    row(graph="encoder", prompts=0, runtime="openvino-bf16"),
    row(prompts=1),
    row(prompts=16),
    row(prompts=16, form="plain", batch=1),
    row(graph="one click", prompts=1, file=""),
    row(prompts=64, status=Status.FAILED, reason="<crash> & burn"),
    pairs=[pair()],
)


def test_every_plot_is_a_picture_of_a_sensible_size():
    plots = draw(MANY)
    assert tuple(p.file for p in plots) == PLOT_FILES
    for plot in plots:
        picture = Image.open(io.BytesIO(plot.png))
        assert 600 < picture.width < 2500
        assert picture.height < 8000
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 20


def test_results_without_numbers_have_no_plot():
    assert draw(results(row(status=Status.FAILED))) == []
    assert [p.file for p in draw(results(row(graph="encoder", prompts=0)))] == ["latency.png", "accuracy.png"]


def test_the_same_results_give_the_same_pictures():
    first, second = draw(MANY), draw(MANY)
    assert [p.png for p in first] == [p.png for p in second]
    assert [p.svg for p in first] == [p.svg for p in second]


def test_the_page_needs_nothing_from_elsewhere():
    page = to_html(MANY, draw(MANY))
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count("<svg") == 4


def test_the_page_has_every_row_and_escapes_what_programs_say():
    page = to_html(MANY)
    pairs, graphs, tasks, placements = 1, 6, 1, 4
    assert page.count("<tr>") == 4 + pairs + graphs + tasks + placements
    assert "&lt;crash&gt; &amp; burn" in page
    assert "<crash>" not in page


def test_what_is_wrong_comes_first_then_numbers_then_pictures():
    page = to_html(replace(MANY, command="samexport bench 'a & b'"), draw(MANY))
    places = [
        page.index(text) for text in ("<code>", "Not measured, or not right", "<h2>Graphs", "<figure>", "<h2>How")
    ]
    assert places == sorted(places)
    assert "<code>samexport bench &#x27;a &amp; b&#x27;</code>" in page
    assert "`" not in page.split("<script>")[0].split("</style>")[1]


def test_every_row_of_a_panel_has_a_name_of_its_own():
    rows = [
        row(), row(label="c"), row(options="target=gpu"), row(threads=1), row(form="plain"), row(batch=4), row(batch=1),
        row(precision="fp16"), row(model="test.vit64"), row(runtime="openvino"),
    ]  # fmt: skip
    names = _line_names(rows)
    assert len(set(names)) == len(rows)
    assert _line_names([row(), row(runtime="openvino")]) == ["onnxruntime", "openvino"]


def test_names_of_folders_are_no_formulas():
    svg = draw(results(row(label="a$b^$"), row(label="\udcff")))[0].svg
    assert "a$b^$" in svg


def test_plots_without_matplotlib_name_the_extra(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependency, match=re.escape(install_hint("bench"))):
        draw(MANY)


def test_a_png_is_small_enough_for_a_repository():
    assert all(len(p.png) < 400_000 for p in draw(MANY))
    assert io.BytesIO(draw(MANY)[0].png).read(4) == b"\x89PNG"
