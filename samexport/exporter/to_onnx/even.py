"""Channels behind a LayerNorm scaled so that they and the weights that read them reach equally far.

SmoothQuant's rule with an exponent of one half (Xiao et al., arXiv 2211.10438), with the reach of a channel taken from
the LayerNorm's own gain and bias instead of pictures. The scales are powers of two, so single precision computes the
same bits as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_DEVIATIONS = 3
"""How far from its mean a normalised channel is taken to reach."""


def even_channels(model: ModelProto) -> int:
    """Scale in place wherever products with weights alone read a LayerNorm, as rows; how many were scaled."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(output.name for output in model.graph.output)
    rows = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Reshape"}
    reading: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if _multiplies(node, weights):
            reading.setdefault(node.input[0], []).append(node)
    count = 0
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            continue
        norm, seen = list(filter(None, node.input[1:])), node.output[0]
        seen = rows[seen] if seen in rows and uses[seen] == 1 else seen
        products = reading.get(seen, [])
        own = [*norm, *(product.input[1] for product in products)]
        # what is read elsewhere too would change there
        if 0 < len(products) == uses[seen] and all(name in weights and uses[name] == 1 for name in own):
            count += _scale([weights[name] for name in norm], [(weights[p.input[1]], _turned(p)) for p in products])
    return count


def _multiplies(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """Rows by a matrix of weights."""
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    right = weights.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") and not turned else None
    return right is not None and len(right.dims) == 2


def _turned(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _scale(norm: Sequence[TensorProto], products: Sequence[tuple[TensorProto, bool]]) -> bool:
    """False where the products' rows are not the normalised channels."""
    from onnx import numpy_helper

    gain, *bias = (numpy_helper.to_array(tensor) for tensor in norm)
    rows = [numpy_helper.to_array(weight).T if turned else numpy_helper.to_array(weight) for weight, turned in products]
    if any(len(each) != gain.size for each in rows):
        return False
    reach = _DEVIATIONS * np.abs(gain) + sum(np.abs(each) for each in bias)
    heard = np.max([np.abs(each).max(axis=-1) for each in rows], axis=0)
    scales = powers_of_two(reach, heard)
    for tensor, values in zip(norm, (gain, *bias), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(values / scales, tensor.name))
    for (tensor, turned), values in zip(products, rows, strict=True):
        scaled = values * scales[:, None]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(scaled.T if turned else scaled), tensor.name))
    return True


def powers_of_two(reach: NDArray[np.float32], heard: NDArray[np.float32]) -> NDArray[np.float32]:
    """By what each channel is divided and its weights are multiplied, [C]; 1 where one of them is 0."""
    both = (reach > 0) & (heard > 0)
    ratio = np.where(both, reach, 1) / np.where(both, heard, 1)
    scales: NDArray[np.float32] = np.exp2(np.rint(np.log2(ratio) / 2)).astype(np.float32)
    return scales
