import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from samexport import interrupts
from samexport.interrupts import interruptible, load


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(interrupts, "_AGAIN_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def handler():
    # a shell starts what runs in its background with interrupts ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def wait():
    """Ten seconds of work, during which interrupts arrive."""
    for _ in range(1000):
        time.sleep(0.01)


def swallowed_once():
    with contextlib.suppress(KeyboardInterrupt):
        press()
    wait()


def swallowed_at_the_end():
    try:
        press()
    except KeyboardInterrupt:
        return


def wrapped():
    try:
        press()
    except KeyboardInterrupt as error:
        raise RuntimeError("Failed to export the model") from error


def lost_in_a_destructor():
    class Lost:
        def __del__(self):
            press()

    Lost()
    wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("library", [swallowed_once, swallowed_at_the_end, wrapped, lost_in_a_destructor, press])
def test_whatever_a_library_does_with_it_ctrl_c_ends_the_block(library):
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        library()
    assert time.monotonic() - start < 5
    assert caught.value.__cause__ is None


def test_no_second_interrupt_comes_after_the_block():
    with pytest.raises(KeyboardInterrupt), interruptible():
        press()
    time.sleep(0.2)


def test_blocks_inside_each_other_all_end():
    seen = []

    def library():
        try:
            with interruptible():
                swallowed_at_the_end()
        except KeyboardInterrupt:
            seen.append("inner")

    with pytest.raises(KeyboardInterrupt), interruptible():
        library()
    assert seen == ["inner"]


def test_errors_and_results_pass_where_nobody_presses():
    with pytest.raises(ValueError, match="reason"), interruptible():
        raise ValueError("reason")
    with interruptible():
        pass


def test_other_threads_and_other_handlers_are_left_alone():
    outcome = []

    def work():
        with interruptible():
            outcome.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [signal.getsignal(signal.SIGINT)]

    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with interruptible():
            press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [1]


def test_ctrl_c_while_a_package_is_imported_comes_before_the_next_import(tmp_path, monkeypatch):
    """Not in the middle of one: native code would crash."""
    pressing = (
        "import signal, sys\nsignal.raise_signal(signal.SIGINT)\nsys.reached = 1\nimport next_one\nsys.reached = 2\n"
    )
    (tmp_path / "pressing.py").write_text(pressing)
    (tmp_path / "next_one.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "reached", 0, raising=False)
    with pytest.raises(KeyboardInterrupt), interruptible():
        load("pressing")
    assert sys.reached == 1
    assert not {"pressing", "next_one"} & set(sys.modules)


def test_a_package_that_is_not_installed_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        load("no_such_package")


CONVERT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
import torch
from samexport.models.spec import GraphSpec, TensorSpec

class Twice(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)

graph = GraphSpec("encoder", "", (TensorSpec("x", (1, 4), ""),), (TensorSpec("y", (1, 4), ""),))
folder = Path(sys.argv[2])
if sys.argv[1] == "onnx":
    from samexport.exporter.to_onnx.convert import OnnxOptions, convert
    write = lambda: convert(graph, Twice(), folder / "x.onnx", OnnxOptions())
elif sys.argv[1] == "tflite":
    from samexport.exporter.to_tflite.convert import convert
    write = lambda: convert(graph, Twice(), folder / "x.tflite")
else:
    from samexport.exporter.to_coreml.convert import CoreMLOptions, convert
    from samexport.exporter.to_coreml.package import PackageTexts
    write = lambda: convert(graph, Twice(), folder / "x.mlpackage", CoreMLOptions(), PackageTexts("", "", ""))
print("converts", flush=True)
try:
    write()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("file_format", ["onnx", "tflite", "coreml"])
def test_ctrl_c_ends_a_conversion_and_leaves_nothing(tmp_path, file_format):
    if (
        importlib.util.find_spec({"onnx": "onnx", "tflite": "litert_torch", "coreml": "coremltools"}[file_format])
        is None
    ):
        pytest.skip("the converter is not installed")
    with subprocess.Popen(
        [sys.executable, "-c", CONVERT, file_format, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"converts\n"
        # while the converter's packages are imported, where native code loses exceptions
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said.decode()
    assert os.listdir(tmp_path) == []
    assert b"Traceback" not in said or b"Exception ignored" in said
