"""Every recipe of a bundle side by side: masks, accuracy on annotated pictures, size, time. A page of results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from samexport.errors import SamExportError
from samexport.exporter.quantize.bundle import copy_files
from samexport.exporter.quantize.calibration import fed
from samexport.exporter.quantize.job import GateFailed, Job, Progress, Request, check_request, quantize_files
from samexport.exporter.recipes import Recipe
from samexport.runtimes.accuracy.agreement import Limits
from samexport.runtimes.accuracy.annotations import AnnotatedImage
from samexport.runtimes.accuracy.evaluate import box_prompt, interior_click, measure
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Artifact, Bundle, Gate, Quantized
from samexport.runtimes.registry import RUNTIMES
from samexport.runtimes.tasks.segment import Segmenter

# an interpreter's times say nothing
_UNTIMED = ("mil",)
_PAUSE = 0.2


@dataclass
class Outcome:
    """What a recipe made of a bundle.

    Attributes:
        recipe: its name; the parent's for the files that all others are made from.
        gate: masks against the parent's; None for the parent.
        problem: why there is no file; empty where there is one.
        files: those that it quantized.
        truth: by metric, against annotations.
        times: by runtime, the median of the ratios to the parent of one run of all quantized graphs.
    """

    recipe: str
    gate: Gate | None = None
    problem: str = ""
    files: tuple[Artifact, ...] = ()
    truth: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


def compare_recipes(
    bundle: Bundle, recipes: Sequence[Recipe], request: Request, folder: Path,
    annotated: Sequence[AnnotatedImage] = (), rounds: int = 0, progress: Progress = lambda _: None,
    known: Callable[[Sequence[Outcome]], None] = lambda _: None,
) -> list[Outcome]:  # fmt: skip
    """Apply every recipe to a bundle; one that fails the gate is measured all the same.

    Args:
        bundle: in floats.
        recipes: those that start from its files.
        request: pictures and limits; its recipe is not looked at.
        folder: does not exist yet; gets the files of all recipes.
        annotated: pictures with annotations; none leaves accuracy out.
        rounds: of timing, each runs every file once, in turn; 0 leaves it out.
        progress: is told what is going on.
        known: gets the outcomes so far whenever there is more: a search takes long, and may be ended.
    """
    copy_files(bundle, folder)
    work = Bundle(folder, bundle.manifest)
    names = check_request(work, replace(request, recipe=recipes[0]))
    outcomes = [Outcome(recipes[0].parent)]
    bundles: dict[str, Bundle] = {recipes[0].parent: work}
    asked = None
    for recipe in recipes:
        told = _named(recipe.name, progress)
        job = Job(work, replace(request, recipe=recipe), told, asked)
        asked = job.asked
        outcome = Outcome(recipe.name)
        try:
            outcome.gate = quantize_files(job)[1]
        except GateFailed as error:
            outcome.gate = error.gate
        except SamExportError as error:
            outcome.problem = str(error)
        outcomes.append(outcome)
        if outcome.gate is not None:
            outcome.files = tuple(job.made.values())
            bundles[recipe.name] = job.with_files(outcome.files)
        known(outcomes)
    for outcome in outcomes:
        if annotated and outcome.recipe in bundles:
            progress(f"{outcome.recipe}: measuring accuracy")
            outcome.truth = _truth(bundles[outcome.recipe], annotated, request.threads)
            known(outcomes)
    if rounds:
        assert asked is not None
        inputs = {name: next(fed(work, name, asked[:1], request.threads)) for name in names}
        _time(outcomes, bundles, inputs, rounds, request.threads, progress)
    return outcomes


def page(outcomes: Sequence[Outcome], bundle: Bundle, request: Request, command: str) -> str:
    """Markdown: a row for each recipe, then a row for each kind of prompt."""
    manifest, limits = bundle.manifest, Limits(request.max_drop)
    metrics = list(dict.fromkeys(metric for o in outcomes for metric in o.truth))
    runtimes = list(dict.fromkeys(name for o in outcomes for name in o.times))
    heads = [
        "recipe", "gate", "mean IoU, worst mode", "p5, worst mode", "size", "integer multiplications", "layers left",
        *metrics, *(f"time on {name}" for name in runtimes),
    ]  # fmt: skip
    weights = manifest.weights.warning or manifest.weights.source
    lines = [
        f"## {manifest.model}, {manifest.artifacts[0].file_format}: {', '.join(_graphs(outcomes))} by recipe",
        "",
        f"Weights: {weights}.",
        f"Masks against those of the {outcomes[0].recipe} files on {len(request.pictures.files)} pictures; the gate",
        f"asks for a mean IoU of {limits.mean:g} and a 5th percentile of {limits.p5:g} for every kind of prompt.",
        f"Times and sizes are ratios to the {outcomes[0].recipe} files.",
        "",
        f"Made by `{command}`.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join(_cells(o, limits, metrics, runtimes))} |" for o in outcomes),
        "",
        "| recipe | prompts | number | mean IoU | p5 | worst | same mask chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        for m in outcome.gate.modes if outcome.gate else ():
            numbers = f"{m.mean:.4f} | {m.p5:.4f} | {m.worst:.4f} | {m.same_best:.3f}"
            lines.append(f"| {outcome.recipe} | {m.mode} | {m.prompts} | {numbers} |")
    problems = [f"- {o.recipe}: {o.problem}" for o in outcomes if o.problem]
    kept = [
        f"- {o.recipe} leaves {layer} as it was: {why}."
        for o in outcomes for file in o.files if file.quantized for layer, why in file.quantized.kept.items()
    ]  # fmt: skip
    return "\n".join([*lines, "", *problems, *kept]).rstrip() + "\n"


def _cells(outcome: Outcome, limits: Limits, metrics: Sequence[str], runtimes: Sequence[str]) -> list[str]:
    gate = outcome.gate
    facts = [file.quantized for file in outcome.files if file.quantized]
    failed = bool(gate and any(limits.problem(mode) for mode in gate.modes))
    return [
        outcome.recipe,
        "" if gate is None else "FAIL" if failed else "PASS",
        f"{min(m.mean for m in gate.modes):.4f}" if gate else "",
        f"{min(m.p5 for m in gate.modes):.4f}" if gate else "",
        *(_facts(facts) if facts else ("", "", "")),
        *(f"{outcome.truth[m]:.4f}" if m in outcome.truth else "" for m in metrics),
        *(f"{outcome.times[r]:.2f}" if r in outcome.times else "" for r in runtimes),
    ]


def _facts(facts: Sequence[Quantized]) -> tuple[str, str, str]:
    ratios = ", ".join(f"{each.size_ratio:.2f}" for each in facts)
    macs = ", ".join(f"{100 * each.integer_macs:.0f} %" for each in facts)
    return ratios, macs, ", ".join(str(len(each.kept)) for each in facts)


def _graphs(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(file.graph for o in outcomes for file in o.files))


def _named(name: str, progress: Progress) -> Callable[[str], None]:
    return lambda message: progress(f"{name}: {message}")


def _truth(bundle: Bundle, annotated: Sequence[AnnotatedImage], threads: int | None) -> dict[str, float]:
    with Segmenter(bundle, threads=threads) as segmenter:
        found = measure(annotated, segmenter, {"click": interior_click, "box": box_prompt}).values
    return {metric: value for metric, sizes in found.items() if (value := sizes["all"]) is not None}


def _time(
    outcomes: Sequence[Outcome], bundles: Mapping[str, Bundle], inputs: Mapping[str, Tensors],
    rounds: int, threads: int | None, progress: Progress,
) -> None:  # fmt: skip
    """Fill in ratios to the first outcome's time, by runtime; every round runs all files in turn."""
    file_format = bundles[outcomes[0].recipe].manifest.artifacts[0].file_format
    for info in RUNTIMES.values():
        if info.file_format != file_format or info.missing or info.name in _UNTIMED:
            continue
        progress(f"timing on {info.name}")
        seconds = _seconds(bundles, inputs, info.name, rounds, threads)
        for outcome in outcomes:
            pairs = zip(seconds.get(outcome.recipe, ()), seconds[outcomes[0].recipe], strict=False)
            if ratios := [mine / other for mine, other in pairs]:
                outcome.times[info.name] = statistics.median(ratios)


def _seconds(
    bundles: Mapping[str, Bundle], inputs: Mapping[str, Tensors], runtime: str, rounds: int, threads: int | None
) -> dict[str, list[float]]:
    """How long all graphs of each bundle took, round by round; the first round only warms up."""
    found: dict[str, list[float]] = {name: [] for name in bundles}
    with ExitStack() as stack:
        opened = {
            name: {g: stack.enter_context(bundle.open(g, runtime=runtime, threads=threads)) for g in inputs}
            for name, bundle in bundles.items()
        }
        for _ in range(rounds + 1):
            for name, runtimes in opened.items():
                # idle threads of the one before slow the next one down
                time.sleep(_PAUSE)
                start = time.perf_counter()
                for graph, each in runtimes.items():
                    each.run(inputs[graph])
                found[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in found.items()}
