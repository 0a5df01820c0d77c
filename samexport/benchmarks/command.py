"""``samexport bench``: measure bundles and write the results. What the command line calls."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from samexport.benchmarks.results.rows import PHOTOGRAPH, BenchRow, Job, Pair, Profile, Results, Status
from samexport.errors import ConfigError, FileError, MissingDependency
from samexport.files import check_output, new_file, reason, write_text
from samexport.installation import install_hint
from samexport.runtimes.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from samexport.benchmarks.measuring.adb import PhoneRun
    from samexport.benchmarks.plan import Plan

JSON = "results.json"
FILES = (JSON, "results.csv", "results.md", "results.html")
MakeBaselines = Callable[[Bundle, Path], Bundle]
"""Writes the plain form of a bundle's graphs into an empty folder."""

Show = Callable[[Results], None]


@dataclass(frozen=True)
class BenchRequest:
    """What the user asked for; names as in ``plan.Plan``, ``rivals`` as in ``plan.pairs_of``.

    ``command`` is the command line, for the report. ``repeat`` is the least number of runs; ``seconds`` caps a row
    once it is reached, ``timeout`` always. ``photograph`` is the width and height of the picture for tasks.
    ``benchmark_model`` is LiteRT's program for the phone ``serial``, which then runs the TFLite files too.
    """

    bundles: tuple[Path, ...]
    out: Path
    runtimes: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    prompts: tuple[int, ...] = (1, 16)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (2,)
    rivals: tuple[str, ...] = ()
    baselines: bool = False
    profile: bool = False
    checkpoints: tuple[Path, ...] = ()
    photograph: tuple[int, int] = PHOTOGRAPH
    repeat: int = 10
    seconds: float = 5
    timeout: float = 1800
    force: bool = False
    benchmark_model: Path | None = None
    serial: str = ""
    accelerators: tuple[str, ...] = ()
    command: str = ""


def run_bench(request: BenchRequest, make_baselines: MakeBaselines, show: Show = lambda _: None) -> Results:
    """Measure, and write ``FILES`` and the plots into ``request.out``.

    ``results.json`` is written anew with every row. At the end, also after an interruption, ``show`` gets what was
    measured before the files are written, so that nothing is lost with a full disk.

    Raises:
        ConfigError: an option cannot be used, or there are results already.
        MissingDependency: psutil is not installed.
        BundleError: a folder is not a bundle.
        FileError: the results cannot be written.
    """
    _check_options(request)
    from samexport.benchmarks.plan import is_baseline, jobs_of, not_measured, pairs_of

    bundles = [open_bundle(folder) for folder in request.bundles]
    plan = _plan(request)
    phone = _Phone(request, bundles, plan) if request.benchmark_model is not None else None
    jobs = jobs_of(bundles, plan)
    if not jobs and phone is None and not _needs_baselines(request, plan):
        reasons = [why for _, why in not_measured(bundles, plan, jobs)]
        raise ConfigError(f"nothing to measure: {(reasons or ['no runtime here reads these files'])[0]}")
    pairs_of(jobs, [rival for rival in request.rivals if not is_baseline(rival)], plan)
    if request.profile and not _profiled(jobs):
        raise ConfigError("--profile is of ONNX files on onnxruntime, and none of those is measured")
    with _output(request), TemporaryDirectory(prefix="samexport-bench-", ignore_cleanup_errors=True) as folder:
        run = _Run(request, bundles, plan, Path(folder), phone)
        run.measure(make_baselines, show)
    return run.results


def _check_options(request: BenchRequest) -> None:
    try:
        importlib.import_module("psutil")
    except ModuleNotFoundError as error:
        raise MissingDependency(f"samexport bench needs psutil: {install_hint('bench')}") from error
    from samexport.benchmarks.measuring.adb import check_accelerators

    check_accelerators(request.accelerators)
    if request.benchmark_model is None and (request.accelerators or request.serial):
        raise ConfigError("--accelerator and --serial are of a phone; give --benchmark-model too")


def _plan(request: BenchRequest) -> Plan:
    """The plan of the bundles alone; ConfigError for what does not exist."""
    from samexport.benchmarks.measuring.measure import Effort
    from samexport.benchmarks.plan import Plan, is_bundle, labels_of
    from samexport.models.catalog import find_model

    rivals = [Path(rival) for rival in request.rivals if is_bundle(rival)]
    for folder in (*request.bundles, *rivals):
        find_model(open_bundle(folder).manifest.model)
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
        labels=labels_of(request.bundles, rivals),
    )


def _needs_baselines(request: BenchRequest, plan: Plan) -> bool:
    from samexport.benchmarks.measuring.tasks import TASKS
    from samexport.benchmarks.plan import is_baseline

    official = any(TASKS[name].form == "plain" for name in plan.task_names)
    return request.baselines or official or any(map(is_baseline, request.rivals))


@contextlib.contextmanager
def _output(request: BenchRequest) -> Iterator[None]:
    """A folder where every result can be written, checked before the first measurement; none if nothing comes."""
    from samexport.benchmarks.results.plots import PLOT_FILES

    out, new = request.out, False
    try:
        new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"{str(out)[:200]} cannot be written: {reason(error)}; choose another --out") from error
    try:
        for name in (*FILES, *PLOT_FILES):
            check_output(out / name, force=request.force)
        yield
    finally:
        if new:
            # only an empty folder goes
            with contextlib.suppress(OSError):
                out.rmdir()


class _Phone:
    """What a phone runs."""

    def __init__(self, request: BenchRequest, bundles: Sequence[Bundle], plan: Plan) -> None:
        from samexport.benchmarks.measuring.adb import PhoneRun, find_phone, jobs_on_phone

        accelerators, threads = request.accelerators or ("cpu",), max(plan.threads)
        program = request.benchmark_model or Path()
        self.run: PhoneRun = PhoneRun(find_phone(request.serial), program, accelerators, threads)
        self.jobs = jobs_on_phone(bundles, self.run, plan)

    def rows(self) -> Iterator[BenchRow]:
        from samexport.benchmarks.measuring.adb import run_on_phone

        return run_on_phone(self.jobs, self.run)


class _Run:
    """The measurements of a request; ``results`` holds those that there are."""

    def __init__(
        self, request: BenchRequest, bundles: Sequence[Bundle], plan: Plan, folder: Path, phone: _Phone | None
    ) -> None:
        from samexport.benchmarks.measuring.environment import environment

        self._request, self._bundles, self._plan, self._folder = request, bundles, plan, folder
        self._phone = phone
        created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.results = Results(created, request.command, environment(), {}, ())

    def measure(self, make_baselines: MakeBaselines, show: Show) -> None:
        """All of it; writes what there is when it ends or is ended."""
        self._add_baselines(make_baselines)
        try:
            self._measure()
        finally:
            if self.results.rows or self.results.pairs:
                show(self.results)
                write_results(self.results, self._request.out)

    def _add_baselines(self, make: MakeBaselines) -> None:
        """One for each model and its weights."""
        if not _needs_baselines(self._request, self._plan):
            return
        from samexport.benchmarks.plan import made_from

        sources = {(b.manifest.model, made_from(b.manifest)): b for b in reversed(self._bundles)}
        made, labels = [], dict(self._plan.labels)
        for number, bundle in enumerate(sources.values()):
            label = labels[str(bundle.folder)]
            print(f"exporting the plain form of {label} ({number + 1} of {len(sources)})", file=sys.stderr)
            target = self._folder / f"plain-{number}"
            target.mkdir()
            made.append(make(bundle, target))
            labels[str(made[-1].folder)] = label
        self._plan = replace(self._plan, baselines=tuple(made), labels=labels)

    def _measure(self) -> None:
        from samexport.benchmarks.measuring import runner
        from samexport.benchmarks.plan import is_graph, jobs_of, left_out, not_measured, pairs_of
        from samexport.benchmarks.progress import Steps

        request, plan = self._request, self._plan
        every = jobs_of(self._bundles, plan)
        jobs = [job for job in every if request.baselines or job.form == "export" or not is_graph(job)]
        pairs = pairs_of(jobs, request.rivals, plan)
        profiled = _profiled(jobs) if request.profile else []
        on_phone = [job for job, _, _ in self._phone.jobs] if self._phone else []
        references = runner.References(self._folder)
        with Steps(len(jobs) + len(pairs) + len(profiled) + len(on_phone)) as steps:
            steps.note("measuring what this machine can do")
            machine = runner.probe_machine(jobs, max(plan.threads))
            self.results = replace(self.results, roofline=machine.roofline, notes=left_out(self._bundles, plan))
            for job, why in not_measured(self._bundles, plan, jobs):
                self._add(runner.new_row(job, Status.SKIPPED, why))
            rows = runner.run_jobs(jobs, plan.effort, machine, references=references)
            for row in steps.each(rows, [job.name for job in jobs]):
                self._add(row)
            for pair in steps.each(runner.run_pairs(pairs, plan.effort), [_pair_name(pair) for pair in pairs]):
                self._add(pair)
            profiles = runner.run_profiles(profiled, plan.effort)
            for profile in steps.each(profiles, [f"profile of {job.name}" for job in profiled]):
                self._add(profile)
            for row in steps.each(self._phone.rows() if self._phone else iter(()), [job.name for job in on_phone]):
                self._add(row)

    def _add(self, found: BenchRow | Pair | Profile) -> None:
        """Keep it, on the disk too: what comes next may crash the machine."""
        now = self.results
        if isinstance(found, BenchRow):
            self.results = replace(now, rows=(*now.rows, found))
        elif isinstance(found, Pair):
            self.results = replace(now, pairs=(*now.pairs, found))
        else:
            self.results = replace(now, profiles=(*now.profiles, found))
        write_text(self._request.out / JSON, self.results.to_json(), force=True)


def _profiled(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.runtime == "onnxruntime" and job.file and not job.batch]


def _pair_name(pair: tuple[Job, Job]) -> str:
    return f"{pair[0].name} against {pair[1].name}"


def write_results(results: Results, out: Path) -> list[Path]:
    """Write JSON, CSV, Markdown, HTML and the plots; the plots only where matplotlib is installed.

    Raises:
        FileError: the folder cannot be written.
    """
    from samexport.benchmarks.results.page import to_html
    from samexport.benchmarks.results.plots import PLOT_FILES, draw
    from samexport.benchmarks.results.tables import to_csv, to_markdown

    write_text(out / JSON, results.to_json(), force=True)
    try:
        plots = draw(results)
    except MissingDependency as error:
        print(f"no plots: {error}", file=sys.stderr)
        plots = []
    markdown = to_markdown(results, [(p.file, p.caption) for p in plots])
    for name, text in zip(FILES[1:], (to_csv(results), markdown, to_html(results, plots)), strict=True):
        write_text(out / name, text, force=True)
    for plot in plots:
        with new_file(out / plot.file, force=True) as private:
            private.write_bytes(plot.png)
    # those of earlier results would pass for pictures of these
    for name in set(PLOT_FILES) - {plot.file for plot in plots}:
        (out / name).unlink(missing_ok=True)
    return [out / name for name in FILES]
