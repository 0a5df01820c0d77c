"""``samexport track``: objects through a video, from prompts on any of its frames, to masks on all."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from samexport.cli.help import GroupedCommand
from samexport.cli.options import MAX_OBJECT, BundleFolder, Force, RuntimeName, Threads, sparse_switches
from samexport.cli.pictures import RESULTS
from samexport.cli.terminal import ProgressBar
from samexport.errors import ConfigError

if TYPE_CHECKING:
    from samexport.runtimes.tasks.track import ObjectPrompt, Tracked

_PROMPTS = "What to follow; --frame and --object hold for the prompts after them"
_ORDERED = ("frame", "object_id", "point", "box", "mask")


class OrderedCommand(GroupedCommand):
    """A command that is told in which order some of its options were given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note (name, text) of each option of ``_ORDERED`` in ``ctx.meta``."""
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        values = {name: iter(given[name]) for name in _ORDERED if name in given}
        named = [parameter.name for parameter in order if parameter.name in values]
        ctx.meta[__name__] = [(name, next(values[name])) for name in named]
        return super().parse_args(ctx, args)


def _prompt(text: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_PROMPTS, **options)


def _sparse(text: str, **options: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="What is left out; of bundles made with --sparse", **options)


def track(
    context: typer.Context,
    bundle: BundleFolder,
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file, or a folder of frames.")],
    frame: Annotated[
        list[int] | None, _prompt("Frame of the prompts that follow; from 0.", metavar="NUMBER", min=0)
    ] = None,
    object_id: Annotated[
        list[int] | None,
        _prompt("Object of the prompts that follow; from 1.", "--object", metavar="NUMBER", min=1, max=MAX_OBJECT),
    ] = None,
    point: Annotated[list[str] | None, _prompt("x,y or x,y,0 for a negative click; repeats.", metavar="POINT")] = None,
    box: Annotated[list[str] | None, _prompt("x0,y0,x1,y1; one for each frame and object.", metavar="BOX")] = None,
    mask: Annotated[
        list[str] | None, _prompt("A picture that is black around the object, as --out writes.", metavar="FILE")
    ] = None,
    prompts: Annotated[
        Path | None, _prompt("A .json of prompts, see docs/track.md.", "--prompts", metavar="FILE")
    ] = None,
    direction: Annotated[
        Literal["forwards", "backwards", "both"], typer.Option(help="From an object's prompt; both is twice the work.")
    ] = "forwards",
    last: Annotated[int | None, typer.Option(metavar="FRAME", min=0, help="Frame to end with.")] = None,
    sparse: Annotated[
        Literal["off", "swr", "smr", "both"],
        _sparse("swr: encode chosen windows; smr: read salient tokens of old memories."),
    ] = "off",
    window_threshold: Annotated[
        float | None, _sparse("Attention that windows hold; default 0.7.", metavar="NUMBER", max=1)
    ] = None,
    object_threshold: Annotated[
        float | None, _sparse("Below this score it counts where the decoder looked; default 5.", metavar="NUMBER")
    ] = None,
    keep: Annotated[
        float | None, _sparse("Share of an old memory's tokens; default 0.05.", metavar="NUMBER", max=1)
    ] = None,
    reference_quirks: Annotated[
        bool, _sparse("Do as the published code does where that is a slip; docs/track.md.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a PNG for each frame and object.", rich_help_panel=RESULTS),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the video with the masks drawn on it: .mp4.", rich_help_panel=RESULTS),
    ] = None,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write masks as COCO's run lengths.", rich_help_panel=RESULTS),
    ] = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Follow objects through a video with a bundle alone (no torch).

    An object begins with its first prompt; later prompts correct what is found there.

    Example: samexport track BUNDLE clip.mp4 --point 420,300 --object 2 --box 10,20,90,80 --overlay out.mp4
    """
    given = {"share": window_threshold, "object_threshold": object_threshold, "keep": keep}
    left_out: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if reference_quirks:
        left_out["quirks"] = True
    switches = sparse_switches(sparse)
    if left_out and switches is None:
        raise ConfigError("--window-threshold, --object-threshold, --keep, --reference-quirks need --sparse; give it")
    request = TrackRequest(
        bundle, video, tuple(context.meta[__name__]), prompts, direction, last, switches and {**left_out, **switches}
    )
    run_track(request, Outputs(out, overlay, as_json, force), runtime=runtime, threads=threads)


@dataclass(frozen=True)
class Outputs:
    """Where results go: a folder of PNGs, a video, a .json; what is None is not written."""

    masks: Path | None
    overlay: Path | None
    json: Path | None
    force: bool = False


@dataclass(frozen=True)
class TrackRequest:
    """The command line; ``order`` has frame, object and prompts as they were typed, by name."""

    bundle: Path
    video: Path
    order: tuple[tuple[str, str], ...] = ()
    file: Path | None = None
    direction: Literal["forwards", "backwards", "both"] = "forwards"
    last: int | None = None
    sparse: dict[str, Any] | None = None

    def prompts(self) -> list[ObjectPrompt]:
        """All prompts; PromptError for one that is none, or an object or frame without any."""
        from samexport.cli.track_prompts import of_file, of_line

        return [*(of_file(self.file) if self.file is not None else ()), *of_line(self.order)]

    @property
    def files(self) -> list[Path]:
        """What is read besides the video."""
        from samexport.runtimes.bundle import MANIFEST

        masks = [Path(text) for name, text in self.order if name == "mask"]
        return [self.bundle / MANIFEST, *masks, *([self.file] if self.file is not None else [])]


def run_track(request: TrackRequest, outputs: Outputs, *, runtime: str | None, threads: int | None) -> None:
    """Follow the objects, then write what was asked for; until then nothing is written.

    Raises:
        SamExportError: a video, prompt, bundle or path cannot be used; most are told before the model runs.
    """
    from samexport.cli.tracks import Tracks, check_outputs, write
    from samexport.runtimes.bundle import open_bundle
    from samexport.runtimes.host.video import open_clip
    from samexport.runtimes.session import OpenGraphs, open_session
    from samexport.runtimes.tasks.track import check, follow, passes

    prompts = request.prompts()
    check_outputs(outputs, [request.video, *request.files])
    bundle = open_bundle(request.bundle)
    with closing(OpenGraphs(bundle, runtime=runtime, threads=threads)) as graphs:
        session = open_session(graphs)
        open_tracker = partial(session.tracker, sparse=request.sparse)
        open_tracker()  # refuses a bundle without it before the clip is read
        clip = open_clip(request.video, last=request.last)
        check(prompts, clip)
        if warning := bundle.manifest.weights.warning:
            print(f"this bundle has {warning}")
        ways = passes(prompts, clip.frames, request.direction)
        with ProgressBar() as bar, Tracks() as tracks:
            speed = _Speed(bar.update, sum(len(way.frames) for way in ways))
            for tracked in follow(open_tracker, clip, ways):
                tracks.add(tracked)
                speed.add(tracked)
            facts = {
                "bundle": str(bundle.folder),
                "weights": bundle.manifest.weights.kind,
                "video": str(clip.path),
                "sparse": request.sparse,
            }
            written = write(tracks, clip, prompts, outputs, facts, bar.update)
            for line in (*tracks.summary(), f"{speed.text()} on {session.placement}"):
                print(line)
        for path, what in written.items():
            print(f"wrote {path}: {what}")


class _Speed:
    """How fast it goes, shown in the progress bar and in the end."""

    def __init__(self, show: Callable[[str, int, int], None], total: int) -> None:
        self._show, self._total = show, total
        self._start, self._frames = time.perf_counter(), 0
        self._seconds: dict[str, float] = {}
        self._windows: list[int] = []
        self._tokens = 0.0
        show("opening", 0, total)

    def add(self, tracked: Tracked) -> None:
        self._frames += 1
        self._tokens += tracked.tokens
        if tracked.windows is not None:
            self._windows.append(len(tracked.windows))
        for part, seconds in tracked.seconds.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        self._show(self.text(), self._frames, self._total)

    def text(self) -> str:
        rate = self._frames / (time.perf_counter() - self._start)
        parts = (f"{part} {1e3 * seconds / self._frames:.0f} ms" for part, seconds in self._seconds.items())
        return f"{rate:.2f} frames/s ({', '.join(parts)} a frame){self._left_out()}"

    def _left_out(self) -> str:
        """What was seen in windows and read of memories."""
        said = ""
        if count := len(self._windows):
            said += f", {sum(self._windows) / count:.1f} windows on {count} of {self._frames} frames"
        if self._frames and self._tokens < self._frames:
            said += f", {self._tokens / self._frames:.0%} of the tokens"
        return said
