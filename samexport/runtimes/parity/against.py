"""``samexport verify --against``: two bundles of one model compared directly, of any format or converter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from samexport.errors import ConfigError
from samexport.models.catalog import find_family
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.parity.compare import compare_masks, tier
from samexport.runtimes.parity.golden import Case
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.picture import picture_masks, unsure_pixels
from samexport.runtimes.parity.verify import (
    cases_by_chain,
    compare_chains,
    expected_of,
    recipes,
    run_frames,
)
from samexport.runtimes.verdicts import Check, Row

Progress = Callable[[str], None]


def check_comparable(bundle: Bundle, other: Bundle) -> None:
    """Refuse, before anything runs, two bundles of different models or weights, or without a graph in common.

    Raises:
        ConfigError: says which.
    """
    first, second = bundle.manifest, other.manifest
    if (first.model, first.weights) != (second.model, second.weights):
        raise ConfigError(f"{bundle.folder.name} and {other.folder.name} are of different models or weights")
    if not set(bundle.graph_names) & set(other.graph_names):
        raise ConfigError(f"{bundle.folder.name} and {other.folder.name} have no graph in common")


def verify_against(
    bundle: Bundle,
    other: Bundle,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Row, ...]:
    """Run both on the golden inputs of ``bundle`` and compare every value, and the masks of the golden picture.

    Args:
        bundle: is judged.
        other: the reference. The looser tier of both counts: half precision cannot prove more than it holds.
        runtime: of ``bundle``; the reference runs on the first that reads it.
        threads: of both.
        progress: is told what is going on.

    Raises:
        ConfigError: they are of different models or weights, or share no graph.
        BundleError: golden files or the reference cannot be read.
    """
    check_comparable(bundle, other)
    golden = load_golden(bundle.folder, bundle.manifest.frame)
    chains = {k: v for k, v in cases_by_chain(bundle, golden).items() if set(k) <= set(other.graph_names)}
    if not chains:
        raise ConfigError(f"{bundle.folder.name} and {other.folder.name} have no graph in common")
    expected: dict[tuple[str, ...], list[Case]] = {chain: [] for chain in chains}
    with ExitStack() as stack:
        names = sorted({name for chain in chains for name in chain})
        runtimes = {name: stack.enter_context(other.open(name, threads=threads)) for name in names}
        for case in (case for cases in chains.values() for case in cases):
            progress(f"running {case.graphs[-1]} of {other.folder.name}")
            state = find_family(other.manifest.family).state
            frames = run_frames(runtimes, case.graphs, (step.inputs for step in case.steps), state)
            first, *later = (
                replace(step, expected=expected_of(runtimes, case.graphs, outputs, step.expected), strides={})
                for step, (_, outputs) in zip(case.steps, frames, strict=True)
            )
            expected[case.graphs].append(replace(case, expected=first.expected, strides={}, later=tuple(later)))
    name = other.folder.resolve().name
    rows = [*compare_chains(bundle, expected, runtime=runtime, threads=threads, other=other, progress=progress)]
    progress("checking from picture to masks")
    wanted = picture_masks(other, golden.picture, None, threads)
    found = picture_masks(bundle, golden.picture, runtime, threads)
    check = Check("end_to_end", bundle.graph_names, against=name)
    limits = tier(*recipes(bundle, bundle.graph_names), *recipes(other, other.graph_names))
    unsure = unsure_pixels(wanted.low_res_masks, golden.picture, other.manifest.frame, limits)
    return (*rows, compare_masks(check, "masks", wanted.masks, found.masks, limits, unsure))
