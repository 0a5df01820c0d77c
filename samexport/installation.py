"""How this samexport was installed, and so which command adds what is missing.

The name samexport is on no package index, where anyone could take it, so no remedy tells pip to look for it there.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from samexport.errors import MissingDependency

_NAME = "samexport"
_PROJECT = "pyproject.toml"


@dataclass(frozen=True)
class Installation:
    """``checkout`` is the folder that it was installed from and that is still there; ``editable``: it runs from it."""

    checkout: Path | None
    editable: bool

    def __str__(self) -> str:
        """In a few words, for `samexport doctor`."""
        if self.checkout is None:
            return f"as a package in {Path(__file__).parent}"
        return f"{'runs from' if self.editable else 'installed from'} {self.checkout}"


def installation() -> Installation:
    """Look at where this code lies, and at what pip noted when it installed it."""
    around = Path(__file__).parent.parent
    if (around / _PROJECT).is_file():
        return Installation(around, editable=True)
    source = _noted_folder()
    return Installation(source, editable=False)


def _noted_folder() -> Path | None:
    try:
        noted = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
        address = urlsplit(json.loads(noted or "{}")["url"])
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    folder = Path(url2pathname(address.path))
    return folder if address.scheme == "file" and (folder / _PROJECT).is_file() else None


def install_hint(extra: str = "", *, package: str = "") -> str:
    """The command that installs what an extra of samexport needs, or one package that samexport itself needs.

    From a checkout it installs that again, else the plain packages.

    Args:
        extra: such as ``tflite``.
        package: its name on the package index, such as ``torch``.
    """
    found = installation()
    if found.checkout is not None:
        here = "." if found.checkout == Path.cwd() else str(found.checkout)
        return f"pip install {'-e ' if found.editable else ''}'{here}{f'[{extra}]' if extra else ''}'"
    wanted = [r for r in _requirements(extra) if not package or _name(r) == package]
    return f"pip install {' '.join(map(shlex.quote, wanted or [package or extra]))}"


def need_matplotlib() -> None:
    """MissingDependency where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency(f"plots need matplotlib: {install_hint('bench')}") from error


def _requirements(extra: str) -> list[str]:
    """What an extra requires, such as ``ai-edge-litert>=2.3``, and what the extras that it includes do."""
    try:
        lines = importlib.metadata.requires(_NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    pairs = [line.partition(";") for line in lines]
    marker = rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]" if extra else r"^(?!.*\bextra\b)"
    found = [wanted.strip() for wanted, _, rest in pairs if re.search(marker, rest)]
    included = [name for line in found if _name(line) == _NAME for name in re.findall(r"[\w-]+", line[len(_NAME) :])]
    own = [line for line in found if _name(line) != _NAME]
    return list(dict.fromkeys([*own, *(line for name in included for line in _requirements(name))]))


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]
