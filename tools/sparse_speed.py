"""What Efficient-SAM2 saves on a tracked frame: its parts dense and sparse, and the factor as the object grows.

    python tools/sparse_speed.py BUNDLE --threads 2 --minutes 10 --out docs/results/sparse

BUNDLE was made with ``--sparse``. A tracker is set into its steady state (one prompted frame, six memories, sixteen
pointers, numbers drawn), then frames are tracked in rounds, each of which has a dense one and one for each number of
windows, so that ratios are of one run. Weights may be random: what is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from samexport.benchmarks.measuring.environment import BusyCores, environment
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.families.sam2_sparse_tracker import SparseTracker
from samexport.runtimes.host.memory import Bank, Remembered
from samexport.runtimes.host.object_masks import ObjectMask
from samexport.runtimes.parity.golden import structured_picture
from samexport.runtimes.session import OpenGraphs, Session, open_session

COUNTS = (1, 3, 6, 9, 12, 16, 25)
PARTS = ("encode", "remember", "decode", "memorise", "host")
_NOW = 20
Rows = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measure, then write ``sparse.json``, ``sparse.md`` and ``sparse.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10, help="begin no further round after so many")
    parser.add_argument("--out", type=Path, default=Path("docs/results/sparse"))
    options = parser.parse_args()
    graphs = OpenGraphs(open_bundle(options.bundle), runtime=options.runtime, threads=options.threads)
    session = open_session(graphs)
    with BusyCores() as busy:
        rows = measure(session, 60 * options.minutes)
    manifest = graphs.bundle.manifest
    facts = {
        "model": manifest.model,
        "side": manifest.frame.size,
        "weights": manifest.weights.kind,
        "runtime": session.placement,
        "busy_cores": round(busy.others, 2),
        "environment": asdict(environment()),
    }
    graphs.close()
    write(options.out, facts, rows)


def measure(session: Session, seconds: float) -> Rows:
    """Milliseconds of the parts of frames, by ``dense``, ``windows 9`` and so on; the first round warms up."""
    picture = structured_picture(np.random.default_rng(7), session.manifest.frame.size)
    every = _tracker(session).windows.count
    cases = {"dense": None, **{f"windows {count}": count for count in sorted({min(c, every) for c in COUNTS})}}
    rows: Rows = {name: [] for name in cases}
    begun, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begun < seconds:
        for name, count in cases.items():
            took = _frame(session, picture, count)
            if rounds:
                rows[name].append(took)
        rounds += 1
        print(f"round {rounds}, {time.perf_counter() - begun:.0f} s", flush=True)
    return rows


def _frame(session: Session, picture: np.ndarray[Any, Any], count: int | None) -> dict[str, float]:
    tracker = _tracker(session, sparse=count is not None)
    if count is not None:
        across, every = tracker.windows.across, tracker.windows.count
        middle = [np.hypot(n // across - (across - 1) / 2, n % across - (across - 1) / 2) for n in range(every)]
        tracker.chosen = _NOW, np.sort(np.argsort(middle, kind="stable")[:count])
    start = time.perf_counter()
    seen = tracker.step(picture)
    tracker.forget()
    seen.masks()
    total = time.perf_counter() - start
    parts = {part: 1e3 * each for part, each in seen.seconds.items()}
    return {**parts, "host": 1e3 * total - sum(parts.values()), "frame": 1e3 * total, "tokens": seen.tokens}


def _tracker(session: Session, *, sparse: bool = True) -> SparseTracker:
    """One object in its steady state; the masks and memories are drawn."""
    tracker = session.tracker(sparse={"windows": sparse, "memory": sparse})
    assert isinstance(tracker, SparseTracker)
    rng, side = np.random.default_rng(3), tracker.square.low_res
    layers, cells = tracker.saliency
    tokens = session.graphs.bundle.graph("memory_attention").inputs[1].shape[-1]
    pointer = session.graphs.bundle.constants["no_object_pointer"].shape

    def remembered() -> Remembered:
        logits = rng.normal(size=(side, side)).astype(np.float32)
        mask = ObjectMask(logits, np.ones(1, np.float32), rng.normal(size=pointer).astype(np.float32), 9.0)
        # bits of bfloat16 between 1 and 2
        return Remembered(mask, rng.integers(0x3F80, 0x4000, (cells, int(tokens)), np.uint16))

    tracker.banks[1] = Bank({0: remembered()}, {frame: remembered() for frame in range(_NOW - 15, _NOW)})
    kept = max(1, int(cells * (1 - (1 - tracker.sparse.keep))))
    chosen = np.stack([np.sort(rng.permutation(cells)[:kept]) for _ in range(layers)])
    tracker.kept[1] = dict.fromkeys(range(_NOW - 15, _NOW), chosen)
    size = structured_picture(np.random.default_rng(7), session.manifest.frame.size).shape
    tracker.next_frame, tracker.image_hw = _NOW, (size[0], size[1])
    return tracker


def median(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each part."""
    return {part: float(np.median([row[part] for row in rows])) for part in rows[0]}


def write(out: Path, facts: dict[str, Any], rows: Rows) -> None:
    """The table, the numbers behind it, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    found = {name: median(each) for name, each in rows.items()}
    content = {**facts, "rounds": len(rows["dense"]), "milliseconds": found, "all": rows}
    (out / "sparse.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "sparse.md").write_text("\n".join(_table(facts, found, len(rows["dense"]))) + "\n", encoding="utf-8")
    _plot(out / "sparse.png", facts, found)
    print((out / "sparse.md").read_text(encoding="utf-8"))


def _table(facts: dict[str, Any], found: dict[str, dict[str, float]], rounds: int) -> Iterator[str]:
    dense = found["dense"]
    yield f"# Sparse tracking: {facts['model']} at {facts['side']} pixels"
    yield ""
    yield f"{facts['runtime']}; {facts['environment']['cpu']}; medians of {rounds} rounds, one object, steady state;"
    yield f"other programs kept {facts['busy_cores']} cores busy; weights: {facts['weights']}. Milliseconds of a frame:"
    yield ""
    yield f"| windows | {' | '.join(PARTS)} | frame | encoder | memory attention | faster |"
    yield f"|{'---|' * (len(PARTS) + 5)}"
    for name, each in found.items():
        cells = [name.removeprefix("windows "), *(f"{each[part]:.0f}" for part in (*PARTS, "frame"))]
        cells += [f"{each[part] / dense[part]:.2f}x" for part in ("encode", "remember")]
        yield f"| {' | '.join(cells)} | {dense['frame'] / each['frame']:.2f}x |"
    yield ""
    yield "![How much faster a frame is](sparse.png)"


def _plot(path: Path, facts: dict[str, Any], found: dict[str, dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=144, layout="constrained")
    axes = figure.subplots()
    counts = [int(name.removeprefix("windows ")) for name in found if name != "dense"]
    for part, label in (("frame", "whole frame"), ("encode", "encoder"), ("remember", "memory attention")):
        factors = [found["dense"][part] / found[f"windows {count}"][part] for count in counts]
        axes.plot(counts, factors, "o-", label=label)
    axes.axhline(1, color="#9ca3af", linewidth=1)
    axes.set(xlabel=f"windows that are encoded, of {max(counts)}", ylabel="times faster than dense", ylim=(0, None))
    axes.set_title(f"{facts['model']} at {facts['side']} pixels", loc="left")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
