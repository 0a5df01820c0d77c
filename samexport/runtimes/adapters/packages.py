"""CoreML packages against their graphs: what both runtimes of CoreML files need. Numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samexport.errors import BundleError
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.entry_points import LABELS, Bucket
from samexport.runtimes.formats.mlpackage import Package


def check_names(package: Package, graph: GraphSpec, name: str) -> None:
    """Refuse a package whose entry points have other inputs or outputs than ``graph``.

    Raises:
        BundleError: with the names that were found.
    """
    for function in package.functions.values():
        inputs = {value.name for value in function.inputs}
        if inputs != set(graph.input_names) or set(function.outputs) != set(graph.output_names):
            found = sorted(inputs), sorted(function.outputs)
            raise BundleError(f"{name} has the tensors {found}, not those of the graph {graph.name}")


def whole_pixels(image: NDArray[Any]) -> NDArray[Any]:
    """What is left of an image when an app passes it as a picture: whole numbers from 0 to 255."""
    rounded: NDArray[Any] = np.clip(np.rint(image), 0, 255)
    return rounded


def buckets_of(package: Package) -> tuple[Bucket, ...]:
    """The entry points of a decoder with the prompts and points that each takes.

    Raises:
        BundleError: a size is flexible and has no bound.
    """
    buckets = []
    for name, function in package.functions.items():
        shape = {value.name: value.shape for value in function.inputs}[LABELS]
        bounds = function.bounds[LABELS] or ((0, 0),) * len(shape)
        most = [size if size is not None else bound[1] for size, bound in zip(shape, bounds, strict=True)]
        if min(most) < 1:
            raise BundleError(f"{name} takes {LABELS} of any size; export it with bounds")
        buckets.append(Bucket(name, most[0], most[1], flexible=None in shape))
    # the functions of a package have no order
    return tuple(sorted(buckets, key=lambda bucket: (bucket.prompts, bucket.points)))
