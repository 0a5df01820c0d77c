"""Run a bundle's golden cases and compare: the check behind export, ``samexport verify`` and CI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, MissingDependency, SamExportError
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors, checkers, describe
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.formats.tflite_lint import lint_rows
from samexport.runtimes.parity.compare import (
    ParityReport,
    Row,
    Verdict,
    check_names,
    compare_boxes,
    compare_masks,
    compare_output,
    tier,
)
from samexport.runtimes.parity.golden import Case, Golden, check_resize, entry_point_cases, load_golden, picture_prompts
from samexport.runtimes.tasks.segment import Segmenter

Progress = Callable[[str], None]


def run_chain(runtimes: Mapping[str, Runtime], chain: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Run graphs one after the other, each fed by name; returns the outputs of the last one."""
    known: Tensors = dict(inputs)
    outputs: Tensors = {}
    for name in chain:
        runtime = runtimes[name]
        outputs = runtime.run({tensor: known[tensor] for tensor in runtime.graph.input_names})
        known |= outputs
    return outputs


def verify_bundle(
    bundle: Bundle,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Check files against their sha256, this machine's resizing, and every golden case.

    Needs no torch. A file that cannot be opened or run is a failed row, not an exception.
    """
    frame = bundle.manifest.frame
    rows = [Row("files", line.split()[0], Verdict.FAIL, line) for line in bundle.damaged_files()]
    if not rows:
        rows.append(Row("files", f"{len(bundle.manifest.files)} files", Verdict.PASS))
    try:
        golden = load_golden(bundle.folder, frame)
    except BundleError as error:
        return ParityReport((*rows, Row("golden", "golden", Verdict.FAIL, str(error))))
    problem = check_resize(golden, frame)
    rows.append(Row("resize", "picture", Verdict.FAIL if problem else Verdict.PASS, problem))
    rows += compare_cases(bundle, golden, runtime=runtime, threads=threads, progress=progress)
    return ParityReport(tuple(rows))


def picture_masks(
    bundle: Bundle, golden: Golden, runtime: str | None, threads: int | None
) -> tuple[NDArray[np.bool_], str]:
    """The masks of the golden picture, with the code that ``samexport segment`` runs, and where it ran."""
    with Segmenter(bundle, runtime=runtime, threads=threads) as segmenter:
        segmenter.set_image(golden.picture)
        results = segmenter.predict(picture_prompts(golden.picture), multimask=False)
        where = segmenter.runtime
    return np.concatenate([r.masks for r in results]), where


def _end_to_end(bundle: Bundle, golden: Golden, runtime: str | None, threads: int | None) -> Row:
    """From picture to masks with the code that ``samexport segment`` runs."""
    names = "end to end", "masks"
    try:
        masks, where = picture_masks(bundle, golden, runtime, threads)
    except MissingDependency:
        raise
    except SamExportError as error:
        return Row(*names, Verdict.FAIL, str(error))
    row = compare_masks(*names, golden.masks, masks, tier(bundle.artifact("encoder").precision))
    return replace(row, runtime=where)


def compare_cases(
    bundle: Bundle,
    golden: Golden,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Iterator[Row]:
    """Rows of every case of ``golden`` whose graphs the bundle has, and a failed row for a graph without any.

    Without ``runtime`` on each of :func:`samexport.runtimes.base.checkers`: on macOS CoreML bundles run twice.
    """
    chains = cases_by_chain(bundle, golden)
    yield from _static_rows(bundle)
    formats = dict.fromkeys(artifact.file_format for artifact in bundle.manifest.artifacts)
    names = (runtime,) if runtime else tuple(name for file_format in formats for name in checkers(file_format))
    for name in names:
        for row in _compare_on(bundle, golden, name, threads, progress):
            yield replace(row, case=f"{row.case} ({name})") if len(names) > 1 else row
    for name in sorted(set(bundle.graph_names) - {name for chain in chains for name in chain}):
        yield Row(name, "golden", Verdict.FAIL, f"no golden case checks {name}")


def _compare_on(bundle: Bundle, golden: Golden, runtime: str, threads: int | None, progress: Progress) -> Iterator[Row]:
    chains = cases_by_chain(bundle, golden)
    yield from compare_chains(bundle, chains, runtime=runtime, threads=threads, progress=progress)
    progress("checking from picture to masks")
    yield _end_to_end(bundle, golden, runtime, threads)


def compare_chains(
    bundle: Bundle,
    chains: Mapping[tuple[str, ...], Sequence[Case]],
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Iterator[Row]:
    """Rows of every case, and of sizes around each entry point of a file that has several of fixed size."""
    with ExitStack() as stack:
        runtimes: dict[str, Runtime] = {}
        for chain, cases in chains.items():
            try:
                for name in sorted(set(chain) - set(runtimes)):
                    opened = bundle.open(name, runtime=runtime, threads=threads)
                    runtimes[name] = stack.enter_context(opened)
            except MissingDependency:
                raise
            except SamExportError as error:
                yield from (Row(_label(case), "run", Verdict.FAIL, str(error)) for case in cases)
                continue
            todo = (*cases, *entry_point_cases(cases, runtimes[chain[-1]].entry_points))
            for number, case in enumerate(todo, 1):
                progress(f"checking {chain[-1]}: case {number} of {len(todo)}")
                yield from _check(case, runtimes, bundle)


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
            target = artifact.options.get("target", "")
            yield from lint_rows(artifact.graph, bundle.folder / artifact.path, target)


def _check(case: Case, runtimes: Mapping[str, Runtime], bundle: Bundle) -> Iterator[Row]:
    last = case.graphs[-1]
    try:
        actual = run_chain(runtimes, case.graphs, case.inputs)
    except SamExportError as error:
        yield Row(_label(case), "run", Verdict.FAIL, str(error))
        return
    where = describe(runtimes[last])
    for row in compare_case(case, bundle.graph(last), actual, bundle.artifact(last).precision):
        yield replace(row, runtime=where)


def _label(case: Case) -> str:
    return f"{'+'.join(case.graphs)} {case.name}"


def compare_case(case: Case, graph: GraphSpec, actual: Tensors, precision: str) -> Iterator[Row]:
    """Judge the outputs that the last graph of a case computed, in the tier of ``precision``."""
    yield from check_names(_label(case), case.expected, actual)
    if "ranked_boxes" in {spec.role for spec in graph.outputs}:
        yield from compare_boxes(_label(case), graph, case.expected, actual, tier(precision))
        return
    for spec in graph.outputs:
        if spec.name in case.expected and spec.name in actual:
            found = case.sample(spec.name, actual[spec.name])
            yield compare_output(_label(case), spec, case.expected[spec.name], found, tier(precision))
