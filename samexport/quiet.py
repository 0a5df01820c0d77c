"""Silence libraries that write to the process's file descriptors, past Python's ``sys.stderr``."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_descriptors() -> Iterator[None]:
    """While open, what anyone in this process writes to stdout or stderr is lost.

    Not for long: it also swallows what other threads say.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = [os.dup(number) for number in (1, 2)]
    try:
        with tempfile.TemporaryFile() as sink:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            yield
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
