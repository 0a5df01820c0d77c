"""A border of zeros around what a ReLU returned, as the padding of the pooling behind it.

NanoSAM's export form has that border because TFLite's GPU pads with nothing else. ONNX's MaxPool pads by itself, and
no maximum changes by it that has a number of a ReLU among its own: a copy of the largest map is saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper


def pool_borders(model: onnx.ModelProto) -> None:
    """Give each MaxPool the zeros before it as its own padding, in place; the numbers are the same."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(output.name for output in model.graph.output)
    for pool in [node for node in model.graph.node if node.op_type == "MaxPool"]:
        pad = made.get(pool.input[0])
        source = made.get(pad.input[0]) if pad is not None and pad.op_type == "Pad" else None
        if pad is None or source is None or source.op_type != "Relu" or uses[pad.output[0]] != 1:
            continue
        before = {each.name: helper.get_attribute_value(each) for each in pool.attribute}
        border = _zeros_around(pad, weights)
        # ONNX wants a padding smaller than the kernel, and a window of nothing but padding has no maximum
        fits = border and max(border) < min(before["kernel_shape"])
        if not fits or any(before.get("pads", ())) or before.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        del pool.attribute[:]
        pool.attribute.extend(helper.make_attribute(*each) for each in {**before, "pads": border}.items())
        pool.input[0] = pad.input[0]
        model.graph.node.remove(pad)


def _zeros_around(pad: NodeProto, weights: Mapping[str, TensorProto]) -> list[int] | None:
    """What a Pad adds to the last two of four axes: top, left, bottom, right; None where it does something else."""
    mode = next((each.s for each in pad.attribute if each.name == "mode"), b"constant")
    ends, value, axes = [*pad.input[1:], "", "", ""][:3]
    if mode != b"constant" or axes or ends not in weights or (value and value not in weights):
        return None
    if value and numpy_helper.to_array(weights[value]).any():
        return None
    counts: list[int] = numpy_helper.to_array(weights[ends]).tolist()
    if len(counts) != 8 or min(counts) < 0 or any(counts[axis] for axis in (0, 1, 4, 5)):
        return None
    return [counts[axis] for axis in (2, 3, 6, 7)]
