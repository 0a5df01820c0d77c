"""``samexport segment``: points, boxes and earlier masks on pictures, to masks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samexport.cli.options import BundleFolder, Force, Json, RuntimeName, Threads
from samexport.cli.pictures import (
    RESULTS,
    Annotations,
    Masks,
    MaxPixels,
    Note,
    Out,
    Pictures,
    Reporter,
    Source,
    Stages,
    find_pictures,
    process,
    show_timings,
)
from samexport.errors import PromptError
from samexport.files import reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from samexport.cli.results import Results
    from samexport.runtimes.host.prompts import Prompt
    from samexport.runtimes.tasks.records import MaskResult
    from samexport.runtimes.tasks.segment import Segmenter

_MASK_SIDE = 4096
_PROMPTS = "What to segment"


def segment(
    bundle: BundleFolder,
    image: Pictures,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="POINT", help="x,y or x,y,0 for a negative click; repeats.", rich_help_panel=_PROMPTS),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="BOX", help="x0,y0,x1,y1; repeats, one prompt each.", rich_help_panel=_PROMPTS),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Earlier logits to refine: FILE.npy or FILE.npy:INDEX.", rich_help_panel=_PROMPTS
        ),
    ] = None,
    multimask: Annotated[
        bool,
        typer.Option("--multimask", help="Keep all candidate masks, in --out side by side.", rich_help_panel=_PROMPTS),
    ] = False,
    out: Out = None,
    masks: Masks = None,
    logits: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the logits as .npy, for a later --mask.", rich_help_panel=RESULTS),
    ] = None,
    annotations: Annotations = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
    runtime: RuntimeName = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Segment pictures with a bundle alone (no torch).

    Without a box all points are one prompt. A single click is answered by the best of three masks, any clearer prompt
    (a box, several points) by one. The same prompts are used for every picture.

    Example: samexport segment BUNDLE photo.jpg --point 420,300 --out overlay.png --masks masks.json
    """
    request = SegmentRequest(bundle, tuple(image), tuple(point or ()), tuple(box or ()), mask, multimask)
    run_segment(
        request, out=out, masks=masks, logits=logits, annotations=annotations, max_pixels=max_pixels, as_json=as_json,
        runtime=runtime, threads=threads, force=force,
    )  # fmt: skip


@dataclass(frozen=True)
class SegmentRequest:
    """The texts of the command line: points "x,y" or "x,y,label", boxes "x0,y0,x1,y1", a mask "FILE:INDEX"."""

    bundle: Path
    images: tuple[str, ...]
    points: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    mask: str | None = None
    multimask: bool = False

    def prompts(self) -> list[Prompt]:
        """All points (and the mask) are one prompt; with boxes, one prompt a box, and points join a single box."""
        from samexport.runtimes.host.prompts import Prompt

        points = [numbers(text, (2, 3), "--point x,y or x,y,label") for text in self.points]
        coords, labels = [p[:2] for p in points], [p[2] if len(p) == 3 else 1 for p in points]
        boxes = [numbers(text, (4,), "--box x0,y0,x1,y1") for text in self.boxes]
        mask = None if self.mask is None else read_logits(self.mask)
        if len(boxes) > 1:
            if points or mask is not None:
                raise PromptError("points and --mask go with one box at most; run the command once a box")
            return [Prompt.make(box=box) for box in boxes]
        return [Prompt.make(coords, labels, boxes[0] if boxes else None, mask)]


def run_segment(
    request: SegmentRequest, *, out: str | None, masks: str | None, logits: str | None,
    runtime: str | None, threads: int | None, force: bool,
    annotations: Path | None = None, max_pixels: int | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Segment every picture, write what was asked for, then print it.

    Raises:
        SamExportError: a picture, prompt, bundle or path cannot be used; paths are checked before the model runs.
    """
    from samexport.cli.results import Results, least_weights
    from samexport.runtimes.bundle import MANIFEST, open_bundle
    from samexport.runtimes.tasks.segment import Segmenter

    prompts, sources = request.prompts(), find_pictures(request.images)
    reporter = Reporter(as_json, len(sources) > 1)
    inputs = [request.bundle / MANIFEST, *([] if request.mask is None else [_file_and_index(request.mask)[0]])]
    with (
        Results(sources, out, masks, logits, force, inputs, annotations, reporter.announce) as results,
        Segmenter(open_bundle(request.bundle), runtime=runtime, threads=threads) as segmenter,
    ):
        if warning := least_weights(segmenter).warning:
            reporter.announce(f"this bundle has {warning}")
        if segmenter.notice:
            reporter.announce(segmenter.notice)
        work = _Work(segmenter, prompts, request, results)
        process(sources, work, reporter, max_pixels)


@dataclass
class _Work:
    segmenter: Segmenter
    prompts: list[Prompt]
    request: SegmentRequest
    results: Results
    opening: float = 0.0

    def __call__(
        self, source: Source, image: NDArray[np.uint8], note: Note, stages: Stages
    ) -> tuple[list[str], dict[str, Any]]:
        import numpy as np

        from samexport.runtimes.tasks.records import of_answer

        image_hw, segmenter = (image.shape[0], image.shape[1]), self.segmenter
        self.results.check_size(source, image_hw)
        prompts = self._fit(image_hw, note)
        segmenter.check(prompts, image_hw)
        stages("encode", 0, 1)
        segmenter.set_image(image)
        found: list[MaskResult] = []
        logits: list[NDArray[np.float32]] = []
        for number, answer in enumerate(segmenter.answers(prompts, multimask=self.request.multimask)):
            found += of_answer(number, prompts[number], answer)
            if self.results.wants_logits:
                logits.append(answer.low_res_masks)
            stages("decode", number + 1, len(prompts))
        timings, self.opening = {"open": segmenter.opening - self.opening, **segmenter.timings}, segmenter.opening
        whole = np.concatenate(logits) if logits else None
        written = self.results.write(source, found, lambda: self._draw(image, found), whole)
        lines = [f"prompt {m.prompt}, mask {m.mask}: score {m.score:.3f}, {m.area} pixels" for m in found]
        lines += [f"wrote {path}: {what}" for path, what in written.items()]
        lines.append(show_timings(timings, segmenter.placement))
        return lines, self.results.describe(source, found, written, segmenter, timings)

    def _fit(self, image_hw: tuple[int, int], note: Note) -> list[Prompt]:
        """The prompts for a picture of this size; notes where they are not quite what was given."""
        import numpy as np

        from samexport.runtimes.host.prompts import fit_box, look_normalised

        fitted = [fit_box(prompt, image_hw) for prompt in self.prompts]
        if any(new is not old for new, old in zip(fitted, self.prompts, strict=True)):
            note(f"a box reaches beyond the picture, {image_hw[1]} wide and {image_hw[0]} high, and is cut off there")
        boxes = [prompt.box for prompt in self.prompts if prompt.box is not None]
        coordinates = np.concatenate([*(prompt.points.ravel() for prompt in self.prompts), *boxes])
        if look_normalised(coordinates) and (coordinates % 1).any():
            note("all coordinates lie within 0..1, as normalised ones do; they were taken as pixels")
        return fitted

    def _draw(self, image: NDArray[np.uint8], found: list[MaskResult]) -> NDArray[np.uint8]:
        from samexport.runtimes.tasks.records import draw, draw_panels

        if self.request.multimask and len(found) > 1:
            return draw_panels(image, found, columns=len(found) // len(self.prompts))
        return draw(image, found)


def read_logits(text: str) -> NDArray[np.float32]:
    """Logits [L, L] of "FILE.npy", or of "FILE.npy:INDEX" where the file holds several; nothing else of it is loaded.

    Raises:
        PromptError: the file cannot be read, holds no logits, or several and there is no index.
    """
    import numpy as np

    path, index = _file_and_index(text)
    usage = "it must hold logits [L, L] as written by --logits"
    try:
        if not path.is_file():  # a pipe would wait for its writer
            raise FileNotFoundError("there is no such file")
        # mapped, so that a header that promises more than there is cannot ask for memory
        with path.open("rb") as stream:
            if not stream.read(6).startswith((b"\x93NUMPY", b"PK")):
                raise ValueError("it is no array")
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers raise almost anything
        raise PromptError(f"{path} cannot be read as .npy: {reason(error)}; {usage}") from error
    if not isinstance(values, np.ndarray) or values.ndim < 2 or not 0 < values.shape[-1] <= _MASK_SIDE:
        raise PromptError(f"{path} holds no masks; {usage}")
    masks = values.reshape(-1, *values.shape[-2:])
    if index is None and len(masks) != 1:
        raise PromptError(f"{path} holds {len(masks)} masks; give one as {path}:INDEX, 0 to {len(masks) - 1}")
    if index is not None and index >= len(masks):
        raise PromptError(f"{path} holds {len(masks)} masks, there is none with the index {index}; indices start at 0")
    return np.array(masks[index or 0])


def _file_and_index(text: str) -> tuple[Path, int | None]:
    name, colon, index = text.rpartition(":")
    if colon and re.fullmatch(r"[0-9]{1,9}", index) and not os.path.exists(text):
        return Path(name), int(index)
    return Path(text), None


def numbers(text: str, counts: tuple[int, ...], usage: str) -> list[float]:
    """Numbers with commas between them; PromptError unless they are as many as one of ``counts``."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PromptError(f"{text!r} is not {usage}") from error
    if len(values) not in counts:
        raise PromptError(f"{text!r} is not {usage}")
    return values
