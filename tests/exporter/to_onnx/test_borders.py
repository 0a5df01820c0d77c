import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from samexport.exporter.to_onnx.borders import pool_borders

IMAGE = np.random.default_rng(3).normal(size=(1, 2, 9, 8)).astype(np.float32)


def pooling(*, before="Relu", border=(0, 0, 1, 1, 0, 0, 1, 2), value=0.0, own=0, shown=False, mode="constant"):
    """An operation, a border, a pooling."""
    nodes = [
        helper.make_node(before, ["image"], ["x"]),
        helper.make_node("Pad", ["x", "border", "value"], ["padded"], mode=mode),
        helper.make_node("MaxPool", ["padded"], ["pooled"], kernel_shape=[3, 3], strides=[2, 2], pads=[own] * 4),
    ]
    outputs = [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None)]
    if shown:
        outputs.append(helper.make_tensor_value_info("padded", TensorProto.FLOAT, None))
    weights = [
        numpy_helper.from_array(np.array(border, np.int64), "border"),
        numpy_helper.from_array(np.array(value, np.float32), "value"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)
    graph = helper.make_graph(nodes, "g", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["pooled"], {"image": IMAGE})[0]


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("border", [(0, 0, 1, 1, 0, 0, 1, 1), (0, 0, 1, 0, 0, 0, 2, 1), (0, 0, 0, 2, 0, 0, 1, 0)])
def test_zeros_around_what_a_relu_returned_become_padding_of_the_pooling(border):
    model = pooling(border=border)
    expected = run(model)
    pool_borders(model)
    assert kinds(model) == ["Relu", "MaxPool"]
    np.testing.assert_array_equal(run(model), expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"before": "Neg"},
        {"value": -1.0},
        {"border": (0, 0, 3, 1, 0, 0, 1, 1)},
        {"border": (0, 1, 1, 1, 0, 0, 1, 1)},
        {"border": (0, 0, -1, 1, 0, 0, 1, 1)},
        {"mode": "edge"},
        {"own": 1},
        {"shown": True},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_border_stays(changed):
    model = pooling(**changed)
    expected = run(model)
    pool_borders(model)
    assert kinds(model)[1:] == ["Pad", "MaxPool"]
    np.testing.assert_array_equal(run(model), expected)
