"""Export Segment-Anything models for phones: ONNX, TFLite and CoreML bundles with proven parity.

    import samexport

    result = samexport.export("mobilesam", "onnx")
    with samexport.Segmenter(result.bundle) as segmenter:
        segmenter.set_image("photo.jpg")
        (answer,) = segmenter.predict(samexport.Prompt.make([320, 200]))

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# read when onnxruntime is imported, by whatever comes first
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOME = {
    "api": ("ExportResult", "bench", "export", "list_models", "load_model", "open", "open_tracker", "verify"),
    "errors": (
        "AnnotationError", "BundleError", "CheckpointError", "ConfigError", "ExportFailed", "FileError", "ImageError",
        "MissingDependency", "ParityFailed", "PromptError", "SamExportError",
    ),
    "runtimes.bundle": ("Bundle",),
    "runtimes.host.image": ("read_image",),
    "runtimes.host.prompts": ("Prompt",),
    "runtimes.tasks.everything": ("SegmentEverything",),
    "runtimes.tasks.segment": ("Segmentation", "Segmenter"),
    "runtimes.verdicts": ("ParityReport", "Verdict"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)

if TYPE_CHECKING:  # the same names once more, for editors and type checkers
    from samexport.api import ExportResult as ExportResult
    from samexport.api import bench as bench
    from samexport.api import export as export
    from samexport.api import list_models as list_models
    from samexport.api import load_model as load_model
    from samexport.api import open as open
    from samexport.api import open_tracker as open_tracker
    from samexport.api import verify as verify
    from samexport.errors import AnnotationError as AnnotationError
    from samexport.errors import BundleError as BundleError
    from samexport.errors import CheckpointError as CheckpointError
    from samexport.errors import ConfigError as ConfigError
    from samexport.errors import ExportFailed as ExportFailed
    from samexport.errors import FileError as FileError
    from samexport.errors import ImageError as ImageError
    from samexport.errors import MissingDependency as MissingDependency
    from samexport.errors import ParityFailed as ParityFailed
    from samexport.errors import PromptError as PromptError
    from samexport.errors import SamExportError as SamExportError
    from samexport.runtimes.bundle import Bundle as Bundle
    from samexport.runtimes.host.image import read_image as read_image
    from samexport.runtimes.host.prompts import Prompt as Prompt
    from samexport.runtimes.tasks.everything import SegmentEverything as SegmentEverything
    from samexport.runtimes.tasks.segment import Segmentation as Segmentation
    from samexport.runtimes.tasks.segment import Segmenter as Segmenter
    from samexport.runtimes.verdicts import ParityReport as ParityReport
    from samexport.runtimes.verdicts import Verdict as Verdict


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'samexport' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"samexport.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE})
