"""What this machine can do at best: rates of large matrix products and of a copy. ``python -m ... OUT THREADS``.

A probe of a few seconds that puts the rows in proportion, not a benchmark of the machine: the rate is the best of
several tries by the libraries that are measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

COPY = "copy_gb_per_s"
_SIZES = (256, 1536)
_COPY_BYTES = 1 << 28
_TRIES, _SECONDS = 3, 1.0


def probe(threads: int) -> dict[str, float]:
    """Multiply-accumulates a second (1e9) as ``fp32``, ``bf16``, ``int8``, and ``copy_gb_per_s``, read plus write."""
    import torch

    torch.set_num_threads(threads)
    products = (partial(_torch_product, torch.float32), partial(_ort_product, threads, quantized=False))
    rates = {"fp32": max(map(_rate, products))}
    rates["bf16"] = _rate(partial(_torch_product, torch.bfloat16))
    rates["int8"] = _rate(partial(_ort_product, threads, quantized=True))
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    rates[COPY] = 2 * _COPY_BYTES / 1e9 / _best(lambda: target.copy_(source))
    if torch.cuda.is_available():
        for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
            rates[f"cuda {name}"] = _SIZE_CUDA**3 / 1e9 / _best(_cuda_product(dtype))
    return {name: round(rate, 1) for name, rate in rates.items()}


_SIZE_CUDA = 8192


def _rate(product: Callable[[int], Callable[[], object]]) -> float:
    """Multiply-accumulates a second (1e9) of square matrices.

    Processors without bf16 take a thousand times longer for it; there small ones tell enough.
    """
    for size in _SIZES:
        rate = size**3 / 1e9 / _best(product(size))
        if _SIZES[-1] ** 3 / 1e9 / rate > _SECONDS:
            break
    return rate


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    call()
    found: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(found) < _TRIES or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _torch_product(dtype: object, size: int) -> Callable[[], object]:
    import torch

    first, second = (torch.ones(size, size).to(dtype) for _ in range(2))  # type: ignore[call-overload]
    return lambda: first @ second


def _cuda_product(dtype: object) -> Callable[[], object]:
    import torch

    first, second = (torch.ones(_SIZE_CUDA, _SIZE_CUDA, device="cuda").to(dtype) for _ in range(2))  # type: ignore[call-overload]

    def call() -> None:
        first @ second
        torch.cuda.synchronize()

    return call


def _ort_product(threads: int, size: int, *, quantized: bool) -> Callable[[], object]:
    """A product with a constant right side, which ONNX Runtime packs as it does with weights."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind, found = (TensorProto.UINT8, TensorProto.INT32) if quantized else (TensorProto.FLOAT, TensorProto.FLOAT)
    weight = np.ones((size, size), np.int8 if quantized else np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if quantized else "MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, [size, size])],
        [helper.make_tensor_value_info("y", found, [size, size])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value = np.ones((size, size), np.uint8 if quantized else np.float32)
    return lambda: session.run(None, {"x": value})


def main() -> None:
    """Write the rates as JSON."""
    Path(sys.argv[1]).write_text(json.dumps(probe(int(sys.argv[2]))), encoding="utf-8")


if __name__ == "__main__":
    main()
