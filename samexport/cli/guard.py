"""What surrounds every command: the output streams, the signals, and one line and an exit code for whatever happens.

Exit codes: 0 done and verified; 1 a check failed; 2 the input cannot be used (or there is too little memory or disk);
70 an error of samexport itself; 74 standard output is closed or full; 130 Ctrl-C; 128 + n ended by signal n.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

import typer

import samexport
from samexport.errors import ParityFailed, SamExportError, causes

INTERNAL, OUTPUT_LOST, INTERRUPTED = 70, 74, 130
TRACEBACK = "SAMEXPORT_TRACEBACK"
"""Environment variable; where it is set, errors come with their traceback."""

interrupted = threading.Event()
"""Ctrl-C was pressed. Libraries swallow its exception; who goes on with the next step asks here."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# what allocators other than Python's say
_NO_MEMORY = ("can't allocate memory", "bad allocation", "bad_alloc", "out of memory", "Unable to allocate")


def guarded(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; every error has become one line on stderr.

    Where standard output cannot be written the command still ends its work: a finished bundle is worth more than
    the table about it.
    """
    interrupted.clear()
    before = sys.stdout, sys.stderr
    out, err = _Stream(before[0]), _Stream(before[1])
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        with _closed_descriptors(before), _signals():
            code = _outcome(command)
        out.flush()
        # a program without a console has neither stream, and nobody who waits for the answer
        if out.error is not None and before != (None, None) and not code:
            _say(f"standard output cannot be written ({out.error.strerror}); what was printed there is lost")
            code = OUTPUT_LOST
        return code
    finally:
        sys.stdout, sys.stderr = before


def _outcome(command: Callable[[], object]) -> int:
    try:
        # typer returns the code of what ended early, such as --help
        result = command()
        code = result if isinstance(result, int) else 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.__context__, OSError):
            # typer takes every broken pipe for standard output's
            code = _explain(stop.__context__)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = INTERRUPTED if interrupted.is_set() else _explain(error)
    if interrupted.is_set() or code == INTERRUPTED:
        _say("interrupted; nothing is left half written")
        return INTERRUPTED
    if code > 128:
        _say(f"ended by {signal.Signals(code - 128).name}; nothing is left half written")
    return code


def _explain(error: Exception) -> int:
    """Say what went wrong in one line, and choose the exit code."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if hasattr(error, "format_message"):
        return _usage(error)
    if _lacks_memory(error):
        _say(f"there is not enough memory: {one_line(str(error)) or 'no more was given'}; close other programs")
        return 2
    if isinstance(error, SamExportError):
        for line in error.details if isinstance(error, ParityFailed) else ():
            print(f"FAIL  {one_line(line)}", file=sys.stderr)
        _say(str(error))
        return error.exit_code
    if isinstance(error, OSError) and (error.filename or error.errno in _FULL):
        _say(f"{error.filename or 'writing'}: {error.strerror}")
        return 2
    what = f"{type(error).__name__}: {error}"[:300]
    _say(f"samexport itself failed: {what} ({_place(error)}); please report it with what {TRACEBACK}=1 makes it print")
    return INTERNAL


def _place(error: Exception) -> str:
    """The line of this package that was running."""
    root = Path(samexport.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(root) and f.filename != __file__] or frames
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"


def _usage(error: Any) -> int:
    """An option or command that does not exist or cannot be used so; click's errors have no common public base."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "samexport")
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    _say(f"{message}; see `{path} --help`")
    return int(error.exit_code)


def _lacks_memory(error: BaseException) -> bool:
    return any(isinstance(c, MemoryError) or any(words in str(c) for words in _NO_MEMORY) for c in causes(error))


def _say(message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """The text with everything escaped that would break the line or steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Stream:
    """Standard output or error that never fails: what cannot be encoded is escaped, what cannot be written is lost.

    ``error`` is the first that writing met. ``stream`` None is a stream that was closed before the start.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error: OSError | None = None
        self._absent = stream is None
        self._stream = stream or open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if self._absent and text:
            self._give_up(OSError(errno.EBADF, "it is closed"))
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        with contextlib.suppress(OSError, ValueError):
            # the interpreter flushes once more when it ends
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _closed_descriptors(streams: tuple[TextIO | None, TextIO | None]) -> Iterator[None]:
    """Occupy the numbers of closed standard streams, or the next file that is opened gets what C code prints."""
    taken = []
    if None in (*streams, sys.stdin):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            taken.append(number)
        os.close(number)
    try:
        yield
    finally:
        for number in taken:
            os.close(number)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C is noted besides; SIGTERM and SIGHUP unwind like an error, so that private files are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    wanted = {signal.SIGINT: (signal.default_int_handler, interrupt), signal.SIGTERM: (signal.SIG_DFL, end)}
    if hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = (signal.SIG_DFL, end)
    # a signal that is ignored, as nohup does it, stays ignored
    before = {n: usual for n, (usual, _) in wanted.items() if signal.getsignal(n) == usual}
    for number in before:
        signal.signal(number, wanted[number][1])
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
