import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from samexport.exporter.to_tflite.passes import improve
from samexport.runtimes.formats.tflite import read_model, write_model
from samexport.runtimes.formats.tflite_lint import lint
from tests.tflite_models import ADD, SINGLE, floats, ints, write_graph


def improved(path, *, gpu=False):
    model = read_model(path)
    improve(model, gpu=gpu)
    better = path.with_name(f"{path.stem}_better.tflite")
    write_model(model, better)
    return better


def run(path, inputs):
    return Interpreter(str(path)).get_signature_runner("main")(**inputs)


def same_results(path, inputs, *, gpu=False):
    """The improved file, checked to compute bit for bit what the other one does."""
    better = improved(path, gpu=gpu)
    before, after = run(path, inputs), run(better, inputs)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.shape == after[name].shape
        np.testing.assert_array_equal(after[name], value)
    return better


@pytest.mark.parametrize("single", [s for s in SINGLE if s.on_gpu == "wrong" and s.kind in ("ADD", "PAD")],
                         ids=lambda s: s.name)  # fmt: skip
def test_what_a_gpu_computes_wrongly_is_lifted_to_four_dimensions(single, tmp_path):
    inputs = {f"t{i}": floats(*o) for i, o in enumerate(single.operands) if isinstance(o, tuple)}
    path = single.write(tmp_path / "x.tflite")
    better = same_results(path, inputs)
    assert bool(lint(better).findings) == (single.name == "pad the batch")
    assert lint(improved(better)).operations == lint(better).operations


def test_a_product_of_computed_tensors_becomes_a_batch_product(tmp_path):
    tensors = [("x", (5, 8)), ("weights", (7, 8)), ("y", (5, 7)), ("z", (5, 7))]
    operators = [
        ("FULLY_CONNECTED", ["x", "weights"], "y", schema.FullyConnectedOptionsT()),
        ("ABS", ["y"], "z", None),
    ]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["z"])
    better = improved(path)
    inputs = {"x": floats(5, 8), "weights": floats(7, 8)}
    np.testing.assert_allclose(run(better, inputs)["z"], abs(floats(5, 8) @ floats(7, 8).T), rtol=1e-5, atol=1e-5)
    assert lint(better).operations["main"] == {"ABS": 1, "BATCH_MATMUL": 1, "RESHAPE": 3}
    assert not lint(better).findings


def test_a_product_with_weights_is_left_alone(tmp_path):
    tensors = [("x", (5, 8)), ("weights", floats(7, 8)), ("y", (5, 7))]
    operators = [("FULLY_CONNECTED", ["x", "weights"], "y", schema.FullyConnectedOptionsT())]
    better = same_results(write_graph(tmp_path / "x.tflite", tensors, operators, ["y"]), {"x": floats(5, 8)})
    assert lint(better).operations["main"] == {"FULLY_CONNECTED": 1}


@pytest.mark.parametrize(("batches", "axis"), [((70,), 0), ((1, 70), 1), ((35, 2), 0)])
@pytest.mark.parametrize("adjoint", [False, True])
def test_a_product_too_large_for_a_gpu_is_split_for_the_gpu_only(batches, axis, adjoint, tmp_path):
    options = schema.BatchMatMulOptionsT()
    options.adjY = adjoint
    right = (*batches, 64, 1024) if adjoint else (*batches, 1024, 64)
    tensors = [("x", (*batches, 2, 1024)), ("r", right), ("y", (*batches, 2, 64))]
    operators = [("BATCH_MATMUL", ["x", "r"], "y", options)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["y"])
    assert [f.wrong_result for f in lint(path).of("gpu")] == [True]
    inputs = {"x": floats(*batches, 2, 1024), "r": floats(*right)}
    better = same_results(path, inputs, gpu=True)
    assert lint(better).operations["main"] == {"BATCH_MATMUL": 3, "CONCATENATION": 1, "SLICE": 6}
    assert not lint(better).findings
    assert read_model(better).subgraphs[0].operators[-1].builtinOptions.axis == axis
    # overwrites the split file
    assert lint(same_results(path, inputs)).operations["main"] == {"BATCH_MATMUL": 1}


@pytest.mark.parametrize(("count", "joins"), [(5, 1), (6, 2), (27, 8)])
@pytest.mark.parametrize("axis", [1, -2])
def test_a_join_of_more_than_xnnpack_takes_is_made_in_steps(count, joins, axis, tmp_path):
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    tensors = [
        *((f"x{i}", (2, 1 + i % 3, 4)) for i in range(count)),
        ("y", (2, sum(1 + i % 3 for i in range(count)), 4)),
    ]
    operators = [("CONCATENATION", [f"x{i}" for i in range(count)], "y", options)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["y"])
    assert bool(lint(path).of("xnnpack")) == (count > 5)
    rng = np.random.default_rng(1)
    better = same_results(path, {f"x{i}": rng.normal(size=(2, 1 + i % 3, 4)).astype(np.float32) for i in range(count)})
    assert lint(better).operations["main"] == {"CONCATENATION": joins}
    assert not lint(better).of("xnnpack")


@pytest.mark.parametrize("scalar", [True, False])
def test_a_mean_keeps_the_axis_that_is_restored_later(scalar, tmp_path):
    mean, reshape = schema.ReducerOptionsT(), schema.ReshapeOptionsT()
    tensors = [
        ("x", (2, 5, 8)), ("axis", ints(2)), ("m", (2, 5)), ("eps", np.array(0.5, np.float32)), ("a", (2, 5)),
        ("s", ints(2, 5, 1)), ("r", (2, 5, 1)), ("y", (2, 5, 8)),
    ]  # fmt: skip
    middle = [("ADD", ["m", "eps"], "a", ADD)] if scalar else [("ABS", ["m"], "a", None)]
    operators = [
        ("MEAN", ["x", "axis"], "m", mean), *middle, ("RESHAPE", ["a", "s"], "r", reshape),
        ("ADD", ["x", "r"], "y", ADD),
    ]  # fmt: skip
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["y"])
    better = same_results(path, {"x": floats(2, 5, 8)})
    assert ("RESHAPE" in lint(better).operations["main"]) == (not scalar)


def test_chains_of_reshape_and_slice_become_one_each(tmp_path):
    tensors = [
        ("x", (4, 6)), ("s1", ints(2, 12)), ("r1", (2, 12)), ("s2", ints(3, 8)), ("r2", (3, 8)),
        ("b1", ints(1, 2)), ("n1", ints(2, 5)), ("c1", (2, 5)), ("b2", ints(0, 3)), ("n2", ints(1, 2)), ("c2", (1, 2)),
        ("s3", ints(1, 2)), ("r3", (1, 2)), ("y", (1, 2)),
    ]  # fmt: skip
    reshape, cut = schema.ReshapeOptionsT(), schema.SliceOptionsT()
    operators = [
        ("RESHAPE", ["x", "s1"], "r1", reshape), ("RESHAPE", ["r1", "s2"], "r2", reshape),
        ("SLICE", ["r2", "b1", "n1"], "c1", cut), ("SLICE", ["c1", "b2", "n2"], "c2", cut),
        ("RESHAPE", ["c2", "s3"], "r3", reshape), ("ABS", ["r3"], "y", None),
    ]  # fmt: skip
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["y"])
    better = same_results(path, {"x": floats(4, 6)})
    assert lint(better).operations["main"] == {"ABS": 1, "RESHAPE": 1, "SLICE": 1}
    np.testing.assert_array_equal(run(better, {"x": floats(4, 6)})["y"], abs(floats(3, 8)[1:2, 5:7]))


def test_an_intermediate_that_is_also_an_output_stays(tmp_path):
    tensors = [("x", (4, 6)), ("s1", ints(2, 12)), ("r1", (2, 12)), ("s2", ints(3, 8)), ("r2", (3, 8))]
    reshape = schema.ReshapeOptionsT()
    operators = [("RESHAPE", ["x", "s1"], "r1", reshape), ("RESHAPE", ["r1", "s2"], "r2", reshape)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["r1", "r2"])
    assert lint(same_results(path, {"x": floats(4, 6)})).operations["main"] == {"RESHAPE": 2}


def test_a_lifted_constant_shares_its_data_and_equal_data_is_stored_once(tmp_path):
    weights = floats(64, 64)
    tensors = [("x", (64, 64)), ("a", weights), ("b", weights.copy()), ("y", (64, 64)), ("z", (64, 64))]
    operators = [("ADD", ["x", "a"], "y", ADD), ("ADD", ["y", "b"], "z", ADD)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["z"])
    better = same_results(path, {"x": floats(64, 64)})
    assert not lint(better).findings
    assert path.stat().st_size > 2 * weights.nbytes
    assert better.stat().st_size < 1.2 * weights.nbytes


@pytest.mark.parametrize(("axis", "place", "out"), [(1, 0, (2, 4)), (-1, 2, (2, 3)), (1, -1, (2, 4))])
def test_a_gather_of_one_place_becomes_a_slice(axis, place, out, tmp_path):
    options = schema.GatherOptionsT()
    options.axis = axis
    index = np.array(place % 3, np.int32)
    tensors = [("x", (2, 3, 4)), ("place", index), ("y", out)]
    path = write_graph(tmp_path / "x.tflite", tensors, [("GATHER", ["x", "place"], "y", options)], ["y"])
    better = same_results(path, {"x": floats(2, 3, 4)})
    assert lint(better).operations["main"] == {"RESHAPE": 1, "SLICE": 1}


def test_a_gather_of_several_places_is_left_alone(tmp_path):
    options = schema.GatherOptionsT()
    options.axis = 1
    tensors = [("x", (2, 3)), ("places", ints(2, 0)), ("y", (2, 2))]
    path = write_graph(tmp_path / "x.tflite", tensors, [("GATHER", ["x", "places"], "y", options)], ["y"])
    assert lint(same_results(path, {"x": floats(2, 3)})).operations["main"] == {"GATHER": 1}
