"""README shows only what runs."""

import re
from pathlib import Path

import typer

from samexport.cli import main as cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = "\n".join([README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))])
COMMANDS = typer.main.get_command(cli.app).commands


def options(command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_the_python_example_runs_as_printed_on_a_small_model(tmp_path, monkeypatch, capsys, converted):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert 'export("tinyvit"' in code
    assert 'weights="demo"' in code
    code = (
        code.replace('weights="demo"', 'weights="random", seed=7')
        .replace('"tinyvit"', '"test.tinyvit64"')
        .replace("[320, 200]", "[20, 12]")
    )
    code = code.replace("[100, 50, 500, 350]", "[5, 5, 30, 20]")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("(1, 27, 40)") == 2


def test_every_command_and_option_that_is_named_exists():
    assert set(re.findall(r"`samexport ([a-z-]+)", PAGES)) <= set(COMMANDS)
    known = set().union(*map(options, COMMANDS.values()))
    assert set(re.findall(r"`(--[a-z-]+)", PAGES)) <= known | {"--json"}
    assert "--receipt" not in known  # what this test would not have noticed before


def test_every_printed_command_line_takes_its_options():
    joined = PAGES.replace("\\\n", " ")
    lines = re.findall(r"samexport ([a-z0-9-]+)( [^`|\n&]*)", joined)
    assert len(lines) > 10
    for command, rest in lines:
        if command in COMMANDS:
            assert set(re.findall(r"(--[a-z-]+)", rest)) <= options(COMMANDS[command]), (command, rest)


def test_every_link_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "DESIGN.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
