"""Run a bundle's golden cases and compare: the check behind export, ``samexport verify`` and CI."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from numpy.typing import NDArray

from samexport.errors import BundleError, MissingDependency, SamExportError
from samexport.models.catalog import find_family
from samexport.models.families.base import Loop
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.onnx_ranges import half_range
from samexport.runtimes.base import Runtime, Tensors, check_threads
from samexport.runtimes.bundle import Artifact, Bundle
from samexport.runtimes.parity.clip import clip_frames, compare_clip
from samexport.runtimes.parity.compare import (
    QUANTIZED,
    TIERS,
    check_names,
    compare_boxes,
    compare_masks,
    compare_output,
    loop_tier,
    tier,
)
from samexport.runtimes.parity.golden import Case, Golden, Step, check_resize, entry_point_cases
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.lint import lint_rows
from samexport.runtimes.parity.picture import picture_masks, unsure_pixels
from samexport.runtimes.registry import PATHS, RUNTIMES, check_runtime, checkers, paths
from samexport.runtimes.session import OpenGraphs, open_session
from samexport.runtimes.verdicts import NUMERIC, Check, ParityReport, Row, Verdict

Progress = Callable[[str], None]


def run_chain(runtimes: Mapping[str, Runtime], chain: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Run graphs one after the other, each fed by name; returns the outputs of the last one.

    BundleError if an input is neither given nor an output of an earlier graph.
    """
    known = _chain(runtimes, chain, inputs)[1]
    return {name: known[name] for name in runtimes[chain[-1]].graph.output_names}


def run_frames(
    runtimes: Mapping[str, Runtime],
    chain: Sequence[str],
    frames: Iterable[Mapping[str, NDArray[Any]]],
    state: Mapping[str, str],
) -> Iterator[tuple[dict[str, Tensors], Tensors]]:
    """Run a chain frame by frame: what each graph was fed, and the outputs of all graphs.

    The outputs that are the keys of ``state`` are inputs of the next frame, under the names that are its values.
    """
    carried: Tensors = {}
    for inputs in frames:
        fed, outputs = _chain(runtimes, chain, {**inputs, **carried})
        yield fed, outputs
        carried = {target: outputs[source] for source, target in state.items() if source in outputs}


def expected_of(
    runtimes: Mapping[str, Runtime], chain: Sequence[str], outputs: Tensors, others: Container[str]
) -> Tensors:
    """What a case compares: the outputs of the last graph, and those of earlier ones that are among ``others``."""
    last = runtimes[chain[-1]].graph.output_names
    return {name: value for name, value in outputs.items() if name in last or name in others}


def _chain(
    runtimes: Mapping[str, Runtime], chain: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Tensors], Tensors]:
    """What each graph was fed, and all outputs."""
    known: Tensors = dict(inputs)
    fed: dict[str, Tensors] = {}
    outputs: Tensors = {}
    for name in chain:
        runtime = runtimes[name]
        if missing := set(runtime.graph.input_names) - set(known):
            raise BundleError(f"nothing gives {name} its inputs {', '.join(sorted(missing))}")
        fed[name] = {tensor: known[tensor] for tensor in runtime.graph.input_names}
        found = runtime.run(fed[name])
        known |= found
        outputs |= found
    return fed, outputs


def verify_bundle(
    bundle: Bundle,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Check files against their sha256, this machine's resizing, and every golden case on every file.

    Needs no torch. A file that cannot be opened or run is a failed row, not an exception.

    Raises:
        ConfigError: ``runtime`` is unknown or reads no file of this bundle, or ``threads`` is out of bounds.
    """
    check_threads(threads)
    check_runtime(runtime, {artifact.file_format for artifact in bundle.manifest.artifacts})
    frame, files = bundle.manifest.frame, Check("files")
    rows = [Row(files, name, Verdict.FAIL, f"{name} {problem}") for name, problem in bundle.damaged_files().items()]
    if not rows:
        rows.append(Row(files, f"{len(bundle.manifest.files)} files", Verdict.PASS))
    try:
        golden = load_golden(bundle.folder, frame)
    except BundleError as error:
        return ParityReport((*rows, Row(Check("golden"), "golden", Verdict.FAIL, str(error))))
    problem = check_resize(golden, frame)
    rows.append(Row(Check("resize"), "picture", Verdict.FAIL if problem else Verdict.PASS, problem))
    rows += compare_cases(bundle, golden, runtime=runtime, threads=threads, progress=progress)
    return ParityReport(tuple(rows))


def compare_cases(
    bundle: Bundle,
    golden: Golden,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Iterator[Row]:
    """Rows of every case of ``golden`` whose graphs the bundle has, and a failed row for a file that none covers.

    Every file is checked: where a graph has several, each beside the default ones of the other graphs. Without
    ``runtime`` on each of :func:`samexport.runtimes.base.checkers`: on macOS CoreML bundles run twice.
    """
    yield from _static_rows(bundle)
    covered: set[str] = set()
    done: set[str] = set()
    for variant in bundle.variants():
        new = {a.path for a in variant.manifest.artifacts} - done
        for row in _compare_variant(variant, golden, new, runtime, threads, progress):
            if row.check.kind in NUMERIC and row.max_error is not None:
                covered |= set(row.check.artifacts)
            yield row
        done |= new
    yield from _other_paths(bundle, golden, runtime, threads, progress)
    for artifact in bundle.manifest.artifacts:
        if artifact.path not in covered:
            why = _why_not(artifact) or "no golden case checks it"
            check = Check("case", (artifact.graph,), artifacts=(artifact.path,))
            yield Row(check, artifact.path, Verdict.FAIL, f"{artifact.path} was not checked: {why}")


def _other_paths(
    bundle: Bundle, golden: Golden, runtime: str | None, threads: int | None, progress: Progress
) -> Iterator[Row]:
    """Files in integers on every other kernel that is here: they have passed on one and failed on the next."""
    for variant in bundle.variants():
        new = {a.path for a in variant.manifest.artifacts if a.parent}
        for name in dict.fromkeys(
            name for a in variant.manifest.artifacts if a.parent and not runtime for name in paths(a.file_format)
        ):
            yield from _compare_variant(variant, golden, new, name, threads, progress)


def _why_not(artifact: Artifact) -> str:
    """Why a file cannot be checked here; empty if it can."""
    if not checkers(artifact.file_format):
        return "no runtime here reads its format"
    known = artifact.recipe in TIERS or artifact.parent
    return "" if known else f"there is no tolerance for its recipe {artifact.recipe}"


def _compare_variant(
    bundle: Bundle, golden: Golden, new: set[str], runtime: str | None, threads: int | None, progress: Progress
) -> Iterator[Row]:
    """Rows of the cases in which a ``new`` file takes part, on each runtime."""
    path = {a.graph: a.path for a in bundle.manifest.artifacts if not _why_not(a)}
    every = cases_by_chain(bundle, golden)
    chains = {k: v for k, v in every.items() if set(k) <= set(path) and {path[name] for name in k} & new}
    formats = dict.fromkeys(a.file_format for a in bundle.manifest.artifacts if a.path in new)
    names = dict.fromkeys(name for each in formats for name in checkers(each))
    for name in (runtime,) if runtime else names:
        yield from compare_chains(bundle, chains, runtime=name, threads=threads, progress=progress)
        if set(path) == set(bundle.graph_names):
            progress("checking from picture to masks")
            yield _end_to_end(bundle, golden, name, threads)
            for loop in find_family(bundle.manifest.family).loops:
                if set(loop.graphs) <= set(bundle.graph_names) and loop.name in golden.clips:
                    progress(f"checking a clip: {loop.name}")
                    yield from _loop(bundle, golden, loop, name, threads)


def _end_to_end(bundle: Bundle, golden: Golden, runtime: str, threads: int | None) -> Row:
    """From picture to masks with the code that ``samexport segment`` runs."""
    check = Check("end_to_end", bundle.graph_names, artifacts=tuple(a.path for a in bundle.manifest.artifacts))
    try:
        found = picture_masks(bundle, golden.picture, runtime, threads)
    except MissingDependency:
        raise
    except SamExportError as error:
        return Row(replace(check, runtime=runtime), "masks", Verdict.FAIL, str(error))
    check = replace(check, runtime=found.runtime, placement=found.placement)
    limits = tier(*recipes(bundle, bundle.graph_names))
    unsure = unsure_pixels(golden.low_res_masks, golden.picture, bundle.manifest.frame, limits)
    return compare_masks(check, "masks", golden.masks, found.masks, limits, unsure)


def _loop(bundle: Bundle, golden: Golden, loop: Loop, runtime: str, threads: int | None) -> Iterator[Row]:
    """Objects through a clip with the code that follows them in any video."""
    clip, frames = golden.clips[loop.name], clip_frames(golden.picture, loop.frames)
    files = tuple(bundle.artifact(name).path for name in loop.graphs)
    check = Check("end_to_end", loop.graphs, loop.name, files, runtime)
    limits = loop_tier(*recipes(bundle, loop.graphs))
    graphs = OpenGraphs(bundle, runtime=runtime, threads=threads)
    try:
        session = open_session(graphs)
        check = replace(check, placement=session.placement)
        yield from compare_clip(check, clip, resolve_name(loop.follow), session, frames, limits)
    except MissingDependency:
        raise
    except SamExportError as error:
        yield Row(check, "run", Verdict.FAIL, str(error))
    finally:
        graphs.close()


def recipes(bundle: Bundle, graphs: Sequence[str]) -> list[str]:
    """The recipes of the files of ``graphs``, as :data:`TIERS` has them."""
    return [known_recipe(bundle.artifact(name)) for name in graphs]


def known_recipe(artifact: Artifact) -> str:
    """A file's recipe as :data:`TIERS` has it: one of the user's is one of integers."""
    return artifact.recipe if artifact.recipe in TIERS or not artifact.parent else QUANTIZED.name


def compare_chains(
    bundle: Bundle,
    chains: Mapping[tuple[str, ...], Sequence[Case]],
    *,
    runtime: str | None = None,
    threads: int | None = None,
    other: Bundle | None = None,
    progress: Progress = lambda _: None,
) -> Iterator[Row]:
    """Rows of every case, and of sizes around each entry point of a file that has several of fixed size.

    Files that ``runtime`` does not read are run by the first one that does. ``other`` computed what is expected, where
    that is not PyTorch: then the looser tier of both counts.
    """
    against = "golden" if other is None else other.folder.resolve().name
    with ExitStack() as stack:
        runtimes: dict[str, Runtime] = {}
        for chain, cases in chains.items():
            artifacts = [bundle.artifact(name) for name in chain]
            check = Check("case", chain, "", tuple(a.path for a in artifacts), against=against)
            try:
                for artifact in artifacts:
                    if artifact.graph not in runtimes:
                        opened = bundle.open(artifact.graph, runtime=_reader(artifact, runtime), threads=threads)
                        runtimes[artifact.graph] = stack.enter_context(opened)
            except MissingDependency:
                raise
            except SamExportError as error:
                for case in cases:
                    yield Row(replace(check, case=case.name), "run", Verdict.FAIL, str(error))
                continue
            last = runtimes[chain[-1]]
            check = replace(check, runtime=last.name, placement=last.placement())
            fed: dict[str, list[Tensors]] = {name: [] for name in chain}
            todo = (*cases, *entry_point_cases(cases, last.graph, last.entry_points))
            for number, case in enumerate(todo, 1):
                progress(f"checking {chain[-1]}: case {number} of {len(todo)}")
                used = [name for each in (bundle, other) if each is not None for name in recipes(each, chain)]
                yield from _check(replace(check, case=case.name), case, runtimes, bundle, fed, used)
            for artifact in artifacts:
                if artifact.recipe == "fp16" and artifact.file_format == "onnx" and fed[artifact.graph]:
                    progress(f"checking {artifact.graph}: range of half precision")
                    yield _half_row(artifact, bundle.folder / artifact.path, fed[artifact.graph], threads)


def _half_row(artifact: Artifact, path: Path, inputs: Sequence[Tensors], threads: int | None) -> Row:
    """Whether the tensors of a half-precision file stay in its range: the runtimes here compute it in float32."""
    check = Check("half", (artifact.graph,), artifacts=(artifact.path,))
    try:
        found = half_range(path, inputs, threads=threads)
    except BundleError as error:
        return Row(check, "tensors", Verdict.FAIL, str(error))
    if found.reason:
        return Row(check, "tensors", Verdict.FAIL, found.reason)
    near = f"near the end of half precision: {'; '.join(map(str, found.near[:5]))}" if found.near else ""
    return Row(check, "tensors", Verdict.PASS, near)


def _reader(artifact: Artifact, runtime: str | None) -> str | None:
    """``runtime`` if it reads the file, else the first one that does."""
    every = RUNTIMES | PATHS
    if runtime in every and every[runtime].file_format == artifact.file_format:
        return runtime
    return next(iter(checkers(artifact.file_format)), None)


def cases_by_chain(bundle: Bundle, golden: Golden) -> dict[tuple[str, ...], list[Case]]:
    """The cases whose graphs the bundle has, by those graphs."""
    chains: dict[tuple[str, ...], list[Case]] = {}
    for case in golden.cases:
        if set(case.graphs) <= set(bundle.graph_names):
            chains.setdefault(case.graphs, []).append(case)
    return chains


def _static_rows(bundle: Bundle) -> Iterator[Row]:
    """What can be said of the files without running them."""
    for artifact in bundle.manifest.artifacts:
        if artifact.file_format == "tflite":
            yield from lint_rows(artifact, bundle.folder / artifact.path)


def _check(
    check: Check, case: Case, runtimes: Mapping[str, Runtime], bundle: Bundle, fed: dict[str, list[Tensors]],
    recipes_used: Sequence[str],
) -> Iterator[Row]:  # fmt: skip
    """Rows of a case; what its graphs were fed is added to ``fed``."""
    graphs = [bundle.graph(name) for name in case.graphs]
    state = find_family(bundle.manifest.family).state
    frames = run_frames(runtimes, case.graphs, (step.inputs for step in case.steps), state)
    for number, step in enumerate(case.steps, 1):
        here = check if not case.later else replace(check, case=f"{case.name}, frame {number}")
        try:
            inputs, outputs = next(frames)
        except SamExportError as error:
            yield Row(here, "run", Verdict.FAIL, str(error))
            return
        for name, tensors in inputs.items():
            fed[name].append(tensors)
        actual = expected_of(runtimes, case.graphs, outputs, step.expected)
        yield from compare_step(here, step, graphs, actual, recipes_used, case.spans)


def compare_step(
    check: Check, step: Step | Case, graphs: Sequence[GraphSpec], actual: Tensors, recipes_used: Sequence[str],
    spans: Mapping[str, float] | None = None,
) -> Iterator[Row]:  # fmt: skip
    """Judge the outputs of a chain of graphs, in the loosest tier of the recipes that took part; see ``Case.spans``."""
    limits = tier(*recipes_used)
    yield from check_names(check, step.expected, actual)
    if "ranked_boxes" in {spec.role for spec in graphs[-1].outputs}:
        yield from compare_boxes(check, graphs[-1], step.expected, actual, limits)
        return
    for spec in (spec for graph in graphs for spec in graph.outputs):
        if spec.name in step.expected and spec.name in actual:
            found = step.sample(spec.name, actual[spec.name])
            yield compare_output(check, spec, step.expected[spec.name], found, limits, (spans or {}).get(spec.name))
