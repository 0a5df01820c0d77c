"""Copies the Android demo into the package when a wheel is built; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DEMO = Path(__file__).parent / "android_demo_assets"
# as in samexport/exporter/deliver/android.py, which cannot be imported here; its test compares
GENERATED = shutil.ignore_patterns("assets", "build", ".gradle", ".idea", ".kotlin", "local.properties")


class BuildPy(build_py):
    """Adds the demo; an editable installation finds it in the checkout."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "samexport" / DEMO.name
            shutil.copytree(DEMO, target, ignore=GENERATED, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildPy})
