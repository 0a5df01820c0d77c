"""How well objects are followed: annotated clips in DAVIS' folders, and their J and F.

J is the IoU of a mask. F is the F-measure of its border: how much of each of two borders lies near the other one.
Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation (CVPR 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import ConfigError, ImageError, MissingDependency
from samexport.files import reason
from samexport.installation import install_hint
from samexport.runtimes.host.masks import intersection_over_union
from samexport.runtimes.host.video import FrameFolder
from samexport.runtimes.tasks.track import OpenTracker

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
PICTURES, ANNOTATIONS = "JPEGImages", "Annotations"
_RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
_VOID = 255
_NEAR = 0.008


@dataclass(frozen=True)
class Sequence:
    """A clip of pictures, some of which have an annotation: a PNG with the same name whose values are objects."""

    name: str
    pictures: Path
    annotations: Path

    def frames(self) -> tuple[FrameFolder, dict[int, Path]]:
        """The clip, and the annotation of each frame that has one.

        Raises:
            ImageError: there are no pictures, or no annotation belongs to one.
        """
        clip = FrameFolder(self.pictures)
        files = {file.stem: file for file in self.annotations.glob("*.png")}
        found = {frame: files[stem] for frame, stem in enumerate(clip.stems) if stem in files}
        if not found:
            raise ImageError(f"{self.annotations} has no annotation of a picture in {self.pictures}")
        return clip, found


@dataclass(frozen=True)
class ObjectScores:
    """One object: means over the frames that count, and their number."""

    sequence: str
    object: int
    region: float
    boundary: float
    frames: int

    @property
    def both(self) -> float:
        """J&F."""
        return (self.region + self.boundary) / 2


def sequences(root: Path) -> list[Sequence]:
    """The clips of a data set in DAVIS' layout: ``JPEGImages/NAME`` and ``Annotations/NAME``, or below 480p in both.

    Raises:
        ConfigError: there are none.
    """
    pictures, annotations = root / PICTURES, root / ANNOTATIONS
    for resolution in _RESOLUTIONS:
        if (annotations / resolution).is_dir() and (pictures / resolution).is_dir():
            pictures, annotations = pictures / resolution, annotations / resolution
            break
    names = sorted(path.name for path in annotations.iterdir() if path.is_dir()) if annotations.is_dir() else []
    found = [Sequence(name, pictures / name, annotations / name) for name in names if (pictures / name).is_dir()]
    if not found:
        raise ConfigError(f"{root} has no {PICTURES}/NAME with an {ANNOTATIONS}/NAME; is it in the layout of DAVIS?")
    return found


def read_labels(path: Path, image_hw: tuple[int, int]) -> Labels:
    """Which object each pixel is, [H, W]; 0 is none. In pictures with a palette 255 is none as well.

    Raises:
        ImageError: no such picture, one with colours, or of another size than its frame.
    """
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path} cannot be read: {reason(error)}") from error
    if mode not in ("P", "L", "1"):
        raise ImageError(f"{path} has colours ({mode}); an annotation has a palette, or grey values as objects")
    if values.shape != image_hw:
        raise ImageError(f"{path} is {values.shape[1]}x{values.shape[0]}, its frame {image_hw[1]}x{image_hw[0]}")
    labels = values.astype(np.uint8)
    return np.where(labels == _VOID, 0, labels).astype(np.uint8) if mode == "P" else labels


def score_sequence(
    sequence: Sequence, open_tracker: OpenTracker, progress: Callable[[int, int], None] = lambda *_: None
) -> list[ObjectScores]:
    """Follow each object from its first mask on.

    As DAVIS counts, an object's first frame and the last annotated one are left out.

    Args:
        sequence: the clip.
        open_tracker: a tracker for a clip of so many frames.
        progress: told how many frames of how many are done.

    Raises:
        ImageError: a picture or an annotation cannot be used.
    """
    marks: dict[int, list[tuple[float, float]]] = {}
    clip, labelled = sequence.frames()
    tracker, last = open_tracker(frames=clip.frames), max(labelled)
    for frame, picture in enumerate(clip.read(range(last + 1))):
        truth = read_labels(labelled[frame], clip.image_hw) if frame in labelled else None
        new = [] if truth is None else [int(name) for name in np.unique(truth) if name and int(name) not in marks]
        for name in new:
            tracker.add(frame, name, np.asarray(truth == name))
        found = tracker.step(picture)
        tracker.forget()
        if truth is not None and frame < last:
            labels = found.labels()
            for place, name in enumerate(found.objects, 1):
                if name not in new:
                    marks[name].append(both(labels == place, truth == name))
        marks |= {name: [] for name in new}
        progress(frame + 1, last + 1)
    return [
        ObjectScores(sequence.name, name, float(np.mean(each[0])), float(np.mean(each[1])), len(each[0]))
        for name, each in sorted((name, list(zip(*pairs, strict=True))) for name, pairs in marks.items() if pairs)
    ]


def both(found: Mask, truth: Mask) -> tuple[float, float]:
    """J and F of one mask, [H, W]."""
    return float(intersection_over_union(found[None], truth[None])[0]), boundary_measure(found, truth)


def boundary_measure(found: Mask, truth: Mask, near: float = _NEAR) -> float:
    """The F-measure of two borders.

    Args:
        found: [H, W].
        truth: the same.
        near: how far a pixel of one border may be from the other, as a share of the diagonal, rounded up.

    Raises:
        MissingDependency: scipy is not installed.
    """
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise MissingDependency(f"borders are compared with scipy: {install_hint('eval')}") from error
    ours, theirs = border(found), border(truth)
    if not (ours.any() and theirs.any()):
        return float(ours.any() == theirs.any())
    reach = math.ceil(near * math.hypot(*found.shape))
    near_ours, near_theirs = (distance_transform_edt(~each) <= reach for each in (ours, theirs))
    precision, recall = float(near_theirs[ours].mean()), float(near_ours[theirs].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def border(mask: Mask) -> Mask:
    """Pixels that differ from the one to their right, below them, or between the two; [H, W]."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])
