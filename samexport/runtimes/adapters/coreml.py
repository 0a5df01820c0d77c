"""CoreML itself, through coremltools: the real kernels, on macOS only."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from samexport.errors import BundleError, ConfigError, MissingDependency, RuntimeFailed
from samexport.files import reason
from samexport.installation import install_hint
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.entry_points import Bucket, run_in_buckets
from samexport.runtimes.adapters.packages import buckets_of, check_names, whole_pixels
from samexport.runtimes.base import Runtime, Tensors, declared
from samexport.runtimes.formats.mlpackage import read_package


class CoreMLRuntime(Runtime):
    """A package on the compute units that CoreML chooses; ``threads`` has no effect.

    Each entry point is compiled by the system when it is first used, which can take seconds.

    Raises:
        BundleError: the package is damaged, or its inputs and outputs are not those of ``graph``.
        ConfigError: this is not macOS.
        MissingDependency: coremltools is not installed.
    """

    name = "coreml"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None, compute_units: str = "ALL") -> None:
        super().__init__(graph)
        if platform.system() != "Darwin":
            raise ConfigError("CoreML runs on macOS only; the runtime mil interprets the package anywhere")
        self._package = read_package(path)
        check_names(self._package, graph, path.name)
        self._compute_units = compute_units
        self._buckets = buckets_of(self._package, graph)
        self._models: dict[str, Any] = {}

    def _model(self, name: str) -> Any:
        """The compiled entry point ``name``."""
        if name not in self._models:
            try:
                import coremltools
            except ModuleNotFoundError as error:
                raise MissingDependency(f"CoreML needs coremltools: {install_hint('coremltools')}") from error
            file = self._package.files[name]
            function = {"function_name": name} if [*self._package.files.values()].count(file) > 1 else {}
            units = coremltools.ComputeUnit[self._compute_units]
            try:
                self._models[name] = coremltools.models.MLModel(str(file), compute_units=units, **function)
            except Exception as error:
                # the system's reasons come as exceptions of many types
                raise BundleError(f"CoreML cannot load {file.name}: {reason(error)}") from error
        return self._models[name]

    @property
    def bounds(self) -> tuple[Bucket, ...]:
        """Of fixed and of flexible entry points."""
        return self._buckets

    def _run(self, inputs: Tensors) -> Tensors:
        if not self._buckets:
            return self._predict(self._package.default, inputs)
        return run_in_buckets(self.graph, inputs, self._buckets, lambda b, part: self._predict(b.name, part))

    def _predict(self, name: str, inputs: Tensors) -> Tensors:
        features: dict[str, Any] = {n: v.astype(np.int32) if v.dtype.kind in "iub" else v for n, v in inputs.items()}
        for image in self._package.image_inputs:
            features[image] = _picture(inputs[image])
        model = self._model(name)
        try:
            found = model.predict(features)
        except Exception as error:
            # as above
            raise RuntimeFailed(f"{self.graph.name} does not run in {name}: {reason(error)}") from error
        return declared(self.graph, found)

    def placement(self) -> str:
        """The compute units that CoreML was allowed to use; which it did use is not known here."""
        return f"coreml, allowed: {self._compute_units}"

    def _release(self) -> None:
        self._models.clear()


def _picture(image: Any) -> Any:
    """[1, 3, H, W] in 0..255 to the picture that an app would pass."""
    from PIL import Image

    return Image.fromarray(whole_pixels(image)[0].transpose(1, 2, 0).astype(np.uint8))
