"""Which jobs a benchmark has: every graph, runtime, number of prompts and threads, and what is paired with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from samexport.benchmarks.contenders.baselines import TORCHSCRIPT, can_rebuild_detector
from samexport.benchmarks.contenders.known import KNOWN, Contender, find, why_not
from samexport.benchmarks.measuring.measure import Effort
from samexport.benchmarks.measuring.tasks import TASKS
from samexport.benchmarks.results.rows import PHOTOGRAPH, Form, Job, Source
from samexport.errors import ConfigError
from samexport.models.catalog import find_family, find_model
from samexport.models.families.detector import SAMPLER
from samexport.models.weights.downloads import in_cache
from samexport.runtimes.base import MOST_THREADS
from samexport.runtimes.bundle import Artifact, Bundle, Manifest, WeightsInfo, open_bundle
from samexport.runtimes.host.image import MAX_PIXELS
from samexport.runtimes.registry import ROUGH, RUNTIMES
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK

ALL = "all"
MOST_PROMPTS = 4096
_CHOICES = ("target", "converter")
"""Of an artifact's options those that someone chose."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        runtimes: names; empty takes every default one that can run here, "all" every one that can run here. PyTorch
            needs the weights too: see :func:`lacking`.
        graphs: names of graphs; empty takes all.
        tasks: names of ``tasks.TASKS``; "all" takes those that a bundle has the graphs for.
        prompts: numbers of prompts for the graphs that take prompts.
        batches: prompts in one call; empty takes what an app gets: all, at most ``segment.DEFAULT_CHUNK``.
        threads: numbers of threads.
        baselines: bundles of the same weights whose graphs are "plain"; also run one prompt a call.
        checkpoints: weights for PyTorch.
        photograph: width and height of the picture for tasks.
        effort: when to stop.
        labels: names of bundles for people, by folder; see :func:`labels_of`.
    """

    runtimes: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    prompts: tuple[int, ...] = (1, 16)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (2,)
    baselines: tuple[Bundle, ...] = ()
    checkpoints: tuple[str, ...] = ()
    photograph: tuple[int, int] = PHOTOGRAPH
    effort: Effort = field(default_factory=Effort)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.named:
            find(name)
        if self.tasks != (ALL,) and (unknown := set(self.tasks) - set(TASKS)):
            raise ConfigError(f"no task is called {sorted(unknown)[0]!r}; known: all, {', '.join(TASKS)}")
        if not self.threads or not self.prompts:
            raise ConfigError("numbers of prompts and of threads are at least 1")
        for numbers, most, what in (
            (self.prompts, MOST_PROMPTS, "prompts"),
            (self.batches, MOST_PROMPTS, "prompts a call"),
            (self.threads, MOST_THREADS, "threads"),
        ):
            if not isinstance(numbers, tuple | list) or not all(type(number) is int for number in numbers):
                raise ConfigError(f"{what} are numbers such as (1, 2), not {numbers!r:.60}")
            if wrong := [n for n in numbers if not 1 <= n <= most]:
                raise ConfigError(f"{wrong[0]} {what} cannot be; the number is at least 1 and at most {most}")
        width, height = self.photograph
        if min(width, height) < 1 or width * height > MAX_PIXELS:
            raise ConfigError(f"a picture of {width}x{height} cannot be; at most {MAX_PIXELS} pixels, at least one")

    @property
    def contenders(self) -> list[Contender]:
        """The runtimes that take part; a named one that cannot run here becomes a SKIPPED row."""
        if self.named:
            return [KNOWN[name] for name in self.named]
        return [c for c in KNOWN.values() if (c.default or self.runtimes) and not why_not(c)]

    @property
    def named(self) -> tuple[str, ...]:
        """The runtimes that were asked for by name."""
        return self.runtimes if self.runtimes != (ALL,) else ()

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that may take part."""
        return tuple(TASKS) if self.tasks == (ALL,) else self.tasks

    def source(self, bundle: Bundle, graph: str) -> Source:
        """What tells a bundle's job from those of others."""
        manifest = bundle.manifest
        weights = made_from(manifest)
        if manifest.sampler is not None and (graph == SAMPLER or (graph in TASKS and TASKS[graph].detector)):
            detector = weights_key(manifest.sampler.weights)
            weights = detector if graph == SAMPLER else f"{weights} {detector}"
        return Source(self.label(bundle), manifest.model, weights)

    def label(self, bundle: Bundle) -> str:
        """What people call a bundle."""
        return self.labels.get(str(bundle.folder), bundle.folder.resolve().name)


def made_from(manifest: Manifest) -> str:
    """The weights, and the side of the frame where it is not the model's own."""
    size, own = manifest.frame.size, find_model(manifest.model).frame.size
    return weights_key(manifest.weights) + ("" if size == own else f" at {size}")


def weights_key(weights: WeightsInfo) -> str:
    """What tells weights from others: their sha256, or their seed."""
    return weights.sha256 or f"seed {weights.seed}"


def recipe_of(artifact: Artifact) -> tuple[str, str]:
    """What was chosen when a file was made: its precision, and the rest as "target=gpu converter=litert-torch".

    Facts about the making, such as versions, are left out: a file of a later version is the same row.
    """
    chosen = {key: artifact.options[key].split()[:1] for key in _CHOICES if key in artifact.options}
    return artifact.recipe, " ".join(f"{key}={value[0]}" for key, value in chosen.items() if value)


def labels_of(folders: Sequence[Path], rivals: Sequence[Path] = ()) -> dict[str, str]:
    """A short name for each bundle: the folder's own, with as many folders above it as tell it from the others.

    Raises:
        ConfigError: one of ``folders`` is named twice; ``rivals`` may be among them.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise ConfigError(f"{folders[number]} is named twice; name each bundle once")
    paths = {str(folder): folder.resolve() for folder in (*folders, *rivals)}
    labels: dict[str, str] = {}
    for folder, path in paths.items():
        others = {other for other in paths.values() if other != path}
        lengths = range(1, len(path.parts))
        unlike = (n for n in lengths if _tail(path, n) not in {_tail(other, n) for other in others})
        labels[folder] = _tail(path, next(unlike, len(path.parts)))
    return labels


def _tail(path: Path, parts: int) -> str:
    return "/".join(path.parts[-parts:])


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
        equal = find_family(bundle.manifest.family).equal
        wanted = {equal.get(g, g) for g in plan.graphs}
        for artifact in bundle.manifest.artifacts:
            if not wanted or artifact.graph in wanted:
                jobs += _graph_jobs(bundle, artifact, "plain", plan)
    return _once(jobs)


def not_measured(bundles: Sequence[Bundle], plan: Plan, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
    """What was asked for by name and has no job in any bundle, each with the reason: rows that are SKIPPED."""
    first, runtimes = bundles[0], plan.named
    formats = ", ".join(dict.fromkeys(a.file_format for b in bundles for a in b.manifest.artifacts))
    wanted: list[tuple[Bundle, str, str, str]] = []
    for name in runtimes:
        if not (reads := find(name).file_format):
            wanted += [(bundle, graph, name, why) for bundle, graph, why in _lacks(bundles, plan)]
        elif not any(job.runtime == name for job in jobs):
            graph = (plan.graphs or first.graph_names)[0]
            wanted.append((first, graph, name, f"it reads {reads} files, the bundles have {formats}"))
    for name in plan.tasks if plan.tasks != (ALL,) else ():
        if not any(job.graph == name for job in jobs):
            reason = f"whole tasks run on {', '.join(RUNTIMES | ROUGH)}: none that was asked for reads the files"
            if not any(TASKS[name].suits(b) for b in bundles):
                reason = (
                    f"it needs a bundle with {'a detector (prompt_sampler)' if TASKS[name].detector else 'an encoder'}"
                )
            wanted.append((first, name, (runtimes or tuple(RUNTIMES))[0], reason))
    return [
        (Job(
            str(bundle.folder), graph, "", "export", "fp32", runtime, plan.threads[0], source=plan.source(bundle, graph)
        ), reason)
        for bundle, graph, runtime, reason in wanted
    ]  # fmt: skip


def _once(jobs: Sequence[Job]) -> list[Job]:
    """Each job once; PyTorch reads no file, so bundles of the same weights share its rows."""
    kept: dict[object, Job] = {}
    for job in jobs:
        shared = not job.file and is_graph(job)
        kept.setdefault(replace(job, bundle="", source=replace(job.source, label="")) if shared else job, job)
    return list(kept.values())


def _graph_jobs(bundle: Bundle, artifact: Artifact, form: Form, plan: Plan) -> Iterator[Job]:
    takes_prompts = bundle.graph(artifact.graph).axis("prompts") is not None
    precision, options = recipe_of(artifact)
    source = plan.source(bundle, artifact.graph)
    for prompts in plan.prompts if takes_prompts else (0,):
        for batch in _batches(prompts, form, plan):
            for contender in plan.contenders:
                if contender.file_format not in ("", artifact.file_format):
                    continue
                if not contender.file_format and lacking(bundle, artifact.graph, plan):
                    continue
                has_file = bool(contender.file_format)
                for threads in plan.threads:
                    yield Job(
                        str(bundle.folder), artifact.graph, artifact.path if has_file else "", form,
                        precision if has_file else "fp32", contender.name, threads, prompts, batch,
                        () if has_file else plan.checkpoints, options=options if has_file else "", source=source,
                    )  # fmt: skip


def lacking(bundle: Bundle, graph: str, plan: Plan) -> str:
    """What PyTorch lacks to build a bundle's graph; empty for nothing.

    Weights that nobody named are not downloaded for a row that nobody named.
    """
    weights, info = bundle.manifest.weights, bundle.manifest.sampler
    if graph == SAMPLER:
        if info is None or info.nms != "host":
            return "NMS in the graph has no counterpart in PyTorch"
        have = can_rebuild_detector(info, [Path(c) for c in plan.checkpoints])
        return "" if have else f"it was made from {info.weights.source}; give that with --checkpoint"
    spec = find_model(bundle.manifest.model)
    official = spec.source is not None and spec.source.sha256 == weights.sha256
    if weights.kind != "checkpoint" or plan.checkpoints or (official and (plan.named or in_cache(spec))):
        return ""
    return f"the weights are {weights.source}; give them with --checkpoint"


def _lacks(bundles: Sequence[Bundle], plan: Plan) -> Iterator[tuple[Bundle, str, str]]:
    for bundle in bundles:
        for graph in bundle.graph_names:
            if (not plan.graphs or graph in plan.graphs) and (why := lacking(bundle, graph, plan)):
                yield bundle, graph, why


def left_out(bundles: Sequence[Bundle], plan: Plan) -> tuple[str, ...]:
    """PyTorch's rows that nobody asked for by name and that cannot be, each reason once with the graphs."""
    if plan.named or not any(not c.file_format for c in plan.contenders):
        return ()
    found: dict[tuple[str, str], list[str]] = {}
    for bundle, graph, why in _lacks(bundles, plan):
        found.setdefault((plan.label(bundle), why), []).append(graph)
    return tuple(f"{label}: PyTorch leaves out {', '.join(graphs)}: {why}" for (label, why), graphs in found.items())


def _batches(prompts: int, form: str, plan: Plan) -> tuple[int, ...]:
    """Prompts a call, 0 for all: the plan's; else an app's; a baseline runs all at once and one by one."""
    if prompts == 0:
        return (0,)
    if form == "plain":
        return (0,) if prompts == 1 else (0, 1)
    chosen = plan.batches or (DEFAULT_CHUNK,)
    return tuple(dict.fromkeys(0 if b >= prompts else b for b in chosen))


def _task_jobs(bundle: Bundle, form: Form, plan: Plan) -> Iterator[Job]:
    """Tasks run on the runtimes that read a bundle, with the format and precision of its first graph."""
    first = find_family(bundle.manifest.family).first
    encoders = [a for a in bundle.manifest.artifacts if a.graph == first]
    runners = [c for c in plan.contenders if c.name in RUNTIMES | ROUGH and c.timed]
    for name in (n for n in plan.task_names if TASKS[n].form == form and TASKS[n].suits(bundle)):
        precision, options = recipe_of(encoders[0])
        for contender in (c for c in runners if c.file_format == encoders[0].file_format):
            for threads in plan.threads:
                yield Job(
                    str(bundle.folder), name, "", form, precision, contender.name, threads, TASKS[name].prompts,
                    checkpoints=plan.checkpoints, photograph=plan.photograph, options=options,
                    source=plan.source(bundle, name),
                )  # fmt: skip


def is_graph(job: Job) -> bool:
    """Whether a job is a graph, not a whole task."""
    return job.graph not in TASKS


def pairs_of(jobs: Sequence[Job], rivals: Sequence[str], plan: Plan) -> list[tuple[Job, Job]]:
    """Each job against the same work done otherwise.

    Args:
        jobs: of the form "export"; graphs only.
        rivals: "plain" (the baseline, all prompts in a call), "single" (the baseline, one prompt a call), "torchscript"
            (the baseline of graphs of fixed size by torch's older exporter, as official exports are made), the name
            of a runtime (the same file on it), or the folder of another bundle (the same graph there).
        plan: for the baselines and the labels.

    Raises:
        ConfigError: a rival is none of these, or leads to no pair.
    """
    graph_jobs = [job for job in jobs if job.form == "export" and is_graph(job)]
    pairs: list[tuple[Job, Job]] = []
    for rival in rivals:
        found = [(job, other) for job in graph_jobs if (other := _rival(job, rival, plan))]
        if not found:
            known = "plain, single, torchscript, a runtime or a bundle"
            raise ConfigError(f"there is nothing to compare with {rival!r}; give {known}")
        pairs += found
    return list(dict.fromkeys(pairs))


def is_baseline(rival: str) -> bool:
    """Whether a rival is a form of the baseline, which has to be exported first."""
    return rival in ("plain", "single", TORCHSCRIPT)


def is_bundle(rival: str) -> bool:
    """Whether a rival is the folder of a bundle."""
    return not is_baseline(rival) and rival not in KNOWN


def _rival(job: Job, rival: str, plan: Plan) -> Job | None:
    if rival in KNOWN:
        other = KNOWN[rival]
        fits = rival != job.runtime and other.file_format in ("", find(job.runtime).file_format)
        if not fits or other.file_format:
            return replace(job, runtime=rival) if fits else None
        return replace(job, runtime=rival, file="", precision="fp32", options="", checkpoints=plan.checkpoints)
    if not is_baseline(rival):
        return _in_bundle(job, open_bundle(Path(rival)), plan)
    if (rival == "single" and job.prompts == 0) or (rival == TORCHSCRIPT and not job.file):
        return None
    # the halves of SAM's decoder together are the plain decoder; after the first prompt only the step remains
    graph = find_family(find_model(job.source.model).family).equal.get(job.graph, job.graph)
    same = [
        b for b in plan.baselines if (b.manifest.model, made_from(b.manifest)) == (job.source.model, job.source.weights)
    ]
    batch = 1 if rival == "single" and job.prompts > 1 else 0
    options = f"converter={TORCHSCRIPT}" if rival == TORCHSCRIPT else ""
    plain = replace(job, graph=graph, form="plain", precision="fp32", options=options, batch=batch)
    found = _in_bundle(plain, same[0], plan) if same else None
    return found if found is None or found.options == options else None


def _in_bundle(job: Job, bundle: Bundle, plan: Plan) -> Job | None:
    """The job on the file of another bundle, if it has such a one; one made alike comes first."""
    file_format, made = find(job.runtime).file_format, (job.precision, job.options)
    fitting = [a for a in bundle.manifest.artifacts if a.graph == job.graph and file_format in ("", a.file_format)]
    for artifact in sorted(fitting, key=lambda a: recipe_of(a) != made):
        precision, options = recipe_of(artifact) if job.file else made
        moved = replace(
            job, bundle=str(bundle.folder), file=artifact.path if job.file else "", precision=precision,
            options=options, source=plan.source(bundle, job.graph),
        )  # fmt: skip
        return moved if moved != job else None
    return None
