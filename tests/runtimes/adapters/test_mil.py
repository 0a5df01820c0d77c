import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from samexport.errors import BundleError, ConfigError, ParityFailed
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.mil import FP16_MAX, MilRuntime
from samexport.runtimes.formats.mil_arithmetic import Arithmetic, HalfAccumulation, Window
from samexport.runtimes.formats.mil_ops import MOVES, OPERATIONS
from samexport.runtimes.formats.mlpackage import read_package
from tests.single_thread import one_thread as one_thread

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, types  # noqa: E402

ROOT = Path(__file__).parents[3]
RANDOM = np.random.default_rng(5)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape):
    return RANDOM.uniform(0.5, 2, shape).astype(np.float32)


def whole(*shape):
    return RANDOM.integers(-4, 5, shape).astype(np.int32)


X = normal(2, 3, 4)


def save(folder, build, arrays, half=False, target=ct.target.iOS16):
    """A package of coremltools' own making: inputs x0, x1, ..., outputs out0, out1, ... as float32."""
    kinds = {np.dtype(np.float32): types.fp32, np.dtype(np.int32): types.int32}
    specs = [mb.TensorSpec(a.shape, kinds[a.dtype]) for a in arrays]

    def named(*inputs):
        results = build(*inputs)
        results = results if isinstance(results, list | tuple) else [results]
        return tuple(mb.identity(x=mb.cast(x=r, dtype="fp32"), name=f"out{i}") for i, r in enumerate(results))

    arguments = ", ".join(f"x{i}" for i in range(len(arrays)))
    program = mb.program(input_specs=specs, opset_version=target)(
        eval(f"lambda {arguments}: f({arguments})", {"f": named})
    )
    path = folder / "one.mlpackage"
    ct.convert(
        program,
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        pass_pipeline=None if half else ct.PassPipeline.EMPTY,
        minimum_deployment_target=target,
        skip_model_load=True,
        package_dir=str(path),
    )
    return path


def graph_of(path):
    function = read_package(path).functions["main"]
    inputs = tuple(TensorSpec(v.name, v.shape or (1,), "", dtype=v.dtype) for v in function.inputs)
    shapes = {v.name: v.shape for o in function.operations for v in o.outputs}
    outputs = tuple(TensorSpec(name, shapes[name], "") for name in function.outputs)
    return GraphSpec("one", "one operation", inputs, outputs)


def interpret(path, arrays, precision="fp32"):
    with MilRuntime(path, graph_of(path), precision=precision) as runtime:
        outputs = runtime.run({f"x{i}": a for i, a in enumerate(arrays)})
    return [outputs[f"out{i}"] for i in range(len(outputs))]


def inferred(build, arrays):
    """What coremltools' own numpy code computes for the same operation on constants; None where it has none."""
    with Function({}, opset_version=ct.target.iOS16):
        result = build(*[mb.const(val=a) for a in arrays])
    return [r.val for r in (result if isinstance(result, list | tuple) else [result])]


UNARY = {
    **dict.fromkeys(("abs", "ceil", "cos", "erf", "exp", "floor", "relu", "round", "sigmoid", "sign", "sin"), X),
    **dict.fromkeys(("square", "tanh"), X),
    "sqrt": positive(2, 3),
    "identity": X,
}  # fmt: skip
BINARY = {
    **dict.fromkeys(("add", "sub", "mul", "real_div", "maximum", "minimum"), (X, normal(3, 1))),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), (whole(4, 5), whole(5))),
    "pow": (positive(2, 3), normal(2, 3)),
    "floor_div": (whole(3, 4), np.array([[3], [-2], [5]], np.int32)),
    "mod": (whole(3, 4), np.array([[3], [-2], [5]], np.int32)),
}
# operation, how to build it from its inputs, the inputs; everything that coremltools can compute itself
INFERRED = {
    **{name: (lambda x, name=name: getattr(mb, name)(x=x), [x]) for name, x in UNARY.items()},
    **{name: (lambda x, y, name=name: getattr(mb, name)(x=x, y=y), [*xy]) for name, xy in BINARY.items()},
    "logical_not": (lambda x: mb.logical_not(x=mb.greater(x=x, y=0.0)), [X]),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.7), [X]),
    "rsqrt": (lambda x: mb.rsqrt(x=x, epsilon=0.1), [positive(2, 3)]),
    "log": (lambda x: mb.log(x=x, epsilon=0.1), [positive(2, 3)]),
    "gelu": (lambda x: mb.gelu(x=x, mode="EXACT"), [X]),
    "gelu tanh": (lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), [X]),
    "gelu sigmoid": (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), [X]),
    "cast": (lambda x: mb.cast(x=x, dtype="int32"), [3 * X]),
    "cast bool": (lambda x: mb.cast(x=x, dtype="bool"), [whole(4, 4)]),
    "select": (lambda x, y: mb.select(cond=mb.greater(x=x, y=y), a=x, b=y), [X, normal(2, 3, 4)]),
    "matmul": (lambda x, y: mb.matmul(x=x, y=y), [X, normal(4, 5)]),
    "matmul transposed": (
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True), [normal(2, 1, 4, 3), normal(6, 5, 4)],
    ),
    "linear": (lambda x: mb.linear(x=x, weight=WEIGHT, bias=BIAS), [X]),
    "layer_norm": (lambda x: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA, beta=BETA, epsilon=1e-3), [X]),
    "layer_norm of two axes": (lambda x: mb.layer_norm(x=x, axes=[1, 2], epsilon=1e-6), [X]),
    "layer_norm of an inner axis": (lambda x: mb.layer_norm(x=x, axes=[1], gamma=GAMMA[:3], epsilon=1e-6), [X]),
    "softmax": (lambda x: mb.softmax(x=x, axis=1), [X]),
    "softmax of the last axis": (lambda x: mb.softmax(x=x), [X]),
    "reduce_sum": (lambda x: mb.reduce_sum(x=x, axes=[0, 2]), [X]),
    "reduce_sum keep": (lambda x: mb.reduce_sum(x=x, axes=[-1], keep_dims=True), [X]),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[1], keep_dims=True), [X]),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[1], keep_dims=True), [X]),
    "reduce_min": (lambda x: mb.reduce_min(x=x, axes=[-1]), [X]),
    "reshape": (lambda x: mb.reshape(x=x, shape=[0, -1, 2]), [X]),
    "transpose": (lambda x: mb.transpose(x=x, perm=[2, 0, 1]), [X]),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[0, -1]), [X]),
    "squeeze": (lambda x: mb.squeeze(x=x, axes=[1]), [normal(2, 1, 3, 1)]),
    "squeeze all": (lambda x: mb.squeeze(x=x), [normal(2, 1, 3, 1)]),
    "concat": (lambda x, y: mb.concat(values=[x, y, x], axis=1), [X, normal(2, 2, 4)]),
    "stack": (lambda x, y: mb.stack(values=[x, y], axis=-1), [X, normal(2, 3, 4)]),
    "split": (lambda x: mb.split(x=x, num_splits=2, axis=-1), [X]),
    "split sizes": (lambda x: mb.split(x=x, split_sizes=[1, 2], axis=1), [X]),
    "slice_by_index": (
        lambda x: mb.slice_by_index(x=x, begin=[0, -2, 9], end=[9, 3, 4], stride=[1, 1, 2],
                                    begin_mask=[False, False, True], end_mask=[True, False, False]), [X],
    ),
    "slice_by_index single": (
        lambda x: mb.slice_by_index(x=x, begin=[1, 0, -1], end=[0, 3, 0], squeeze_mask=[True, False, True]), [X],
    ),
    "slice_by_index backwards": (
        lambda x: mb.slice_by_index(x=x, begin=[0, 0, 3], end=[2, 3, 0], stride=[1, 1, -2]), [X],
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[0, 1, 1], size=[2, -1, 2]), [X]),
    "pad": (lambda x: mb.pad(x=x, pad=[0, 0, 1, 0, 0, 2], constant_val=2.5), [X]),
    "pad the last axes": (lambda x: mb.pad(x=x, pad=[1, 0, 2, 3]), [X]),
    "pad by reflection": (lambda x: mb.pad(x=x, pad=[1, 2], mode="reflect"), [X]),
    "tile": (lambda x: mb.tile(x=x, reps=[1, 2, 3]), [X]),
    "shape": (lambda x: mb.shape(x=x), [X]),
    "gather": (lambda x: mb.gather(x=x, indices=np.array([[2, 0], [-1, 1]], np.int32), axis=1), [X]),
    "gather one": (lambda x: mb.gather(x=x, indices=np.int32(2), axis=-1), [X]),
    "fill": (lambda x: mb.add(x=x, y=mb.fill(shape=[2, 3, 4], value=1.5)), [X]),
}  # fmt: skip
WEIGHT, BIAS, GAMMA, BETA = normal(6, 4), normal(6), normal(4), normal(4)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the interpreter computes for every case, all in one program because a conversion takes half a second."""
    arrays = [array for _, arrays in INFERRED.values() for array in arrays]
    names = []

    def build(*inputs):
        rest, results = list(inputs), []
        for case, (build_one, own) in INFERRED.items():
            found = build_one(*(rest.pop(0) for _ in own))
            found = found if isinstance(found, list | tuple) else [found]
            results += found
            names.extend([case] * len(found))
        return results

    outputs = interpret(save(tmp_path_factory.mktemp("mil"), build, arrays), arrays)
    return {case: [o for o, name in zip(outputs, names, strict=True) if name == case] for case in INFERRED}


@pytest.mark.parametrize("case", INFERRED)
def test_an_operation_equals_coremltools_own_value_inference(interpreted, case):
    expected = inferred(*INFERRED[case])
    assert len(interpreted[case]) == len(expected)
    for a, e in zip(interpreted[case], expected, strict=True):
        assert e is not None
        assert a.shape == np.shape(e)
        np.testing.assert_allclose(a, np.asarray(e, np.float32), rtol=2e-5, atol=2e-6)


def windows(x, kernel, stride, pads, dilation, value=0.0):
    """Every window of x [N, C, H, W] as [N, C, rows, columns, kh, kw], cut by hand."""
    x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
    return seen[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def convolution(x, weight, stride, pads, dilation, groups):
    parts = zip(np.split(x, groups, 1), np.split(weight, groups), strict=True)
    out = [np.einsum("ncyxij,ocij->noyx", windows(p, w.shape[2:], stride, pads, dilation), w) for p, w in parts]
    return np.concatenate(out, 1)


IMAGE = normal(2, 4, 7, 6)
CONVOLUTIONS = {
    "plain": ((6, 4, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, {"pad_type": "valid"}),
    "padded": (
        (6, 4, 3, 3),
        (1, 1),
        ((1, 1), (1, 1)),
        (1, 1),
        1,
        {"pad_type": "custom", "pad": [1, 1, 1, 1]},
    ),
    "strided": (
        (6, 4, 3, 3),
        (2, 2),
        ((1, 0), (2, 1)),
        (1, 1),
        1,
        {"pad_type": "custom", "pad": [1, 0, 2, 1]},
    ),
    "depthwise": ((4, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, {"pad_type": "same"}),
    "grouped": ((6, 2, 3, 2), (1, 2), ((0, 0), (0, 0)), (2, 1), 2, {"pad_type": "valid"}),
    "same": ((3, 4, 2, 2), (2, 2), ((0, 1), (0, 0)), (1, 1), 1, {"pad_type": "same"}),
    "same_lower": ((3, 4, 2, 2), (2, 2), ((1, 0), (0, 0)), (1, 1), 1, {"pad_type": "same_lower"}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv_equals_sums_over_windows_cut_by_hand(tmp_path, case):
    shape, stride, pads, dilation, groups, padding = CONVOLUTIONS[case]
    weight, bias = normal(*shape), normal(shape[0])
    path = save(
        tmp_path,
        lambda x: mb.conv(x=x, weight=weight, bias=bias, strides=stride, dilations=dilation, groups=groups, **padding),
        [IMAGE],
    )
    expected = convolution(IMAGE, weight, stride, pads, dilation, groups) + bias[:, None, None]
    np.testing.assert_allclose(interpret(path, [IMAGE])[0], expected, atol=1e-5)


def test_conv_transpose_without_overlap_is_a_product_for_each_pixel(tmp_path):
    weight, bias = normal(4, 3, 2, 2), normal(3)
    path = save(tmp_path, lambda x: mb.conv_transpose(x=x, weight=weight, bias=bias, strides=[2, 2]), [IMAGE])
    blocks = np.einsum("ncyx,coij->noyixj", IMAGE, weight)
    expected = blocks.reshape(2, 3, 14, 12) + bias[:, None, None]
    np.testing.assert_allclose(interpret(path, [IMAGE])[0], expected, atol=1e-5)


def test_batch_norm_is_a_scale_and_a_shift_of_each_channel(tmp_path):
    mean, variance, gamma, beta = normal(4), positive(4), normal(4), normal(4)
    path = save(
        tmp_path,
        lambda x: mb.batch_norm(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=0.1),
        [IMAGE],
    )
    column = (slice(None), None, None)
    expected = (IMAGE - mean[column]) / np.sqrt(variance + 0.1)[column] * gamma[column] + beta[column]
    np.testing.assert_allclose(interpret(path, [IMAGE])[0], expected, atol=1e-5)


def test_silu_is_the_number_times_its_sigmoid(tmp_path):
    path = save(tmp_path, lambda x: mb.silu(x=x), [IMAGE])
    np.testing.assert_allclose(interpret(path, [IMAGE])[0], IMAGE / (1 + np.exp(-IMAGE)), atol=1e-6)


def test_max_pool_is_the_largest_of_each_window(tmp_path):
    path = save(
        tmp_path,
        lambda x: mb.max_pool(x=x, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0]),
        [IMAGE],
    )
    expected = windows(IMAGE, (3, 2), (2, 2), ((1, 1), (0, 0)), (1, 1), -np.inf).max((-1, -2))
    np.testing.assert_array_equal(interpret(path, [IMAGE])[0], expected)


def test_upsample_nearest_neighbor_repeats_pixels(tmp_path):
    path = save(
        tmp_path,
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        [IMAGE],
    )
    np.testing.assert_array_equal(interpret(path, [IMAGE])[0], np.kron(IMAGE, np.ones((2, 3), np.float32)))


def test_real_div_of_integers_is_an_integer(tmp_path):
    x, y = np.array([6, 9, 12], np.int32), np.array([3, 3, 4], np.int32)
    path = save(tmp_path, lambda x, y: mb.real_div(x=x, y=y), [x, y])
    assert {
        v.dtype for o in read_package(path).functions["main"].operations for v in o.outputs if o.kind == "real_div"
    } == {"int32"}
    assert interpret(path, [x, y])[0].tolist() == [2, 3, 3]


def test_every_operation_of_the_table_has_a_case_above():
    by_hand = {"conv", "conv_transpose", "batch_norm", "max_pool", "silu", "upsample_nearest_neighbor"}
    # tests/exporter/to_coreml/test_quantize.py
    weights = {name for name in OPERATIONS if name.startswith("constexpr_")}
    assert {case.split()[0] for case in INFERRED} | by_hand | weights == set(OPERATIONS)
    assert set(OPERATIONS) >= MOVES


@pytest.mark.parametrize("target", [ct.target.iOS17, ct.target.iOS18])
def test_later_versions_of_operations_are_read_as_well(tmp_path, target):
    def build(x):
        picked = mb.gather(x=x, indices=np.array([2, 0], np.int32), axis=1, validate_indices=False)
        return mb.reduce_mean(x=mb.gelu(x=mb.reshape(x=picked, shape=[2, 8]), mode="EXACT"), axes=[1])

    expected = torch.nn.functional.gelu(torch.from_numpy(X[:, [2, 0]].reshape(2, 8))).mean(1).numpy()
    np.testing.assert_allclose(interpret(save(tmp_path, build, [X], target=target), [X])[0], expected, atol=1e-6)


# Precisions


def test_fp16_rounds_every_declared_half_and_fp32_rounds_none(tmp_path):
    x = np.array([1.0, 1000.1, 3.14159], np.float32)
    path = save(tmp_path, lambda x: mb.mul(x=mb.add(x=x, y=0.1001), y=3.0), [x], half=True)
    constant = np.float32(np.float16(0.1001))
    np.testing.assert_allclose(interpret(path, [x], "fp32")[0], (x + constant) * 3, rtol=1e-6)
    by_hand = (x.astype(np.float16) + np.float16(0.1001)) * np.float16(3)
    assert by_hand.dtype == np.float16
    np.testing.assert_array_equal(interpret(path, [x], "fp16")[0], by_hand.astype(np.float32))


def test_a_sum_of_ones_stops_at_2048_only_when_sums_are_half_precision(tmp_path):
    x = np.ones((1, 4096), np.float32)
    path = save(tmp_path, lambda x: mb.linear(x=x, weight=np.ones((3, 4096), np.float32)), [x], half=True)
    assert interpret(path, [x], "fp16")[0].tolist() == [[4096] * 3]
    assert interpret(path, [x], "fp16_accumulate")[0].tolist() == [[2048] * 3]


def fused(total, products):
    """Sequential multiply-add in float16, one rounding a step, from float64."""
    for product in products:
        total = np.float16(np.float64(total) + product)
    return total


def test_half_accumulation_of_a_product_is_the_sequential_sum_by_hand():
    a, b = normal(2, 3, 40).astype(np.float16), normal(40, 5).astype(np.float16)
    actual = HalfAccumulation().matmul(torch.from_numpy(a).float(), torch.from_numpy(b).float()).numpy()
    for place in np.ndindex(2, 3, 5):
        products = a[place[:2]].astype(np.float64) * b[:, place[2]].astype(np.float64)
        assert actual[place] == fused(np.float16(0), products)


def test_half_accumulation_of_a_convolution_is_the_sequential_sum_by_hand():
    x, weight = normal(1, 4, 5, 6).astype(np.float16), normal(6, 2, 3, 3).astype(np.float16)
    window = Window((2, 1), (1, 2), ((1, 0), (0, 2)), 2)
    actual = HalfAccumulation().convolve(torch.from_numpy(x).float(), torch.from_numpy(weight).float(), window).numpy()
    seen = windows(x.astype(np.float64), (3, 3), (2, 1), ((1, 0), (0, 2)), (1, 2))
    assert actual.shape == (1, 6, *seen.shape[2:4])
    for _, channel, row, column in np.ndindex(actual.shape):
        first = 0 if channel < 3 else 2
        products = (seen[0, first : first + 2, row, column] * weight[channel]).reshape(-1)
        assert actual[0, channel, row, column] == fused(np.float16(0), products)


@pytest.mark.parametrize("method", ["sum", "mean"])
def test_half_accumulation_of_a_reduction_is_the_sequential_sum_by_hand(method):
    x = normal(3, 50, 2).astype(np.float16)
    actual = getattr(HalfAccumulation(), method)(torch.from_numpy(x).float(), (1,), True).numpy()
    for row, column in np.ndindex(3, 2):
        total = fused(np.float16(0), x[row, :, column].astype(np.float64))
        assert actual[row, 0, column] == (total if method == "sum" else np.float16(np.float32(total) / 50))


def test_half_accumulation_overflows_in_a_layer_norm_where_float32_does_not():
    x = torch.tensor([[-300.0, 300.0, 0.0, 10.0]])
    assert torch.isfinite(Arithmetic().standardise(x, (-1,), 1e-5)).all()
    assert not (HalfAccumulation().standardise(x, (-1,), 1e-5)[0, :2].abs() > 0.5).any()


# Reports


def overflowing(x):
    large = mb.mul(x=x, y=3000.0, name="large")
    return mb.sub(x=mb.mul(x=large, y=10.0, name="overflow"), y=1.0, name="later")


def test_the_report_names_the_first_operation_that_is_not_finite_and_those_near_the_end(tmp_path):
    x = np.array([1.0, 10.0], np.float32)
    path = save(tmp_path, overflowing, [x], half=True)
    report = MilRuntime(path, graph_of(path)).ranges({"x0": x})
    assert report.first_not_finite.kind == "mul"
    assert report.first_not_finite.name.startswith("overflow")
    assert report.first_not_finite.high == 30000
    assert [r.name.split("_")[0] for r in report.near_limit] == ["large", "overflow", "later"]
    full = MilRuntime(path, graph_of(path), precision="fp32").ranges({"x0": x})
    assert full.first_not_finite is None
    assert full.near_limit[1].high == 300000 > FP16_MAX
    assert MilRuntime(path, graph_of(path)).ranges({"x0": x / 100}).near_limit == ()


def test_a_run_that_ends_in_infinity_names_the_operation_where_it_began(tmp_path):
    path = save(tmp_path, overflowing, [np.ones(2, np.float32)], half=True)
    with pytest.raises(ParityFailed, match=r"the first operation that does is mul overflow"):
        interpret(path, [np.array([1.0, 10.0], np.float32)], "fp16")
    assert np.isfinite(interpret(path, [np.ones(2, np.float32)], "fp16")[0]).all()


def test_unknown_operations_are_all_named_when_the_package_is_opened(tmp_path):
    path = save(tmp_path, lambda x: mb.band_part(x=mb.cumsum(x=x, axis=0), lower=1, upper=1), [normal(4, 4)])
    with pytest.raises(ConfigError, match="band_part, cumsum"):
        MilRuntime(path, graph_of(path))


def test_an_operation_that_is_known_but_not_in_this_form_is_named_when_it_runs(tmp_path):
    path = save(tmp_path, lambda x: mb.conv_transpose(x=x, weight=normal(4, 2, 3, 3), strides=[2, 2]), [IMAGE])
    with pytest.raises(BundleError, match=r"conv_transpose .*overlap"):
        interpret(path, [IMAGE])


# Packages


@pytest.fixture
def package(tmp_path):
    return save(tmp_path, lambda x: mb.linear(x=x, weight=normal(32, 4), bias=normal(32)), [X])


def test_blobs_are_read_as_coremltools_reads_them(package):
    from coremltools.libmilstoragepython import _BlobStorageReader

    model = ct.utils.load_spec(str(package))
    function = model.mlProgram.functions["main"]
    constants = read_package(package).functions["main"].constants
    reader = _BlobStorageReader(str(package / "Data/com.apple.CoreML/weights/weight.bin"))
    seen = 0
    for operation in function.block_specializations[function.opset].operations:
        blob = operation.attributes["val"].blobFileValue if operation.type == "const" else None
        if blob is not None and blob.offset:
            expected = reader.read_float_data(blob.offset)
            np.testing.assert_array_equal(constants[operation.outputs[0].name].reshape(-1), expected)
            seen += 1
    assert seen == 2


def break_manifest(path, relative):
    file = path / "Manifest.json"
    manifest = json.loads(file.read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = relative
    file.write_text(json.dumps(manifest))


def garble_model(path):
    (path / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\xff\xff not a protobuf")


def truncate_weights(path):
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    file.write_bytes(file.read_bytes()[:-64])


def garble_weights(path):
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    data[64:68] = b"\0\0\0\0"
    file.write_bytes(bytes(data))


def replace_weights_by_a_link(path):
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    outside = path.parent / "outside.bin"
    shutil.move(file, outside)
    file.symlink_to(outside)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "Manifest.json").unlink(),
        lambda path: break_manifest(path, "../../../outside.mlmodel"),
        lambda path: break_manifest(path, "com.apple.CoreML/absent.mlmodel"),
        garble_model,
        truncate_weights,
        garble_weights,
        replace_weights_by_a_link,
        shutil.rmtree,
    ],
)
def test_a_damaged_or_crafted_package_is_refused(package, damage):
    graph = graph_of(package)
    (package.parent / "outside.mlmodel").write_bytes((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    damage(package)
    with pytest.raises(BundleError):
        MilRuntime(package, graph)


def test_a_package_with_other_tensors_is_refused(package):
    graph = GraphSpec("other", "", (TensorSpec("image", (2, 3, 4), ""),), (TensorSpec("out0", (2, 3, 32), ""),))
    with pytest.raises(BundleError, match="x0"):
        MilRuntime(package, graph)


def test_an_unknown_precision_is_refused(package):
    with pytest.raises(ConfigError, match="fp16_accumulate"):
        MilRuntime(package, graph_of(package), precision="bf16")


MEASURE = """
import resource, sys
import numpy as np
from pathlib import Path
from samexport.models.spec import GraphSpec, TensorSpec
from samexport.runtimes.adapters.mil import MilRuntime
x = TensorSpec("x0", (8, 1024, 1024), "")
runtime = MilRuntime(Path(sys.argv[1]), GraphSpec("one", "", (x,), (TensorSpec("out0", x.shape, ""),)))
value = np.zeros(x.shape, np.float32)
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert runtime.run({"x0": value})["out0"][0, 0, 0] == 40
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_values_are_freed_after_their_last_use(tmp_path):
    """40 steps of 32 MB each: kept alive they would need 1.3 GB."""

    def build(x):
        for _ in range(40):
            x = mb.add(x=x, y=1.0)
        return x

    path = save(tmp_path, build, [np.zeros((8, 1024, 1024), np.float32)])
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, cwd=ROOT)
    assert int(run.stdout) < 250, run.stderr


def test_threads_of_torch_are_as_before_afterwards(package):
    before = torch.get_num_threads()
    MilRuntime(package, graph_of(package), threads=before + 1).run({"x0": X})
    assert torch.get_num_threads() == before


def test_reading_a_package_imports_neither_the_converters_nor_prints_anything(package):
    code = (
        "import sys; from pathlib import Path; from samexport.runtimes.formats.mlpackage import read_package;"
        f"read_package(Path({str(package)!r})); print(sorted({{'coremltools', 'torch'}} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout, run.stderr) == ("[]\n", "")
