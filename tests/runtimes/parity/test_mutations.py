"""One fault each, planted in a bundle that passes: the gate that should catch it does.

FAULTS is the list: name, what is done to a copy of the bundle, and what a failed row must say. Hashes are made to
agree with the damage, except where the hashes are the point.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from samexport.errors import BundleError
from samexport.models.spec import Preprocess
from samexport.runtimes.bundle import MANIFEST, Bundle, open_bundle
from samexport.runtimes.host import frames as images
from samexport.runtimes.parity import golden as goldens
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.tasks import segment as segments
from samexport.runtimes.verdicts import Check, ParityReport, Row, Verdict
from tests.signing import sign

Fault = Callable[[Bundle], object]


def model(name: str, change: Callable[[onnx.ModelProto], object]) -> Fault:
    def plant(bundle: Bundle) -> Bundle:
        path = bundle.folder / f"{name}.onnx"
        loaded = onnx.load(path)
        change(loaded)
        onnx.save(loaded, path)
        return sign(bundle)

    return plant


def largest_weight(change: Callable[[np.ndarray], object]) -> Callable[[onnx.ModelProto], None]:
    def plant(loaded: onnx.ModelProto) -> None:
        weight = max(loaded.graph.initializer, key=lambda w: len(w.raw_data))
        value = numpy_helper.to_array(weight).copy()
        change(value)
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))

    return plant


def scale_a_bit(value: np.ndarray) -> None:
    value.flat[: value.size // 50] *= 1.5


def overflow(value: np.ndarray) -> None:
    value.flat[0] = 3e38


def swap_names(loaded: onnx.ModelProto) -> None:
    first, second = loaded.graph.output
    first.name, second.name = second.name, first.name
    swap = {first.name: second.name, second.name: first.name}
    for node in loaded.graph.node:
        node.output[:] = [swap.get(name, name) for name in node.output]
        node.input[:] = [swap.get(name, name) for name in node.input]


def permute_masks(loaded: onnx.ModelProto) -> None:
    last = next(n for n in loaded.graph.node if loaded.graph.output[0].name in n.output)
    loaded.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 1, 3]), "order"))
    last.output[0] = "in_order"
    loaded.graph.node.append(
        onnx.helper.make_node("Gather", ["in_order", "order"], [loaded.graph.output[0].name], axis=1)
    )


def tensors(change: Callable[[dict[str, np.ndarray], dict], object]) -> Fault:
    """Change what the golden folder holds: its tensors and the content of cases.json."""

    def plant(bundle: Bundle) -> Bundle:
        folder = bundle.folder / "golden"
        stored = dict(np.load(folder / "tensors.npz"))
        content = json.loads((folder / "cases.json").read_text())
        change(stored, content)
        np.savez_compressed(folder / "tensors.npz", **stored)
        (folder / "cases.json").write_text(json.dumps(content))
        return sign(bundle)

    return plant


def expected_of(content: dict, graph: str, output: str) -> str:
    return next(c["expected"][output] for c in content["cases"] if c["graphs"] == [graph])


def set_expected(graph: str, output: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def plant(stored: dict[str, np.ndarray], content: dict) -> None:
        key = expected_of(content, graph, output)
        stored[key] = change(stored[key].astype(np.float32))

    return tensors(plant)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[3] = value
        return array

    return change


def drop_output(_: dict, content: dict) -> None:
    content["cases"][1]["expected"].pop("iou_predictions")


def other_prompts(stored: dict[str, np.ndarray], content: dict) -> None:
    key = next(c["inputs"]["point_coords"] for c in content["cases"] if c["name"] == "3x2")
    stored[key] = stored[key][::-1]


def forget_prompts(_: dict, content: dict) -> None:
    next(c for c in content["cases"] if c["name"] == "3x2")["inputs"].pop("point_coords")


def other_stride(_: dict, content: dict) -> None:
    for case in content["cases"]:
        case["strides"] |= {name: 2 for name in case["expected"] if name == "low_res_masks"}


def without(graph: str) -> Fault:
    def plant(_: dict, content: dict) -> None:
        content["cases"] = [case for case in content["cases"] if case["graphs"] != [graph]]

    return tensors(plant)


def second_file(damage: Callable[[Path], object]) -> Fault:
    """A decoder in two files; the second one is damaged."""

    def plant(bundle: Bundle) -> Bundle:
        first = bundle.artifact("decoder")
        path = bundle.folder / "decoder.other.onnx"
        shutil.copyfile(bundle.folder / first.path, path)
        damage(path)
        artifacts = (*bundle.manifest.artifacts, replace(first, path=path.name))
        return sign(bundle, replace(bundle.manifest, artifacts=artifacts))

    return plant


def scale_file(path: Path) -> None:
    loaded = onnx.load(path)
    largest_weight(scale_a_bit)(loaded)
    onnx.save(loaded, path)


def manifest(**changes: object) -> Fault:
    return lambda bundle: sign(bundle, replace(bundle.manifest, **changes))


def artifacts(**changes: object) -> Fault:
    def plant(bundle: Bundle) -> Bundle:
        changed = tuple(replace(a, **changes) if a.graph == "decoder" else a for a in bundle.manifest.artifacts)
        return sign(bundle, replace(bundle.manifest, artifacts=changed))

    return plant


def raw(change: Callable[[dict], object]) -> Fault:
    """Change bundle.json without making the hashes agree."""

    def plant(bundle: Bundle) -> Bundle:
        path = bundle.folder / MANIFEST
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return open_bundle(bundle.folder)

    return plant


def other_hash(content: dict) -> None:
    content["artifacts"][1]["sha256"] = "0" * 64


def other_picture(bundle: Bundle) -> Bundle:
    path = bundle.folder / "golden" / "picture.png"
    picture = np.asarray(Image.open(path)).copy()
    picture[3, 3] ^= 1
    Image.fromarray(picture).save(path)
    return sign(bundle)


def vanished_object(stored: dict[str, np.ndarray], _: dict) -> None:
    stored["masks"] = np.zeros_like(stored["masks"])


def replaced_after_export(bundle: Bundle) -> Bundle:
    shutil.copyfile(bundle.folder / "decoder.onnx", bundle.folder / "decoder_with_mask.onnx")
    return bundle


def external_weights(bundle: Bundle) -> Bundle:
    path = bundle.folder / "encoder.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="encoder.weights")
    signed = sign(bundle)
    return raw(lambda content: content["files"].pop("encoder.weights"))(signed)


FAULTS: dict[str, tuple[Fault, str]] = {
    # the files
    "a weight of the encoder": (model("encoder", largest_weight(scale_a_bit)), "encoder picture, image_embeddings"),
    "a weight of the decoder": (model("decoder", largest_weight(scale_a_bit)), "decoder 3x2, low_res_masks"),
    "a weight of decoder_with_mask": (model("decoder_with_mask", largest_weight(scale_a_bit)), "decoder_with_mask"),
    "a weight that overflows": (model("encoder", largest_weight(overflow)), "encoder picture"),
    "a weight that is NaN": (model("encoder", largest_weight(with_value(np.nan))), "NaN or infinite values, the first"),
    "names of two outputs exchanged": (model("decoder", swap_names), "decoder"),
    "two masks exchanged": (model("decoder", permute_masks), "low_res_masks"),
    "the second file of a graph": (second_file(scale_file), "decoder 3x2, low_res_masks"),
    "the second file of a graph is absent": (second_file(Path.unlink), "decoder.other.onnx is not listed"),
    "a file that is another graph's": (
        lambda b: sign(replaced_after_export(b)), "decoder_with_mask",
    ),
    # the listing
    "a file replaced after the export": (replaced_after_export, "decoder_with_mask.onnx has another sha256"),
    "a missing file": (lambda b: (b.folder / "decoder.onnx").unlink() or b, "decoder.onnx is missing"),
    "a missing file that is not listed": (
        lambda b: sign((b.folder / "decoder.onnx").unlink() or b), "decoder.onnx",
    ),
    "a file too many": (lambda b: (b.folder / "more.bin").write_text("x") and b, "more.bin is not listed"),
    "weights that the file reads and no one lists": (external_weights, "encoder.weights is not listed"),
    "no file is listed": (raw(lambda content: content["files"].clear()), "encoder.onnx is not listed"),
    "golden files are not listed": (raw(lambda c: c["files"].pop("golden/tensors.npz")), "tensors.npz is not listed"),
    "a stale hash of an artifact": (raw(other_hash), "decoder.onnx is listed with another sha256"),
    "a format that no runtime reads": (artifacts(file_format="executorch"), "no runtime here reads its format"),
    "a recipe that no one can judge": (artifacts(recipe="int1"), "there is no tolerance for its recipe int1"),
    # what the host must know
    "another mean": (manifest(frame=Preprocess(64, mean=(103.53, 116.28, 123.675))), "encoder picture"),
    "other mask outputs": (manifest(mask_outputs=(3,)), "end to end, masks"),
    # the reference
    "NaN in the reference": (set_expected("encoder", "image_embeddings", with_value(np.nan)), "in the reference"),
    "infinity in the reference": (set_expected("decoder", "low_res_masks", with_value(np.inf)), "in the reference"),
    "a scaled reference": (set_expected("decoder", "iou_predictions", lambda v: 1.01 * v), "decoder 1x1, iou_pred"),
    "an empty reference": (set_expected("decoder", "iou_predictions", lambda v: v[:0]), "iou_predictions: shape"),
    "an output without reference": (tensors(drop_output), "outputs: got"),
    "other prompts": (tensors(other_prompts), "decoder 3x2, low_res_masks"),
    "an input is missing": (tensors(forget_prompts), "nothing gives decoder its inputs point_coords"),
    "another stride": (tensors(other_stride), "low_res_masks: shape"),
    "no case at all": (tensors(lambda _, content: content["cases"].clear()), "encoder.onnx was not checked"),
    "no case of the encoder": (without("encoder"), "encoder.onnx was not checked: no golden case checks it"),
    "no case of the decoder with mask": (without("decoder_with_mask"), "decoder_with_mask.onnx was not checked"),
    "a vanished object in the golden masks": (tensors(vanished_object), "end to end, masks: mask 0: IoU 0.00000"),
    "another picture": (other_picture, "resize, picture"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(own_bundle, fault):
    plant, message = FAULTS[fault]
    report = verify_bundle(plant(own_bundle))
    assert not report.proves
    assert any(message in str(row) for row in report.failures), [str(row) for row in report.failures]


REFUSED: dict[str, Fault] = {
    "no artifacts": raw(lambda content: content["artifacts"].clear()),
    "no graphs": raw(lambda content: content["graphs"].clear()),
    "infinity": lambda b: raw(lambda c: c["parity"][0].update(snr_db=float("inf")))(b),
    "an artifact twice": raw(lambda content: content["artifacts"].append(content["artifacts"][0])),
    "an artifact of no graph": raw(lambda content: content["artifacts"][0].update(graph="other")),
    "a mask that the decoder does not have": raw(lambda content: content.update(mask_outputs=[9])),
    "another schema": raw(lambda content: content.update(schema_version=1)),
    "a file outside": raw(lambda content: content["files"].update({"../secret": "0" * 64})),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_manifest_that_cannot_be_right_is_refused(own_bundle, fault):
    with pytest.raises(BundleError, match=r"bundle\.json"):
        REFUSED[fault](own_bundle)


def shift(function):
    return lambda *given: np.roll(function(*given), 1, axis=1)


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (images, "resize_longest", "encoder picture"),
        (goldens, "resize", "resize, picture"),
        (segments, "upscale_mask", "end to end, masks: mask 0: IoU"),
    ],
)
def test_a_host_that_is_one_pixel_off_is_caught(tiny_bundle, monkeypatch, module, name, message):
    monkeypatch.setattr(module, name, shift(getattr(module, name)))
    assert any(message in str(row) for row in verify_bundle(tiny_bundle).failures)


def row(kind, verdict, error=0.0):
    return Row(Check(kind), "y", verdict, max_error=error)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("files", Verdict.PASS), row("resize", Verdict.PASS), row("lint", Verdict.PASS)],
        [row("case", Verdict.SKIPPED), row("files", Verdict.PASS)],
        [row("case", Verdict.PASS), row("end_to_end", Verdict.FAIL)],
        [row("end_to_end", Verdict.PASS), row("half", Verdict.PASS)],
    ],
)
def test_a_report_without_compared_numbers_or_with_a_failure_proves_nothing(rows):
    assert not ParityReport(tuple(rows)).proves
    assert ParityReport((row("case", Verdict.PASS), row("lint", Verdict.SKIPPED))).proves


def test_an_overflow_inside_a_half_precision_file_is_caught_though_its_runtime_computes_in_float32(
    half_bundle, tmp_path
):
    bundle = open_bundle(shutil.copytree(half_bundle.folder, tmp_path / "bundle"))
    path = bundle.folder / bundle.artifact("encoder").path
    loaded = onnx.load(path)
    node = next(n for n in loaded.graph.node if n.op_type in ("MatMul", "Gemm"))
    # up and down again: the same numbers, but for a half that ends in between
    output, node.output[0] = node.output[0], "before"
    for name, factor in (("up", 2.0**15), ("down", 2.0**-15)):
        loaded.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float16), name))
    index = list(loaded.graph.node).index(node)
    loaded.graph.node.insert(index + 1, onnx.helper.make_node("Mul", ["before", "up"], ["large"], name="grow"))
    loaded.graph.node.insert(index + 2, onnx.helper.make_node("Mul", ["large", "down"], [output]))
    onnx.save(loaded, path)
    report = verify_bundle(sign(bundle))
    assert not report.proves
    (row,) = (r for r in report.failures if r.check.kind == "half")
    assert "half precision ends at 65504: Mul grow reaches" in row.reason
    assert all(r.verdict is Verdict.PASS for r in verify_bundle(half_bundle).rows if r.check.kind == "half")
