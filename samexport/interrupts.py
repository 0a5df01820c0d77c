"""Ctrl-C reaches its goal although libraries lose it.

A ``KeyboardInterrupt`` that is raised in a callback of native code or in a destructor is printed and forgotten, and
converters wrap it in errors of their own.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, SimpleNamespace

_AGAIN_SECONDS = 1.0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the block: it is raised every second until the block ends, which then raises KeyboardInterrupt.

    Native code is only interrupted when it comes back to Python. Clean up outside the block, where no second
    interrupt comes. Changes nothing in threads other than the main one, or where Ctrl-C raises nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
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
