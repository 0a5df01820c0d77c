"""Ctrl-C reaches its goal although libraries lose it.

A ``KeyboardInterrupt`` that is raised in a callback of native code or in a destructor is printed and forgotten, and
converters wrap it in errors of their own.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, SimpleNamespace

_AGAIN_SECONDS = 1.0


def _raises() -> bool:
    """Whether Ctrl-C is answered by a function, in this thread."""
    return threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT))


class _Gate:
    """Stands before each import, where an exception harms nobody."""

    pressed = False

    def press(self, number: int, frame: FrameType | None) -> None:
        """Note Ctrl-C."""
        self.pressed = True

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Let others find the module."""
        if self.pressed:
            raise KeyboardInterrupt


def load(*packages: str) -> None:
    """Import packages with native code, which can crash when it is interrupted: Ctrl-C waits for the next import.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    before, gate, waits = signal.getsignal(signal.SIGINT), _Gate(), _raises()
    if waits:
        signal.signal(signal.SIGINT, gate.press)
    sys.meta_path.insert(0, gate)
    try:
        for package in packages:
            importlib.import_module(package)
    finally:
        sys.meta_path.remove(gate)
        if waits:
            signal.signal(signal.SIGINT, before)
        if gate.pressed:
            # to whom it belongs, whatever came of it in between
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the block: it is raised every second until the block ends, which then raises KeyboardInterrupt.

    Native code is only interrupted when it comes back to Python. Clean up outside the block, where no second
    interrupt comes. Changes nothing in threads other than the main one, or where Ctrl-C raises nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if not _raises() or not callable(before):
        yield
        return
    state = SimpleNamespace(pressed=False, over=False)

    def again() -> None:
        while True:
            time.sleep(_AGAIN_SECONDS)
            if state.over:
                return
            _thread.interrupt_main()

    def press(number: int, frame: FrameType | None) -> None:
        if state.over:
            return
        if state.pressed:
            raise KeyboardInterrupt
        try:
            before(number, frame)
        except KeyboardInterrupt:
            state.pressed = True
            # a handler may interrupt what holds the locks of threading
            _thread.start_new_thread(again, ())
            raise

    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        state.over = True
        signal.signal(signal.SIGINT, before)
        if state.pressed:
            # whatever came of it inside
            raise KeyboardInterrupt from None
