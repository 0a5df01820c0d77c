import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samexport.errors import BundleError
from samexport.runtimes.adapters.onnx_ranges import file_peaks, half_range


def two_products(middle, weight=1.0):
    """X [1, 2] in float32, times ``middle`` in half, times ``weight`` / ``middle`` in half, back in float32."""
    first, second = (np.full((2, 2), w, np.float16) for w in (middle, weight / middle))
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], "down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "first"], ["large"], "up"),
        helper.make_node("MatMul", ["large", "second"], ["small"], "again"),
        helper.make_node("Cast", ["small"], ["y"], "back", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def saved(model, folder):
    path = folder / "x.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def ones(value=1.0):
    return {"x": np.full((1, 2), value, np.float32)}


def in_half(model, inputs):
    """What arithmetic in half precision really gives, by another implementation."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, inputs)[0]


def test_a_tensor_that_overflows_is_named_with_what_makes_it(tmp_path):
    model = two_products(40000.0)
    assert not np.isfinite(in_half(model, ones())).all()
    found = half_range(saved(model, tmp_path), [ones()])
    assert [(p.source, p.tensor, p.largest) for p in found.overflows] == [("MatMul up", "large", 80000.0)]
    assert found.reason == "half precision ends at 65504: MatMul up reaches 8e+04"


def test_what_fits_is_silent(tmp_path):
    model = two_products(1000.0)
    np.testing.assert_allclose(in_half(model, ones()), 4, rtol=1e-2)
    found = half_range(saved(model, tmp_path), [ones()])
    assert (found.overflows, found.near, found.reason) == ((), (), "")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("total", "overflows"), [(65519.0, False), (65520.0, True)])
def test_the_end_is_where_rounding_to_half_gives_infinity(tmp_path, sign, total, overflows):
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(total).astype(np.float16)) == overflows
    found = half_range(saved(two_products(1.0, 0.01), tmp_path), [ones(sign * total / 2)])
    assert bool(found.overflows) == overflows


@pytest.mark.parametrize(("total", "near"), [(33000.0, True), (32000.0, False)])
def test_what_comes_within_a_factor_of_two_is_near(tmp_path, total, near):
    found = half_range(saved(two_products(1.0, 0.01), tmp_path), [ones(total / 2)])
    assert [p.source for p in found.near] == (["MatMul up"] if near else [])
    assert not found.reason


def test_every_example_counts(tmp_path):
    path = saved(two_products(1000.0), tmp_path)
    assert not half_range(path, [ones(), ones(2.0)]).overflows
    assert half_range(path, [ones(), ones(100.0), ones()]).overflows


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_overflows(tmp_path, value):
    inputs = ones()
    inputs["x"][0, 1] = value
    found = half_range(saved(two_products(1.0), tmp_path), [inputs])
    assert found.overflows[0].source == "Cast down"


def test_a_weight_that_half_could_not_hold_is_found_without_any_example(tmp_path):
    with np.errstate(over="ignore"):
        path = saved(two_products(1e6), tmp_path)
    assert half_range(path, []).overflows[0].source == "weight first"


def test_a_file_without_half_precision_has_nothing_to_overflow(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"], "square")],
        "square",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    path = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path)
    assert not half_range(path, [ones(1e6)]).reason


def test_what_is_no_onnx_file_is_one_line(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match=r"^x\.onnx cannot be read: [^\n]+$"):
        half_range(path, [ones()])
    with pytest.raises(BundleError, match="cannot be read"):
        half_range(tmp_path, [ones()])


def test_inputs_of_another_graph_are_one_line(tmp_path):
    with pytest.raises(BundleError, match=r"^products cannot be run to see its range: [^\n]+$"):
        half_range(saved(two_products(1.0), tmp_path), [{"z": np.ones((1, 2), np.float32)}])


def test_the_sums_of_squares_of_a_layer_norm_are_told_by_hand(tmp_path):
    width = 6
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], "squaring"),
        helper.make_node("LayerNormalization", ["square", "scale"], ["y"], "norm", epsilon=1e-5),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, width])],
        [numpy_helper.from_array(np.ones(width, np.float32), "scale")],
    )  # fmt: skip
    path = tmp_path / "norm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    x = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32) * 14
    found = {peak.source: peak.largest for peak in file_peaks(path, [{"x": x / 3}, {"x": x}], threads=1)}
    squares = x.astype(np.float64) ** 2
    sums = ((squares - squares.mean(1, keepdims=True)) ** 2).sum(1).max()
    assert found["Mul squaring"] == pytest.approx(squares.max(), rel=1e-5)
    assert found["squares in LayerNormalization norm"] == pytest.approx(sums, rel=1e-4)
    assert sums > 65504 > squares.max()
