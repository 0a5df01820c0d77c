"""TFLite and CoreML bundles: same nouns, same prompts, same checks, same masks as ONNX."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from samexport.runtimes.bundle import Bundle, open_bundle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.compare import intersection_over_union
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.verdicts import Verdict
from tests.signing import sign


@pytest.fixture(params=["tflite_bundle", "coreml_bundle"])
def bundle(request) -> Bundle:
    return request.getfixturevalue(request.param)


def segment(bundle: Bundle) -> list[np.ndarray]:
    y, x = np.mgrid[0:45, 0:60]
    picture = np.stack([4 * x, 5 * y, 255 * (np.hypot(x - 30, y - 20) < 12)], axis=-1).astype(np.uint8)
    prompts = [
        Prompt.make(points=[[30, 20]], labels=[1]),
        Prompt.make(box=[10, 10, 40, 30]),
        Prompt.make(points=[[30, 20], [1, 1], [50, 40]], labels=[1, 0, 0]),
        *(Prompt.make(points=[[5 * i, 3 * i]], labels=[1]) for i in range(6)),
    ]
    with Segmenter(bundle) as segmenter:
        segmenter.set_image(picture)
        return [answer.masks for answer in segmenter.predict(prompts, multimask=True)]


def test_every_check_passes_with_the_graphs_names(bundle, tiny_bundle):
    report = verify_bundle(bundle)
    assert report.failures == ()
    assert [a.graph for a in bundle.manifest.artifacts] == [a.graph for a in tiny_bundle.manifest.artifacts]
    assert bundle.manifest.graphs == tiny_bundle.manifest.graphs


def test_masks_equal_those_of_the_onnx_bundle(bundle, tiny_bundle):
    for found, expected in zip(segment(bundle), segment(tiny_bundle), strict=True):
        assert intersection_over_union(expected, found).min() >= 0.9999


def weights_of(path: Path) -> Path:
    return path if path.is_file() else next(path.rglob("weight.bin"))


@pytest.mark.parametrize("graph", ["encoder", "decoder", "decoder_with_mask"])
def test_shuffled_weights_are_caught_even_with_agreeing_hashes(bundle, tmp_path, graph):
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "copy"))
    file = weights_of(copy.folder / copy.artifact(graph).path)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 64 * 64
    # numbers change places inside the weights; the container stays valid
    window = content[middle : middle + 16384]
    content[middle : middle + 16384] = window[8192:] + window[:8192]
    file.write_bytes(content)
    assert copy.damaged_files()
    report = verify_bundle(sign(copy))
    assert report.verdict is Verdict.FAIL
    assert any(str(row.check).startswith(graph) or row.check.kind == "end_to_end" for row in report.failures)
