"""The official weight files: found in the cache or downloaded, and verified."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from samexport.errors import CheckpointError, FileError, MissingDependency
from samexport.files import new_file, open_regular, reason, sweep
from samexport.installation import install_hint
from samexport.models.spec import Adapter, CheckpointSource, ModelSpec

CACHE_VARIABLE = "SAMEXPORT_CACHE"
_BY_HAND = "give the file with --checkpoint FILE, or use --weights random"
_ADAPTER_BY_HAND = "give the file with --adapter FILE, or leave it out with --adapter identity"
_SCHEME = "https"
_MOST_OF_ADAPTER = 16 << 20
_CHUNK = 1 << 18
# seconds to connect, and between two pieces
_TIMEOUT = (15, 30)


def cache_folder() -> Path:
    """``$SAMEXPORT_CACHE``, else the platform's cache folder for samexport; it need not exist.

    Raises:
        CheckpointError: the variable names the home of a user who is not there.
    """
    import platformdirs

    chosen = os.environ.get(CACHE_VARIABLE)
    if not chosen:
        return platformdirs.user_cache_path("samexport", appauthor=False)
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{CACHE_VARIABLE} is {chosen!r}: {reason(error)}; set it to a folder") from error


def official_checkpoint(spec: ModelSpec) -> Path:
    """The official file in the cache, its sha256 verified; downloaded first if it is not there or damaged.

    A download is written beside its place and moved there once its sha256 is right.

    Raises:
        CheckpointError: nobody published the weights or their sha256, they cannot be fetched, or what arrived is
            another file.
    """
    if spec.source is None:
        raise CheckpointError(f"{spec.name} has no official weights; {_BY_HAND}")
    return _fetched(spec.source, _most_bytes(spec), _BY_HAND)


def official_adapter(adapter: Adapter) -> Path:
    """The same of a part's own file."""
    return _fetched(adapter, _MOST_OF_ADAPTER, _ADAPTER_BY_HAND)


def _fetched(source: CheckpointSource, limit: int, by_hand: str) -> Path:
    if source.sha256 is None:
        raise CheckpointError(
            f"nobody published the sha256 of {source.filename}, so it is not downloaded for you: get it from"
            f" {source.url}, then {by_hand}"
        )
    if urlsplit(source.url).scheme != _SCHEME:
        raise CheckpointError(f"{source.filename} is not downloaded, {source.url} is not https; {by_hand}")
    folder = cache_folder()
    target = folder / source.filename
    try:
        if target.exists() and _sha256(target) == source.sha256:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        sweep(target)
        with new_file(target, force=True) as private:
            _download(source, private, limit, by_hand)
    except (OSError, FileError) as error:
        raise CheckpointError(
            f"the cache folder {folder} cannot be used ({reason(error)}); set {CACHE_VARIABLE} to another one,"
            f" or {by_hand}"
        ) from error
    return target


def in_cache(spec: ModelSpec) -> bool:
    """Whether the official file is in the cache, by its name."""
    try:
        return spec.source is not None and (cache_folder() / spec.source.filename).is_file()
    except (CheckpointError, OSError):
        return False


def _sha256(path: Path) -> str:
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _most_bytes(spec: ModelSpec) -> int:
    """More than any file of these parameters in float32 has; it stops a body that never ends."""
    return 5 * spec.parameters + (1 << 20)


def _download(source: CheckpointSource, target: Path, limit: int, by_hand: str) -> None:
    """Write the file at ``target``; OSError where the disk is to blame, else CheckpointError."""
    try:
        import requests
    except ModuleNotFoundError as error:
        raise MissingDependency(f"downloading weights needs {error.name}: {install_hint('export')}") from error

    digest, size = hashlib.sha256(), 0
    try:
        with requests.get(source.url, stream=True, timeout=_TIMEOUT) as response, target.open("wb") as stream:
            response.raise_for_status()
            for chunk in _shown(response, source.filename):
                size += len(chunk)
                if size > limit:
                    raise _failed(source, f"it sends more than {limit} bytes: it is another file", by_hand)
                digest.update(chunk)
                stream.write(chunk)
    except requests.exceptions.HTTPError as error:
        raise _failed(source, f"the server answers {str(error).split(' for url')[0]}", by_hand) from error
    except requests.exceptions.RequestException as error:  # it is an OSError, but the disk is not to blame
        host = urlsplit(source.url).netloc
        raise _failed(
            source, f"no connection to {host}, or one that broke ({type(error).__name__})", by_hand
        ) from error
    if digest.hexdigest() != source.sha256:
        raise _failed(source, "what arrived is cut off or another file, its sha256 is wrong", by_hand)


def _failed(source: CheckpointSource, why: str, by_hand: str) -> CheckpointError:
    return CheckpointError(f"{source.filename} cannot be downloaded from {source.url}: {why}; {by_hand}")


def _shown(response: Any, name: str) -> Iterator[bytes]:
    """The pieces of the body, with a bar on a terminal, else one line."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"downloading {name}", file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        length = response.headers.get("Content-Length", "")
        task = bar.add_task(f"downloading {name}", total=int(length) if length.isdecimal() else None)
        for chunk in response.iter_content(_CHUNK):
            yield chunk
            bar.update(task, advance=len(chunk))
