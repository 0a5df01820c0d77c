"""Find, download, verify and safely read weight files, and give their tensors the official state-dict names.

Nothing in a file is ever run: torch reads it with ``weights_only=True``, and there is no other way in.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from samexport.errors import CheckpointError, ConfigError
from samexport.models.spec import CheckpointSource, ModelSpec
from samexport.models.weights.random_weights import random_state_dict

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "SAMEXPORT_CACHE"
_BY_HAND = "give the file with --checkpoint FILE, or use --weights random"
_ENDINGS = (".pt", ".pth", ".safetensors")
_WRAPPERS = ("model", "state_dict")
_DECODER_PARTS = {"PromtEncoder": "prompt_encoder.", "MaskDecoder": "mask_decoder."}  # sic
_ENCODER = "image_encoder."


@dataclass(frozen=True)
class Weights:
    """A state dict that fits its model, and where it came from.

    ``source`` has the name of each file, without its folder, in the order of merging; ``sha256`` has the hash of
    each. Both are joined by " + ". Random weights have a ``seed`` instead of a hash.
    """

    state: Mapping[str, Tensor]
    kind: Literal["random", "checkpoint"]
    source: str
    sha256: str | None
    seed: int | None


def load_weights(
    spec: ModelSpec,
    expected: Mapping[str, Tensor],
    *,
    checkpoints: Sequence[Path] = (),
    decoder: Path | None = None,
    random_seed: int | None = None,
) -> Weights:
    """Weights for the model whose own state dict is ``expected``; only its keys, shapes and dtypes count.

    ``checkpoints`` are merged in order. Without any, the official file is taken from the cache or downloaded.
    ``decoder`` is a file whose prompt encoder and mask decoder take the place of theirs.

    Raises:
        ConfigError: both checkpoints and random weights are asked for.
        CheckpointError: a file is absent, damaged or unsafe, or together they are not this model's weights.
    """
    if random_seed is not None:
        if checkpoints or decoder:
            raise ConfigError("random weights and a checkpoint exclude each other; give one of them")
        return Weights(_random_state(expected, random_seed), "random", f"seed {random_seed}", None, random_seed)
    paths = tuple(checkpoints) or (official_checkpoint(spec),)
    merged = _merge(paths, expected)
    if decoder is not None:
        paths = (*paths, decoder)
        merged = {key: value for key, value in merged.items() if key.startswith(_ENCODER)} | _decoder_of(decoder)
    hashes = [_sha256(path) for path in paths]
    state = _fit(merged, expected, f"{' + '.join(map(str, paths))} does not fit {spec.name}")
    return Weights(state, "checkpoint", " + ".join(path.name for path in paths), " + ".join(hashes), None)


def _random_state(expected: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    import torch

    wanted = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in expected.items()}
    return {key: torch.from_numpy(array) for key, array in random_state_dict(wanted, seed).items()}


def cache_folder() -> Path:
    """``$SAMEXPORT_CACHE``, else the platform's cache folder for samexport; it need not exist."""
    import platformdirs

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("samexport", appauthor=False)


def official_checkpoint(spec: ModelSpec) -> Path:
    """The official file in the cache, its sha256 verified; downloaded first if it is not there or damaged.

    A download is written beside its place and moved there once its sha256 is right.

    Raises:
        CheckpointError: nobody published the weights or their sha256, they cannot be fetched, or what arrived is
            another file.
    """
    source = spec.source
    if source is None:
        raise CheckpointError(f"{spec.name} has no official weights; {_BY_HAND}")
    if source.sha256 is None:
        raise CheckpointError(
            f"nobody published the sha256 of {source.filename}, so it is not downloaded for you: get it from"
            f" {source.url}, then {_BY_HAND}"
        )
    url = urlsplit(source.url)
    if url.scheme != "https" and (url.scheme, url.hostname) != ("http", "127.0.0.1"):
        raise CheckpointError(f"{source.filename} is not downloaded, {source.url} is not https; {_BY_HAND}")
    folder = cache_folder()
    try:
        return _retrieve(source, source.sha256, folder)
    except OSError as error:
        raise CheckpointError(
            f"the cache folder {folder} cannot be used ({error.strerror or type(error).__name__});"
            f" set {CACHE_VARIABLE} to another one, or {_BY_HAND}"
        ) from error


def _retrieve(source: CheckpointSource, sha256: str, folder: Path) -> Path:
    """The verified file in ``folder``; OSError where the folder is to blame, else CheckpointError."""
    import pooch
    from requests.exceptions import HTTPError, RequestException

    # in a log the line that pooch writes is enough
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 18)
    cause: Exception
    try:
        return Path(pooch.retrieve(source.url, f"sha256:{sha256}", source.filename, folder, downloader=downloader))
    except HTTPError as error:
        reason = f"the server answers {str(error).split(' for url')[0]}"
        cause = error
    except RequestException as error:  # it is an OSError, but the folder is not to blame
        reason = f"no connection to {urlsplit(source.url).netloc}, or one that broke ({type(error).__name__})"
        cause = error
    except ValueError as error:
        reason = "what arrived is cut off or another file, its sha256 is wrong"
        cause = error
    raise CheckpointError(f"{source.filename} cannot be downloaded from {source.url}: {reason}; {_BY_HAND}") from cause


def _sha256(path: Path) -> str:
    _check_file(path)
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; give the path of a weight file") from error


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in _ENDINGS:
        raise CheckpointError(f"{path} is no weight file; give one that ends in {', '.join(_ENDINGS)}")
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {reason}; give the path of a weight file") from error
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a weight file")
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pt``, ``.pth`` or ``.safetensors`` file on the CPU, floating ones in float32.

    Understood: a state dict; one under "model" or "state_dict"; MobileSAMv2's prompt-guided decoder, whose two
    halves get their official prefixes. The ``module.`` that distributed training puts before keys is taken off.

    Raises:
        CheckpointError: the file is absent, empty, cut off, no checkpoint, needs code to load, or holds anything
            but finite tensors.
    """
    _check_file(path)
    content = _load_safetensors(path) if path.suffix.lower() == ".safetensors" else _load_pickle(path)
    state = _unwrap(content, path)
    if not state:
        raise CheckpointError(f"{path} holds no tensors; give a state dict")
    checked = {key: _checked(key, value, path) for key, value in state.items()}
    distributed = all(key.startswith("module.") for key in checked)
    return {key.removeprefix("module.") if distributed else key: value for key, value in checked.items()}


def _load_pickle(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; the error says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes the unpickler stumble in any way
        # torch's own message has many lines, and tells how to run the file's code
        found = re.search(r"GLOBAL (\S+) (?:was not|whose)|(TorchScript)", str(error))
        problem = "is cut off, damaged or no checkpoint; download it again"
        if found:
            problem = (
                f"holds more than tensors ({_show(found[1] or found[2])}); loading that could run its code,"
                " so it is refused: give a file of plain tensors"
            )
        raise CheckpointError(f"{path} {problem}") from error


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is cut off, damaged or no safetensors file ({_show(str(error))}); download it again"
        ) from error


def _unwrap(content: Any, path: Path) -> dict[Any, Any]:
    """The state dict inside what the file holds."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; give a file with a state dict")
    inner = {key: content[key] for key in (*_WRAPPERS, *_DECODER_PARTS) if isinstance(content.get(key), dict)}
    if not inner:
        return dict(content)
    if inner.keys() <= _DECODER_PARTS.keys():
        return {f"{_DECODER_PARTS[part]}{key}": value for part in inner for key, value in inner[part].items()}
    if len(inner) > 1:
        raise CheckpointError(f"{path} holds several state dicts ({', '.join(inner)}); give a file with one")
    return dict(*inner.values())


def _checked(key: Any, value: Any, path: Path) -> Tensor:
    """``value`` if it is an ordinary finite tensor; floating ones become float32."""
    import torch

    where = f"{path}: {_show(key)}"
    if not isinstance(key, str) or type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, not a tensor with a name;"
            f" give a plain state dict, or one under {' or '.join(map(repr, _WRAPPERS))}"
        )
    tensor: Tensor = value.detach()
    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not ordinary or tensor.dtype not in (*floats, torch.int64, torch.int32):
        raise CheckpointError(f"{where} is {tensor.dtype}, {tensor.layout}; give plain floating-point weights")
    # strides of 0 let a file of a few bytes claim to be larger than memory
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{where} claims more elements than the file holds; do not use this file")
    if tensor.dtype not in floats:
        return tensor
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{where} has NaN or infinite values; give another checkpoint")
    return tensor


def _merge(paths: Iterable[Path], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of all files; a key in two files must have the same value in both."""
    merged: dict[str, Tensor] = {}
    for path in paths:
        for key, tensor in _with_prefix(read_checkpoint(path), expected).items():
            if key in merged and not (merged[key].dtype == tensor.dtype and merged[key].equal(tensor)):
                raise CheckpointError(
                    f"{path}: {_show(key)} has other values than in an earlier file; give files of one model"
                )
            merged[key] = tensor
    return merged


def _decoder_of(path: Path) -> dict[str, Tensor]:
    """The prompt encoder and the mask decoder of a file that may hold more."""
    prefixes = tuple(_DECODER_PARTS.values())
    found = {key: value for key, value in read_checkpoint(path).items() if key.startswith(prefixes)}
    if not found:
        raise CheckpointError(f"{path} has no prompt encoder and no mask decoder; give Prompt_guided_Mask_Decoder.pt")
    return found


def _with_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Training files of an encoder lack its prefix: add it where that, and only that, gives known keys."""
    if not any(key in expected for key in state) and any(f"{_ENCODER}{key}" in expected for key in state):
        return {f"{_ENCODER}{key}": tensor for key, tensor in state.items()}
    return state


def _fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], verdict: str) -> dict[str, Tensor]:
    """``state`` with the expected dtypes; CheckpointError with counts and a few keys if it differs."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    common = [key for key in expected if key in state]
    differing = [
        f"{key} {_kind(state[key])}, not {_kind(expected[key])}"
        for key in common
        if _kind(state[key]) != _kind(expected[key])
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
    found = "; ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in problems if keys)
    if not found:
        return {key: state[key].to(expected[key].dtype) for key in expected}
    parts = {key.split(".")[0] for key in expected}
    absent = sorted(parts - {key.split(".")[0] for key in common})
    remedy = "give this model's weights"
    if absent and len(absent) < len(parts):
        remedy = f"it has no {' and no '.join(absent)}: a second file is needed, repeat --checkpoint"
    raise CheckpointError(f"{verdict}: {found}; {remedy}")


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else 'integer'} {tuple(tensor.shape)}"


def _few(keys: Sequence[str]) -> str:
    return ", ".join([*(_show(key) for key in keys[:3]), *(["..."] if len(keys) > 3 else [])])


def _show(text: object) -> str:
    """A key or name from a file, fit for one line of a terminal."""
    return ascii(text)[1:-1][:120] if isinstance(text, str) else f"a key of type {type(text).__name__}"
