"""Silence libraries, also those that write to the process's file descriptors, past Python's ``sys.stderr``."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TextIO

_STREAMS = (1, 2)


class _Shared:
    """A context that several threads may be in at a time: the first one enters it, the last one leaves it.

    Each saving and restoring for itself, the second one would save what the first one had put there.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make, self._lock, self._inside = make, threading.Lock(), 0
        self._context: AbstractContextManager[None] = contextlib.nullcontext()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._context = self._make()
                self._context.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._context.__exit__(None, None, None)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    _flush()
    # taken first, so that nothing else gets the number of a stream that the caller has closed
    sink = os.open(os.devnull, os.O_WRONLY)
    saved = {number: _duplicate(number) for number in _STREAMS if number != sink}
    for number in saved:
        os.dup2(sink, number)
    # where these do not lead to the descriptors, as in a notebook
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = _nowhere()
    try:
        yield
    finally:
        _flush()
        sys.stdout, sys.stderr = streams
        for number, copy in saved.items():
            if copy is None:
                os.close(number)
            else:
                os.dup2(copy, number)
                os.close(copy)
        os.close(sink)


@functools.cache
def _nowhere() -> TextIO:
    """Never closed: what is imported meanwhile may keep it."""
    return open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # there is none without a console; it may be closed, or go to a full disk
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


_warnings, _output = _Shared(_no_warnings), _Shared(_no_output)


@contextlib.contextmanager
def silent(*, output: bool = False) -> Iterator[None]:
    """While open, warnings and log lines below an error are lost.

    With ``output`` so is all that anyone in this process writes to stdout or stderr, other threads too.
    """
    with _warnings(), _output() if output else contextlib.nullcontext():
        yield
