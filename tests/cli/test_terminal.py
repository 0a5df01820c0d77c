"""Tables, steps and last lines, piped and on terminals of several widths."""

import re

import pytest

from samexport.cli.terminal import Steps, print_table, print_written

COLUMNS = ("case", "output", "max error", "of range", "SNR dB", "mask IoU", "verdict")
ROWS = [
    ("decoder_with_mask 4x3 with mask", "iou_predictions", "1.8e-07", "3.6e-07", "141.5", "", "PASS"),
    ("encoder [red]picture :smile:", "image_embeddings", "1.0e-01", "1.0e-01", "12.0", "0.12345", "FAIL"),
]


@pytest.fixture
def terminal(monkeypatch):
    def make(width, colour=True):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not colour:
            monkeypatch.setenv("NO_COLOR", "1")

    return make


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_file_gets_lines_of_any_length_without_colours(capsys):
    print_table(("what", "remedy"), [("x", "y" * 5000)])
    header, line = capsys.readouterr().out.splitlines()
    assert (header, line) == ("what  remedy", f"x     {'y' * 5000}")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_nothing_is_cut_on_a_terminal(capsys, terminal, width):
    terminal(width)
    print_table(COLUMNS, ROWS)
    out = plain(capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    squeezed = re.sub(r"\s", "", out)
    for row in ROWS:
        for cell in row[1:]:
            assert cell in out
        # the first cell may be folded, beside other cells
        assert all(word in squeezed for word in row[0].split())


def test_a_narrow_terminal_gets_paragraphs(capsys, terminal):
    terminal(60)
    print_table(COLUMNS, ROWS)
    out = plain(capsys.readouterr().out)
    assert "output iou_predictions, max error 1.8e-07" in out
    assert "case" not in out


def test_verdicts_have_colours_on_a_terminal_only(capsys, terminal):
    print_table(COLUMNS, ROWS)
    assert "\x1b" not in capsys.readouterr().out
    for width in (60, 120):
        terminal(width)
        print_table(COLUMNS, ROWS)
        out = capsys.readouterr().out
        assert "\x1b[32mPASS" in out
        assert "\x1b[1;31mFAIL" in out
        terminal(width, colour=False)
        print_table(COLUMNS, ROWS)
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", capsys.readouterr().out)


def test_names_are_printed_as_they_are_and_cannot_steer_the_terminal(capsys, terminal):
    for width in (0, 30, 120):
        if width:
            terminal(width)
        print_table(("file", "verdict"), [("[bold]x[/bold] :smile: \x1b[2J\nz", "PASS")])
        out = plain(capsys.readouterr().out)
        assert "[bold]x[/bold]:smile:\\x1b[2J\\nz" in re.sub(r"\s", "", out)
        assert "\x1b" not in out


def test_steps_say_how_many_there_are_and_details_are_no_steps(capsys):
    with Steps(3) as steps:
        for message in ("reading", "checking a: case 1 of 2", "checking a: case 2 of 2", "checking b"):
            steps.update(message)
    lines = [re.sub(r"\d+ s$", "T s", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["[1/3] reading  T s", "[2/3] checking a  T s", "[3/3] checking b  T s"]


@pytest.mark.parametrize(
    ("total", "shown"), [(2, ["[1/2] a", "[2/2] b", "[3] c"]), (None, ["[1] a", "[2] b", "[3] c"])]
)
def test_steps_beyond_what_is_known_are_counted_alone(capsys, total, shown):
    with Steps(total) as steps:
        for message in "abc":
            steps.update(message)
    assert [line.partition("  ")[0] for line in capsys.readouterr().err.splitlines()] == shown


def test_a_terminal_shows_one_line_and_clears_it(capsys, terminal):
    terminal(80)
    with Steps(2) as steps:
        steps.update("exporting [decoder]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[1/2] exporting [decoder]" in plain(err)


def test_the_last_line_lists_what_was_written(capsys, tmp_path):
    (tmp_path / "bundle" / "golden").mkdir(parents=True)
    (tmp_path / "bundle" / "a").write_bytes(b"x" * 2_000_000)
    (tmp_path / "bundle" / "golden" / "b").write_bytes(b"x" * 500_000)
    (tmp_path / "report.md").write_bytes(b"x" * 1234)
    print_written([tmp_path / "bundle", tmp_path / "report.md"])
    assert capsys.readouterr().out == (
        f"wrote {tmp_path / 'bundle'}/ (2 files, 2.5 MB), {tmp_path / 'report.md'} (1.2 kB)\n"
    )
