"""Finds Node, its packages and Chromium, and drives the page; what is missing fails tests in CI and skips elsewhere."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from samexport.exporter.deliver.web_runtime import LITERT, ORT

HERE = Path(__file__).parent
PACKAGES = (ORT.wanted, LITERT.wanted, "playwright-core@1.65.1", "typescript@7.0.2")
INSTALL = (
    "apt-get install nodejs npm chromium (Node 20.19 or later); "
    f"npm install --prefix DIR {' '.join(PACKAGES)}; export SAMEXPORT_WEB_TOOLS=DIR"
)
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def module(name):
    """An installed npm package's folder, or None."""
    folder = Path(os.environ.get("SAMEXPORT_WEB_TOOLS", "")) / "node_modules" / name
    return folder.absolute() if "SAMEXPORT_WEB_TOOLS" in os.environ and folder.is_dir() else None


def chromium():
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def require(*packages, browser=False):
    """Fail in CI, skip elsewhere, where a tool is missing; the reason says how to install all of them."""
    missing = ["node"] * (not shutil.which("node")) + ["chromium"] * (browser and not chromium())
    missing += [name for name in packages if module(name) is None]
    if missing:
        reason = f"the web page is not checked, {', '.join(missing)} is missing: {INSTALL}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, more, **kwargs):
        self.more = more
        super().__init__(*args, **kwargs)

    def end_headers(self):
        for name, value in self.more.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def served(folder, headers=None):
    """Serve a folder as ``python -m http.server`` does, with more headers: its address."""
    handler = functools.partial(_Quiet, directory=folder, more=headers or {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def drive(folder, jobs, **browser):
    """Have one Chromium do the jobs of ``browser.mjs`` in turn: what each found, plain data."""
    require("playwright-core", browser=True)
    modules = str(Path(os.environ["SAMEXPORT_WEB_TOOLS"]).absolute())
    path = folder / "jobs.json"
    path.write_text(json.dumps({"chromium": chromium(), "modules": modules, "jobs": jobs, **browser}))
    run = subprocess.run(["node", HERE / "browser.mjs", path], capture_output=True, text=True, timeout=550)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
