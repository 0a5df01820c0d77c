"""The interpreter's operations against coremltools' own value inference, on shapes and parameters that are drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samexport.runtimes.adapters.mil import _as_tensor
from samexport.runtimes.formats.mil_arithmetic import Arithmetic
from samexport.runtimes.formats.mil_ops import OPERATIONS

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function  # noqa: E402

MANY = settings(max_examples=25, deadline=None, derandomize=True)
SIZES = st.integers(1, 4)
SHAPES = st.lists(SIZES, min_size=1, max_size=4)


@st.composite
def tensors(draw, shapes=SHAPES, low=-3.0, high=3.0):
    shape = draw(shapes)
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return random.uniform(low, high, shape).astype(np.float32)


def some_axes(draw, x):
    axes = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim, unique=True))
    # both ways of counting
    return [axis - x.ndim if draw(st.booleans()) else axis for axis in axes]


def check(build):
    """Build one operation on constants; what coremltools inferred must be what the interpreter computes."""
    with Function({}, opset_version=ct.target.iOS16):
        built = build()
    results = list(built) if isinstance(built, list | tuple) else [built]
    operation = results[0].op
    arguments = {}
    for name, value in operation.inputs.items():
        if value is not None:
            parts = [_as_tensor(v.val) for v in (value if isinstance(value, list | tuple) else [value])]
            arguments[name] = tuple(parts) if isinstance(value, list | tuple) else parts[0]
    with torch.inference_mode():
        found = OPERATIONS[operation.op_type](Arithmetic(), arguments)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(results)
    for actual, expected in zip(found, results, strict=True):
        assert expected.val is not None
        assert tuple(actual.shape) == np.shape(expected.val)
        np.testing.assert_allclose(actual.numpy(), np.asarray(expected.val), rtol=2e-5, atol=2e-6)


ELEMENTWISE = (
    "abs", "ceil", "cos", "erf", "exp", "floor", "gelu", "relu", "round", "sigmoid", "sign", "sin", "square", "tanh",
)  # fmt: skip


@MANY
@given(st.sampled_from(ELEMENTWISE), tensors())
def test_elementwise(kind, x):
    check(lambda: getattr(mb, kind)(x=x))


@MANY
@given(st.sampled_from(("sqrt", "rsqrt", "log")), tensors(low=0.1))
def test_elementwise_of_positive_numbers(kind, x):
    check(lambda: getattr(mb, kind)(x=x))


COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
SUMS = ("add", "sub", "mul", "real_div", "maximum", "minimum")


@MANY
@given(st.sampled_from(SUMS + COMPARISONS), tensors(), st.data())
def test_two_operands_broadcast(kind, x, data):
    kept = data.draw(st.lists(st.booleans(), min_size=x.ndim, max_size=x.ndim))
    shape = [size if keep else 1 for size, keep in zip(x.shape, kept, strict=True)]
    y = np.random.default_rng(1).uniform(1, 3, shape[data.draw(st.integers(0, x.ndim - 1)) :]).astype(np.float32)
    if kind in COMPARISONS:
        x, y = np.round(x), np.round(y)
    check(lambda: getattr(mb, kind)(x=x, y=y))


@MANY
@given(st.data())
def test_matmul(data):
    rows, common, columns = (data.draw(SIZES) for _ in range(3))
    batch = data.draw(st.lists(SIZES, max_size=2))
    one = [1 if data.draw(st.booleans()) else size for size in batch]
    transpose_x, transpose_y = data.draw(st.booleans()), data.draw(st.booleans())
    x = data.draw(tensors(st.just([*batch, *((common, rows) if transpose_x else (rows, common))])))
    y = data.draw(tensors(st.just([*one, *((columns, common) if transpose_y else (common, columns))])))
    check(lambda: mb.matmul(x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y))


@MANY
@given(tensors(st.lists(SIZES, min_size=1, max_size=3)), SIZES, st.booleans())
def test_linear(x, size, bias):
    random = np.random.default_rng(2)
    weight = random.standard_normal((size, x.shape[-1])).astype(np.float32)
    extra = {"bias": random.standard_normal(size).astype(np.float32)} if bias else {}
    check(lambda: mb.linear(x=x, weight=weight, **extra))


@MANY
@given(st.sampled_from(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")), tensors(), st.booleans(), st.data())
def test_reductions(kind, x, keep, data):
    axes = some_axes(data.draw, x)
    check(lambda: getattr(mb, kind)(x=x, axes=axes, keep_dims=keep))


@MANY
@given(st.sampled_from(("softmax", "layer_norm")), tensors(), st.data())
def test_normalisations(kind, x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    if kind == "softmax":
        check(lambda: mb.softmax(x=x, axis=axis))
    else:
        scale = np.linspace(0.5, 2, x.shape[axis], dtype=np.float32)
        check(lambda: mb.layer_norm(x=x, axes=[axis], gamma=scale, beta=scale - 1, epsilon=1e-3))


@MANY
@given(tensors(), st.data())
def test_slice_by_index(x, data):
    begin, end, stride, begin_mask, end_mask, squeeze = [], [], [], [], [], []
    for size in x.shape:
        first = data.draw(st.integers(0, size - 1))
        last = data.draw(st.integers(first + 1, size))
        begin.append(first - size if data.draw(st.booleans()) else first)
        end.append(last - size if last < size and data.draw(st.booleans()) else last)
        stride.append(data.draw(st.integers(1, 3)))
        single = data.draw(st.booleans()) and len(squeeze) > 0
        squeeze.append(single)
        begin_mask.append(not single and data.draw(st.booleans()))
        end_mask.append(not single and data.draw(st.booleans()))
    masks = {"begin_mask": begin_mask, "end_mask": end_mask, "squeeze_mask": squeeze}
    check(lambda: mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, **masks))


@MANY
@given(st.sampled_from(("transpose", "tile", "pad", "expand_dims", "reshape", "gather")), tensors(), st.data())
def test_moves_of_one_tensor(kind, x, data):
    if kind == "transpose":
        perm = data.draw(st.permutations(range(x.ndim)))
        check(lambda: mb.transpose(x=x, perm=perm))
    elif kind == "tile":
        reps = [data.draw(SIZES) for _ in x.shape]
        check(lambda: mb.tile(x=x, reps=reps))
    elif kind == "pad":
        pad = [data.draw(st.integers(0, 2)) for _ in range(2 * x.ndim)]
        check(lambda: mb.pad(x=x, pad=pad, constant_val=1.5))
    elif kind == "expand_dims":
        axes = sorted(data.draw(st.sets(st.integers(0, x.ndim), min_size=1, max_size=1)))
        check(lambda: mb.expand_dims(x=x, axes=axes))
    elif kind == "reshape":
        # a 0 keeps a size, a -1 takes the rest
        kept = data.draw(st.integers(0, x.ndim - 1))
        check(lambda: mb.reshape(x=x, shape=[0] * kept + [-1]))
    else:
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        indices = np.array(data.draw(st.lists(st.integers(0, x.shape[axis] - 1), min_size=1, max_size=3)), np.int32)
        check(lambda: mb.gather(x=x, indices=indices, axis=axis))


@MANY
@given(st.sampled_from(("concat", "stack", "split")), tensors(), st.data())
def test_moves_of_several_tensors(kind, x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    if kind == "concat":
        check(lambda: mb.concat(values=[x, -x, 2 * x], axis=axis))
    elif kind == "stack":
        check(lambda: mb.stack(values=[x, -x], axis=axis))
    else:
        first = data.draw(st.integers(1, 3))
        wide = np.concatenate([x, x, x, x], axis)
        sizes = [first, wide.shape[axis] - first]
        check(lambda: mb.split(x=wide, split_sizes=sizes, axis=axis))


@MANY
@given(tensors(st.lists(st.sampled_from((1, 1, 3)), min_size=2, max_size=4)))
def test_squeeze(x):
    axes = [axis for axis, size in enumerate(x.shape) if size == 1][:2]
    if len(axes) not in (0, x.ndim):
        check(lambda: mb.squeeze(x=x, axes=axes))
