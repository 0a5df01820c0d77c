"""How long a tracked frame takes, part by part: our graphs, the straightforward export, more objects, sparse switches.

    python tools/track_speed.py BUNDLE --plain FOLDER --threads 2 --minutes 10 --out docs/results/tracking/NAME

BUNDLE was made with ``--video`` or ``--sparse``. A tracker is set into its steady state (one prompted frame, six
memories, sixteen pointers, numbers drawn), then frames are tracked in rounds that have one frame of each case, so that
ratios are of one run. Weights may be random: what is computed does not depend on them. FOLDER gets the untouched
architecture's graphs, a process each, and is used again if it is there (not of 64-pixel models: torch cannot export
their memory attention as it is).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.benchmarks.measuring.environment import BusyCores, environment
from samexport.cli.bench import plain_export
from samexport.errors import SamExportError
from samexport.files import new_folder
from samexport.models.families.sam2_sparse import WINDOW_GRAPHS, kept_tokens
from samexport.runtimes.bundle import CONSTANTS, MANIFEST, Bundle, open_bundle
from samexport.runtimes.families.sam2_sparse_tracker import SparseTracker
from samexport.runtimes.families.sam2_tracker import Tracker
from samexport.runtimes.host.memory import Bank, Remembered
from samexport.runtimes.host.object_masks import ObjectMask
from samexport.runtimes.parity.golden import structured_picture
from samexport.runtimes.session import OpenGraphs, Session, open_session

GRAPHS = ("image_encoder", "memory_attention", "mask_decoder_tracked", "memory_encoder")
COUNTS = (1, 3, 6, 8, 9, 12, 16, 25)
PARTS = ("encode", "remember", "decode", "memorise", "host")
_NOW = 20
Rows = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Case:
    """A frame that is timed: on which graphs, of how many objects; with windows memories are pruned as well."""

    session: Session
    objects: int = 1
    windows: int | None = None


def main() -> None:
    """Measure, then write NAME.json, NAME.md and, of a sparse bundle, NAME.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--plain", type=Path, help="where the straightforward export is, or will be")
    parser.add_argument("--runtime", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10, help="begin no further round after so many")
    parser.add_argument("--out", type=Path, required=True, help="file without its ending")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    opened = {"runtime": options.runtime, "threads": options.threads}
    own = OpenGraphs(bundle, **opened)
    session = open_session(own)
    facts = _facts(session)
    _frame(Case(session))
    # kilobytes on Linux; before another bundle is opened
    facts["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    cases = own_cases(session)
    if options.plain:
        cases = {"straightforward": Case(open_session(OpenGraphs(plain(bundle, options.plain), **opened))), **cases}
    with BusyCores() as busy:
        rows = measure(cases, 60 * options.minutes)
    write(options.out, {**facts, "busy_cores": round(busy.others, 2)}, rows)


def _facts(session: Session) -> dict[str, Any]:
    manifest = session.manifest
    return {
        "model": manifest.model,
        "side": manifest.frame.size,
        "weights": manifest.weights.kind,
        "runtime": session.runtime,
        "environment": asdict(environment()),
    }


def plain(bundle: Bundle, folder: Path) -> Bundle:
    """The straightforward export of what a tracked frame runs."""
    if (folder / MANIFEST).exists():
        return open_bundle(folder)
    with new_folder(folder) as made:
        _export_all(bundle, made)
    return open_bundle(folder)


def _export_all(bundle: Bundle, folder: Path) -> None:
    parts = []
    for name in GRAPHS:
        (folder / name).mkdir()
        # a process each: what torch's exporter holds of the last graph would not fit beside the next one
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_export, bundle.folder, folder / name, name).result()
        made = open_bundle(folder / name)
        # torch's older exporter is left out: one straightforward export is enough
        files = [replace(a, path=f"{name}/{a.path}") for a in made.manifest.artifacts if not a.options]
        parts.append((made.manifest.graphs, files))
    graphs = tuple(graph for each, _ in parts for graph in each)
    artifacts = tuple(artifact for _, each in parts for artifact in each)
    shutil.copy(bundle.folder / CONSTANTS, folder)
    manifest = replace(bundle.manifest, graphs=graphs, artifacts=artifacts, files={}, parity=())
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _export(bundle: Path, folder: Path, name: str) -> None:
    # where torch's exporter fails it prints the whole graph; the error comes back by itself
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    plain_export(open_bundle(bundle), folder, names=(name,))


def own_cases(session: Session) -> dict[str, Case]:
    """One object, three, and with each number of windows of a sparse bundle."""
    cases = {"dense": Case(session)}
    if not set(WINDOW_GRAPHS) <= set(session.graphs.bundle.graph_names):
        return {**cases, "three objects": Case(session, objects=3)}
    tracker = session.tracker(sparse={})
    assert isinstance(tracker, SparseTracker)
    every = tracker.windows.count
    counts = sorted({min(count, every) for count in COUNTS})
    return {**cases, **{f"windows {count}": Case(session, windows=count) for count in counts}}


def measure(cases: dict[str, Case], seconds: float) -> Rows:
    """Milliseconds of the parts of frames; the first round warms up."""
    rows: Rows = {name: [] for name in cases}
    begun, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begun < seconds:
        for name, case in cases.items():
            took = _frame(case)
            if rounds:
                rows[name].append(took)
        rounds += 1
        print(f"round {rounds}, {time.perf_counter() - begun:.0f} s", flush=True)
    return rows


@cache
def _picture(size: int) -> NDArray[np.uint8]:
    return structured_picture(np.random.default_rng(7), size)


def _frame(case: Case) -> dict[str, float]:
    picture = _picture(case.session.manifest.frame.size)
    tracker = _tracker(case, picture.shape)
    if case.windows is not None:
        assert isinstance(tracker, SparseTracker)
        across, every = tracker.windows.across, tracker.windows.count
        middle = [np.hypot(n // across - (across - 1) / 2, n % across - (across - 1) / 2) for n in range(every)]
        tracker.chosen = _NOW, np.sort(np.argsort(middle, kind="stable")[: case.windows])
    start = time.perf_counter()
    seen = tracker.step(picture)
    tracker.forget()
    seen.masks()
    total = time.perf_counter() - start
    parts = {part: 1e3 * each for part, each in seen.seconds.items()}
    return {**parts, "host": 1e3 * total - sum(parts.values()), "frame": 1e3 * total, "tokens": seen.tokens}


def _tracker(case: Case, shape: Sequence[int]) -> Tracker:
    """In its steady state; the masks and memories are drawn."""
    session = case.session
    if case.windows is None:
        # as the session does, but of the straightforward export there is only what a tracked frame runs
        tracker = Tracker(session.graphs.open, session.graphs.bundle.constants)
    else:
        tracker = session.tracker(sparse={})
    rng, side = np.random.default_rng(3), tracker.square.low_res
    cells, width = map(int, session.graphs.bundle.graph("memory_attention").inputs[1].shape[-2:])
    pointer = session.graphs.bundle.constants["no_object_pointer"].shape

    def remembered() -> Remembered:
        logits = rng.normal(size=(side, side)).astype(np.float32)
        mask = ObjectMask(logits, np.ones(1, np.float32), rng.normal(size=pointer).astype(np.float32), 9.0)
        # bits of bfloat16 between 1 and 2
        return Remembered(mask, rng.integers(0x3F80, 0x4000, (cells, width), np.uint16))

    past = range(_NOW - 15, _NOW)
    for name in range(1, 1 + case.objects):
        tracker.banks[name] = Bank({0: remembered()}, {frame: remembered() for frame in past})
    if isinstance(tracker, SparseTracker):
        layers, _ = tracker.saliency
        kept = kept_tokens(cells, tracker.sparse.keep)
        chosen = np.stack([np.sort(rng.permutation(cells)[:kept]) for _ in range(layers)])
        tracker.kept[1] = dict.fromkeys(past, chosen)
    tracker.next_frame, tracker.image_hw = _NOW, (shape[0], shape[1])
    return tracker


def median(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each part."""
    return {part: float(np.median([row[part] for row in rows])) for part in rows[0]}


def write(out: Path, facts: dict[str, Any], rows: Rows) -> None:
    """The table, the numbers behind it, and the plot."""
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {name: median(each) for name, each in rows.items()}
    content = {**facts, "rounds": len(rows["dense"]), "milliseconds": found, "all": rows}
    # names have dots of their own, so no ending is replaced
    files = {ending: out.with_name(f"{out.name}.{ending}") for ending in ("json", "md", "png")}
    files["json"].write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = list(_table(facts, found, len(rows["dense"])))
    if any(name.startswith("windows") for name in found):
        _plot(files["png"], facts, found)
        lines += ["", f"![How much faster a frame is]({files['png'].name})"]
    files["md"].write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _table(facts: dict[str, Any], found: dict[str, dict[str, float]], rounds: int) -> Iterator[str]:
    dense, plain = found["dense"], found.get("straightforward")
    yield f"# A tracked frame: {facts['model']} at {facts['side']} pixels"
    yield ""
    yield f"{facts['runtime']}; {facts['environment']['cpu']}; medians of {rounds} rounds, steady state, one object"
    yield f"unless said; other programs kept {facts['busy_cores']} cores busy; weights: {facts['weights']}."
    yield f"The process held at most {facts['peak_gb']:.2f} GB while it ran the dense graphs alone. Milliseconds:"
    yield ""
    yield "Each number is a median of its own, so parts need not add up to the frame."
    yield ""
    more = ["of straightforward: encode", "remember", "frame"] if plain else []
    yield f"| case | {' | '.join([*PARTS, 'frame', 'of dense: encode', 'remember', 'frame', *more])} |"
    yield f"|{'---|' * (len(PARTS) + 5 + len(more))}"
    for name, each in found.items():
        cells = [name, *(f"{each[part]:.{0 if each[part] >= 10 else 1}f}" for part in (*PARTS, "frame"))]
        for other in (dense, plain) if plain else (dense,):
            cells += [f"{each[part] / other[part]:.2f}" for part in ("encode", "remember", "frame")]
        yield f"| {' | '.join(cells)} |"


def _plot(path: Path, facts: dict[str, Any], found: dict[str, dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=144, layout="constrained")
    axes = figure.subplots()
    counts = [int(name.removeprefix("windows ")) for name in found if name.startswith("windows")]
    lines = [
        ("dense", "frame", "whole frame"),
        ("dense", "encode", "encoder"),
        ("dense", "remember", "memory attention"),
    ]
    if "straightforward" in found:
        lines.append(("straightforward", "frame", "whole frame, than the straightforward export"))
    for base, part, label in lines:
        factors = [found[base][part] / found[f"windows {count}"][part] for count in counts]
        axes.plot(counts, factors, "o-", label=label)
    axes.axhline(1, color="#9ca3af", linewidth=1)
    axes.set(
        xlabel=f"windows that are encoded, of {max(counts)}",
        ylabel="times faster than our dense graphs",
        ylim=(0, None),
    )
    # the rest of it, what computes what, is in the table
    runtime = facts["runtime"].partition(":")[0]
    axes.set_title(f"{facts['model']} at {facts['side']} pixels, {runtime}", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    try:
        main()
    except SamExportError as error:
        sys.exit(f"error: {error}")
