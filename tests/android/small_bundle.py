"""The 64-pixel TinyViT as a TFLite bundle, once a session, of files that other tests have converted anyway."""

import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from samexport.exporter.pipeline import ExportOptions, export_bundle
from samexport.exporter.to_tflite import convert as to_tflite
from samexport.exporter.to_tflite.convert import TfliteOptions
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.families import sam_cases
from tests.tflite_models import OPTIONS, built, folder

TINY = "test.tinyvit64"


@functools.cache
def small_bundle() -> Bundle:
    """Not to be changed; copy it for that."""

    def copy(graph, _module, path, *_):
        model = built(TINY, graph.name)
        shutil.copy(model.path, path)
        return model.found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_tflite, "convert", copy)
        # the file of decoder_with_mask that tests share has room for two points
        patch.setattr(sam_cases, "MASK_PROMPT_COUNTS", ((1, 2), (4, 2)))
        target = TfliteOptions(OPTIONS.prompt_buckets, OPTIONS.points)
        out = Path(tempfile.mkdtemp(dir=folder())) / "bundle"
        return export_bundle(ExportOptions(TINY, out, random_seed=7, target=target))[0]
