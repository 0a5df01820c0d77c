"""Fixed-shape decoders behind the flexible contract: choose, fill up, drop, chunk. Numpy only.

A fixed decoder takes exactly N prompts of K points. Slots that are missing are absent (label -2) and change
nothing; surplus prompts are computed and dropped; what is more than the largest decoder takes is done in
chunks. So any number of prompts with up to the largest K points gives what one unpadded call would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError
from samexport.models.spec import GraphSpec, axis_sizes
from samexport.runtimes.host.sam_prompts import ABSENT

Tensors = dict[str, NDArray[Any]]
PROMPT_AXIS, POINT_AXIS = "N", "K"
LABELS = "point_labels"
ROOMY_POINTS, COMMON_POINTS = 8, 2


@dataclass(frozen=True)
class Bucket:
    """One entry point of a file, for ``prompts`` prompts of ``points`` points.

    With ``flexible`` these are upper bounds: any smaller size runs as it is, without filling up.
    """

    name: str
    prompts: int
    points: int
    flexible: bool = False


def plan(prompts: Sequence[int], points: Sequence[int] = ()) -> tuple[Bucket, ...]:
    """The fixed entry points ``decode_<prompts>`` of a file, in the given order.

    Args:
        prompts: N of each.
        points: K of each, or one K for all. Left out, the smallest has room for 8 points and the others for
            2 (a box, or a point and its padding), since every slot costs.

    Raises:
        ConfigError: a number is below 1, a prompt count repeats, or the two lists do not fit.
    """
    if not prompts:
        raise ConfigError("--prompts takes at least one number")
    if not points:
        points = [ROOMY_POINTS if count == min(prompts) else COMMON_POINTS for count in prompts]
    elif len(points) == 1:
        points = [points[0]] * len(prompts)
    if min(*prompts, *points) < 1 or len(set(prompts)) != len(prompts):
        raise ConfigError(f"--prompts takes different numbers from 1 up, got {list(prompts)} x {list(points)}")
    if len(points) != len(prompts):
        raise ConfigError(f"--points takes one number, or {len(prompts)} as --prompts has, got {len(points)}")
    return tuple(Bucket(f"decode_{n}", n, k) for n, k in zip(prompts, points, strict=True))


def of_file(
    file_name: str, graph: GraphSpec, shapes: Mapping[str, tuple[Mapping[str, Sequence[int]], ...]]
) -> tuple[Bucket, ...]:
    """The entry points of a file of fixed sizes, in its order.

    Args:
        file_name: for messages.
        graph: the contract.
        shapes: name of each entry point to the shapes of its inputs and of its outputs.

    Raises:
        BundleError: the tensors are not those of the graph, or there is no entry point.
    """
    buckets = []
    for name, (inputs, outputs) in shapes.items():
        where, found = f"{file_name}, entry point {name}", (sorted(inputs), sorted(outputs))
        if found != (sorted(graph.input_names), sorted(graph.output_names)):
            raise BundleError(f"{where}, is not {graph.name}: the tensors {found} are not those of {graph.name}")
        try:
            sizes = axis_sizes((*graph.inputs, *graph.outputs), {n: tuple(s) for n, s in {**inputs, **outputs}.items()})
        except ValueError as error:
            raise BundleError(f"{where}: {error}") from error
        buckets.append(Bucket(name, sizes.get(PROMPT_AXIS, 1), sizes.get(POINT_AXIS, 1)))
    if not buckets:
        raise BundleError(f"{file_name} has no entry points; export it again")
    return tuple(buckets)


def choose(buckets: Sequence[Bucket], prompts: int, points: int) -> Bucket:
    """The smallest bucket with room for ``points`` points that holds all ``prompts``, else the largest one.

    Raises:
        ConfigError: no bucket has room for that many points.
    """
    roomy = [bucket for bucket in buckets if bucket.points >= points]
    if not roomy:
        most = max(bucket.points for bucket in buckets)
        raise ConfigError(f"this file takes at most {most} points a prompt, got {points}; export it with more --points")
    fitting = [bucket for bucket in roomy if bucket.prompts >= prompts]
    if fitting:
        return min(fitting, key=lambda bucket: (bucket.prompts, bucket.points))
    return max(roomy, key=lambda bucket: (bucket.prompts, -bucket.points))


def pad_prompts(graph: GraphSpec, inputs: Mapping[str, NDArray[Any]], prompts: int, points: int) -> Tensors:
    """Fill the axes N and K of every input up to these sizes: labels with -2, all else with 0."""
    wanted = {PROMPT_AXIS: prompts, POINT_AXIS: points}
    padded = {}
    for tensor in graph.inputs:
        value = inputs[tensor.name]
        missing = [
            (0, wanted[d] - size) if isinstance(d, str) else (0, 0)
            for d, size in zip(tensor.shape, value.shape, strict=True)
        ]
        padded[tensor.name] = np.pad(value, missing, constant_values=ABSENT if tensor.name == LABELS else 0)
    return padded


def run_in_buckets(
    graph: GraphSpec,
    inputs: Mapping[str, NDArray[Any]],
    buckets: Sequence[Bucket],
    call: Callable[[Bucket, Tensors], Tensors],
) -> Tensors:
    """Run a decoder of any number of prompts on entry points of limited size.

    Args:
        graph: the contract; its axes N and K are the flexible ones.
        inputs: as the contract says, any N >= 1 and K.
        buckets: at least one.
        call: runs the entry point of a bucket on tensors of its size.

    Returns:
        the outputs of the N prompts, in their order.

    Raises:
        ConfigError: there is no prompt, or one has more points than any bucket takes.
    """
    total = axis_sizes(graph.inputs, {name: value.shape for name, value in inputs.items()})[PROMPT_AXIS]
    if total < 1:
        raise ConfigError("there is no prompt; give at least one")
    chunks: list[Tensors] = []
    start = 0
    while start < total:
        rest = _cut(graph, inputs, start, total)
        bucket = choose(buckets, total - start, _used_slots(rest[LABELS]))
        part = _cut(graph, rest, 0, bucket.prompts, bucket.points)
        count = part[LABELS].shape[0]
        if not bucket.flexible:
            part = pad_prompts(graph, part, bucket.prompts, bucket.points)
        result = call(bucket, part)
        chunks.append({tensor.name: result[tensor.name][:count] for tensor in graph.outputs})
        start += count
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _cut(
    graph: GraphSpec, inputs: Mapping[str, NDArray[Any]], start: int, stop: int, points: int | None = None
) -> Tensors:
    """The prompts from ``start`` to ``stop`` and the first ``points`` slots; other tensors as they are."""
    slices = {PROMPT_AXIS: slice(start, stop), POINT_AXIS: slice(points)}
    return {
        t.name: inputs[t.name][tuple(slices[d] if isinstance(d, str) else slice(None) for d in t.shape)]
        for t in graph.inputs
    }


def _used_slots(point_labels: NDArray[Any]) -> int:
    """One more than the last slot that any prompt uses."""
    used = np.flatnonzero((point_labels != ABSENT).any(axis=0))
    return int(used[-1]) + 1 if used.size else 0
