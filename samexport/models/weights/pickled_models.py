"""Reads whole pickled models: the tensors of their modules, and nothing else of them.

Nothing from a file is run. A pickled model is a zip with one pickle and one raw file for each storage; ``inert_pickle``
turns the pickle into inert records, and the tensors are found by walking those.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import CheckpointError
from samexport.models.weights.inert_pickle import Instance, View, expect, interpret

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE = 1 << 30
MAX_PICKLE = 8 << 20
MAX_TENSORS = 4000
"""ObjectAwareModel.pt has 140 MB and 637 tensors; a file built like it has a pickle of 0.15 MB."""
_BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"


def _walk(module: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Instance]]:
    """Every module under its dotted name, itself first."""
    if depth > 32:
        raise CheckpointError("the model's modules are nested too deeply")
    state = expect(expect(module, Instance).state, dict)
    yield prefix, module
    for name, child in expect(state.get("_modules", {}), dict).items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.", depth + 1)


def find_tensors(root: Any) -> tuple[dict[str, View], set[float]]:
    """State-dict names to tensors, and every BatchNorm eps.

    Raises:
        CheckpointError: ``root`` is no module, or has more modules than a model has.
    """
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


class Archive:
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

    def content(self) -> Any:
        """What the pickle holds, as inert records."""
        return interpret(self.read("data.pkl", MAX_PICKLE))

    def read(self, name: str, most: int) -> bytes:
        """An entry of at most ``most`` bytes."""
        info = self.archive.getinfo(self.folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise CheckpointError(f"its entry {name} is compressed or larger than {most} bytes")
        return self.archive.read(info)

    def tensor(self, view: View) -> NDArray[Any]:
        """The numbers of a tensor."""
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


def read_model(opened: zipfile.ZipFile) -> dict[str, Tensor]:
    """The state dict of a pickled model, alone or under "model"; q, k and v of an encoder's attention are joined.

    Raises:
        CheckpointError: there is no model, or the file asks for more than modules and tensors.
    """
    import torch

    archive = Archive(opened)
    content = archive.content()
    root = content.get("model") if isinstance(content, dict) else content
    views, _ = find_tensors(root)
    state = {name: torch.from_numpy(archive.tensor(view).copy()) for name, view in views.items()}
    return _joined(state)


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SlimSAM prunes q, k and v as three layers; SAM has their rows in one, in this order."""
    import torch

    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        split = re.fullmatch(r"(.*\.attn)\.([qkv])\.(weight|bias)", name)
        if split is None:
            joined[name] = tensor
        elif split[2] == "q":
            rows = [state.get(f"{split[1]}.{part}.{split[3]}") for part in "qkv"]
            if any(row is None for row in rows):
                raise CheckpointError(f"{split[1]} has no k or no v")
            joined[f"{split[1]}.qkv.{split[3]}"] = torch.cat([row for row in rows if row is not None])
    return joined
