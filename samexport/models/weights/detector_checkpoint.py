"""Reads a detector's weights: a state dict like any other, or ``ObjectAwareModel.pt``, a pickled live model.

Nothing from a file is run; see ``pickled_models``.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import CheckpointError
from samexport.models.weights.checkpoints import checked
from samexport.models.weights.inert_pickle import expect
from samexport.models.weights.layouts import find, official
from samexport.models.weights.pickled_models import Archive, find_tensors
from samexport.models.weights.random_weights import random_state_dict
from samexport.models.weights.reading import WeightFile, read_weight_file

if TYPE_CHECKING:
    from samexport.models.architectures.object_detector import ObjectDetector
    from samexport.models.spec import SamplerSpec

LICENCE_NOTE = (
    "The object-aware detector's weights were trained with AGPL-3.0 code (YOLOv8), whose owner says that the"
    " licence covers the weights too. samexport contains neither; make sure that your use of the file agrees."
)

_TORCH_KINDS = {"f": np.float32, "i": np.int64}


@dataclass(frozen=True)
class DetectorCheckpoint:
    """The weights of a detector: tensors by official name, BatchNorm's eps, and the sha256 of the file."""

    tensors: dict[str, NDArray[Any]]
    batch_norm_eps: float
    sha256: str = ""


def _read_live(opened: zipfile.ZipFile) -> DetectorCheckpoint:
    archive = Archive(opened)
    content = expect(archive.content(), dict)
    model = content.get("model") if content.get("ema") is None else content["ema"]
    views, eps = find_tensors(model)
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
