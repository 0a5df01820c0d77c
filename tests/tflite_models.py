"""TFLite files for tests: built by hand from single operations, or converted once a session from tiny models."""

import functools
import json
import os
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from filelock import FileLock
from torch import nn

from samexport.exporter.to_tflite.convert import TfliteOptions, convert
from samexport.models.build import build_graph
from samexport.models.catalog import find_model
from samexport.models.spec import GraphSpec
from samexport.runtimes.formats.tflite import METADATA_NAME, append_metadata, read_model, write_model
from samexport.runtimes.formats.tflite_lint import Lint
from tests.models.golden import random_sam

# what the tests' decoders have room for; more than one size, of different points
OPTIONS = TfliteOptions(prompt_buckets=(1, 4), points=(5, 2))
# of operations that have no version 1
_VERSIONS = {"BROADCAST_TO": 2}
METADATA = {"model": "test.tinyvit64", "outputs": ["low_res_masks", "iou_predictions"]}


@dataclass(frozen=True)
class Built:
    path: Path
    graph: GraphSpec
    plain: nn.Module
    export: nn.Module
    found: Lint
    options: TfliteOptions


def read_metadata(path):
    """The JSON that is appended to a file."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(METADATA_NAME))


@functools.cache
def folder():
    """Shared by the processes of a run (``tests/conftest.py``)."""
    made = Path(os.environ["SAMEXPORT_TEST_FILES"]) / "tflite"
    made.mkdir(exist_ok=True)
    return made


@functools.cache
def built(model, name, target="cpu"):
    spec, sam = find_model(model), random_sam(model)
    graph, export = build_graph(sam, spec, name)
    plain = build_graph(sam, spec, name, plain=True)[1] if not name.startswith("decoder_p") else export
    options = replace(OPTIONS, target=target)
    path = folder() / f"{model}-{name}-{target}.tflite"
    listed = path.with_suffix(".lint")
    with FileLock(f"{path}.lock"):
        if not listed.exists():
            listed.write_bytes(pickle.dumps(convert(graph, export, path, options, METADATA)))
    found = pickle.loads(listed.read_bytes())
    return Built(path, graph, plain, export, found, options)


def copied(graph, _module, path, options, metadata=None):
    """As ``convert`` does for the 64-pixel TinyViT, from the files that tests share."""
    model = built("test.tinyvit64", graph.name)
    assert options == model.options
    write_model(read_model(model.path), path)
    if metadata is not None:
        append_metadata(path, metadata)
    return model.found


def prompts(graph, count, points, seed=0):
    """Inputs of a decoder of the 64-pixel models, absent and padding points among them."""
    rng = np.random.default_rng([seed, count, points])
    sizes = {"N": count, "K": points}
    inputs = {}
    for tensor in graph.inputs:
        shape = [sizes.get(d, d) for d in tensor.shape]
        value = rng.standard_normal(shape)
        if tensor.name == "point_coords":
            value = rng.uniform(0, 63, shape)
        if tensor.name == "point_labels":
            value = rng.integers(-2, 4, shape)
            value[:, 0] = 1
        if tensor.name == "has_mask_input":
            value = np.arange(count) % 2
        inputs[tensor.name] = value.astype(np.float32)
    return inputs


def write_graph(path, tensors, operators, outputs):
    """A file with one entry point ``main``.

    ``tensors`` are (name, shape) or (name, array), inputs are those that nothing computes; ``operators`` are
    (kind, names of inputs, name of output, options).
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], []
    graph.name, graph.tensors, graph.operators = b"main", [], []
    place = {name: index for index, (name, _) in enumerate(tensors)}
    for name, value in tensors:
        tensor, constant = schema.TensorT(), isinstance(value, np.ndarray)
        tensor.name, tensor.buffer = name.encode(), 0
        tensor.shape = np.array(value.shape if constant else value, np.int32)
        if constant:
            tensor.type = {"float32": 0, "float16": 1, "int32": 2, "int64": 4}[value.dtype.name]
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    for kind, inputs, output, options in operators:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), _VERSIONS.get(kind, 1)
        model.operatorCodes.append(code)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs = np.array([place[name] for name in inputs], np.int32)
        operator.outputs = np.array([place[output]], np.int32)
        if options is not None:
            class_name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, class_name)
            operator.builtinOptions = options
        graph.operators.append(operator)
    computed = {output for _, _, output, _ in operators}
    free = [n for n, v in tensors if n not in computed and not isinstance(v, np.ndarray)]
    graph.inputs = np.array([place[n] for n in free], np.int32)
    graph.outputs = np.array([place[n] for n in outputs], np.int32)
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"main", 0
    signature.inputs, signature.outputs = [_map(n, place) for n in free], [_map(n, place) for n in outputs]
    model.signatureDefs = [signature]
    write_model(model, path)
    return path


def _map(name, place):
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name.encode(), place[name]
    return made


def ints(*values):
    return np.array(values, np.int32)


def floats(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Single:
    """One operation, and whether a GPU runs it, refuses it or computes something else."""

    name: str
    kind: str
    operands: tuple
    out: tuple
    on_gpu: str
    options: object = None

    def write(self, path):
        tensors = [(f"t{i}", operand) for i, operand in enumerate(self.operands)]
        names = [name for name, _ in tensors]
        return write_graph(path, [*tensors, ("out", self.out)], [(self.kind, names, "out", self.options)], ["out"])


def reducer(*, keep):
    options = schema.ReducerOptionsT()
    options.keepDims = keep
    return options


def pads(rank, axis, after):
    made = np.zeros((rank, 2), np.int32)
    made[axis, 1] = after
    return made


ADD, PAD, MATMUL = schema.AddOptionsT(), schema.PadOptionsT(), schema.BatchMatMulOptionsT()
SOFTMAX = schema.SoftmaxOptionsT()
SOFTMAX.beta = 1.0

SINGLE = (
    Single("same shape", "ADD", ((9, 16, 8), (9, 16, 8)), (9, 16, 8), "runs", ADD),
    Single("computed, other rank", "ADD", ((9, 16, 8), (1, 9, 16, 8)), (1, 9, 16, 8), "runs", ADD),
    Single("computed batch", "ADD", ((9, 16, 8), (1, 16, 8)), (9, 16, 8), "runs", ADD),
    Single("channel constant", "ADD", ((9, 16, 8), floats(8)), (9, 16, 8), "runs", ADD),
    Single("constant row", "ADD", ((9, 16, 8), floats(1, 16, 8)), (9, 16, 8), "runs", ADD),
    Single("constant of four axes", "ADD", ((4, 6, 9, 8), floats(4, 1, 1, 8)), (4, 6, 9, 8), "runs", ADD),
    Single("constant matrix", "ADD", ((16, 8), floats(16, 8)), (16, 8), "wrong", ADD),
    Single("constant with a batch", "ADD", ((9, 16, 8), floats(9, 1, 8)), (9, 16, 8), "wrong", ADD),
    Single("result of higher rank", "ADD", ((9, 16, 8), floats(1, 1, 1, 8)), (1, 9, 16, 8), "wrong", ADD),
    Single("pad rows", "PAD", ((1, 6, 9, 8), pads(4, 1, 3)), (1, 9, 9, 8), "runs", PAD),
    Single("pad one of three axes", "PAD", ((1, 9, 8), pads(3, 2, 4)), (1, 9, 12), "runs", PAD),
    Single("pad three axes", "PAD", ((16, 9, 8), pads(3, 2, 4)), (16, 9, 12), "wrong", PAD),
    Single("pad the batch", "PAD", ((1, 6, 9, 8), pads(4, 0, 2)), (3, 6, 9, 8), "wrong", PAD),
    Single("pad a matrix", "PAD", ((6, 8), pads(2, 1, 4)), (6, 12), "refused", PAD),
    Single("product", "BATCH_MATMUL", ((2, 3, 5, 8), (2, 3, 8, 7)), (2, 3, 5, 7), "runs", MATMUL),
    Single("product with weights", "BATCH_MATMUL", ((3, 5, 8), floats(3, 8, 7)), (3, 5, 7), "runs", MATMUL),
    Single("product with one matrix", "BATCH_MATMUL", ((3, 5, 8), floats(8, 7)), (3, 5, 7), "runs", MATMUL),
    Single("product, batch repeated", "BATCH_MATMUL", ((2, 3, 5, 8), (1, 3, 8, 7)), (2, 3, 5, 7), "wrong", MATMUL),
    Single("weights repeated", "BATCH_MATMUL", ((2, 3, 5, 8), floats(3, 8, 7)), (2, 3, 5, 7), "wrong", MATMUL),
    Single("weights on the left", "BATCH_MATMUL", (floats(3, 5, 8), (3, 8, 7)), (3, 5, 7), "refused", MATMUL),
    Single("product of 32768 rows", "BATCH_MATMUL", ((32, 8, 1024), (32, 1024, 64)), (32, 8, 64), "runs", MATMUL),
    Single("product of more rows", "BATCH_MATMUL", ((33, 8, 1024), (33, 1024, 64)), (33, 8, 64), "wrong", MATMUL),
    Single("many small products", "BATCH_MATMUL", ((2048, 8, 32), (2048, 32, 64)), (2048, 8, 64), "runs", MATMUL),
    Single("softmax", "SOFTMAX", ((16, 9, 8),), (16, 9, 8), "runs", SOFTMAX),
    Single("maximum over rows", "REDUCE_MAX", ((4, 6, 9, 8), ints(2)), (4, 6, 1, 8), "runs", reducer(keep=True)),
    Single(
        "broadcast", "BROADCAST_TO", ((1, 6, 9, 8), ints(4, 6, 9, 8)), (4, 6, 9, 8), "refused",
        schema.BroadcastToOptionsT(),
    ),
    Single("gather", "GATHER_ND", ((6, 8), ints([0], [2])), (2, 8), "refused", schema.GatherNdOptionsT()),
)  # fmt: skip
