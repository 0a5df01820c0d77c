"""Streams, signals and exit codes around every command, in this process and in real ones."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import samexport
from samexport.cli import guard
from samexport.cli.guard import guarded, interrupted
from samexport.cli.terminal import Steps
from samexport.errors import BundleError, ConfigError, ExportFailed, ParityFailed

ROOT = Path(samexport.__file__).parent.parent
posix = pytest.mark.skipif(os.name == "nt", reason="signals and descriptors of POSIX")


def out_of_memory():
    try:
        raise MemoryError("Unable to allocate 3.00 TiB")
    except MemoryError as error:
        raise BundleError("the picture is damaged") from error


def raising(error):
    def command():
        raise error

    return command


def internal():
    {}["missing"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (raising(ConfigError("no such thing; do this")), 2, "no such thing; do this"),
        (raising(ExportFailed("the converter failed")), 1, "the converter failed"),
        (raising(ParityFailed("2 checks failed", ("a: wrong", "b: wrong"))), 1, "2 checks failed"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
        (raising(MemoryError()), 2, "not enough memory"),
        (raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")), 2, "not enough memory"),
        (out_of_memory, 2, "not enough memory"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "/x/y")), 2, "/x/y: No space left on device"),
        (raising(PermissionError(errno.EACCES, "Permission denied", "/x/y")), 2, "/x/y: Permission denied"),
        (raising(OSError("odd")), 70, "please report it"),
        (internal, 70, "KeyError: 'missing' (test_guard.py"),
        (raising(RecursionError("too deep")), 70, "please report it"),
        (raising(SystemExit(3)), 3, ""),
        (lambda: None, 0, ""),
        (lambda: 2, 2, ""),
    ],
)  # fmt: skip
def test_whatever_happens_is_one_line_and_an_exit_code(capsys, monkeypatch, command, code, words):
    monkeypatch.delenv(guard.TRACEBACK, raising=False)
    assert guarded(command) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (out, len(lines), words in err) == ("", int(bool(words)), True), err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line not in lines] == (
        ["FAIL  a: wrong", "FAIL  b: wrong"] if "checks" in words else []
    )


def test_the_traceback_is_shown_on_demand(capsys, monkeypatch):
    monkeypatch.setenv(guard.TRACEBACK, "1")
    assert guarded(internal) == 70
    err = capsys.readouterr().err
    assert 'File "' in err
    assert err.splitlines()[-1].startswith("error: samexport itself failed")


def test_names_in_an_error_can_neither_break_the_line_nor_steer_the_terminal(capsys):
    guarded(raising(ConfigError("a\nb\x1b[2Jc\udcffd\u202ee ü 日本")))
    err = capsys.readouterr().err
    assert err == "error: a\\nb\\x1b[2Jc\\udcffd\\u202ee ü 日本\n"


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_standard_output_does_not_stop_the_work(monkeypatch, capsys):
    done = []

    def command():
        for number in range(3):
            print("x" * 10)
            done.append(number)

    monkeypatch.setattr(sys, "stdout", Full())
    assert guarded(command) == 74
    assert done == [0, 1, 2]
    assert capsys.readouterr().err.startswith("error: standard output cannot be written (No space left")
    assert guarded(lambda: (print("x"), raising(ParityFailed("wrong"))())) == 1


def test_a_program_without_a_console_works(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert guarded(lambda: (print("x"), sys.stdout.flush(), sys.stderr.write("y"))[:0] and None) == 0
    assert guarded(raising(ConfigError("no"))) == 2
    assert (sys.stdout, sys.stderr) == (None, None)


def test_a_closed_standard_output_is_noticed_only_where_something_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert guarded(lambda: None) == 0
    assert guarded(lambda: print("x")) == 74
    assert "it is closed" in capsys.readouterr().err


def test_what_cannot_be_encoded_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert guarded(lambda: print("ü\udcff")) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"\\xfc\\udcff\n"


# real processes


def run(arguments, *, redirect="", environment=None, cwd=None):
    command = f'exec "{sys.executable}" -m samexport "$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", command, "samexport", *map(str, arguments)],
        capture_output=True, text=True, errors="backslashreplace", timeout=120, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )  # fmt: skip


@posix
@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["list", "--json"], ["--help"], ["doctor", "--help"]])
def test_output_that_cannot_be_delivered_is_exit_code_74(arguments, redirect):
    done = run(arguments, redirect=redirect)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (74, "", 1), done.stderr
    assert done.stderr.startswith("error: standard output")


@posix
def test_a_reader_that_goes_away_is_exit_code_74():
    done = run(["list", "--json"], redirect="| head -c 1; exit ${PIPESTATUS[0]}")
    # a pipe holds the whole list, so nobody notices; then it is done
    assert done.returncode in (0, 74)
    code = "import sys; from samexport.cli.guard import guarded; sys.exit(guarded(lambda: print('x' * 1_000_000)))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$1" | head -c 1; exit ${{PIPESTATUS[0]}}', "x", code],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (74, 1), done.stderr
    assert "Broken pipe" in done.stderr


@posix
@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_the_report_is_whole_wherever_the_table_goes(tiny_bundle, tmp_path, redirect):
    done = run(["verify", tiny_bundle.folder, "--report", tmp_path / "report.json"], redirect=redirect)
    assert done.returncode == (0 if "2>&-" in redirect else 74)
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "PASS"


@posix
def test_names_beyond_ascii_are_printed_with_replacement_and_written_in_utf_8(tiny_bundle, tmp_path):
    (tmp_path / "ü日本").symlink_to(tiny_bundle.folder)
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        (tmp_path / "ü.md").unlink(missing_ok=True)
        arguments = ("verify", "ü日本", "--report", "ü.md")
        done = run(arguments, environment=environment, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert "checks PASS" in done.stdout
        (tmp_path / "ü.md").read_text(encoding="utf-8")
    done = run(["verify", "ü日本", "--json"], environment={"PYTHONIOENCODING": "ascii"}, cwd=tmp_path)
    assert json.loads(done.stdout)["bundle"] == "ü日本"


@posix
def test_a_bundle_whose_name_is_no_text_is_verified(tiny_bundle, tmp_path):
    name = os.fsdecode(b"b\xff")
    (tmp_path / name).symlink_to(tiny_bundle.folder)
    done = run(["verify", name, "--report", "report.xml"], cwd=tmp_path)
    assert (done.returncode, f"{name}: ".encode("utf-8", "backslashreplace").decode() in done.stdout) == (0, True)
    assert 'failures="0"' in (tmp_path / "report.xml").read_text(encoding="utf-8")
    done = run(["verify", name, "--json"], cwd=tmp_path)
    assert json.loads(done.stdout)["bundle"] == name


def test_python_m_samexport_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "samexport", "--version"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{samexport.__version__}\n", "")


@posix
def test_ctrl_c_while_the_command_line_is_imported_is_one_line():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["samexport"]
    assert script == "samexport.__main__:main"
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from samexport.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


WAITS = """
import sys, time
from pathlib import Path
from samexport.cli.guard import guarded
from samexport.files import new_folder

def command():
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.exit(guarded(command))
"""


def started(code, *arguments, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing_half_written_and_one_line(tmp_path, name, code):
    process = started(WAITS, tmp_path / "bundle")
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n"), err.startswith("error: ")) == (code, 1, True), err
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    code = WAITS.replace("time.sleep(60)", "sys.stdin.read()")
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = started(ignore + code, tmp_path / "bundle", stdin=subprocess.PIPE)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate("", timeout=60)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "bundle" / "half").is_file()


def swallowed():
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        return


def test_a_library_that_swallows_ctrl_c_gets_as_far_as_the_next_step(capsys):
    reached = []

    def command():
        with Steps(2) as steps:
            steps.update("converting")
            swallowed()
            steps.update("checking")
            reached.append("checking")

    assert guarded(command) == 130
    assert reached == []
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; nothing is left half written"


def test_a_library_that_turns_ctrl_c_into_its_own_error_is_still_interrupted(capsys):
    def command():
        swallowed()
        raise ExportFailed("TorchExportError")

    assert guarded(command) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing is left half written\n"
    assert guarded(lambda: None) == 0, "the next command in this process is not interrupted"
    assert not interrupted.is_set()


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    guarded(lambda: time.sleep(0))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_errors_that_were_raised_in_a_circle_end_in_one_line(monkeypatch, capsys):
    first, second = ConfigError("first"), ConfigError("second")
    first.__context__, second.__context__ = second, first

    def command():
        raise first

    assert guard.guarded(command) == 2
    assert capsys.readouterr().err == "error: first\n"
