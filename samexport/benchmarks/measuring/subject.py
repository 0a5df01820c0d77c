"""What is timed: one graph of a bundle on one runtime, fed with the bundle's own picture and seeded prompts."""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.benchmarks.contenders.known import find
from samexport.benchmarks.results.rows import Job, Parity
from samexport.errors import ConfigError
from samexport.models.catalog import find_family
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors
from samexport.runtimes.bundle import Bundle, open_bundle
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.compare import tier
from samexport.runtimes.parity.golden import Case, Golden
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import compare_step, expected_of, known_recipe, run_frames
from samexport.runtimes.registry import ROUGH, RUNTIMES
from samexport.runtimes.session import OpenGraphs, open_session
from samexport.runtimes.verdicts import Check, ParityReport, Row, Verdict

POINTS = 2
"""Slots of a timed prompt: a box, or a click and its padding point."""
_SEED = 5


class Subject(ABC):
    """Something that is opened, called many times and checked; the order is prepare, open, call, check, close."""

    def __init__(self, job: Job) -> None:
        self.job, self.bundle = job, open_bundle(Path(job.bundle))
        self.golden: Golden = load_golden(self.bundle.folder, self.bundle.manifest.frame)

    @abstractmethod
    def prepare(self) -> None:
        """Whatever is not to be timed: inputs, imports."""

    @abstractmethod
    def open(self) -> None:
        """From the file to ready."""

    @abstractmethod
    def call(self) -> None:
        """The work that is timed."""

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds of the last call's stages, where it has several."""
        return {}

    @abstractmethod
    def check(self) -> Parity:
        """Compare the timed work with a reference: golden cases called the same way, or PyTorch's masks."""

    @abstractmethod
    def placement(self) -> str:
        """Where it ran."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""


class GraphSubject(Subject):
    """One graph, ``job.batch`` prompts in a call."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.contender = find(job.runtime)
        self.graph = self.bundle.graph(job.graph)
        self._runtime: Runtime | None = None

    def prepare(self) -> None:
        """Make the inputs, import the runtime's module, do what the contender wants done before."""
        self.inputs = timing_inputs(self.graph, self.bundle, self.golden, self.job.prompts)
        self._open = pkgutil.resolve_name(self.contender.opener)
        if self.contender.prepare:
            prepared = pkgutil.resolve_name(self.contender.prepare)(self.job, self.bundle)
            self.job = prepared if isinstance(prepared, Job) else self.job
        import_runtime(self.contender.package or self.contender.name)

    def open(self) -> None:
        """Open the job's file."""
        self._runtime = self._opened(self.job)

    def _opened(self, job: Job) -> Runtime:
        runtime = self._open(job, self.bundle)
        if not isinstance(runtime, Runtime):
            raise TypeError(f"the opener of {self.contender.name} returned {type(runtime)}")
        return runtime

    @property
    def runtime(self) -> Runtime:
        """The opened runtime."""
        if self._runtime is None:
            raise RuntimeError("open comes first")
        return self._runtime

    def call(self) -> None:
        """All prompts once."""
        run_batched(self.runtime, self.inputs, self.job.batch)

    def placement(self) -> str:
        """What the runtime says."""
        return self.runtime.placement()

    def check(self) -> Parity:
        """Every golden case of the graph; a graph after another one is fed by it."""
        recipes = self.contender.recipes(judged_as(self.bundle, self.job.precision))
        try:
            tier(*recipes)
        except ConfigError as error:
            return Parity(Verdict.SKIPPED, str(error))
        rows: list[Row] = []
        family = find_family(self.bundle.manifest.family)
        with ExitStack() as stack:
            chained: dict[str, Runtime] = {self.job.graph: _Batched(self.runtime, self.job.batch)}
            for case, chain in cases_of(self.job.graph, self.golden.cases, family.equal):
                for name in chain:
                    if name not in chained:
                        chained[name] = stack.enter_context(self._opened(_sibling(self.job, self.bundle, name)))
                graphs = [self.bundle.graph(name) for name in chain]
                frames = run_frames(chained, chain, (step.inputs for step in case.steps), family.state)
                for step, (_, outputs) in zip(case.steps, frames, strict=True):
                    actual = expected_of(chained, chain, outputs, step.expected)
                    rows += compare_step(Check("case", tuple(chain), case.name), step, graphs, actual, recipes)
        return summarise(rows)

    def close(self) -> None:
        """Close the runtime."""
        if self._runtime is not None:
            self._runtime.close()


class _Batched(Runtime):
    """A runtime called with a few prompts at a time."""

    def __init__(self, runtime: Runtime, batch: int) -> None:
        super().__init__(runtime.graph)
        self._runtime, self._batch = runtime, batch

    def _run(self, inputs: Tensors) -> Tensors:
        return run_batched(self._runtime, inputs, self._batch)

    def placement(self) -> str:
        return self._runtime.placement()


def run_batched(runtime: Runtime, inputs: Mapping[str, NDArray[Any]], batch: int) -> Tensors:
    """Run N prompts ``batch`` at a time (0: all at once) into outputs that are allocated once."""
    axis = runtime.graph.axis("prompts")
    per_prompt = [t.name for t in runtime.graph.inputs if axis and t.shape[0] == axis.name]
    count = len(inputs[per_prompt[0]]) if per_prompt else 0
    if batch == 0 or batch >= count:
        return runtime.run(inputs)
    outputs: Tensors = {}
    for start in range(0, count, batch):
        part = {n: v[start : start + batch] if n in per_prompt else v for n, v in inputs.items()}
        for name, value in runtime.run(part).items():
            whole = outputs.setdefault(name, np.empty((count, *value.shape[1:]), value.dtype))
            whole[start : start + batch] = value
    return outputs


def timing_inputs(graph: GraphSpec, bundle: Bundle, golden: Golden, prompts: int) -> Tensors:
    """Inputs for timing: the golden picture and what it becomes, ``prompts`` seeded boxes, else seeded noise."""
    known: Tensors = {}
    for case in golden.cases:
        known |= case.inputs | {n: v for n, v in case.expected.items() if case.strides.get(n, 1) == 1}
    rng, frame = np.random.default_rng(_SEED), bundle.manifest.frame
    sizes = graph.sizes({"prompts": prompts, "points": POINTS}, default="usual")
    if graph.axis("prompts"):
        corners = np.sort(rng.uniform(0, frame.size - 1, (prompts, POINTS, 2)), axis=1).round(2)
        corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 0.01)
        boxes = [Prompt.make(box=box.ravel()) for box in corners]
        session = open_session(OpenGraphs(bundle))
        known |= session.pack(boxes, FrameMap((frame.size, frame.size), frame))
    inputs: Tensors = {}
    for tensor in graph.inputs:
        shape = tensor.resolved(sizes)
        if tensor.name in known and known[tensor.name].shape == shape:
            inputs[tensor.name] = known[tensor.name]
        elif tensor.low is not None and tensor.high is not None:
            inputs[tensor.name] = rng.uniform(tensor.low, tensor.high, shape).astype(tensor.dtype)
        else:
            inputs[tensor.name] = rng.standard_normal(shape, np.float32).astype(tensor.dtype)
    return inputs


def cases_of(graph: str, cases: Sequence[Case], equal: Mapping[str, str]) -> list[tuple[Case, tuple[str, ...]]]:
    """The cases that end in ``graph`` and the chain to run; a chain that is ``equal`` to it counts as well.

    Where there is none, those in which it takes part.
    """
    found = [(case, case.graphs) for case in cases if case.graphs[-1] == graph]
    found += [(case, (graph,)) for case in cases if equal.get(case.graphs[-1]) == graph]
    return found or [(case, case.graphs) for case in cases if graph in case.graphs]


def _sibling(job: Job, bundle: Bundle, graph: str) -> Job:
    """The job for another graph of the same bundle, format and precision."""
    file_format = find(job.runtime).file_format
    files = [
        a.path
        for a in bundle.manifest.artifacts
        if (a.graph, a.recipe) == (graph, job.precision) and a.file_format == file_format
    ]
    return replace(job, graph=graph, file=files[0] if files else "", prompts=0, batch=0)


def summarise(rows: Iterable[Row]) -> Parity:
    """The joint verdict and the worst numbers."""
    report = ParityReport(tuple(rows))
    errors = [r.max_error / r.value_range for r in report.rows if r.max_error is not None and r.value_range]
    # a reference that is not finite leaves numbers that are not, which JSON cannot say
    errors = [e for e in errors if math.isfinite(e)]
    snr = [r.snr_db for r in report.rows if r.snr_db is not None and math.isfinite(r.snr_db)]
    iou = [r.mask_iou for r in report.rows if r.mask_iou is not None]
    reason = str(report.failures[0]) if report.failures else ""
    if not report.rows:
        reason = "no golden case checks this graph"
    return Parity(
        report.verdict,
        reason,
        max(errors, default=None),
        min(snr, default=None),
        min(iou, default=None),
    )


def judged_as(bundle: Bundle, recipe: str) -> str:
    """The name by which the tolerance of a bundle's files of ``recipe`` is known."""
    return next((known_recipe(a) for a in bundle.manifest.artifacts if a.recipe == recipe), recipe)


def import_runtime(name: str) -> None:
    """Import a runtime and its library, so that opening a file does not pay for it; any other name is PyTorch's."""
    modules: tuple[str, ...] = ("torch", "samexport.models.build", "samexport.models.weights.checkpoints")
    if info := (RUNTIMES | ROUGH).get(name):
        modules = (info.package.replace("-", "_"), info.opener.partition(":")[0])
    for module in modules:
        importlib.import_module(module)
