"""Where the masks of pictures go: overlays, COCO's JSON, folders of PNGs, logits. Checked first, each written whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.cli.pictures import Source
from samexport.errors import ConfigError, FileError, SamExportError
from samexport.files import check_output, new_file, new_folder, read_json, reason, to_json, write_text
from samexport.models.spec import WeightsInfo
from samexport.runtimes.host.masks import decode_rle
from samexport.runtimes.tasks.everything import DetectorBoxes, SegmentEverything
from samexport.runtimes.tasks.records import MaskResult
from samexport.runtimes.tasks.segment import Segmenter

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
_OURS = re.compile(r"prompt\d+(_mask\d)?\.png|masks\.json")
_ANNOTATIONS_LIMIT = 1 << 30


@dataclass
class Results:
    """What is written for the pictures of a run; use as a context manager.

    Of one picture ``out``, ``masks`` and ``logits`` are files, or folders that exist. Of several they are folders,
    made if need be, in which each picture has a file of its name; a ``masks`` that ends in .json is one file for all,
    which is written in the end, also when the run breaks off.

    Attributes:
        sources: all pictures of the run.
        out: pictures with masks drawn on them.
        masks: COCO's results as .json, or a folder for each picture with a PNG a mask.
        logits: .npy [M, L, L].
        force: replace what is there.
        inputs: what the command reads; no result may be one of them.
        annotations: COCO's file that has the ids of the pictures.
        announce: is told of the one file for all pictures.

    Raises:
        SamExportError: a result cannot be written there, or a picture is not in ``annotations``.
    """

    sources: Sequence[Source]
    out: str | None = None
    masks: str | None = None
    logits: str | None = None
    force: bool = False
    inputs: Sequence[Path] = ()
    annotations: Path | None = None
    announce: Callable[[str], None] = lambda _: None
    _records: list[dict[str, Any]] = field(default_factory=list)
    _done: int = 0

    def __post_init__(self) -> None:
        read = [Path(source.path) for source in self.sources if source.path is not None]
        self._inputs = [*read, *self.inputs, *([] if self.annotations is None else [self.annotations])]
        self._ids = image_ids(self.sources, self.annotations)
        self._coco = Path(self.masks) if self.masks is not None and _is_json(self.masks) else None
        if self._coco is not None:
            self._check(self._coco, (".json",))
        self._outs = self._files("--out", self.out, PICTURES)
        self._logits = self._files("--logits", self.logits, (".npy",))
        self._folders = {} if self._coco is not None else self._mask_folders()

    def _files(self, option: str, given: str | None, endings: tuple[str, ...]) -> dict[str, Path]:
        """The file of each picture, by its key."""
        if given is None:
            return {}
        if len(self.sources) == 1 and not os.path.isdir(given):
            if given.endswith(os.sep):
                raise FileError(f"{option} {given}: there is no such folder; give the name of a file")
            self._check(Path(given), endings)
            return {self.sources[0].key: Path(given)}
        folder = _folder_for(option, Path(given), endings)
        files = {source.key: folder / f"{source.key}{endings[0]}" for source in self.sources}
        for file in files.values():
            self._check(file, endings)
        return files

    def _check(self, path: Path, endings: tuple[str, ...]) -> None:
        check_output(path, force=self.force, endings=endings, inputs=self._inputs)

    def _mask_folders(self) -> dict[str, Path]:
        if self.masks is None:
            return {}
        given = Path(self.masks)
        if given.suffix and not os.path.isdir(given) and not self.masks.endswith(os.sep):
            raise FileError(f"--masks {self.masks}: give a folder, or a name that ends in .json")
        if len(self.sources) == 1:
            folders = {self.sources[0].key: given}
        else:
            parent = _folder_for("--masks", given, PICTURES)
            folders = {source.key: parent / source.key for source in self.sources}
        for folder in folders.values():
            check_folder(folder, force=self.force, ours=_OURS)
        return folders

    def check_size(self, source: Source, image_hw: tuple[int, int]) -> None:
        """Refuse a picture that the format of its overlay cannot hold.

        Raises:
            FileError: with the other formats.
        """
        ending = self._outs[source.key].suffix.lower() if source.key in self._outs else ""
        if max(image_hw) > _LONGEST.get(ending, max(image_hw)):
            raise FileError(f"{self._outs[source.key]}: {ending} holds {_LONGEST[ending]} pixels a side; use .png")

    def describe(
        self,
        source: Source,
        masks: Sequence[MaskResult],
        written: Iterable[str],
        model: Segmenter | SegmentEverything,
        timings: Mapping[str, float],
    ) -> dict[str, Any]:
        """One picture as an object for a program."""
        return {
            "bundle": str(model.bundle.folder),
            "random_weights": least_weights(model).kind == "random",
            "weights": least_weights(model).kind,
            "placement": model.placement,
            "timings_ms": dict(timings),
            "masks": self._to_coco(source, masks),
            "files": list(written),
        }

    def _to_coco(self, source: Source, masks: Sequence[MaskResult]) -> list[dict[str, Any]]:
        return [mask.to_coco(self._ids[source.key], source.name) for mask in masks]

    @property
    def wants_logits(self) -> bool:
        """Whether logits are written."""
        return self.logits is not None

    def write(
        self,
        source: Source,
        masks: Sequence[MaskResult],
        draw: Callable[[], NDArray[np.uint8]],
        logits: NDArray[np.float32] | None = None,
    ) -> dict[str, str]:
        """Write the results of one picture, each on its own: what does not go wrong is there.

        Returns:
            what was written, by path.

        Raises:
            SamExportError: the first that could not be written.
        """
        written: dict[str, str] = {}
        errors: list[SamExportError] = []
        records = self._to_coco(source, masks)
        self._records += records
        self._done += 1
        count = _count(len(masks), "mask")

        def attempt(path: Path | None, what: str, write: Callable[[Path], None]) -> None:
            if path is not None:
                try:
                    write(path)
                    written[str(path)] = what
                except SamExportError as error:
                    errors.append(error)

        attempt(self._outs.get(source.key), f"the picture with {count}", lambda path: self._picture(path, draw()))
        attempt(self._folders.get(source.key), count, lambda folder: self._pngs(folder, masks, records))
        if logits is not None:
            attempt(self._logits.get(source.key), "logits", lambda path: self._array(path, logits))
        if len(self.sources) == 1:
            attempt(self._coco, count, lambda _: self._write_coco())
        if errors:
            raise errors[0]
        return written

    def _picture(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        with new_file(path, force=self.force) as private:
            save_picture(pixels, private)

    def _array(self, path: Path, values: NDArray[np.float32]) -> None:
        with new_file(path, force=self.force) as private:
            np.save(private, values, allow_pickle=False)

    def _pngs(self, folder: Path, masks: Sequence[MaskResult], records: Sequence[dict[str, Any]]) -> None:
        """A PNG a mask, and ``masks.json`` that says which is which."""
        with new_folder(folder, force=self.force or _is_empty(folder), refusal=partial(foreign, ours=_OURS)) as private:
            listed = []
            for mask, record in zip(masks, records, strict=True):
                name = f"prompt{mask.prompt}" + ("" if mask.mask is None else f"_mask{mask.mask}") + ".png"
                save_picture(decode_rle(mask.segmentation), private / name)
                listed.append({**record, "file": name})
            write_text(private / "masks.json", to_json(listed))

    def _write_coco(self) -> None:
        if self._coco is not None:
            write_text(self._coco, to_json(self._records), force=self.force)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._coco is not None and len(self.sources) > 1 and self._done:
            self._write_coco()
            self.announce(f"wrote {self._coco}: {len(self._records)} masks of {self._done} pictures")


def least_weights(model: Segmenter | SegmentEverything) -> WeightsInfo:
    """The weights of which most is to be said, of those that are used: random ones before all others."""
    manifest = model.bundle.manifest
    detects = isinstance(model, SegmentEverything) and isinstance(model.sampling, DetectorBoxes)
    detector = manifest.sampler if detects else None
    used = [manifest.weights, *([detector.weights] if detector is not None else [])]
    return next((weights for weights in used if weights.kind == "random"), used[0])


def _is_json(path: str) -> bool:
    return path.lower().endswith(".json") and not os.path.isdir(path)


def _folder_for(option: str, folder: Path, endings: tuple[str, ...]) -> Path:
    if folder.suffix.lower() in endings and not os.path.isdir(folder):
        raise FileError(f"{option} {folder}: with several pictures, give a folder")
    try:
        folder.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"{option} {str(folder)[:100]}: no folder can be made there: {reason(error)}") from error
    return folder


def check_folder(folder: Path, *, force: bool, ours: re.Pattern[str]) -> None:
    """As ``check_output``, of a folder that is replaced as a whole if its files have our names."""
    if not os.path.lexists(folder):
        check_output(folder, force=force)
    elif not os.path.isdir(folder):
        raise FileError(f"{folder} exists and is not a folder; choose another name")
    elif not force and not _is_empty(folder):
        raise FileError(f"{folder} exists; choose another name, or --force to replace it")
    elif what := "it is a link" if folder.is_symlink() else foreign(folder, ours):
        raise FileError(f"{folder} is not replaced: {what}; nothing was changed, choose another name")


def _is_empty(folder: Path) -> bool:
    return os.path.isdir(folder) and not os.listdir(folder)


def foreign(folder: Path, ours: re.Pattern[str]) -> str:
    """What in a folder of masks is not ours, or nothing."""
    others = sorted(p.name for p in folder.iterdir() if not (p.is_file() and ours.fullmatch(p.name)))
    return f"it holds {others[0]}, which is no mask of an earlier run" if others else ""


def save_picture(pixels: NDArray[Any], path: Path) -> None:
    """Write pixels with Pillow, in the format of the name; FileError with its reason where it cannot."""
    try:
        Image.fromarray(pixels).save(path)
    except (OSError, ValueError) as error:
        # Pillow's own reasons; an error of the disk has a number, and is told by who made the file
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FileError(f"{path.name} cannot be written: {reason(error)}") from error


def image_ids(sources: Sequence[Source], annotations: Path | None) -> dict[str, int]:
    """COCO's id of every picture, by its key.

    From ``annotations``, by file name; without it the number that is the picture's name, as COCO names pictures, and
    where one has another name their places from 1 on.

    Raises:
        ConfigError: a picture is not in the file.
        FileError: the file cannot be read.
    """
    if annotations is None:
        numbers = [int(s.key) if re.fullmatch(r"[0-9]{1,18}", s.key) else None for s in sources]
        ids = [n for n in numbers if n is not None]
        distinct = len(set(ids)) == len(sources)
        return {s.key: ids[place] if distinct else place + 1 for place, s in enumerate(sources)}
    content = read_json(annotations, limit=_ANNOTATIONS_LIMIT)
    try:
        known = {os.path.basename(image["file_name"]): int(image["id"]) for image in content["images"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{annotations} has no images with id and file_name, as COCO's files have") from error
    found = {}
    for source in sources:
        name = os.path.basename(source.name)
        if name not in known:
            raise ConfigError(f"{annotations} has no image called {name}")
        found[source.key] = known[name]
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
