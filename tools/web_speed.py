"""How long a click takes on ONNX Runtime Web's WASM and on ONNX Runtime itself, one thread each, in turns.

    python tools/web_speed.py BUNDLE [BUNDLE ...] --runtime node_modules/onnxruntime-web --out docs/results/web

A click is the last graph that the page of ``samexport web`` runs: the decoder, or the half that sees prompts. Rounds go
through all ways in turn, so that ratios are of one machine in one state. The first bundle is timed with other options,
too, and profiled. Numbers are drawn: what is computed does not depend on them. ``--browser /usr/bin/chromium
--playwright node_modules/playwright-core`` runs WASM in a page instead of in Node, whose compiler may be older.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from samexport.benchmarks.measuring.environment import BusyCores, environment
from samexport.exporter.deliver.web import config
from samexport.runtimes.bundle import Bundle, open_bundle

Arrays = dict[str, NDArray[np.float32]]


class Way(NamedTuple):
    """A graph and how it is run: by ONNX Runtime if there are no options, else on WASM with these."""

    file: Path
    given: Arrays
    options: dict[str, Any] | None = None


class Profile(NamedTuple):
    """Milliseconds of one run: of all of it, and of its operators by name."""

    whole: float
    operators: dict[str, float]


def main() -> None:
    """Measure, then write ``web.json`` and ``web.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--runtime", type=Path, required=True, help="an unpacked package onnxruntime-web")
    parser.add_argument("--browser", default="", help="Chromium's path; Node without it")
    parser.add_argument("--playwright", default="", help="a package playwright-core")
    parser.add_argument("--rounds", type=int, default=6, help="the first warms up")
    parser.add_argument("--runs", type=int, default=5, help="of each way in a round")
    parser.add_argument("--out", type=Path, default=Path("docs/results/web"))
    options = parser.parse_args()
    bundles = [open_bundle(folder) for folder in options.bundles]
    ways = all_ways(bundles)
    with tempfile.TemporaryDirectory() as scratch, BusyCores() as busy:
        write_job(Path(scratch), ways)
        host = [options.browser, str(Path(options.playwright).resolve())] if options.browser else []
        with Wasm((options.runtime / "dist").resolve(), Path(scratch), host) as wasm:
            rows = measure(ways, wasm, options.rounds, options.runs)
            native, page, *_ = ways
            profiles = [profile_native(ways[native], Path(scratch)), wasm.profile(page)]
    facts = {
        "models": sorted({bundle.manifest.model for bundle in bundles}),
        "side": bundles[0].manifest.frame.size,
        "web": json.loads((options.runtime / "package.json").read_text())["version"],
        "native": onnxruntime.__version__,
        "host": Path(options.browser).name or "node",
        "busy_cores": round(busy.others, 2),
        "environment": asdict(environment()),
    }
    write(options.out, facts, rows, profiles)


def click(bundle: Bundle) -> Way:
    """The last graph that the page runs for a click, and its inputs: one point and the padding point."""
    rng = np.random.default_rng(7)
    (first,) = bundle.graph("encoder").outputs
    size = bundle.manifest.frame.size
    known: Arrays = {
        first.name: rng.normal(size=[int(side) for side in first.shape]).astype(np.float32),
        "point_coords": np.array([[[size / 2, size / 2], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
    }
    *halves, last = config(bundle)["decoder"]
    for half in halves:
        session = open_native(bundle.folder / bundle.artifact(half["name"]).path)
        found = session.run(half["outputs"], {given["name"]: known[given["name"]] for given in half["inputs"]})
        known |= dict(zip(half["outputs"], found, strict=True))
    inputs = [given["name"] for given in last["inputs"]]
    return Way(bundle.folder / bundle.artifact(last["name"]).path, {name: known[name] for name in inputs})


def all_ways(bundles: Sequence[Bundle]) -> dict[str, Way]:
    """Each bundle's click by ONNX Runtime and as the page runs it, and the first one's with other options of WASM."""
    clicks = {way.file.stem: way for way in map(click, bundles)}
    if len(clicks) < len(bundles):
        raise SystemExit("give bundles whose clicks run different graphs")
    first = next(iter(clicks.values()))
    axes = {
        side: size
        for value in open_native(first.file).get_inputs()
        for side, size in zip(value.shape, first.given[value.name].shape, strict=True)
        if isinstance(side, str)
    }
    others: dict[str, dict[str, Any]] = {
        f"graph optimisation {level}": {"graphOptimizationLevel": level} for level in ("basic", "disabled")
    }
    others |= {"sizes fixed": {"freeDimensionOverrides": axes}}
    found: dict[str, Way] = {}
    for name, way in clicks.items():
        found |= {f"`{name}`, ONNX Runtime": way, f"`{name}`, WASM": way._replace(options={})}
    name = first.file.stem
    return found | {f"`{name}`, WASM, {what}": first._replace(options=options) for what, options in others.items()}


def write_job(folder: Path, ways: dict[str, Way]) -> None:
    """What ``web_speed.mjs`` reads."""
    job = {}
    for name, way in ways.items():
        for key, value in way.given.items():
            (folder / f"{way.file.stem}.{key}.bin").write_bytes(value.tobytes())
        inputs = {key: {"file": f"{way.file.stem}.{key}.bin", "shape": v.shape} for key, v in way.given.items()}
        shutil.copyfile(way.file, folder / way.file.name)
        job[name] = {"file": way.file.name, "inputs": inputs, "options": way.options}
    (folder / "job.json").write_text(json.dumps(job))


class Wasm:
    """ONNX Runtime Web in Node or in the browser that ``host`` names, kept open between rounds."""

    def __init__(self, dist: Path, folder: Path, host: Sequence[str]) -> None:
        command = ["node", str(Path(__file__).with_suffix(".mjs")), str(dist), str(folder), *host]
        self._node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Wasm:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._node.stdin
        self._node.stdin.close()
        self._node.wait()

    def run(self, variant: str, runs: int) -> list[float]:
        """Milliseconds of each run."""
        return self._ask({"variant": variant, "runs": runs})[0]

    def profile(self, variant: str) -> Profile:
        """Of the last of some runs."""
        return _profile(json.loads(self._ask({"variant": variant, "runs": 4, "profile": True})[1]))

    def _ask(self, request: dict[str, Any]) -> tuple[list[float], str]:
        assert self._node.stdin
        assert self._node.stdout
        self._node.stdin.write(json.dumps(request) + "\n")
        self._node.stdin.flush()
        before: list[str] = []
        for line in self._node.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer ")), "".join(before)
            before.append(line)
        raise RuntimeError(f"Node ended: {''.join(before)[-500:]}")


def open_native(path: Path, profile: Path | None = None) -> Any:
    """ONNX Runtime with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def profile_native(way: Way, folder: Path) -> Profile:
    """Of the last of some runs."""
    session = open_native(way.file, folder / "profile")
    for _ in range(4):
        session.run(None, way.given)
    return _profile(json.loads(Path(session.end_profiling()).read_text()))


def _profile(events: list[dict[str, Any]]) -> Profile:
    runs = [event for event in events if event["name"] == "model_run"]
    last = max(runs, key=lambda event: float(event["ts"]))
    found: Counter[str] = Counter()
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= last["ts"]:
            found[event["args"]["op_name"]] += event["dur"]
    return Profile(last["dur"] / 1e3, {name: each / 1e3 for name, each in found.most_common()})


def measure(ways: dict[str, Way], wasm: Wasm, rounds: int, runs: int) -> dict[str, list[float]]:
    """Milliseconds of every run after the first round, by the way."""
    native = {name: open_native(way.file) for name, way in ways.items() if way.options is None}
    rows: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            took = _run_native(native[name], way.given, runs) if name in native else wasm.run(name, runs)
            rows[name] += took if number else []
        print(f"round {number + 1} of {rounds}", flush=True)
    return rows


def _run_native(session: Any, given: Arrays, runs: int) -> list[float]:
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, given)
        took.append(1e3 * (time.perf_counter() - start))
    return took


def write(out: Path, facts: dict[str, Any], rows: dict[str, list[float]], profiles: Sequence[Profile]) -> None:
    """The table and the numbers behind it."""
    out.mkdir(parents=True, exist_ok=True)
    content = {**facts, "milliseconds": rows, "profiles": [profile._asdict() for profile in profiles]}
    (out / "web.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "web.md").write_text("\n".join(_table(facts, rows, profiles)) + "\n", encoding="utf-8")
    print((out / "web.md").read_text(encoding="utf-8"))


def _table(facts: dict[str, Any], rows: dict[str, list[float]], profiles: Sequence[Profile]) -> Iterator[str]:
    first, *_ = rows.values()
    base, least = float(np.median(first)), min(first)
    yield f"# A click in a browser: {', '.join(facts['models'])} at {facts['side']} pixels"
    yield ""
    yield f"ONNX Runtime {facts['native']}, its WASM {facts['web']} in {facts['host']}, one thread each, in turns;"
    yield f"{facts['environment']['cpu']}; {len(first)} runs each; others kept {facts['busy_cores']} cores busy."
    yield ""
    yield "| | median ms | least ms | times the first row, median | least |"
    yield "|---|---|---|---|---|"
    for name, took in rows.items():
        median = float(np.median(took))
        yield f"| {name} | {median:.1f} | {min(took):.1f} | {median / base:.2f} | {min(took) / least:.2f} |"
    native, wasm = profiles
    yield ""
    yield "Where the time of the first two goes, one profiled run each:"
    yield ""
    yield "| operator | ONNX Runtime ms | WASM ms | times |"
    yield "|---|---|---|---|"
    shown = sorted(wasm.operators, key=lambda name: -wasm.operators[name])[:8]
    for name in shown:
        own, theirs = native.operators.get(name, 0.0), wasm.operators[name]
        yield f"| {name} | {own:.1f} | {theirs:.1f} | {theirs / own:.1f} |" if own else f"| {name} | | {theirs:.1f} | |"
    rest = [sum(each for name, each in profile.operators.items() if name not in shown) for profile in profiles]
    yield f"| others | {rest[0]:.1f} | {rest[1]:.1f} | |"
    yield f"| the whole run | {native.whole:.1f} | {wasm.whole:.1f} | {wasm.whole / native.whole:.1f} |"


if __name__ == "__main__":
    main()
