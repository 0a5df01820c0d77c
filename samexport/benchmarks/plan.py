"""Which jobs a benchmark has: every graph, runtime, number of prompts and threads, and what is paired with what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from samexport.benchmarks.contenders.known import KNOWN, Contender, find, why_not
from samexport.benchmarks.measuring.measure import Effort
from samexport.benchmarks.measuring.tasks import TASKS
from samexport.benchmarks.results.rows import PHOTOGRAPH, Job
from samexport.errors import ConfigError
from samexport.runtimes.base import RUNTIMES
from samexport.runtimes.bundle import Artifact, Bundle, open_bundle
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        runtimes: names; empty takes every default one that can run here.
        graphs: names of graphs; empty takes all.
        tasks: names of ``tasks.TASKS``.
        prompts: numbers of prompts for the graphs that take prompts.
        batches: prompts in one call; empty takes what an app gets: all, at most ``segment.DEFAULT_CHUNK``.
        threads: numbers of threads.
        baselines: bundles of the same models whose graphs are "plain"; also run one prompt a call.
        checkpoints: weights for PyTorch.
        photograph: width and height of the picture for tasks.
        effort: when to stop.
    """

    runtimes: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    prompts: tuple[int, ...] = (1, 16, 64)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (2,)
    baselines: tuple[Bundle, ...] = ()
    checkpoints: tuple[str, ...] = ()
    photograph: tuple[int, int] = PHOTOGRAPH
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        for name in self.runtimes:
            find(name)
        if unknown := set(self.tasks) - set(TASKS):
            raise ConfigError(f"no task is called {sorted(unknown)[0]!r}; known: {', '.join(TASKS)}")
        if not self.threads or min((*self.prompts, *self.threads, *self.batches), default=1) < 1:
            raise ConfigError("numbers of prompts, prompts a call and threads are at least 1")

    @property
    def contenders(self) -> list[Contender]:
        """The runtimes that take part; a named one that cannot run here becomes a SKIPPED row."""
        if self.runtimes:
            return [KNOWN[name] for name in self.runtimes]
        return [c for c in KNOWN.values() if c.default and not why_not(c)]


def jobs_of(bundles: Sequence[Bundle], plan: Plan) -> list[Job]:
    """Every combination, in the order of the table: bundle, graph, prompts, runtime, threads."""
    if plan.graphs:
        have = {g for b in bundles for g in b.graph_names}
        if unknown := sorted(set(plan.graphs) - have):
            raise ConfigError(f"no bundle has the graph {unknown[0]!r}; they have {', '.join(sorted(have))}")
    jobs: list[Job] = []
    for bundle in bundles:
        for artifact in bundle.manifest.artifacts:
            if not plan.graphs or artifact.graph in plan.graphs:
                jobs += _graph_jobs(bundle, artifact, "export", plan)
        jobs += _task_jobs(bundle, "export", plan)
    for bundle in plan.baselines:
        jobs += _task_jobs(bundle, "plain", plan)
        wanted = {"decoder" if g == "decoder_step" else g for g in plan.graphs}
        for artifact in bundle.manifest.artifacts:
            if not wanted or artifact.graph in wanted:
                jobs += _graph_jobs(bundle, artifact, "plain", plan)
    return _once(jobs, (*bundles, *plan.baselines))


def _once(jobs: Sequence[Job], bundles: Sequence[Bundle]) -> list[Job]:
    """Each job once; PyTorch reads no file, so bundles of the same weights share its rows."""
    weights = {str(b.folder): (b.manifest.model, b.manifest.weights) for b in bundles}
    kept: dict[object, Job] = {}
    for job in jobs:
        shared = not job.file and is_graph(job)
        kept.setdefault((replace(job, bundle=""), weights[job.bundle]) if shared else job, job)
    return list(kept.values())


def _graph_jobs(bundle: Bundle, artifact: Artifact, form: str, plan: Plan) -> Iterator[Job]:
    takes_prompts = "N" in bundle.graph(artifact.graph).axes
    for prompts in plan.prompts if takes_prompts else (0,):
        for batch in _batches(prompts, form, plan):
            for contender in plan.contenders:
                if contender.file_format not in ("", artifact.file_format):
                    continue
                file = artifact.path if contender.file_format else ""
                for threads in plan.threads:
                    yield Job(
                        str(bundle.folder), artifact.graph, file, form, artifact.recipe if file else "fp32",
                        contender.name, threads, prompts, batch, () if file else plan.checkpoints,
                    )  # fmt: skip


def _batches(prompts: int, form: str, plan: Plan) -> tuple[int, ...]:
    """Prompts a call, 0 for all: the plan's; else an app's; a baseline runs all at once and one by one."""
    if prompts == 0:
        return (0,)
    if form == "plain":
        return (0,) if prompts == 1 else (0, 1)
    chosen = plan.batches or (DEFAULT_CHUNK,)
    return tuple(dict.fromkeys(0 if b >= prompts else b for b in chosen))


def _task_jobs(bundle: Bundle, form: str, plan: Plan) -> Iterator[Job]:
    """Tasks run on the runtimes that read a bundle, with its first encoder's format and precision."""
    encoders = [a for a in bundle.manifest.artifacts if a.graph == "encoder"]
    for name in (n for n in plan.tasks if TASKS[n].form == form and TASKS[n].suits(bundle)):
        for contender in plan.contenders:
            if contender.name in RUNTIMES and contender.file_format == encoders[0].file_format and contender.timed:
                for threads in plan.threads:
                    yield Job(
                        str(bundle.folder), name, "", form, encoders[0].recipe,
                        contender.name, threads, TASKS[name].prompts, photograph=plan.photograph,
                    )  # fmt: skip


def is_graph(job: Job) -> bool:
    """Whether a job is a graph, not a whole task."""
    return job.graph not in TASKS


def pairs_of(jobs: Sequence[Job], rivals: Sequence[str], plan: Plan) -> list[tuple[Job, Job]]:
    """Each job against the same work done otherwise.

    Args:
        jobs: of the form "export"; graphs only.
        rivals: "plain" (the baseline, all prompts in a call), "single" (the baseline, one prompt a call), the name
            of a runtime (the same file on it), or the folder of another bundle (the same graph there).
        plan: for the baselines.

    Raises:
        ConfigError: a rival is none of these, or leads to no pair.
    """
    graph_jobs = [job for job in jobs if job.form == "export" and is_graph(job)]
    pairs: list[tuple[Job, Job]] = []
    for rival in rivals:
        found = [(job, other) for job in graph_jobs if (other := _rival(job, rival, plan))]
        if not found:
            raise ConfigError(f"there is nothing to compare with {rival!r}; give plain, single, a runtime or a bundle")
        pairs += found
    return list(dict.fromkeys(pairs))


def _rival(job: Job, rival: str, plan: Plan) -> Job | None:
    if rival in KNOWN:
        other = KNOWN[rival]
        fits = rival != job.runtime and other.file_format in ("", find(job.runtime).file_format)
        return replace(job, runtime=rival, file=job.file if other.file_format else "") if fits else None
    if rival in ("plain", "single"):
        if rival == "single" and job.prompts == 0:
            return None
        # both halves of the decoder together are the plain decoder; after the first prompt only the step remains
        graph = "decoder" if job.graph == "decoder_step" else job.graph
        source = next(
            (b for b in plan.baselines if b.manifest.model == open_bundle(Path(job.bundle)).manifest.model), None
        )
        batch = 1 if rival == "single" and job.prompts > 1 else 0
        return _in_bundle(replace(job, graph=graph, form="plain", precision="fp32", batch=batch), source)
    return _in_bundle(job, open_bundle(Path(rival)))


def _in_bundle(job: Job, bundle: Bundle | None) -> Job | None:
    """The job on the file of another bundle, if it has such a one."""
    for artifact in bundle.manifest.artifacts if bundle else ():
        same_format = find(job.runtime).file_format in ("", artifact.file_format)
        if artifact.graph == job.graph and same_format and bundle:
            file = artifact.path if job.file else ""
            moved = replace(job, bundle=str(bundle.folder), file=file, precision=artifact.recipe)
            return moved if moved != job else None
    return None
