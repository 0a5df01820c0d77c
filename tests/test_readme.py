"""README shows only what runs."""

import re
from pathlib import Path

from samexport.cli import main as cli

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs_as_printed_on_a_small_model(tmp_path, monkeypatch, capsys, converted):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert 'ExportOptions("tinyvit"' in code
    code = code.replace('"tinyvit"', '"test.tinyvit64"').replace("[[320, 200]]", "[[20, 12]]")
    code = code.replace("[100, 50, 500, 350]", "[5, 5, 30, 20]")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("(1, 27, 40)") == 2


def test_every_command_and_option_that_is_named_exists():
    commands = {c.name or c.callback.__name__: c.callback for c in cli.app.registered_commands}
    named = set(re.findall(r"`?samexport ([a-z]+)", README)) - {"import"}
    assert named <= set(commands)
    options = set(re.findall(r"`(--[a-z-]+)", README))
    source = "\n".join(p.read_text() for p in Path(cli.__file__).parent.glob("*.py")).replace("_", "-")
    assert {o for o in options if o not in source and o.removeprefix("--") not in source} == set()
