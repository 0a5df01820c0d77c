"""The verifier has teeth: each seeded fault must be caught, with the sha256 list made to agree."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from samexport.errors import BundleError
from samexport.runtimes.bundle import Bundle, open_bundle
from samexport.runtimes.host import frames as images
from samexport.runtimes.parity.against import verify_against
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.tasks import segment as segments
from samexport.runtimes.verdicts import Verdict
from tests.signing import sign


def edit(bundle: Bundle, name: str, change) -> Bundle:
    path = bundle.folder / name
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return sign(bundle)


def failures(bundle: Bundle) -> list[str]:
    return [str(row) for row in verify_bundle(bundle).failures]


def test_an_untouched_bundle_passes_every_check(tiny_bundle):
    report = verify_bundle(tiny_bundle)
    assert report.failures == ()
    assert report.verdict is Verdict.PASS
    cases = {str(row.check) for row in report.rows}
    assert {"files", "resize", "end to end", "encoder picture", "decoder 64x1"} <= cases


def test_a_copy_elsewhere_passes(tiny_bundle, tmp_path):
    copy = open_bundle(shutil.copytree(tiny_bundle.folder, tmp_path / "elsewhere"))
    assert verify_bundle(copy).verdict is Verdict.PASS


def test_split_and_half_precision_bundles_pass_in_their_tier(half_bundle):
    report = verify_bundle(half_bundle)
    assert report.failures == ()
    chain = [r for r in report.rows if r.check.graphs == ("decoder_prologue", "decoder_step")]
    assert all(r.snr_db > 40 for r in chain if r.snr_db is not None)


def test_a_changed_file_is_caught_by_its_hash(own_bundle):
    path = own_bundle.folder / "encoder.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert any("encoder.onnx has another sha256" in line for line in failures(own_bundle))


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "decoder_with_mask.onnx"])
def test_a_corrupted_weight_is_caught(own_bundle, name):
    def change(model):
        weight = max(model.graph.initializer, key=lambda w: len(w.raw_data))
        value = numpy_helper.to_array(weight).copy()
        value.flat[: value.size // 50] *= 1.5
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))

    found = failures(edit(own_bundle, name, change))
    assert any(line.startswith(name.removesuffix(".onnx") + " ") for line in found)


def test_two_swapped_outputs_are_caught(own_bundle):
    def change(model):
        # masks 1 and 2 change places in front of the last reshape
        last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
        order = numpy_helper.from_array(np.array([0, 2, 1, 3]), "order")
        model.graph.initializer.append(order)
        last.output[0] = "in_order"
        swap = onnx.helper.make_node("Gather", ["in_order", "order"], [model.graph.output[0].name], axis=1)
        model.graph.node.append(swap)

    assert any("low_res_masks" in line for line in failures(edit(own_bundle, "decoder.onnx", change)))


def test_exchanged_output_names_are_caught(own_bundle):
    def change(model):
        first, second = model.graph.output
        first.name, second.name = second.name, first.name
        for node in model.graph.node:
            swap = {first.name: second.name, second.name: first.name}
            node.output[:] = [swap.get(name, name) for name in node.output]
            node.input[:] = [swap.get(name, name) for name in node.input]

    assert any("decoder" in line for line in failures(edit(own_bundle, "decoder.onnx", change)))


def test_a_frozen_prompt_count_is_caught(own_bundle):
    def change(model):
        from onnx.tools import update_model_dims

        sizes = {"N": 3, "K": 2}
        shapes = [
            {v.name: [sizes.get(d.dim_param, d.dim_value) for d in v.type.tensor_type.shape.dim] for v in values}
            for values in (model.graph.input, model.graph.output)
        ]
        model.CopyFrom(update_model_dims.update_inputs_outputs_dims(model, *shapes))

    found = failures(edit(own_bundle, "decoder.onnx", change))
    assert any(line.startswith("decoder 1x1") for line in found)
    assert not any(line.startswith("decoder 3x2") for line in found)


def test_nan_is_caught_and_located(own_bundle):
    def change(model):
        # a bias of the last convolution becomes NaN
        norm = [n for n in model.graph.node if n.op_type == "LayerNormalization"][-1]
        weight = next(w for w in model.graph.initializer if w.name == norm.input[2])
        value = numpy_helper.to_array(weight).copy()
        value[5] = np.nan
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))

    found = failures(edit(own_bundle, "encoder.onnx", change))
    assert any(line.startswith("encoder picture") and "NaN" in line and "[0, 5, 0, 0]" in line for line in found)


def test_a_shifted_resize_of_the_picture_is_caught(tiny_bundle, monkeypatch):
    resize = images.resize_longest
    shifted = lambda image, size: np.roll(resize(image, size), 1, axis=1)  # noqa: E731
    monkeypatch.setattr(images, "resize_longest", shifted)
    found = failures(tiny_bundle)
    assert any(line.startswith("resize") for line in found)
    assert any(line.startswith("encoder picture") for line in found)


def test_a_shifted_upscaling_of_the_masks_is_caught(tiny_bundle, monkeypatch):
    upscale = segments.upscale_mask
    monkeypatch.setattr(segments, "upscale_mask", lambda *args: np.roll(upscale(*args), 1, axis=-1))
    assert any(line.startswith("end to end, masks: mask 0: IoU") for line in failures(tiny_bundle))


def test_a_file_that_cannot_be_opened_is_a_failure_that_names_it(own_bundle):
    (own_bundle.folder / "decoder.onnx").write_bytes(b"not a model")
    assert any("decoder.onnx cannot be opened" in line for line in failures(sign(own_bundle)))


def test_a_graph_without_golden_case_is_a_failure(own_bundle):
    cases = own_bundle.folder / "golden" / "cases.json"
    cases.write_text(cases.read_text().replace('"decoder_with_mask"', '"decoder"'))
    assert any(
        "decoder_with_mask.onnx was not checked: no golden case checks it" in line
        for line in failures(sign(own_bundle))
    )


@pytest.mark.parametrize("name", ["picture.png", "tensors.npz", "cases.json"])
def test_damaged_golden_files_are_a_failure(own_bundle, name):
    (own_bundle.folder / "golden" / name).write_bytes(b"junk")
    assert any(line.startswith("golden") for line in failures(sign(own_bundle)))
    with pytest.raises(BundleError):
        load_golden(own_bundle.folder, own_bundle.manifest.frame)


def test_half_precision_as_the_reference_counts_as_half_precision(own_bundle, tiny_bundle):
    for artifact in own_bundle.manifest.artifacts:
        loaded = onnx.load(own_bundle.folder / artifact.path)
        for weight in (w for w in loaded.graph.initializer if w.data_type == onnx.TensorProto.FLOAT):
            values = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(loaded, own_bundle.folder / artifact.path)
    rounded = sign(own_bundle)
    assert Verdict.FAIL in {row.verdict for row in verify_against(tiny_bundle, rounded)}
    halves = tuple(replace(artifact, recipe="fp16") for artifact in rounded.manifest.artifacts)
    rounded = replace(rounded, manifest=replace(rounded.manifest, artifacts=halves))
    assert {row.verdict for row in verify_against(tiny_bundle, rounded)} == {Verdict.PASS}


def test_golden_cases_hold_what_they_say(tiny_bundle):
    golden = load_golden(tiny_bundle.folder, tiny_bundle.manifest.frame)
    by_name = {(c.graphs[-1], c.name): c for c in golden.cases}
    assert by_name["decoder", "7x5"].inputs["point_coords"].shape == (7, 5, 2)
    labels = np.concatenate([c.inputs["point_labels"].ravel() for c in golden.cases if "point_labels" in c.inputs])
    assert set(labels) == {-2, -1, 0, 1, 2, 3}
    picture = np.asarray(Image.open(tiny_bundle.folder / "golden" / "picture.png"))
    assert np.array_equal(golden.picture, picture)
    assert golden.masks.shape == (2, *picture.shape[:2])
    assert golden.masks.any()
    assert not golden.masks.all()
    place = images.FrameMap(picture.shape[:2], tiny_bundle.manifest.frame)
    assert np.array_equal(images.upscale_mask(golden.low_res_masks, place), golden.masks)
