"""``samexport bench``: measure bundles and write the results. What the command line calls."""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from samexport.benchmarks.results.rows import PHOTOGRAPH, BenchRow, Job, Pair, Results
from samexport.errors import ConfigError, MissingDependency
from samexport.installation import install_hint
from samexport.runtimes.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from samexport.benchmarks.measuring.adb import PhoneRun
    from samexport.benchmarks.plan import Plan

FILES = ("results.json", "results.csv", "results.md", "results.html")
MakeBaselines = Callable[[Bundle, Path], Bundle]
"""Writes the plain form of a bundle's graphs into an empty folder."""

_Item = TypeVar("_Item", BenchRow, Pair)


@dataclass(frozen=True)
class BenchRequest:
    """What the user asked for; names as in ``plan.Plan``, ``rivals`` as in ``plan.pairs_of``.

    ``repeat`` is the least number of runs; ``seconds`` caps a row once it is reached, ``timeout`` always.
    ``photograph`` is the width and height of the picture for tasks. ``benchmark_model`` is LiteRT's program for
    the phone ``serial``, which then runs the TFLite files too.
    """

    bundles: tuple[Path, ...]
    out: Path
    runtimes: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    prompts: tuple[int, ...] = (1, 16, 64)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (2,)
    rivals: tuple[str, ...] = ()
    baselines: bool = False
    profile: bool = False
    checkpoints: tuple[Path, ...] = ()
    photograph: tuple[int, int] = PHOTOGRAPH
    repeat: int = 20
    seconds: float = 20
    timeout: float = 1800
    force: bool = False
    benchmark_model: Path | None = None
    serial: str = ""
    accelerators: tuple[str, ...] = ("cpu",)


def run_bench(request: BenchRequest, make_baselines: MakeBaselines) -> Results:
    """Measure, and write ``FILES`` and the plots into ``request.out``, also what there is when interrupted.

    Raises:
        ConfigError: an option cannot be used, or there are results already.
        MissingDependency: psutil is not installed.
        BundleError: a folder is not a bundle.
    """
    _check(request)
    from samexport.benchmarks.measuring.adb import run_on_phone
    from samexport.benchmarks.measuring.environment import environment
    from samexport.benchmarks.measuring.runner import probe_machine, run_jobs, run_pairs, run_profiles
    from samexport.benchmarks.measuring.tasks import TASKS
    from samexport.benchmarks.plan import is_graph, jobs_of, pairs_of

    bundles = [open_bundle(folder) for folder in request.bundles]
    phone = _phone(request)
    with ExitStack() as stack:
        plan = _plan(request)
        official = any(TASKS[name].form == "plain" for name in request.tasks)
        if request.baselines or official or {"plain", "single"} & set(request.rivals):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="samexport-plain-")))
            plan = replace(plan, baselines=_baselines(bundles, folder, make_baselines))
        jobs = [job for job in jobs_of(bundles, plan) if request.baselines or job.form == "export" or not is_graph(job)]
        pairs = pairs_of(jobs, request.rivals, plan)
        if not jobs and phone is None:
            raise ConfigError("nothing to measure: no runtime here reads these files; `samexport doctor` says why")
        command = f"samexport {shlex.join(sys.argv[1:])}"
        results = Results(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), command, environment(), {}, ())
        rows: list[BenchRow] = []
        compared: list[Pair] = []
        try:
            results = replace(results, roofline=probe_machine(max(plan.threads)))
            steps = _Steps(len(jobs) + len(pairs))
            rows.extend(steps.each(run_jobs(jobs, plan.effort, results.roofline), [j.name for j in jobs]))
            compared.extend(steps.each(run_pairs(pairs, plan.effort), [_pair_name(p) for p in pairs]))
            if request.profile:
                profiled = [j for j in jobs if j.runtime == "onnxruntime" and j.file and not j.batch]
                results = replace(results, profiles=tuple(run_profiles(profiled, plan.effort)))
            if phone is not None:
                rows.extend(row for bundle in bundles for row in run_on_phone(bundle, phone))
        finally:
            results = replace(results, rows=tuple(rows), pairs=tuple(compared))
            if rows:
                write_results(results, request.out)
    return results


def _phone(request: BenchRequest) -> PhoneRun | None:
    from samexport.benchmarks.measuring.adb import PhoneRun, find_phone

    if request.benchmark_model is None:
        return None
    return PhoneRun(find_phone(request.serial), request.benchmark_model, request.accelerators, max(request.threads))


def _pair_name(pair: tuple[Job, Job]) -> str:
    return f"{pair[0].name} against {pair[1].name}"


def _check(request: BenchRequest) -> None:
    try:
        importlib.import_module("psutil")
    except ModuleNotFoundError as error:
        raise MissingDependency(f"samexport bench needs psutil: {install_hint('bench')}") from error
    existing = [name for name in FILES if (request.out / name).exists()]
    if existing and not request.force:
        raise ConfigError(f"{request.out / existing[0]} exists; choose another --out, or --force to replace it")


def _plan(request: BenchRequest) -> Plan:
    from samexport.benchmarks.measuring.measure import Effort
    from samexport.benchmarks.plan import Plan

    return Plan(
        runtimes=request.runtimes,
        graphs=request.graphs,
        tasks=request.tasks,
        prompts=request.prompts,
        batches=request.batches,
        threads=request.threads,
        checkpoints=tuple(str(c) for c in request.checkpoints),
        photograph=request.photograph,
        effort=Effort(request.repeat, max(request.repeat, 200), request.seconds, request.timeout),
    )


def _baselines(bundles: Sequence[Bundle], folder: Path, make: MakeBaselines) -> tuple[Bundle, ...]:
    """One for each model."""
    models = {b.manifest.model: b for b in bundles}
    made = []
    for name, bundle in models.items():
        print(f"exporting the plain form of {name}", file=sys.stderr)
        target = folder / name
        target.mkdir()
        made.append(make(bundle, target))
    return tuple(made)


class _Steps:
    """Says on stderr what is being measured and how long the rest will take: a bar on a terminal, else lines."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def each(self, items: Iterator[_Item], names: Sequence[str]) -> Iterable[_Item]:
        """Pass items on as they come; ``names`` says what is under way."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=self._total, completed=self._done, left="")
            for name in names:
                if console.is_terminal:
                    bar.update(task, description=name, left=self._left())
                else:
                    print(f"[{self._done + 1}/{self._total}] {name}{self._left()}", file=sys.stderr)
                yield next(items)
                self._done += 1
                bar.update(task, completed=self._done)

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


def write_results(results: Results, out: Path) -> list[Path]:
    """Write JSON, CSV, Markdown, HTML and the plots; the plots only where matplotlib is installed.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from samexport.benchmarks.results.page import to_html
    from samexport.benchmarks.results.plots import draw, write_plots
    from samexport.benchmarks.results.tables import to_csv, to_markdown

    try:
        plots = draw(results)
    except MissingDependency as error:
        print(f"no plots: {error}", file=sys.stderr)
        plots = []
    markdown = to_markdown(results, [(p.file, p.caption) for p in plots])
    texts = (results.to_json(), to_csv(results), markdown, to_html(results, plots))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in zip(FILES, texts, strict=True):
            (out / name).write_text(text, encoding="utf-8")
        write_plots(plots, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    return [out / name for name in FILES]
