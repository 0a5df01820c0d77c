import io
import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from samexport.quiet import silent


def test_what_c_code_writes_is_lost_and_later_output_is_not(capfd):
    with silent(output=True):
        os.write(1, b"library")
        os.write(2, b"library")
    os.write(1, b"after")
    os.write(2, b"after")
    assert capfd.readouterr() == ("after", "after")


def test_streams_that_lead_elsewhere_are_silenced_too(monkeypatch):
    """As in a notebook."""
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stdout", elsewhere)
    monkeypatch.setattr(sys, "stderr", elsewhere)
    with silent(output=True), silent(output=True):
        print("library")
        print("library", file=sys.stderr)
    assert sys.stdout is sys.stderr is elsewhere
    print("after")
    assert elsewhere.getvalue() == "after\n"


def test_output_comes_back_after_an_error(capfd):
    def fail():
        with silent(output=True):
            os.write(2, b"library")
            raise ValueError("reason")

    with pytest.raises(ValueError, match="reason"):
        fail()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_two_threads_that_overlap_give_output_back(capfd):
    entered, left = threading.Event(), threading.Event()

    def first():
        with silent(output=True):
            entered.set()
            left.wait(10)
            os.write(1, b"library")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    second = silent(output=True)
    second.__enter__()
    # the first one leaves while the second one is inside
    left.set()
    thread.join()
    os.write(1, b"library")
    second.__exit__(None, None, None)
    os.write(1, b"after")
    os.write(2, b"after")
    assert capfd.readouterr() == ("after", "after")


def test_many_threads_leave_no_descriptor_open(capfd):
    def work():
        for _ in range(50):
            with silent(output=True):
                os.write(2, b"library")

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_warnings_and_log_lines_come_back_as_they_were(capfd, recwarn):
    logging.disable(logging.DEBUG)
    try:
        with silent(), silent():
            warnings.warn("library", stacklevel=1)
            logging.getLogger("library").warning("library")
            print("is not silenced")
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert not recwarn.list
    warnings.warn("after", stacklevel=1)
    assert [str(w.message) for w in recwarn.list] == ["after"]
    assert capfd.readouterr() == ("is not silenced\n", "")


CODE = """
import os, sys
{prepare}
from samexport.quiet import silent
for _ in range(2):
    with silent(output=True):
        os.write(1, b"library")
        os.write(2, b"library")
{after}
"""


def said(prepare, after):
    run = subprocess.run([sys.executable, "-c", CODE.format(prepare=prepare, after=after)], capture_output=True)
    return run.returncode, run.stdout, run.stderr


def test_a_program_without_streams_is_silenced_too():
    assert said("sys.stdout = sys.stderr = None", "os.write(2, b'after')") == (0, b"", b"after")


def test_a_closed_standard_output_stays_closed():
    after = "try:\n    os.fstat(1)\nexcept OSError:\n    os.write(2, b'closed')"
    assert said("sys.stdout = None; os.close(1)", after) == (0, b"", b"closed")


def test_a_full_disk_behind_standard_output_is_no_error_here():
    prepare = "sys.stdout = open('/dev/full', 'w'); sys.stdout.write('lost')"
    # without Python's own complaint at its end
    assert said(prepare, "os.write(2, b'after'); os._exit(0)") == (0, b"", b"after")
