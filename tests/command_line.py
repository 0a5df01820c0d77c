"""The command line in this process, and a picture for it."""

import sys

import numpy as np
import pytest
from PIL import Image

from samexport.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["samexport", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def one_line_error(err: str) -> str:
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    assert lines[-1].startswith("error: ")
    return lines[-1]


@pytest.fixture
def photo(tmp_path):
    y, x = np.mgrid[0:40, 0:60]
    path = tmp_path / "photo.png"
    Image.fromarray(np.stack([4 * x, 6 * y, x * y % 256], -1).astype(np.uint8)).save(path)
    return path
