"""Reads a detector's weights: a state dict like any other, or ``ObjectAwareModel.pt``, a pickled live model.

Nothing from a file is run. A live model is a zip with one pickle and one raw file for each storage; ``inert_pickle``
turns the pickle into inert records, and the tensors are found by walking those.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import CheckpointError
from samexport.models.weights.checkpoints import checked
from samexport.models.weights.inert_pickle import Instance, View, expect, interpret
from samexport.models.weights.layouts import find, official
from samexport.models.weights.random_weights import random_state_dict
from samexport.models.weights.reading import WeightFile, read_weight_file

if TYPE_CHECKING:
    from samexport.models.architectures.object_detector import ObjectDetector
    from samexport.models.spec import SamplerSpec

LICENCE_NOTE = (
    "The object-aware detector's weights were trained with AGPL-3.0 code (YOLOv8), whose owner says that the"
    " licence covers the weights too. samexport contains neither; make sure that your use of the file agrees."
)

MAX_FILE = 1 << 30
MAX_PICKLE = 8 << 20
MAX_TENSORS = 4000
"""ObjectAwareModel.pt has 140 MB and 637 tensors; a file built like it has a pickle of 0.15 MB."""

_TORCH_KINDS = {"f": np.float32, "i": np.int64}
_BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"


@dataclass(frozen=True)
class DetectorCheckpoint:
    """The weights of a detector: tensors by official name, BatchNorm's eps, and the sha256 of the file."""

    tensors: dict[str, NDArray[Any]]
    batch_norm_eps: float
    sha256: str = ""


def _walk(module: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Instance]]:
    """Every module under its dotted name, itself first."""
    if depth > 32:
        raise CheckpointError("the model's modules are nested too deeply")
    state = expect(expect(module, Instance).state, dict)
    yield prefix, module
    for name, child in expect(state.get("_modules", {}), dict).items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.", depth + 1)


def _find_tensors(root: Any) -> tuple[dict[str, View], set[float]]:
    """State-dict names to tensors, and every BatchNorm eps."""
    views: dict[str, View] = {}
    eps: set[float] = set()
    for count, (prefix, module) in enumerate(_walk(root)):
        if count > MAX_TENSORS or len(views) > MAX_TENSORS:
            raise CheckpointError(f"the model has more than {MAX_TENSORS} modules or tensors")
        if module.path == _BATCH_NORM:
            eps.add(expect(module.state.get("eps"), float))
        transient = expect(module.state.get("_non_persistent_buffers_set", []), list)
        for group in ("_parameters", "_buffers"):
            for name, view in expect(module.state.get(group, {}), dict).items():
                if view is not None and name not in transient:
                    views[f"{prefix}{name}"] = expect(view, View)
    return views, eps


class _Archive:
    """The zip of a torch file: entries are stored, not compressed, and read once each."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(archive.namelist())) != len(archive.namelist()):
            raise CheckpointError("it is not a torch file: a zip with one data.pkl and no name twice")
        self.folder = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, bytes] = {}
        if self.folder + "byteorder" in archive.namelist() and self.read("byteorder", 16) != b"little":
            raise CheckpointError("its numbers are big-endian; save it on a little-endian machine")

    def read(self, name: str, most: int) -> bytes:
        info = self.archive.getinfo(self.folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise CheckpointError(f"its entry {name} is compressed or larger than {most} bytes")
        return self.archive.read(info)

    def tensor(self, view: View) -> NDArray[Any]:
        storage, dtype = view.storage, np.dtype(view.storage.dtype)
        if storage.key not in self.storages:
            self.storages[storage.key] = self.read(f"data/{storage.key}", MAX_FILE)
            if sum(map(len, self.storages.values())) > MAX_FILE:
                raise CheckpointError(f"its tensors have more than {MAX_FILE} bytes")
        raw = self.storages[storage.key]
        if len(raw) != storage.length * dtype.itemsize:
            raise CheckpointError(f"its entry data/{storage.key} has another length than its tensors")
        flat = np.frombuffer(raw, dtype)[view.offset :]
        strides = [stride * dtype.itemsize for stride in view.strides]
        array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, view.shape, strides))
        if not np.isfinite(array).all():
            raise CheckpointError("a tensor of the file has NaN or infinite values")
        return array.reshape(view.shape)


def _read_live(opened: zipfile.ZipFile) -> DetectorCheckpoint:
    archive = _Archive(opened)
    content = expect(interpret(archive.read("data.pkl", MAX_PICKLE)), dict)
    model = content.get("model") if content.get("ema") is None else content["ema"]
    views, eps = _find_tensors(model)
    if len(eps) != 1:
        raise CheckpointError(f"its BatchNorm layers have no common eps: {sorted(eps)}")
    return DetectorCheckpoint({name: archive.tensor(view) for name, view in views.items()}, eps.pop())


def _read_plain(file: WeightFile) -> DetectorCheckpoint:
    """From a state dict, which does not say BatchNorm's eps, unless safetensors' metadata do."""
    from samexport.models.architectures.object_detector import DETECTOR_X

    found = find(file.content, [official(_published_names())])
    eps = float(file.metadata.get("batch_norm_eps", DETECTOR_X.batch_norm_eps))
    tensors = {key: checked(value, key).numpy() for key, value in (found.tensors | found.unexpected).items()}
    return DetectorCheckpoint(tensors, eps)


@cache
def _published_names() -> tuple[str, ...]:
    import torch

    from samexport.models.architectures.object_detector import DETECTOR_X, ObjectDetector

    with torch.device("meta"):
        return tuple(ObjectDetector(DETECTOR_X).state_dict())


def read_detector_checkpoint(path: Path) -> DetectorCheckpoint:
    """Read ``ObjectAwareModel.pt``, or the state dict of such a detector in any weight file.

    Raises:
        CheckpointError: the file is absent, damaged, too large, or asks for more than tensors.
    """
    try:
        file = read_weight_file(path, _read_live)
        held = file.content if isinstance(file.content, DetectorCheckpoint) else _read_plain(file)
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error
    except ValueError as error:  # a batch_norm_eps that is no number
        raise CheckpointError(f"{path}: {error}") from error
    if not 0 < held.batch_norm_eps < 1:
        raise CheckpointError(f"{path}: its batch_norm_eps is {held.batch_norm_eps}")
    return replace(held, sha256=file.sha256)


def load_detector(path: Path) -> tuple[ObjectDetector, str]:
    """Build the detector that the file describes, with the file's weights in float32; also the file's sha256.

    Every size is read from the file: widths, depths, classes, distance bins, BatchNorm's eps.
    A mask-prototype branch (FastSAM files have one) is left out.

    Raises:
        CheckpointError: as :func:`read_detector_checkpoint`, or the tensors are not those of such a detector.
    """
    import torch

    from samexport.models.architectures.object_detector import DetectorSize, ObjectDetector

    checkpoint = read_detector_checkpoint(path)
    tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith("model.22.proto.")}
    try:
        size = DetectorSize.from_shapes({k: v.shape for k, v in tensors.items()}, checkpoint.batch_norm_eps)
        with torch.device("meta"):
            detector = ObjectDetector(size)
        state = {k: torch.from_numpy(v.astype(_TORCH_KINDS[v.dtype.kind])) for k, v in tensors.items()}
        detector.load_state_dict(state, assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: these are not an object-aware detector's weights ({reason})") from error
    return detector.eval().requires_grad_(False), checkpoint.sha256


def random_detector(spec: SamplerSpec, seed: int) -> ObjectDetector:
    """A detector with seeded weights, in evaluation mode; its scores spread over 0..1."""
    import torch

    from samexport.models.architectures.object_detector import ObjectDetector

    with torch.device("meta"):
        detector = ObjectDetector(resolve_name(spec.size))
    wanted = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in detector.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in random_state_dict(wanted, seed).items()}
    detector.load_state_dict(state, assign=True)
    detector.eval().requires_grad_(False)
    for branch in detector.head.cv3:
        branch[2].weight *= spec.score_gain  # type: ignore[index]
    return detector
