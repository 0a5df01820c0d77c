"""``samexport verify --gpu``: each graph of a TFLite bundle strictly on the GPU, compared with the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from samexport.errors import ConfigError, MissingDependency, SamExportError
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.litert import LiteRtRuntime
from samexport.runtimes.adapters.litert_gpu import LiteRtGpuRuntime, why_unavailable
from samexport.runtimes.base import Tensors
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.formats.tflite_lint import lint
from samexport.runtimes.parity.compare import GPU_TIER, compare_output
from samexport.runtimes.parity.golden import Case, case_of_size
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import cases_by_chain, run_chain
from samexport.runtimes.verdicts import Check, Row, Verdict

Progress = Callable[[str], None]

NOT_SHOWN = Row(
    Check("limits", case="on GPU"),
    "fp16, OpenCL and Metal, phones",
    Verdict.SKIPPED,
    "the check computes in float32 through WebGPU and Vulkan; phones use half precision, other interfaces and drivers",
)


def require_gpu(bundle: Bundle) -> None:
    """Nothing if the check can run here.

    Raises:
        ConfigError: the bundle is of another format.
        MissingDependency: no accelerator, Vulkan loader or driver; the message names the command that installs it.
    """
    formats = sorted({artifact.file_format for artifact in bundle.manifest.artifacts})
    if formats != ["tflite"]:
        raise ConfigError(f"--gpu checks TFLite bundles, {bundle.folder.name} is {', '.join(formats)}")
    reason = why_unavailable()
    if reason:
        raise MissingDependency(f"the GPU check cannot run: {reason}")


def verify_on_gpu(bundle: Bundle, *, progress: Progress = lambda _: None) -> tuple[Row, ...]:
    """Compile each graph for the GPU alone and compare it with the CPU: one case, of decoders one an entry point.

    A file with an operation that the GPU refuses is a failed row which names it. The last row, SKIPPED, says what
    the check cannot show.

    Raises:
        ConfigError, MissingDependency: as :func:`require_gpu`.
    """
    require_gpu(bundle)
    golden = load_golden(bundle.folder, bundle.manifest.frame)
    rows: list[Row] = []
    for chain, cases in cases_by_chain(bundle, golden).items():
        name = chain[-1]
        progress(f"checking {name} on the GPU")
        try:
            inputs = _inputs(bundle, chain, cases)
            rows += compare_with_cpu(bundle.folder / bundle.artifact(name).path, bundle.graph(name), inputs)
        except MissingDependency:
            raise
        except SamExportError as error:
            rows.append(Row(_about(name, bundle.artifact(name).path), "run", Verdict.FAIL, str(error)))
    return (*rows, NOT_SHOWN)


def _about(graph: str, file: str, case: str = "") -> Check:
    return Check("gpu", (graph,), case, (file,), runtime="litert-gpu", against="cpu")


def compare_with_cpu(path: Path, graph: GraphSpec, cases: Mapping[str, Tensors]) -> tuple[Row, ...]:
    """Run a file strictly on the GPU and on the CPU, and compare each output with :data:`GPU_TIER`.

    The first row says that all operations compiled for the GPU, and which adapter computes.

    Args:
        path: a TFLite file.
        graph: its contract.
        cases: inputs by the name of the case.

    Raises:
        MissingDependency: no GPU runtime can be opened here.
        ParityFailed: an operation would leave the GPU, or it cannot run.
    """
    with LiteRtRuntime(path, graph) as cpu, LiteRtGpuRuntime(path, graph) as gpu:
        total = f"all {lint(path).total} operations compile"
        rows = [Row(_about(graph.name, path.name), total, Verdict.PASS, gpu.placement())]
        for name, inputs in cases.items():
            expected, actual = cpu.run(inputs), gpu.run(inputs)
            check = _about(graph.name, path.name, name)
            rows += [compare_output(check, t, expected[t.name], actual[t.name], GPU_TIER) for t in graph.outputs]
    return tuple(rows)


def _inputs(bundle: Bundle, chain: Sequence[str], cases: Sequence[Case]) -> dict[str, Tensors]:
    """Inputs of the last graph of the chain by the case's name; what comes before it runs on the CPU."""
    *before, name = chain
    graph = bundle.graph(name)
    with LiteRtRuntime(bundle.folder / bundle.artifact(name).path, graph) as runtime:
        entries = runtime.entry_points
    sizes = [entry.prompts for entry in entries] if graph.axis("prompts") else []
    found = [case_of_size(cases, graph, entries, size) for size in sizes] or [cases[0]]
    chosen = [case for case in found if case is not None]
    shared: Tensors = {}
    for graph_name in before:
        with LiteRtRuntime(bundle.folder / bundle.artifact(graph_name).path, bundle.graph(graph_name)) as runtime:
            shared |= run_chain({graph_name: runtime}, [graph_name], {**chosen[0].inputs, **shared})
    known = [{**case.inputs, **shared} for case in chosen]
    return {
        case.name: {tensor: values[tensor] for tensor in graph.input_names}
        for case, values in zip(chosen, known, strict=True)
    }
