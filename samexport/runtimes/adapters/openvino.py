"""OpenVINO on the CPU, reading ONNX files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from samexport.errors import BundleError, ConfigError, RuntimeFailed
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.runtimes.base import Runtime, Tensors, check_file

_TELEMETRY = "openvino_telemetry"


def _openvino() -> Any:
    """The package openvino; its first import does not find the package with which it reports to its maker."""
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        import openvino

        return openvino
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[_TELEMETRY]
    return openvino


def _joined(error: RuntimeError) -> str:
    """OpenVINO's first lines say where in its source, the next ones why."""
    return reason(RuntimeError(" ".join(str(error).split())))


class OpenVinoRuntime(Runtime):
    """An ONNX file, computed in float32.

    OpenVINO's own default is bfloat16 wherever the processor has it, which parity checks would mistake for a
    wrong file; so the precision is always set.

    Raises:
        BundleError: the file cannot be read, or its inputs and outputs are not those of the spec.
        ConfigError: the processor cannot compute in the precision.
    """

    name = "openvino"
    capability: ClassVar[str] = "FP32"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        super().__init__(graph)
        check_file(path)
        openvino = _openvino()
        properties = openvino.properties
        hint = properties.hint
        core = openvino.Core()
        if self.capability not in core.get_property("CPU", properties.device.capabilities):
            raise ConfigError(f"this processor has no {self.capability} arithmetic; take the runtime openvino")
        options = {
            hint.inference_precision: openvino.Type.bf16 if self.capability == "BF16" else openvino.Type.f32,
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            properties.num_streams: properties.streams.Num(1),
        }
        if threads is not None:
            options[properties.inference_num_threads] = threads
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", options)
        except RuntimeError as error:
            raise BundleError(f"{path.name} cannot be opened by OpenVINO: {_joined(error)}") from error
        found = (
            tuple(port.get_any_name() for port in self._compiled.inputs),
            tuple(port.get_any_name() for port in self._compiled.outputs),
        )
        if found != (graph.input_names, graph.output_names):
            raise BundleError(f"{path.name} has the tensors {found}, not those of the graph {graph.name}")
        self._request = self._compiled.create_infer_request()

    def _run(self, inputs: Tensors) -> Tensors:
        try:
            values = self._request.infer(inputs, share_inputs=True)
        except RuntimeError as error:
            shapes = {name: value.shape for name, value in inputs.items()}
            raise RuntimeFailed(f"{self.graph.name} does not run with {shapes}: {_joined(error)}") from error
        return {name: values[name] for name in self.graph.output_names}

    def placement(self) -> str:
        """Device, and how many of the compiled graph's operations compute in which precision."""
        counts: dict[str, int] = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            precision = str(node.get_rt_info()["runtimePrecision"].astype(str))
            counts[precision] = counts.get(precision, 0) + 1
        parts = sorted(counts.items(), key=lambda item: -item[1])
        return "CPU, operations " + ", ".join(f"{count} {name}" for name, count in parts)

    def _release(self) -> None:
        del self._request, self._compiled


class OpenVinoBf16Runtime(OpenVinoRuntime):
    """The same computed in bfloat16, on processors that have it (AVX512-BF16, AMX)."""

    name = "openvino-bf16"
    capability = "BF16"
