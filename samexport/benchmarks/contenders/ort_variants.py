"""ONNX Runtime with other options than a bundle's user gets: levels of optimisation, a saved graph, GPUs; profiles."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime

from samexport.benchmarks.results.rows import Job, OperatorTime
from samexport.errors import BundleError
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.ort import OrtRuntime
from samexport.runtimes.base import Runtime, Tensors
from samexport.runtimes.bundle import Bundle

_ERRORS_ONLY = 3
_LEVELS = {
    "onnxruntime-basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "onnxruntime-extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "onnxruntime-saved": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


class OrtVariant(OrtRuntime):
    """An ONNX file with given session options and one provider before the CPU's."""

    def __init__(self, path: Path, graph: GraphSpec, options: onnxruntime.SessionOptions, provider: str) -> None:
        Runtime.__init__(self, graph)
        providers = list(dict.fromkeys((provider, "CPUExecutionProvider")))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
        except Exception as error:
            # ONNX Runtime has no common base class for its exceptions
            reason = str(error).splitlines()[0][:200]
            raise BundleError(f"{path.name} cannot be opened by ONNX Runtime: {reason}") from error

    def placement(self) -> str:
        """The providers with their shares of the nodes."""
        counts = Counter[str]()
        for part in self._session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        total = sum(counts.values())
        return ", ".join(f"{name} {count} of {total} nodes" for name, count in counts.most_common())


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    return options


def open_variant(job: Job, bundle: Bundle) -> Runtime:
    """Open ``job.file`` with the options that ``job.runtime`` names."""
    options = _options(job.threads)
    if job.runtime in _LEVELS:
        options.graph_optimization_level = _LEVELS[job.runtime]
    provider = _PROVIDERS.get(job.runtime, "CPUExecutionProvider")
    return OrtVariant(bundle.folder / job.file, bundle.graph(job.graph), options, provider)


def save_optimised(job: Job, bundle: Bundle) -> Job:
    """Write the graph as ONNX Runtime optimises it for this processor; returns the job for that file.

    The file is of use on processors of the same kind only: it holds their blocked layouts.
    """
    options = _options(job.threads)
    path = Path(tempfile.mkdtemp(prefix="samexport-bench-")) / Path(job.file).name
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(bundle.folder / job.file), options, providers=["CPUExecutionProvider"])
    return replace(job, file=str(path))


def profile(path: Path, inputs: Tensors, threads: int, runs: int = 5) -> list[OperatorTime]:
    """Where the time of a graph goes in ONNX Runtime, by operator type as it executes (after its fusions).

    The first two calls are left out. Profiling itself costs a few percent.
    """
    options = _options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 2):
            session.run(None, inputs)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    kernels = kernels[2 * (len(kernels) // (runs + 2)) :]
    total = sum(e["dur"] for e in kernels)
    times, counts = Counter[str](), Counter[str]()
    for event in kernels:
        times[event["args"]["op_name"]] += event["dur"]
        counts[event["args"]["op_name"]] += 1
    return [OperatorTime(op, us / 1e3 / runs, us / total, counts[op] // runs) for op, us in times.most_common()]
