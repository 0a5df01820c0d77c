"""Remedies fit how samexport was installed, and never name it to a package index."""

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest

import samexport
from samexport import installation
from samexport.errors import MissingDependency
from samexport.installation import install_hint
from samexport.models.catalog import find_model
from samexport.runtimes.registry import RUNTIMES, open_runtime

ROOT = Path(samexport.__file__).parent
REQUIRES = [
    "numpy<2.4,>=1.26",
    'torch<2.14,>=2.10; extra == "export"',
    'ai-edge-litert>=2.3; extra == "litert"',
    "litert-torch<0.11,>=0.10 ; extra == 'tflite'",
    'samexport[export,litert]; extra == "tflite"',
    'samexport[tflite]; extra == "test"',
]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that samexport was installed as a package; ``noted`` is pip's direct_url.json."""
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "site-packages/samexport/installation.py"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)

    def make(noted):
        class Distribution:
            def read_text(self, name):
                return noted if name == "direct_url.json" else None

        monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution())

    make(None)
    return make


def checkout(folder):
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[project]\nname = 'samexport'\n")
    return folder


@pytest.mark.parametrize("noted", [None, "", "{", "[]", '{"url": 5}', '{"url": "https://example.com/samexport.whl"}'])
def test_a_package_gets_the_plain_packages(installed, noted):
    installed(noted)
    # what an extra includes of other extras comes too
    assert install_hint("tflite") == "pip install 'litert-torch<0.11,>=0.10' 'torch<2.14,>=2.10' 'ai-edge-litert>=2.3'"
    assert install_hint("test") == install_hint("tflite")
    assert install_hint("litert") == "pip install 'ai-edge-litert>=2.3'"
    assert install_hint(package="numpy") == "pip install 'numpy<2.4,>=1.26'"
    assert "as a package in" in str(installation.installation())


def test_a_folder_that_is_gone_is_no_remedy(installed, tmp_path):
    installed(json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}}))
    assert install_hint("tflite").startswith("pip install 'litert-torch")


def test_what_was_installed_from_a_folder_is_installed_from_it_again(installed, tmp_path, monkeypatch):
    folder = checkout(tmp_path / "a folder")
    installed(json.dumps({"url": folder.as_uri(), "dir_info": {}}))
    assert install_hint("tflite") == f"pip install '{folder}[tflite]'"
    monkeypatch.chdir(folder)
    assert install_hint("tflite") == "pip install '.[tflite]'"
    assert install_hint(package="numpy") == "pip install '.'"


def test_what_runs_from_a_checkout_stays_editable(installed, tmp_path, monkeypatch):
    folder = checkout(tmp_path / "checkout")
    monkeypatch.setattr(installation, "__file__", str(folder / "samexport/installation.py"))
    monkeypatch.chdir(folder)
    assert install_hint("coreml") == "pip install -e '.[coreml]'"
    assert str(installation.installation()) == f"runs from {folder}"


def test_without_metadata_there_is_still_a_command(installed, monkeypatch):
    def missing(_):
        raise importlib.metadata.PackageNotFoundError("samexport")

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert install_hint(package="torch") == "pip install torch"


def test_the_extras_of_the_runtimes_exist(installed, monkeypatch):
    monkeypatch.undo()
    known = importlib.metadata.metadata("samexport").get_all("Provides-Extra")
    assert {info.extra for info in RUNTIMES.values()} - {""} <= set(known)


def test_no_remedy_names_samexport_to_a_package_index():
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in ROOT.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"pip install \S*samexport|samexport\[", line)
    ]
    assert found == []


def test_a_missing_runtime_names_the_command(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "samexport.runtimes.adapters.litert", None)
    with pytest.raises(MissingDependency, match=r"litert needs .*: pip install 'ai-edge-litert>=2.3'"):
        open_runtime(Path("x"), find_model("tinyvit").graph("encoder"), "tflite")
