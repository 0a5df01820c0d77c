"""Everything that is written and what is read from strangers: whole files, whole folders, bounded JSON.

A file or folder appears complete by one rename, or not at all. Only regular files are read, and only up to a size.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samexport.errors import BundleError, ConfigError, FileError

if TYPE_CHECKING:
    from filelock import FileLock

PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif",
)  # fmt: skip
"""What is taken from a folder of pictures; a file that is named is tried whatever it is called."""

JSON_LIMIT = 64 << 20
JSON_DEPTH = 100
_NEARLY_FULL = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOCK, _NEW, _OLD = "lock", "new", "old"


def reason(error: BaseException) -> str:
    """The first line of an error, at most 200 characters, for a message of one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # torch colours its messages
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; FileError for a pipe, a device, a folder, or what cannot be read."""
    try:
        # without O_NONBLOCK, opening a pipe waits for its writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise FileError(f"{path} is not a regular file")
            yield stream
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {reason(error)}") from error


def as_path(given: Any, wanted: str) -> Path:
    """The path that a caller gave as str or Path; ConfigError for anything else says what is ``wanted``."""
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str):
        raise ConfigError(f"{wanted}, not {in_words(given)}")
    return Path(path)


def in_words(given: Any) -> str:
    """A value that cannot be used, in a few words: itself where it is short, else its type."""
    short = given is None or isinstance(given, int | float | str | bytes)
    return f"{given!r:.60}" if short else f"an object of type {type(given).__name__}"


def read_bytes(path: Path, *, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes; FileError for anything else (a pipe, a device, a folder)."""
    with open_regular(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"{path} is larger than {limit >> 20} MiB, which is too large for what it should be")
    return data


def read_json(path: Path, *, limit: int = JSON_LIMIT) -> Any:
    """Strict JSON of bounded size and depth: no NaN, no Infinity, no key twice; FileError with the reason otherwise."""
    text = read_bytes(path, limit=limit)
    try:
        if _depth(text) > JSON_DEPTH:
            raise ValueError(f"nested deeper than {JSON_DEPTH}")
        return json.loads(text.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON: {reason(error)}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; readers differ in which of two values they take."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.60} is there more than once")
    return content


def _depth(text: bytes) -> int:
    """How deep brackets nest, those in strings left out."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def to_json(content: Any) -> str:
    """Indented JSON that every parser reads, keys sorted; ValueError for NaN and Infinity."""
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def sha256(path: Path) -> str:
    """SHA-256 of a regular file, or of the list of a folder's files with theirs (an .mlpackage is a folder).

    FileError for anything else.
    """
    if not path.is_dir():
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def check_room(folder: Path, size: int) -> None:
    """OSError for a full disk if ``folder`` has no room for ``size`` bytes.

    For the handlers of converters, which report a full disk in many ways.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_output(path: Path, *, force: bool, endings: Sequence[str] = (), inputs: Sequence[Path] = ()) -> None:
    """Refuse a path where a result cannot be written, before the work that makes it.

    Args:
        path: of a file; its folder must exist and be writable.
        force: whether an existing file may be replaced.
        endings: the allowed ones, such as ``.json``; empty allows all.
        inputs: files that are read; none of them may be the output.

    Raises:
        FileError: with what to do instead.
    """
    if endings and path.suffix.lower() not in endings:
        raise FileError(f"{path.name}: the name must end in {', '.join(endings)}")
    try:
        status = path.stat() if _is_there(path) and path.exists() else None
        same = status is not None and any(item.exists() and path.samefile(item) for item in inputs)
        writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileError(f"{_shown(path)} cannot be written: {reason(error)}; choose another name") from error
    if same:
        raise FileError(f"{path} is an input of this command; choose another name for the output")
    if bundle := _bundle_around(path):
        raise FileError(f"{_inside(path, bundle)}; choose another name")
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path} exists and is not a file; choose another name")
    if status is not None and not force:
        raise FileError(f"{path} exists; choose another name, or --force to replace it")
    if not writable:
        what = "may not be written to" if path.parent.is_dir() else "does not exist"
        raise FileError(f"{path} cannot be written: the folder {path.parent} {what}")


def check_outside_bundles(folder: Path) -> None:
    """Refuse a folder for results that is a bundle, or inside of one; FileError."""
    if bundle := _bundle_around(folder / "result"):
        raise FileError(f"{_inside(folder, bundle)}; choose another name")


def _inside(path: Path, bundle: Path) -> str:
    where = "a bundle" if path.resolve() == bundle else f"inside the bundle {bundle}"
    return f"{path} is {where}, which must stay as it was exported"


def _bundle_around(path: Path) -> Path | None:
    """The bundle that a path is in, whatever bundle it is: each file in it counts, and another one breaks it."""
    return next((f for f in path.resolve().parents if (f / "bundle.json").is_file() and (f / "golden").is_dir()), None)


def _is_there(path: Path) -> bool:
    """Whether the name is taken, a broken link included; OSError or ValueError for a name that no file can have."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _shown(path: Path) -> str:
    text = repr(str(path))[1:-1]
    return text if len(text) < 120 else f"{text[:100]}..."


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a private path beside ``path`` that becomes ``path`` by one rename when the block ends without an error.

    Raises:
        FileError: as :func:`check_output`, before the block and again before the rename; a full disk.
    """
    check_output(path, force=force)
    target = path.resolve()
    with _disk_errors(path, target.parent, FileError):
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        lock = _lock(folder)
        lock.acquire()
        try:
            (folder / _NEW).mkdir()
            private = folder / _NEW / target.name
            yield private
            _flush(private)
            check_output(path, force=force)
            private.replace(target)
        finally:
            lock.release()
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write a whole file in UTF-8; see :func:`new_file` for errors."""
    with new_file(path, force=force) as private:
        private.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


Refusal = Callable[[Path], str]


@contextlib.contextmanager
def new_folder(target: Path, *, force: bool = False, refusal: Refusal | None = None) -> Iterator[Path]:
    """Yield a private folder that becomes ``target`` by one rename when the block ends without an error.

    Whatever goes wrong, ``target`` is untouched. With ``force`` an existing folder is replaced if ``refusal``
    of it is empty; otherwise it says what in there is not ours.

    Raises:
        BundleError: ``target`` exists and may not be replaced, or cannot be written (permissions, full disk).
    """
    check_new_folder(target, force=force, refusal=refusal)
    # an absolute path, so that a block that changes the working folder does no harm
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        private = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {reason(error)}; choose another --out") from error
    lock = _lock(private)
    lock.acquire()
    try:
        with _disk_errors(target, private, BundleError):
            (private / _NEW).mkdir()
            yield private / _NEW
            for file in (private / _NEW).rglob("*"):
                if file.is_file():
                    _flush(file)
            _check_target(target, force, refusal)
            if target.exists():
                target.rename(private / _OLD)
            (private / _NEW).rename(target)
    finally:
        _tidy(private, target, lock)


def check_new_folder(target: Path, *, force: bool = False, refusal: Refusal | None = None) -> None:
    """Refuse a path where :func:`new_folder` will fail, before the work that fills it; makes nothing.

    Raises:
        BundleError: with what to do instead.
    """
    _check_target(target, force, refusal)
    try:
        str(target).encode()
        above = next(folder for folder in target.absolute().parents if folder.exists() or folder.is_symlink())
    except UnicodeEncodeError as error:
        raise BundleError(f"{target} is no valid text, which runtimes cannot open; choose another --out") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{_shown(target)} cannot be written: {reason(error)}; choose another --out") from error
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "may not be written to" if above.is_dir() else "is no folder"
        raise BundleError(f"{target} cannot be written: {above} {what}; choose another --out")


def _check_target(target: Path, force: bool, refusal: Refusal | None) -> None:
    try:
        if bundle := _bundle_around(target):
            raise BundleError(f"{_inside(target, bundle)}; choose another --out")
        if not _is_there(target):
            return
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{_shown(target)} cannot be written: {reason(error)}; choose another --out") from error
    if not force:
        raise BundleError(f"{target} exists; choose another --out, or --force to replace it")
    foreign = "it is a link" if target.is_symlink() else refusal(target) if refusal else "it is not ours"
    if foreign:
        raise BundleError(f"{target} exists and is not replaced: {foreign}; nothing was changed, choose another --out")


@contextlib.contextmanager
def _disk_errors(target: Path, folder: Path, kind: type[BundleError] | type[FileError]) -> Iterator[None]:
    """Errors of the disk under ``folder`` as one line; other errors of the block stay what they are.

    Converters report a full disk in many ways, so the disk is asked.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, OSError) and error.errno in _FULL
        if not ours:
            with contextlib.suppress(OSError):
                ours = shutil.disk_usage(folder).free < _NEARLY_FULL
        if ours:
            raise kind(f"{target} cannot be written: the disk is full; nothing was left there") from error
        names = [n for n in (getattr(error, "filename", None), getattr(error, "filename2", None)) if n]
        if isinstance(error, OSError) and any(str(folder) in str(name) for name in names):
            raise kind(f"{target} cannot be written: {reason(error)}; choose another place") from error
        raise


def _prefix(target: Path) -> str:
    # a name of 255 bytes leaves no room for the rest
    name = target.name if len(os.fsencode(target.name)) < 200 else hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".{name}.samexport-"


def _lock(folder: Path) -> FileLock:
    """The lock of a private folder; imported here, since help and version need no files."""
    from filelock import FileLock

    return FileLock(folder / _LOCK)


def _tidy(private: Path, target: Path, lock: FileLock) -> None:
    """Put back what a replacement that did not finish moved aside, and delete the rest."""
    old = private / _OLD
    try:
        if old.exists() and not target.exists():
            old.rename(target)
    except OSError as error:
        raise BundleError(f"{target} could not be put back ({reason(error)}); it is whole in {old}") from error
    finally:
        lock.release()
    shutil.rmtree(private, ignore_errors=True)


def sweep(target: Path) -> None:
    """Tidy up after processes that were killed: put an old folder back, delete what they had half written.

    What is locked belongs to a process that runs, perhaps on another machine.
    """
    ours = re.compile(re.escape(_prefix(target)) + r"\w{8}")
    for private in target.parent.iterdir():
        if not ours.fullmatch(private.name) or not (private / _LOCK).is_file():
            continue
        lock = _lock(private)
        try:
            lock.acquire(blocking=False)
        except OSError:
            continue
        _tidy(private, target, lock)


def _flush(file: Path) -> None:
    # Windows cannot flush a file that was opened for reading
    with file.open("r+b" if os.name == "nt" else "rb") as stream:
        os.fsync(stream.fileno())
