"""A tracker in a file: what it remembers, so that another process goes on where this one stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import ConfigError, FileError
from samexport.files import new_file
from samexport.runtimes.arrays import read_npz
from samexport.runtimes.base import Runtime
from samexport.runtimes.families.sam2_sparse_tracker import Sparse, SparseTracker
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.host.memory import Bank, Remembered
from samexport.runtimes.host.object_masks import ObjectMask

_CANDIDATES = 3
_TRACKED, _PROMPTED, _CORRECTED = range(3)
_LARGEST = 4 << 30
_SPARSE = {"sparse": ("f", 1), "chosen": ("i", 1), "kept_of": ("i", 2), "kept": ("i", 3), "looked": ("f", 3)}
"""Of a tracker that leaves things out."""
_ARRAYS = {
    "tracker": ("i", 1), "objects": ("i", 1), "object": ("i", 1), "frame": ("i", 1), "kind": ("i", 1),
    "low_res": ("f", 3), "iou": ("f", 2), "pointer": ("f", 2), "score": ("f", 1), "memory": ("u", 3),
}  # fmt: skip


def save(tracker: Tracker, path: Path, *, force: bool = False) -> None:
    """Write what a tracker remembers, 0.8 MB for each object and frame at 1024 pixels, as ``.npz``.

    Raises:
        ConfigError: prompts wait for their frames, or nothing was tracked yet.
        FileError: the file exists, or cannot be written.
    """
    rows = [
        (name, frame, _kind(whole, frame), kept)
        for name, whole in tracker.banks.items()
        for place in (whole.prompted, whole.tracked)
        for frame, kept in place.items()
    ]
    if tracker.waiting or tracker.image_hw is None or not rows:
        raise ConfigError("a tracker can be saved once frames were tracked and no prompt waits for its frame")
    iou = np.full((len(rows), _CANDIDATES), np.nan, np.float32)
    for item, (*_, kept) in enumerate(rows):
        iou[item, : len(kept.mask.iou)] = kept.mask.iou
    arrays: dict[str, Any] = {
        "tracker": np.array([tracker.frames or 0, tracker.next_frame, *tracker.image_hw, tracker.postprocess]),
        "objects": np.array(list(tracker.banks)),
        "object": np.array([name for name, *_ in rows]),
        "frame": np.array([frame for _, frame, *_ in rows]),
        "kind": np.array([kind for *_, kind, _ in rows]),
        "low_res": np.stack([kept.mask.low_res for *_, kept in rows]),
        "iou": iou,
        "pointer": np.stack([kept.mask.pointer for *_, kept in rows]),
        "score": np.array([kept.mask.score for *_, kept in rows], np.float32),
        "memory": np.stack([kept.memory for *_, kept in rows]),
    }
    if isinstance(tracker, SparseTracker):
        arrays |= _left_out(tracker)
    with new_file(path, force=force) as private, open(private, "wb") as stream:
        np.savez(stream, **arrays)


def resume(
    path: Path, runtimes: Mapping[str, Runtime] | Callable[[str], Runtime], constants: Mapping[str, NDArray[Any]]
) -> Tracker:
    """The tracker that :func:`save` wrote, on the graphs of the same model.

    Raises:
        FileError: no such file, or none that :func:`save` wrote.
        ConfigError: it was made with a model of another size.
    """
    arrays = read_npz(path, limit=_LARGEST)
    _check(arrays, path)
    frames, next_frame, height, width, postprocess = arrays["tracker"].tolist()
    options: dict[str, Any] = {"frames": frames or None, "postprocess": bool(postprocess)}
    if "sparse" in arrays:
        tracker: Tracker = _sparse(arrays, SparseTracker(runtimes, constants, sparse=_switches(arrays), **options))
    else:
        tracker = Tracker(runtimes, constants, **options)
    side, cells = tracker.square.low_res, tracker.square.grid**2
    fits = arrays["low_res"].shape[1:] == (side, side) and arrays["memory"].shape[1] == cells
    if not fits or arrays["pointer"].shape[1:] != constants["no_object_pointer"].shape:
        raise ConfigError(f"{path} was made with a model of another size; open the bundle that it was made with")
    tracker.next_frame, tracker.image_hw = next_frame, (height, width)
    tracker.banks = {name: Bank() for name in arrays["objects"].tolist()}
    for item, name in enumerate(arrays["object"].tolist()):
        iou = arrays["iou"][item]
        mask = ObjectMask(
            arrays["low_res"][item], iou[~np.isnan(iou)], arrays["pointer"][item], float(arrays["score"][item])
        )
        bank = tracker.banks[name]
        frame, kind = int(arrays["frame"][item]), int(arrays["kind"][item])
        (bank.prompted if kind == _PROMPTED else bank.tracked)[frame] = Remembered(mask, arrays["memory"][item])
        if kind == _CORRECTED:
            bank.corrected.add(frame)
    return tracker


def _left_out(tracker: SparseTracker) -> dict[str, NDArray[Any]]:
    layers = tracker.saliency[0]
    kept = [(name, frame, cells) for name, each in tracker.kept.items() for frame, cells in each.items()]
    frame, ids = tracker.chosen or (-1, np.zeros(0, np.int64))
    grid = tracker.square.grid
    return {
        # none is 0: at least one window is seen
        "sparse": np.array([float(value or 0) for value in astuple(tracker.sparse)]),
        "chosen": np.array([frame, *ids]),
        "kept_of": np.array([each[:2] for each in kept], np.int64).reshape(-1, 2),
        "kept": np.stack([cells for *_, cells in kept]) if kept else np.zeros((0, layers, 0), np.int64),
        "looked": np.stack(tracker.looked) if tracker.looked else np.zeros((0, grid, grid), np.float32),
    }


def _switches(arrays: Mapping[str, NDArray[Any]]) -> Sparse:
    windows, memory, share, threshold, keep, most, quirks = arrays["sparse"].tolist()
    return Sparse(bool(windows), bool(memory), share, threshold, keep, int(most) or None, bool(quirks))


def _sparse(arrays: Mapping[str, NDArray[Any]], tracker: SparseTracker) -> SparseTracker:
    frame, *ids = arrays["chosen"].tolist()
    tracker.chosen = (frame, np.array(ids, np.int64)) if frame >= 0 else None
    for (name, when), cells in zip(arrays["kept_of"].tolist(), arrays["kept"], strict=True):
        tracker.kept.setdefault(name, {})[when] = cells
    tracker.looked = [*arrays["looked"]]
    return tracker


def _kind(bank: Bank, frame: int) -> int:
    if frame in bank.prompted:
        return _PROMPTED
    return _CORRECTED if frame in bank.corrected else _TRACKED


def _check(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """FileError unless the arrays are those of :func:`save` and agree with each other."""
    wanted = _ARRAYS | (_SPARSE if "sparse" in arrays else {})
    known = {name: (value.dtype.kind, value.ndim) for name, value in arrays.items()} == wanted
    if known and "sparse" in arrays:
        known = len(arrays["sparse"]) == len(fields(Sparse)) and len(arrays["kept"]) == len(arrays["kept_of"])
        known = known and arrays["kept_of"].shape[1] == 2 and len(arrays["chosen"]) > 0
    if known and len(arrays["tracker"]) == 5 and arrays["memory"].dtype == np.uint16:
        counts = {len(value) for name, value in arrays.items() if name not in ("tracker", "objects", *_SPARSE)}
        if len(counts) == 1 and set(arrays["object"].tolist()) <= set(arrays["objects"].tolist()):
            return
    raise FileError(f"{path} was not written by a tracker")
