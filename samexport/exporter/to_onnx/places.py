"""Constants whose columns repeat, such as biases by relative position, as a table and the place of each column.

Exact, and a fraction of the size: windows of 14x14 cells have 196 different columns among 38416. Runtimes look
the columns up once, when they open a file.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

_LEAST = 4096
"""Numbers of a constant that is looked at."""


def as_places(model: ModelProto) -> None:
    """Rewrite every such constant of three dimensions or more, [rows, ...], in place."""
    from onnx import TensorProto, helper, numpy_helper

    initializers = model.graph.initializer
    places: dict[tuple[tuple[int, ...], bytes], str] = {}
    nodes = []
    for weight in list(initializers):
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) < 3 or prod(weight.dims) < _LEAST:
            continue
        value = numpy_helper.to_array(weight)
        table, place = np.unique(value.reshape(len(value), -1), axis=1, return_inverse=True)
        place = place.reshape(value.shape[1:]).astype(np.int32)
        if table.nbytes + place.nbytes > value.nbytes / 2:
            continue
        key = (place.shape, place.tobytes())
        if key not in places:
            places[key] = f"places_{len(places)}"
            initializers.append(numpy_helper.from_array(place, places[key]))
        initializers.remove(weight)
        initializers.append(numpy_helper.from_array(table, f"{weight.name}_table"))
        nodes.append(helper.make_node("Gather", [f"{weight.name}_table", places[key]], [weight.name], axis=1))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
