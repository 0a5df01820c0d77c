"""How long a click takes on ONNX Runtime Web's WASM and on ONNX Runtime itself, one thread each, in turns.

    python tools/web_speed.py BUNDLE --runtime node_modules/onnxruntime-web --out docs/results/web

A click is the last graph that the page of ``samexport web`` runs: the decoder, or the half that sees prompts. Rounds go
through all ways in turn, so that ratios are of one machine in one state. Numbers are drawn: what is computed does not
depend on them. Node runs WASM as browsers with V8 do. ``--files NAME=PATH`` times further files of the same inputs.
"""

from __future__ import annotations

import argparse
import json
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

NATIVE, PAGE = "ONNX Runtime", "as the page runs it"
POINTS = 2
Arrays = dict[str, NDArray[np.float32]]


class Profile(NamedTuple):
    """Milliseconds of one run: of all of it, and of its operators by name."""

    whole: float
    operators: dict[str, float]


def main() -> None:
    """Measure, then write ``web.json`` and ``web.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", type=Path, required=True, help="an unpacked package onnxruntime-web")
    parser.add_argument("--rounds", type=int, default=6, help="the first warms up")
    parser.add_argument("--runs", type=int, default=5, help="of each way in a round")
    parser.add_argument("--files", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("docs/results/web"))
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    path, given = click(bundle)
    ways = variants(path, given, dict(each.split("=", 1) for each in options.files))
    with tempfile.TemporaryDirectory() as scratch, BusyCores() as busy:
        write_job(Path(scratch), given, ways)
        dist = (options.runtime / "dist").resolve()
        with Wasm(dist, Path(scratch)) as wasm:
            native = open_native(path)
            rows = measure(native, wasm, given, list(ways), options.rounds, options.runs)
            profiles = [profile_native(path, given, Path(scratch)), wasm.profile(PAGE)]
    facts = {
        "model": bundle.manifest.model,
        "graph": path.name,
        "side": bundle.manifest.frame.size,
        "web": json.loads((options.runtime / "package.json").read_text())["version"],
        "native": onnxruntime.__version__,
        "busy_cores": round(busy.others, 2),
        "environment": asdict(environment()),
    }
    write(options.out, facts, rows, profiles)


def click(bundle: Bundle) -> tuple[Path, Arrays]:
    """The last graph that the page runs for a click, and its inputs: one point and the padding point."""
    rng = np.random.default_rng(7)
    first, *rest = bundle.graph("encoder").outputs
    assert not rest
    size = bundle.manifest.frame.size
    known: Arrays = {
        first.name: rng.normal(size=[int(side) for side in first.shape]).astype(np.float32),
        "point_coords": np.array([[[size / 2, size / 2], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
    }
    graphs = config(bundle)["decoder"]
    for graph in graphs[:-1]:
        session = open_native(bundle.folder / bundle.artifact(graph["name"]).path)
        found = session.run(graph["outputs"], {name: known[name] for name in graph["inputs"]})
        known |= dict(zip(graph["outputs"], found, strict=True))
    last = graphs[-1]
    return bundle.folder / bundle.artifact(last["name"]).path, {name: known[name] for name in last["inputs"]}


def variants(path: Path, given: Arrays, files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Ways to run the graph on WASM: the file and ONNX Runtime Web's options, by what is said of them."""
    axes = {
        side: size
        for value in open_native(path).get_inputs()
        for side, size in zip(value.shape, given[value.name].shape, strict=True)
        if isinstance(side, str)
    }
    levels = {f"graph optimisation {level}": {"graphOptimizationLevel": level} for level in ("basic", "disabled")}
    ways = {PAGE: {}, **levels, "sizes fixed": {"freeDimensionOverrides": axes}}
    found = {name: {"file": str(path.resolve()), "options": options} for name, options in ways.items()}
    return found | {name: {"file": str(Path(file).resolve()), "options": {}} for name, file in files.items()}


def write_job(folder: Path, given: Arrays, ways: dict[str, dict[str, Any]]) -> None:
    """What ``web_speed.mjs`` reads."""
    for name, value in given.items():
        (folder / f"{name}.bin").write_bytes(value.tobytes())
    shapes = {name: value.shape for name, value in given.items()}
    (folder / "job.json").write_text(json.dumps({"inputs": shapes, "variants": ways}))


class Wasm:
    """Node with ONNX Runtime Web, kept open between rounds."""

    def __init__(self, dist: Path, folder: Path) -> None:
        command = ["node", str(Path(__file__).with_suffix(".mjs")), str(dist), str(folder)]
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


def profile_native(path: Path, given: Arrays, folder: Path) -> Profile:
    """Of the last of some runs."""
    session = open_native(path, folder / "profile")
    for _ in range(4):
        session.run(None, given)
    return _profile(json.loads(Path(session.end_profiling()).read_text()))


def _profile(events: list[dict[str, Any]]) -> Profile:
    runs = [event for event in events if event["name"] == "model_run"]
    last = max(runs, key=lambda event: float(event["ts"]))
    found: Counter[str] = Counter()
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= last["ts"]:
            found[event["args"]["op_name"]] += event["dur"]
    return Profile(last["dur"] / 1e3, {name: each / 1e3 for name, each in found.most_common()})


def measure(
    native: Any, wasm: Wasm, given: Arrays, ways: Sequence[str], rounds: int, runs: int
) -> dict[str, list[float]]:
    """Milliseconds of every run after the first round, by the way."""
    rows: dict[str, list[float]] = {NATIVE: [], **{name: [] for name in ways}}
    for number in range(rounds):
        for name, found in rows.items():
            took = _run_native(native, given, runs) if name == NATIVE else wasm.run(name, runs)
            found += took if number else []
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
    base, least = float(np.median(rows[NATIVE])), min(rows[NATIVE])
    yield f"# A click in a browser: {facts['model']} at {facts['side']} pixels, `{facts['graph']}`"
    yield ""
    yield f"ONNX Runtime {facts['native']} and ONNX Runtime Web {facts['web']} in Node, one thread each, in turns;"
    yield f"{facts['environment']['cpu']}; {len(rows[NATIVE])} runs each; others kept {facts['busy_cores']} cores busy."
    yield ""
    yield "| | median ms | least ms | times the first, median | least |"
    yield "|---|---|---|---|---|"
    for name, took in rows.items():
        median = float(np.median(took))
        label = name if name == NATIVE else f"WASM, {name}"
        yield f"| {label} | {median:.1f} | {min(took):.1f} | {median / base:.2f} | {min(took) / least:.2f} |"
    native, wasm = profiles
    yield ""
    yield "Where the time goes, one profiled run each:"
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
