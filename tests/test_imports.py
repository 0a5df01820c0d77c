"""The rooms of DESIGN.md, held by import-linter, and what may be imported before it is needed."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import samexport
from tests.command_line import photo as photo

ROOT = Path(samexport.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages(samexport.__path__, "samexport.")]
HEAVY = {"torch", "onnx", "onnxscript", "onnxslim", "coremltools", "litert_torch", "ai_edge_litert", "openvino"}


def source(module: str) -> ast.Module:
    path = ROOT.parent / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_rooms_of_the_design_are_kept():
    tool = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([tool, "--config", ROOT.parent / "pyproject.toml"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "5 kept, 0 broken" in run.stdout


@pytest.mark.parametrize(
    "module",
    [
        m
        for m in MODULES
        if m.startswith(
            ("samexport.runtimes", "samexport.models.spec", "samexport.models.families", "samexport.models.catalog")
        )
    ],
)
def test_runtimes_import_no_framework_at_module_level(module):
    top = [n for n in source(module).body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in top for name in imports(node)}
    own = {
        "samexport.runtimes.adapters.ort": {"onnxruntime"},
        "samexport.runtimes.adapters.openvino": {"openvino"},
    }.get(module, set())
    assert not (names & HEAVY) - own


BLOCK = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split(".")[0])
sys.meta_path.insert(0, Refuse())
"""
OPTIONAL = {
    "coremltools", "litert_torch", "ai_edge_litert", "ai_edge_quantizer", "openvino",
    "av", "matplotlib", "psutil", "scipy", "sklearn", "flatbuffers", "cv2", "skimage",
}  # fmt: skip


def test_every_module_imports_without_the_optional_extras():
    code = BLOCK.format(blocked=OPTIONAL) + f"[importlib.import_module(m) for m in {MODULES!r}]; print('ok')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "ok\n", run.stderr


def test_every_help_works_without_the_optional_extras():
    commands = [
        c.name or c.callback.__name__ for c in importlib.import_module("samexport.cli.main").app.registered_commands
    ]
    assert len(commands) >= 5
    lines = "\n".join(
        f"""
try:
    app([{command!r}, "--help"], prog_name="samexport")
except SystemExit as stop:
    assert stop.code == 0, {command!r}"""
        for command in commands
    )
    code = BLOCK.format(blocked=OPTIONAL | HEAVY) + "from samexport.cli.main import app\n" + lines
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


EXPORT_ONLY = {"torch", "onnxscript", "onnxslim", "onnxsim", "onnx_ir", "requests", "safetensors"}


def test_a_base_install_verifies_segments_and_lists(tiny_bundle, photo, tmp_path):
    lines = [
        ["verify", str(tiny_bundle.folder)],
        ["segment", str(tiny_bundle.folder), str(photo), "--point", "30,20", "--out", str(tmp_path / "mask.png")],
        ["everything", str(tiny_bundle.folder), str(photo), "--points-per-side", "4"],
        ["list"],
    ]
    code = BLOCK.format(blocked=EXPORT_ONLY) + (
        f"from samexport.cli.main import app\nfor line in {lines!r}: app(line, standalone_mode=False)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "mask.png").is_file()
