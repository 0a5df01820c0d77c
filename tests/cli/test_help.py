"""``--help``: groups, choices, examples, defaults; what mistakes suggest."""

import re

import pytest

from samexport.cli import main as cli
from samexport.exporter.to_onnx.convert import OPSETS
from tests.command_line import one_line_error

COMMANDS = [c.name for c in cli.app.registered_commands]


def shown(run, *arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    return out


def words(text):
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_name_real_options_and_a_short_form(run, command):
    out = shown(run, command, "--help")
    assert shown(run, command, "-h") == out
    assert re.search(r"<(bool|float|int|str|path|list)\b", out, re.IGNORECASE) is None
    lines = out[out.index("Examples:") :].splitlines()[1:]
    assert len(lines) >= 1
    for line in lines:
        assert line.startswith(f"    samexport {command} ") or line == f"    samexport {command}"
        assert set(re.findall(r"--[a-z-]+", line)) <= set(re.findall(r"--[a-z-]+", out[: out.index("Examples:")]))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(run, command):
    out = shown(run, command, "--help")
    options = re.findall(r"^ {2}(--[a-z-]+)(?: \S+)?(?: {2,}(\S.*))?$", out, re.MULTILINE)
    options_wide = re.findall(r"^ {2}(--[a-z-]+) \S+\n +(\S.*)$", out, re.MULTILINE)
    told = dict(options) | dict(options_wide)
    assert told
    assert [name for name, text in told.items() if not text] == []


def test_the_program_groups_its_commands_in_the_order_of_the_work(run):
    out = shown(run, "--help")
    groups = re.findall(r"^(\S[^:\n]*):$", out, re.MULTILINE)
    assert groups == ["Options", "Make files", "Use files", "Check and measure", "Train", "Look around"]
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", out, re.MULTILINE)


@pytest.mark.parametrize("command", ["onnx", "tflite", "coreml"])
def test_export_options_are_grouped_with_choices_and_defaults(run, command):
    out = shown(run, command, "--help")
    groups = re.findall(r"^(\S[^:\n]*):$", out, re.MULTILINE)
    assert groups == ["Weights", "Output", "Graphs", "Box detector", "Checks", "Options"]
    for text in ("official|demo|random", "[default: (official)]", "(named after the model)", "1024", "[1<=x<="):
        assert text in words(out)


def test_choices_and_bounds_are_those_of_the_exporter(run):
    onnx, tflite, coreml = (words(shown(run, command, "--help")) for command in ("onnx", "tflite", "coreml"))
    assert "fp32|fp16" in onnx
    assert f"[default: 20; {min(OPSETS)}<=x<={max(OPSETS)}]" in onnx
    assert "host|in-graph" in onnx
    assert "cpu|gpu" in tflite
    assert "litert-torch|onnx2tf" in tflite
    assert "[default: 1,4,16]" in tflite
    assert "iOS16|iOS17|iOS18" in coreml
    assert "tensor|image" in coreml
    assert {"interior|random", "grid|detector|boxes"} <= set(re.findall(r"<(\S+)>", shown(run, "eval", "--help")))
    assert "[default: flexible]" in coreml


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "Make files:" in out


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("onxx", "--encoder", "tinyvit"), "'onnx'"),
        (("onnx", "--encodr", "tinyvit"), "--encoder"),
        (("onnx", "--encoder", "vit_x"), "vit_"),
        (("onnx", "--encoder", "tinyvit65", "--weights", "random"), "tinyvit"),
        (("onnx", "--encoder", "tinyvit", "--precision", "fp33"), "'fp16'"),
        (("onnx", "--encoder", "tinyvit", "--sampler", "tests", "--weights", "random"), "object-aware"),
        (("verify",), "BUNDLE"),
        (("verify", "a", "b"), "(b)"),
    ],
)
def test_mistakes_are_one_line_that_suggests_what_exists_but_no_test_model(run, arguments, suggested):
    code, out, err = run(*arguments)
    line = one_line_error(err)
    assert (code, out, err.count("\n"), suggested in line) == (2, "", 1, True), line
    assert not re.search(r"test\.|vit64|'test'", line), line
