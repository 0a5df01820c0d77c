"""Fixed-shape decoders behind the flexible contract: choose, fill up, drop, chunk. Numpy only.

A fixed decoder takes exactly N prompts of K points. Slots that are missing are filled up with what the graph does not
see (``TensorSpec.fill``) and change nothing; surplus prompts are computed and dropped; what is more than the largest
decoder takes is done in chunks. So any number of prompts with up to the largest K points gives what one unpadded call
would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError, ConfigError
from samexport.models.spec import AxisRole, GraphSpec, Sizes, axis_sizes

Tensors = dict[str, NDArray[Any]]
ROOMY_POINTS, COMMON_POINTS = 8, 2
MEMORY_ROOMS = ((1, 1), (7, 16), (10, 19))
"""Memories and pointers of an object: of its second frame, of any later one, and of one with four prompted frames."""
PRUNED_ROOMS = ((1, 16, 1), (4, 19, 1), (6, 16, 0), (9, 19, 0))
"""The same where the tokens of old memories are kept, 1, or where old memories are read whole, 0."""
_WINDOW_PARTS = 8
_ROLES: tuple[AxisRole, AxisRole] = ("prompts", "points")
Slots = tuple[tuple[AxisRole, int], ...]


@dataclass(frozen=True)
class Bucket:
    """One entry point of a file, for ``prompts`` prompts of ``points`` points.

    ``slots`` has the sizes of axes with other roles. With ``flexible`` these are upper bounds: any smaller size runs
    as it is, without filling up.
    """

    name: str
    prompts: int
    points: int
    flexible: bool = False
    slots: Slots = ()

    def sizes(self, graph: GraphSpec) -> Sizes:
        """The size of each axis of ``graph`` in this entry point."""
        return graph.sizes({"prompts": self.prompts, "points": self.points, **dict(self.slots)}, default="usual")

    def holds(self, points: int, slots: Slots) -> bool:
        """Whether there is room for a prompt of so many points, memories and pointers."""
        room = dict(self.slots)
        return points <= self.points and all(size <= room.get(role, size) for role, size in slots)


def is_sized(graph: GraphSpec) -> bool:
    """Whether a call decides how many prompts, points or windows there are: its file may have several entry points."""
    return bool(graph.axis("prompts") or graph.axis("points") or graph.axis("windows"))


def window_rooms(graph: GraphSpec) -> tuple[int, ...]:
    """For how many chosen windows of a picture a file has entry points: up to five eighths of all."""
    axis = graph.axis("windows")
    count = axis.high if axis else 0
    return tuple(sorted({max(1, count * part // _WINDOW_PARTS) for part in (1, 2, 3, 4, 5)}))


def bucket_of(name: str, graph: GraphSpec, sizes: Mapping[str, int], *, flexible: bool = False) -> Bucket:
    """The bucket of an entry point from the sizes of the graph's axes."""
    prompts, points = (graph.axis(role) for role in _ROLES)
    slots = tuple((axis.role, sizes[axis.name]) for axis in graph.axes if axis.role not in _ROLES)
    return Bucket(name, sizes[prompts.name] if prompts else 1, sizes[points.name] if points else 1, flexible, slots)


def entry_points(graph: GraphSpec, planned: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """The fixed entry points of a graph's file where ``planned`` are those of decoders.

    Where prompts have memories, there is one for each of :data:`MEMORY_ROOMS`, for one prompt: the memories of each
    are other ones, so a batch is no faster, and its scores take as many times the memory. Chosen windows have
    :func:`window_rooms`.
    """
    if graph.axis("windows") is not None:
        return tuple(Bucket(f"windows_{count}", 1, 1, slots=(("windows", count),)) for count in window_rooms(graph))
    if (kept := graph.axis("kept")) is not None:
        return tuple(
            Bucket(
                f"memories_{memories}", 1, 1,
                slots=(("memories", memories), ("pointers", pointers), ("kept", kept.usual if pruned else 1)),
            )
            for memories, pointers, pruned in PRUNED_ROOMS
        )  # fmt: skip
    if graph.axis("memories") is None:
        return tuple(planned)
    return tuple(
        Bucket(f"memories_{memories}", 1, 1, slots=(("memories", memories), ("pointers", pointers)))
        for memories, pointers in MEMORY_ROOMS
    )


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
        buckets.append(bucket_of(name, graph, sizes))
    if not buckets:
        raise BundleError(f"{file_name} has no entry points; export it again")
    return tuple(buckets)


def choose(buckets: Sequence[Bucket], prompts: int, points: int, slots: Slots = ()) -> Bucket:
    """The smallest bucket with room for ``points`` and ``slots`` that holds all ``prompts``, else the largest one.

    Raises:
        ConfigError: no bucket has room for that many points or slots.
    """
    roomy = [bucket for bucket in buckets if bucket.holds(points, slots)]
    if not roomy:
        most = max(bucket.points for bucket in buckets)
        if points <= most:
            most_of = {role: max(dict(bucket.slots).get(role, 0) for bucket in buckets) for role, _ in slots}
            role = next((role for role, size in slots if size > most_of[role]), slots[0][0])
            room = most_of[role]
            what = {"memories": "memories of an object", "kept": "kept tokens"}.get(role, role)
            raise ConfigError(f"this file takes at most {room} {what}, got {dict(slots)}")
        raise ConfigError(f"this file takes at most {most} points a prompt, got {points}; export it with more --points")
    fitting = [bucket for bucket in roomy if bucket.prompts >= prompts]
    if fitting:
        return min(fitting, key=lambda bucket: (bucket.prompts, bucket.points, bucket.slots))
    most_prompts = max(bucket.prompts for bucket in roomy)
    largest = [bucket for bucket in roomy if bucket.prompts == most_prompts]
    return min(largest, key=lambda bucket: (bucket.points, bucket.slots))


def pad_prompts(graph: GraphSpec, inputs: Mapping[str, NDArray[Any]], bucket: Bucket) -> Tensors:
    """Fill every input up to the sizes of an entry point, each with its own ``fill``.

    Raises:
        ConfigError: an axis is longer than the entry point has room for.
    """
    wanted = bucket.sizes(graph)
    padded = {}
    for tensor in graph.inputs:
        value = inputs[tensor.name]
        missing = [(0, to - size) for to, size in zip(tensor.resolved(wanted), value.shape, strict=True)]
        if min((after for _, after in missing), default=0) < 0:
            raise ConfigError(f"{tensor.name} {list(value.shape)} is more than this file takes, {wanted}")
        padded[tensor.name] = np.pad(value, missing, constant_values=tensor.fill)
    return padded


def run_in_buckets(
    graph: GraphSpec,
    inputs: Mapping[str, NDArray[Any]],
    buckets: Sequence[Bucket],
    call: Callable[[Bucket, Tensors], Tensors],
) -> Tensors:
    """Run a decoder of any number of prompts on entry points of limited size.

    Args:
        graph: the contract.
        inputs: as the contract says, at least one prompt.
        buckets: at least one.
        call: runs the entry point of a bucket on tensors of its size.

    Returns:
        the outputs of the N prompts, in their order.

    Raises:
        ConfigError: there is no prompt, or one has more points than any bucket takes.
    """
    found = axis_sizes(graph.inputs, {name: value.shape for name, value in inputs.items()})
    whole = bucket_of("", graph, found)
    total = whole.prompts
    if total < 1:
        raise ConfigError("there is no prompt; give at least one")
    chunks: list[Tensors] = []
    start = 0
    while start < total:
        rest = _cut(graph, inputs, slice(start, total), slice(None))
        bucket = choose(buckets, total - start, _used_slots(graph, rest), whole.slots)
        part = _cut(graph, rest, slice(bucket.prompts), slice(bucket.points))
        count = min(bucket.prompts, total - start)
        if not bucket.flexible:
            part = pad_prompts(graph, part, bucket)
        result = call(bucket, part)
        if graph.axis("prompts") is None:
            wanted = {t.name: tuple(slice(found.get(str(d))) for d in t.shape) for t in graph.outputs}
            return {name: result[name][part] for name, part in wanted.items()}
        chunks.append({tensor.name: result[tensor.name][:count] for tensor in graph.outputs})
        start += count
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _cut(graph: GraphSpec, inputs: Mapping[str, NDArray[Any]], prompts: slice, points: slice) -> Tensors:
    """Some prompts and some of their slots; other tensors as they are."""
    chosen = {axis.name: part for axis in graph.axes for role, part in zip(_ROLES, (prompts, points), strict=True)
              if axis.role == role}  # fmt: skip
    return {t.name: inputs[t.name][tuple(chosen.get(str(d), slice(None)) for d in t.shape)] for t in graph.inputs}


def _used_slots(graph: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> int:
    """One more than the last slot that any prompt uses; all of them where no tensor marks those that are filled up."""
    points = graph.axis("points")
    if points is None:
        return 1
    slotted = [(tensor, tensor.shape.index(points.name)) for tensor in graph.inputs if points.name in tensor.shape]
    marked = [(tensor, place) for tensor, place in slotted if tensor.fill]
    if not marked:
        return int(inputs[slotted[0][0].name].shape[slotted[0][1]])
    last = 0
    for tensor, place in marked:
        others = tuple(axis for axis in range(len(tensor.shape)) if axis != place)
        used = np.flatnonzero((inputs[tensor.name] != tensor.fill).any(axis=others))
        last = max(last, int(used[-1]) + 1 if used.size else 0)
    return last
