"""LiteRT on the CPU (XNNPACK), and what its entry points have in common on every device."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from samexport.errors import BundleError, RuntimeFailed
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.quiet import silent
from samexport.runtimes.adapters.entry_points import Bucket, of_file, run_in_buckets
from samexport.runtimes.base import Runtime, Tensors, check_file, declared

Shapes = Mapping[str, Sequence[int]]


class EntryPoints(Runtime):
    """A TFLite file with one entry point, or decoders for several numbers of prompts.

    Any number of prompts runs, in the smallest entry points that hold them; how is in ``buckets``. One call at a
    time: LiteRT is not thread-safe, a second thread waits.
    """

    def __init__(self, path: Path, graph: GraphSpec) -> None:
        super().__init__(graph)
        self._path, self._lock = path, threading.Lock()

    def _read_entry_points(self, shapes: Mapping[str, tuple[Shapes, Shapes]]) -> None:
        """Check the file's entry points, given as {name: (shapes of inputs, of outputs)}; BundleError for others."""
        self.entry_points = of_file(self._path.name, self.graph, shapes)

    def _run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            if self.graph.axes:
                return run_in_buckets(self.graph, inputs, self.entry_points, self._call)
            return self._call(self.entry_points[0], inputs)

    @abstractmethod
    def _call(self, bucket: Bucket, inputs: Tensors) -> Tensors:
        """Run one entry point on tensors of exactly its shapes."""


class LiteRtRuntime(EntryPoints):
    """A TFLite file on the CPU.

    Raises:
        BundleError: the file cannot be read, or its entry points are not those of the spec.
    """

    name = "litert"
    kernels: ClassVar[str] = "XNNPACK"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        super().__init__(path, graph)
        check_file(path)
        self._threads = threads or os.cpu_count() or 1
        try:
            with silent(output=True):
                # bytes, since a name need not be valid Unicode
                resolver = OpResolverType.AUTO if self.kernels == "XNNPACK" else OpResolverType.BUILTIN_REF
                self._interpreter = Interpreter(
                    os.fsencode(path), num_threads=self._threads, experimental_op_resolver_type=resolver
                )
                # creates the delegate, which announces itself
                self._interpreter.allocate_tensors()
                self._runners = {
                    name: self._interpreter.get_signature_runner(name)
                    for name in self._interpreter.get_signature_list()
                }
        except (ValueError, RuntimeError, OSError) as error:
            raise BundleError(f"{path.name} cannot be opened by LiteRT: {reason(error)}") from error
        self._types = {
            name: {key: detail["dtype"] for key, detail in runner.get_input_details().items()}
            for name, runner in self._runners.items()
        }
        self._read_entry_points(
            {
                name: (_shapes(runner.get_input_details()), _shapes(runner.get_output_details()))
                for name, runner in self._runners.items()
            }
        )

    def _call(self, bucket: Bucket, inputs: Tensors) -> Tensors:
        try:
            # the converter makes 32 bits of 64
            given = {name: value.astype(self._types[bucket.name][name], copy=False) for name, value in inputs.items()}
            outputs: Tensors = self._runners[bucket.name](**given)
        except (ValueError, RuntimeError) as error:
            raise RuntimeFailed(f"{self.graph.name} does not run in {bucket.name}: {reason(error)}") from error
        return declared(self.graph, outputs)

    def placement(self) -> str:
        """Delegate and threads."""
        return f"CPU ({self.kernels}), {self._threads} threads"

    def _release(self) -> None:
        del self._runners, self._interpreter


class LiteRtReference(LiteRtRuntime):
    """The same by LiteRT's reference kernels: slow, and what the others are measured by."""

    name = "litert-reference"
    kernels = "reference kernels"


def _shapes(details: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: [int(size) for size in detail["shape"]] for name, detail in details.items()}
