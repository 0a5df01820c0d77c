"""`samexport deliver`: each program's names, order, types and masks; what is refused; what a wrong file leads to."""

import base64
import io
import json
import re
from dataclasses import replace
from functools import partial
from string import Template
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from samexport.errors import BundleError, ConfigError, ExportFailed, ParityFailed
from samexport.exporter.deliver import feed, sam_adapters, sam_hosts
from samexport.exporter.deliver import folder as delivering
from samexport.exporter.deliver.adapt import write_adapted
from samexport.exporter.deliver.folder import check_fit, find_profile, profiles
from samexport.exporter.to_onnx.versions import OPSETS, ir_version
from samexport.files import sha256
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.frames import to_frame
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.golden_files import load_golden
from tests.command_line import one_line_error

ALL = {
    profile.name if family == "sam" else f"{profile.name} {family}": replace(profile, size=None)
    for family, profile in profiles()
}
deliver = partial(delivering.deliver, threads=1)
F, I32, I64, U8 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "INT32", "INT64", "UINT8"))
NAME = "test-tinyvit64"

_PROMPT = [("image_embeddings", F, (1, 64, 4, 4)), ("point_coords", F, (1, None, 2)), ("point_labels", F, (1, None))]
_EARLIER = [("mask_input", F, (1, 1, 16, 16)), ("has_mask_input", F, (1,))]
_SAM = [*_PROMPT, *_EARLIER, ("orig_im_size", F, (2,))]
_SCORED = [("iou_predictions", F, (1, 1)), ("low_res_masks", F, (1, 1, 16, 16))]
_MASKS = [("masks", F, (1, 1, None, None)), *_SCORED]
_EMBEDDED = [("image_embeddings", F, (1, 64, 4, 4))]
_ROWS = [("input_image", F, (None, None, 3))]
_FRAME = (1, 3, 64, 64)

# what the programs' own code says: the two files, and inputs and outputs of each in order
CONTRACTS = {
    "anylabeling": (f"{NAME}.encoder.onnx", _ROWS, _EMBEDDED, f"{NAME}.decoder.onnx", _SAM, _MASKS),
    "x-anylabeling": (f"{NAME}.encoder.onnx", _ROWS, _EMBEDDED, f"{NAME}.decoder.onnx", _SAM, _MASKS),
    "mobile-sam-pair": ("mobile_sam.encoder.onnx", _ROWS, _EMBEDDED, "sam_vit_h_4b8939.decoder.onnx", _SAM, _MASKS),
    "osam": ("encoder.onnx", [("x", F, _FRAME)], _EMBEDDED, "decoder.onnx", _SAM, _MASKS),
    "cvat": (
        "function/encoder.onnx", [("image", F, _FRAME)], _EMBEDDED, "decoder.onnx", _SAM,
        [("masks", U8, (1, 1, None, None)), *_SCORED, *((n, I64, (1,)) for n in ("xtl", "ytl", "xbr", "ybr"))],
    ),
    "darktable": (
        f"{NAME}/encoder.onnx", [("image", F, _FRAME)], [("image_embed", F, (1, 64, 4, 4))], f"{NAME}/decoder.onnx",
        [("image_embed", F, (1, 64, 4, 4)), *_PROMPT[1:], *_EARLIER], [("masks", F, (1, 1, 64, 64)), *_SCORED],
    ),
    "usls": (
        "mobile-sam-vit-t-encoder.onnx", [("images", F, _FRAME)], _EMBEDDED,
        "mobile-sam-vit-t-decoder.onnx", _SAM, _MASKS,
    ),
    "rectlabel": (
        f"{NAME}_preprocess.onnx", [("input", U8, (1, 3, 43, 64))], [("output", F, (1, 64, 4, 4))],
        f"{NAME}.onnx", _SAM, _MASKS,
    ),
    "transformers-js": (
        "onnx/vision_encoder.onnx", [("pixel_values", F, _FRAME)],
        [*_EMBEDDED, ("image_positional_embeddings", F, (1, 1, 1, 1))], "onnx/prompt_encoder_mask_decoder.onnx",
        [_EMBEDDED[0], ("input_points", F, (1, None, None, 2)), ("input_labels", I64, (1, None, None))],
        [("iou_scores", F, (1, None, 3)), ("pred_masks", F, (1, None, 3, 16, 16))],
    ),
    "model-api": (
        "encoder.onnx", [("image", F, _FRAME)], _EMBEDDED, "decoder.onnx",
        [*_PROMPT, _EARLIER[0], ("has_mask_input", F, (1, 1)), ("orig_size", I64, (1, 2))],
        [("upscaled_masks", F, (1, 4, None, None)), *((n, t, (1, 4, *shape[2:])) for n, t, shape in _SCORED)],
    ),
    "ai-hub": (
        "encoder.onnx", [("image", F, _FRAME)], _EMBEDDED, "decoder.onnx", _PROMPT,
        [("masks", F, (1, 1, 16, 16)), ("scores", F, (1, 1))],
    ),
}  # fmt: skip

NAME2 = "test-hiera64_sparse"
_WIDTH = 64
_FEATURES = {"embed": (1, _WIDTH, 4, 4), "fine": (1, _WIDTH // 8, 16, 16), "middle": (1, _WIDTH // 4, 8, 8)}
_MANY = [("point_coords", F, (None, None, 2)), ("point_labels", F, (None, None)), ("mask_input", F, (None, 1, 16, 16))]
_FLAG = ("has_mask_input", F, (1,))
_SAMEXPORTER = [("image_embed", F, _FEATURES["embed"]), ("high_res_feats_0", F, _FEATURES["fine"])]
_SAMEXPORTER += [("high_res_feats_1", F, _FEATURES["middle"])]
_OSAM2 = [("image_embeddings", F, _FEATURES["embed"]), ("high_res_features1", F, _FEATURES["fine"])]
_OSAM2 += [("high_res_features2", F, _FEATURES["middle"])]
_USLS2, _JS2 = (
    [(name, *feature[1:]) for name, feature in zip(names, _OSAM2, strict=True)]
    for names in (
        ("image_embeddings", "high_res_features_0", "high_res_features_1"),
        ("image_embeddings.2", "image_embeddings.0", "image_embeddings.1"),
    )
)
_ONE = [(name, kind, (1, *shape[1:])) for name, kind, shape in _MANY]
_LABELLING2 = (
    f"{NAME2}.encoder.onnx", [("image", F, _FRAME)], [*_SAMEXPORTER[1:], _SAMEXPORTER[0]], f"{NAME2}.decoder.onnx",
    [*_SAMEXPORTER, *_MANY, _FLAG], [("masks", F, (None, 1, 16, 16)), ("iou_predictions", F, (None, 1))],
)  # fmt: skip
CONTRACTS |= {
    "anylabeling sam2": _LABELLING2,
    "x-anylabeling sam2": _LABELLING2,
    "osam sam2": (
        "encoder.onnx", [("input", F, _FRAME)], _OSAM2, "decoder.onnx",
        [*_OSAM2, *_MANY, _FLAG, ("orig_im_size", I64, (2,))],
        [("masks", F, (None, 1, None, None)), *((n, t, (None, *shape[1:])) for n, t, shape in _SCORED)],
    ),
    "darktable sam2": (
        f"{NAME2}/encoder.onnx", [("image", F, _FRAME)], _SAMEXPORTER, f"{NAME2}/decoder.onnx",
        [*_SAMEXPORTER, *_ONE, _FLAG], [("masks", F, (1, 1, 64, 64)), *_SCORED],
    ),
    "rectlabel sam2": (
        f"{NAME2}_preprocess.onnx", [("input", F, _FRAME)], _OSAM2, f"{NAME2}.onnx",
        [*_OSAM2, *_MANY, _FLAG, ("orig_im_size", I64, (2,))],
        [("masks", F, (None, 1, None, None)), *((n, t, (None, *shape[1:])) for n, t, shape in _SCORED)],
    ),
    "usls sam2": (
        f"{NAME2}-encoder.onnx", [("images", F, _FRAME)], _USLS2, f"{NAME2}-decoder.onnx",
        [*_USLS2, *_MANY[:2], _ONE[2], _FLAG, ("orig_im_size", F, (2,))],
        [("masks", F, (None, 1, 16, 16)), ("iou_predictions", F, (None, 1))],
    ),
    "cvat sam2": (
        "function/encoder.onnx", [("image", F, _FRAME)], _SAMEXPORTER, "decoder.onnx",
        [*_SAMEXPORTER, *_ONE, _FLAG, ("orig_im_size", I32, (2,))],
        [("masks", U8, (1, 1, None, None)), *_SCORED, *((n, I64, (1,)) for n in ("xtl", "ytl", "xbr", "ybr"))],
    ),
    "transformers-js sam2": (
        "onnx/vision_encoder.onnx", [("pixel_values", F, _FRAME)], [*_JS2[1:], _JS2[0]],
        "onnx/prompt_encoder_mask_decoder.onnx",
        [
            *_JS2, ("input_points", F, (1, None, None, 2)), ("input_labels", I64, (1, None, None)),
            ("input_boxes", F, (1, None, 4)),
        ],
        [
            ("iou_scores", F, (1, None, 3)), ("pred_masks", F, (1, None, 3, 16, 16)),
            ("object_score_logits", F, (1, None, 1)),
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def delivered(tiny_bundle: Bundle, request, tmp_path_factory):
    """Every program's folder, each made when first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            out = tmp_path_factory.mktemp("delivered") / name
            bundle = request.getfixturevalue("sam2_bundle") if name.endswith(" sam2") else tiny_bundle
            made[name] = out, deliver(bundle, ALL[name], out)
        return made[name]

    return folder


def tensors(values):
    return [
        (v.name, v.type.tensor_type.elem_type, tuple(d.dim_value or None for d in v.type.tensor_type.shape.dim))
        for v in values
    ]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_every_program_has_its_contract_here():
    assert set(CONTRACTS) == set(ALL)


@pytest.mark.parametrize("name", CONTRACTS)
def test_files_have_the_names_order_types_and_sizes_that_the_program_feeds(name, delivered):
    folder, _ = delivered(name)
    encoder, given, made, decoder, asked, answered = CONTRACTS[name]
    for path, inputs, outputs in ((encoder, given, made), (decoder, asked, answered)):
        graph = onnx.load(folder / path).graph
        assert (tensors(graph.input), tensors(graph.output)) == (inputs, outputs)


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_program_gets_the_masks_of_the_bundle(name, delivered):
    folder, (same, golden) = delivered(name)
    assert min(same.iou.values()) >= 0.999
    boxed = {"points": set(), "point or box": {"a box"}, "any": {"a box", "a box and a click"}}
    assert {what for what in same.iou if "box" in what} == boxed[ALL[name].host.prompts]
    if name in ("osam", "transformers-js", "cvat sam2"):  # those scale pictures as SAM does
        assert min(golden.iou.values()) >= 0.999
    assert all(f"{iou:.4f}" in (folder / "README.md").read_text() for iou in golden.iou.values())
    listed = json.loads((folder / "samexport.json").read_text())["files"]
    assert listed == {
        p.relative_to(folder).as_posix(): sha256(p)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "samexport.json"
    }
    texts = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".onnx"]
    assert not [p for p in texts if re.search(r"\$[A-Z{]", p.read_text())]
    assert len(ALL[name].load) <= 5


def test_weights_are_those_of_the_bundle(tiny_bundle, delivered):
    folder, _ = delivered("anylabeling")
    for graph, path in (("encoder", f"{NAME}.encoder.onnx"), ("decoder_with_mask", f"{NAME}.decoder.onnx")):
        own = onnx.load(tiny_bundle.folder / tiny_bundle.artifact(graph).path).graph.initializer
        sent = {w.name: w.raw_data for w in onnx.load(folder / path).graph.initializer}
        assert sent == {f"{graph}/{w.name}": w.raw_data for w in own}


def fed(coords, labels, **others):
    rng = np.random.default_rng(5)
    given = {
        "image_embeddings": rng.normal(size=(1, 64, 4, 4)),
        "point_coords": np.array([coords]),
        "point_labels": np.array([labels]),
        "mask_input": np.zeros((1, 1, 16, 16)),
        "has_mask_input": np.zeros(1),
        "orig_im_size": np.array([27, 40]),
    }
    return {name: np.asarray(value, np.float32) for name, value in (given | others).items()}


def test_padding_points_are_put_right_whatever_a_program_adds(delivered):
    run = session(delivered("osam")[0] / "decoder.onnx").run
    click, box = ([30, 20], [1]), ([[5, 4], [40, 30]], [2, 3])
    bare = run(None, fed([click[0]], click[1]))
    padded = run(None, fed([click[0], [0, 0]], [*click[1], -1]))
    assert all(map(np.array_equal, bare, run(None, fed([click[0]], [1], has_mask_input=[-1]))))
    boxed = run(None, fed(*box))
    both = run(None, fed([*box[0], [0, 0]], [*box[1], -1]))
    for one, other in ((bare, padded), (boxed, both)):
        assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))
    assert not np.allclose(bare[2], boxed[2], atol=0.1)


def test_an_earlier_mask_is_taken(delivered):
    run = session(delivered("osam")[0] / "decoder.onnx").run
    earlier = np.linspace(-8, 8, 256).reshape(1, 1, 16, 16)
    without = run(None, fed([[30, 20]], [1], mask_input=earlier))
    given = run(None, fed([[30, 20]], [1], mask_input=earlier, has_mask_input=[1]))
    assert not np.allclose(without[2], given[2], atol=0.1)


def test_cvat_gets_the_rectangle_of_the_mask(delivered):
    inputs = fed([[30, 20]], [1])
    whole = session(delivered("osam")[0] / "decoder.onnx").run(["masks"], inputs)[0][0, 0] > 0
    names = ["masks", "xtl", "ytl", "xbr", "ybr"]
    patch, *sides = session(delivered("cvat")[0] / "decoder.onnx").run(names, inputs)
    left, top, right, bottom = (int(side[0]) for side in sides)
    rows, columns = np.nonzero(whole)
    assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max(), rows.max())
    assert np.array_equal(patch[0, 0], 255 * whole[top : bottom + 1, left : right + 1])


@pytest.mark.parametrize(
    ("name", "fixture", "blobs"),
    [
        ("cvat", "tiny_bundle", ["blob"]),
        ("cvat sam2", "sam2_bundle", ["image_embed", "high_res_feats_0", "high_res_feats_1"]),
    ],
)
def test_cvats_function_frames_and_encodes_a_picture_as_we_do(name, fixture, blobs, delivered, request):
    function, bundle = delivered(name)[0] / "function", request.getfixturevalue(fixture)
    space = {}
    exec(compile((function / "main.py").read_text(), "main.py", "exec"), space)
    golden = load_golden(bundle.folder, bundle.manifest.frame).picture
    framed = to_frame(golden, bundle.manifest.frame)
    assert np.array_equal(space["framed"](Image.fromarray(golden)), framed)
    file = io.BytesIO()
    Image.fromarray(golden).save(file, "PNG")
    encoder = session(function / "encoder.onnx")
    context = SimpleNamespace(user_data=SimpleNamespace(encoder=encoder), Response=SimpleNamespace)
    event = SimpleNamespace(body={"image": base64.b64encode(file.getvalue())})
    sent = json.loads(space["handler"](context, event).body)
    assert list(sent) == blobs
    for text, value in zip(sent.values(), encoder.run(None, {"image": framed}), strict=True):
        assert base64.b64decode(text) == value.tobytes()


@pytest.mark.parametrize("hw", [(43, 64), (64, 43), (20, 30)])
def test_rows_and_columns_of_any_size_are_filled_up_with_the_mean(delivered, tiny_bundle, hw):
    picture = np.random.default_rng(1).integers(0, 256, (*hw, 3)).astype(np.float32)
    framed = np.tile(np.array(tiny_bundle.manifest.frame.mean, np.float32)[:, None, None], (1, 64, 64))
    framed[:, : hw[0], : hw[1]] = picture.transpose(2, 0, 1)
    ours = session(tiny_bundle.folder / "encoder.onnx").run(None, {"image": framed[None]})[0]
    theirs = session(delivered("anylabeling")[0] / f"{NAME}.encoder.onnx").run(None, {"input_image": picture})[0]
    assert np.allclose(ours, theirs, atol=1e-3)


def test_transformers_js_may_ask_for_several_prompts_and_pads_them_with_minus_ten(delivered):
    run = session(delivered("transformers-js")[0] / "onnx/prompt_encoder_mask_decoder.onnx").run
    embeddings = fed([[0, 0]], [1])["image_embeddings"]

    def ask(points, labels):
        points, labels = np.array([points], np.float32), np.array([labels], np.int64)
        return run(None, {"image_embeddings": embeddings, "input_points": points, "input_labels": labels})

    both = ask([[[30, 20], [9, 9]], [[10, 40], [0, 0]]], [[1, 0], [1, -10]])
    for number, alone in enumerate((ask([[[30, 20], [9, 9]]], [[1, 0]]), ask([[[10, 40]]], [[1]]))):
        assert all(np.allclose(a[0, number], b[0, 0], atol=1e-4) for a, b in zip(both, alone, strict=True))


def test_osams_module_names_the_files_that_are_there(delivered):
    folder, _ = delivered("osam")
    text = (folder / "osam_model.py").read_text()
    compile(text, "osam_model.py", "exec")
    hashes = re.findall(r'url="(.+)", hash="sha256:(.+)"', text)
    assert hashes == [(n, sha256(folder / n)) for n in ("encoder.onnx", "decoder.onnx")]


def test_configuration_files_are_json_or_name_the_files(delivered):
    for name in ("transformers-js", "darktable"):
        for path in delivered(name)[0].rglob("*config.json"):
            assert json.loads(path.read_text())
    assert json.loads((delivered("darktable")[0] / NAME / "config.json").read_text())["arch"] == "sam2"
    for name in ("anylabeling", "x-anylabeling"):
        lines = dict(line.split(": ", 1) for line in (delivered(name)[0] / "config.yaml").read_text().splitlines())
        assert lines["type"] == "segment_anything"
        assert all((delivered(name)[0] / lines[f"{part}_model_path"]).is_file() for part in ("encoder", "decoder"))
    found = {p.key: p.value for p in onnx.load(delivered("model-api")[0] / "encoder.onnx").metadata_props}
    assert found["model_info model_type"] == "sam_image_encoder"


@pytest.mark.parametrize("opset", sorted(OPSETS))
def test_the_added_nodes_are_valid_in_every_opset_that_a_bundle_may_have(tiny_bundle, opset):
    head = f'<ir_version: {ir_version(opset)}, opset_import: ["" : {opset}, "samexport" : 1]>\n'
    for text in {text for profile in ALL.values() for text in profile.files.values()}:
        sizes = sam_adapters.values(tiny_bundle.manifest)
        filled = Template(text).substitute(sizes, C0="8", C1="16", E="8", DELTA="0.05", STABLE="0.98")
        onnx.checker.check_model(onnx.parser.parse_model(f"{head}adapter {filled}"))


def test_sam_2_answers_a_batch_of_prompts_as_it_answers_each(delivered):
    folder = delivered("x-anylabeling sam2")[0]
    run = session(folder / f"{NAME2}.decoder.onnx").run
    rng = np.random.default_rng(3)
    features = {name: rng.normal(size=shape).astype(np.float32) for name, _, shape in _SAMEXPORTER}

    def ask(coords, labels):
        given = {"point_coords": np.array(coords, np.float32), "point_labels": np.array(labels, np.float32)}
        masks = {
            "mask_input": np.zeros((len(labels), 1, 16, 16), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
        }
        return run(None, features | given | masks)

    coords, labels = [[[30, 20], [9, 9]], [[5, 6], [40, 50]]], [[1, 0], [2, 3]]
    both = ask(coords, labels)
    for number in (0, 1):
        alone = ask(coords[number : number + 1], labels[number : number + 1])
        assert all(np.allclose(a[number], b[0], atol=1e-4) for a, b in zip(both, alone, strict=True))
    padded = ask([[*coords[0], [0, 0]]], [[*labels[0], -1]])
    assert all(np.allclose(a[0], b[0], atol=1e-4) for a, b in zip(both, padded, strict=True))


@pytest.mark.parametrize(
    ("name", "decoder", "names"), [("rectlabel", f"{NAME2}.onnx", _OSAM2), ("usls", f"{NAME2}-decoder.onnx", _USLS2)]
)
def test_one_absent_mask_does_for_several_boxes(name, decoder, names, delivered):
    decode = session(delivered(f"{name} sam2")[0] / decoder)
    rng = np.random.default_rng(3)
    features = {name: rng.normal(size=shape).astype(np.float32) for name, _, shape in names}
    size = np.array([40, 30], np.int64 if name == "rectlabel" else np.float32)
    corners = np.array([[[5, 6], [40, 50]], [[20, 10], [60, 30]]], np.float32)

    def ask(coords):
        labels = np.tile(np.array([[2, 3]], np.float32), (len(coords), 1))
        absent = {
            "mask_input": np.zeros((1, 1, 16, 16), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": size,
        }
        return decode.run(None, {**features, "point_coords": coords, "point_labels": labels, **absent})[:2]

    both = ask(corners)
    for number in (0, 1):
        alone = ask(corners[number : number + 1])
        for a, b in zip(both, alone, strict=True):
            assert np.allclose(a[number], b[0], atol=1e-4 * max(1, np.abs(b).max()))
    assert not np.allclose(both[1][0], both[1][1])


def test_transformers_js_sends_no_points_as_zero_of_them_and_boxes_apart(delivered):
    run = session(delivered("transformers-js sam2")[0] / "onnx/prompt_encoder_mask_decoder.onnx").run
    rng = np.random.default_rng(3)
    features = {name: rng.normal(size=shape).astype(np.float32) for name, _, shape in _JS2}

    def ask(points, labels, boxes):
        return run(
            None,
            features
            | {
                "input_points": np.reshape(points, (1, len(points), -1, 2)).astype(np.float32),
                "input_labels": np.reshape(labels, (1, len(labels), -1)).astype(np.int64),
                "input_boxes": np.reshape(boxes, (1, len(boxes), 4)).astype(np.float32),
            },
        )

    def same(several, number, alone):
        return all(np.allclose(a[0, number], b[0, 0], atol=1e-4) for a, b in zip(several, alone, strict=True))

    boxes = [[5, 6, 40, 50], [20, 10, 60, 30]]
    both = ask([[]], [[], []], boxes)
    assert [part.shape[:2] for part in both] == [(1, 2)] * 3
    assert all(same(both, number, ask([[]], [[]], [box])) for number, box in enumerate(boxes))
    # corners are points of two kinds, and padding of prompts of unequal length is left out
    corners = [[[x0, y0], [x1, y1]] for x0, y0, x1, y1 in boxes]
    assert all(same(both, number, ask([pair], [[2, 3]], [])) for number, pair in enumerate(corners))
    clicks = ask([[[30, 20], [9, 9]], [[10, 40], [0, 0]]], [[1, 0], [1, -10]], [])
    assert same(clicks, 0, ask([[[30, 20], [9, 9]]], [[1, 0]], []))
    assert same(clicks, 1, ask([[[10, 40]]], [[1]], []))
    beside = ask([[[30, 20]]], [[1]], boxes[:1])
    assert same(beside, 0, ask([[[30, 20], *corners[0]]], [[1, 2, 3]], []))
    assert not same(both, 0, beside)


def test_cvats_points_are_stretched_as_its_picture_was(delivered):
    run = session(delivered("cvat sam2")[0] / "decoder.onnx").run
    rng = np.random.default_rng(3)
    features = {name: rng.normal(size=shape).astype(np.float32) for name, _, shape in _SAMEXPORTER}

    def ask(point, size):
        given = {
            "point_coords": np.array([[point]]),
            "point_labels": np.ones((1, 1)),
            "mask_input": np.zeros((1, 1, 16, 16)),
            "has_mask_input": np.zeros(1),
        }
        inputs = {name: value.astype(np.float32) for name, value in given.items()}
        return run(["low_res_masks"], features | inputs | {"orig_im_size": np.array(size, np.int32)})[0]

    # of the square's 64 pixels the plugin uses half in height, or in width
    assert np.allclose(ask([20, 15], (32, 64)), ask([20, 30], (64, 64)), atol=1e-4)
    assert np.allclose(ask([10, 30], (64, 32)), ask([20, 30], (64, 64)), atol=1e-4)


def test_a_model_without_mask_0_never_answers_with_it(tiny_bundle):
    values = sam_adapters.values(replace(tiny_bundle.manifest, mask_outputs=(1, 2, 3)))
    assert values["CLEAR"] == values["VAGUE"] == "-1000, 0, 0, 0"
    assert sam_adapters.values(tiny_bundle.manifest)["CLEAR"] == "0, -1000, -1000, -1000"


def test_sampling_keeps_corners_and_is_black_outside():
    image = np.array([[0.0, 10.0], [20.0, 30.0]])
    assert np.allclose(sam_hosts.sample(image, (0.5, 0.5), (3, 4)), [[0, 5, 10, 5], [10, 15, 20, 10], [20, 25, 30, 15]])


@pytest.mark.parametrize(
    ("changed", "place", "broken"),
    [
        (
            "decoder",
            "samexport.decoder_with_mask (embeddings, coords,",
            "samexport.decoder_with_mask (embeddings, ones,",
        ),
        ("encoder", "{$MEAN}", "{0, 0, 0}"),
        ("decoder", "{$CLEAR}", "{$VAGUE}"),
        ("decoder", "settled = Or (boxed, padded)", "settled = And (boxed, padded)"),
    ],
)
def test_a_wrong_adapter_is_found_and_leaves_nothing(tiny_bundle, tmp_path, changed, place, broken):
    number = ("encoder", "decoder").index(changed)
    path, text = list(ALL["osam"].files.items())[number]
    assert place in text
    profile = replace(ALL["osam"], files={**ALL["osam"].files, path: text.replace(place, broken)})
    with pytest.raises((ParityFailed, ExportFailed)):
        deliver(tiny_bundle, profile, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_inputs_in_another_order_are_found(tiny_bundle, tmp_path):
    host = ALL["osam"].host
    swapped = replace(host, decoder=dict(sorted(host.decoder.items())))
    with pytest.raises(ExportFailed, match="the program feeds has_mask_input, "):
        deliver(tiny_bundle, replace(ALL["osam"], host=swapped), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_in_a_second_file_go_along(own_bundle, tmp_path):
    path = own_bundle.folder / "encoder.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="encoder.onnx.data")
    out = tmp_path / "out"
    out.mkdir()
    names = {"input": "image", "output": "made"}
    text = Template(sam_adapters.PIXELS).substitute(names, **sam_adapters.values(own_bundle.manifest))
    write_adapted(text, own_bundle, out / "some.onnx", {})
    assert {p.name for p in out.iterdir()} == {"some.onnx", "encoder.onnx.data"}
    image = np.full((1, 3, 64, 64), 50, np.float32)
    assert np.array_equal(
        session(out / "some.onnx").run(None, {"image": image})[0], session(path).run(None, {"image": image})[0]
    )


def test_bundles_that_a_program_cannot_use_are_refused_with_the_remedy(tiny_bundle, half_bundle, own_bundle):
    manifest = tiny_bundle.manifest
    lite = replace(manifest, artifacts=tuple(replace(a, file_format="tflite") for a in manifest.artifacts))
    with pytest.raises(BundleError, match=r"takes ONNX, .* is tflite; `samexport onnx` makes one"):
        check_fit(Bundle(tiny_bundle.folder, lite), ALL["osam"])
    with pytest.raises(BundleError, match=r"has 1024 pixels in its code, test.tinyvit64 has 64; export a model of"):
        check_fit(tiny_bundle, find_profile("anylabeling", "sam"))
    with pytest.raises(BundleError, match=r"needs decoder, .* lacks; export it again without --split-decoder"):
        check_fit(half_bundle, ALL["transformers-js"])
    (own_bundle.folder / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder.onnx has another sha256 .*; export the bundle again"):
        check_fit(own_bundle, ALL["osam"])
    with pytest.raises(ConfigError, match="there is no program 'nothing'; for sam there are anylabeling, "):
        find_profile("nothing", "sam")
    with pytest.raises(ConfigError, match="osam takes no models of the family toy"):
        find_profile("osam", "toy")


@pytest.mark.parametrize(
    ("name", "family", "why"),
    [
        ("sam2-studio", "sam", r"0dd708d\) runs SAM 2 only"),
        (
            "sam2-studio",
            "sam2",
            r"0dd708d\) has CoreML models built into it that encode prompts and decode masks in two",
        ),
        ("ai-hub", "sam2", r"0\.65\.0\) encodes prompts in the file that encodes the picture"),
        ("model-api", "sam2", r"0\.4\.7\) has classes for SAM 1 only"),
    ],
)
def test_what_a_program_cannot_take_at_all_is_refused_with_the_version_that_was_read(name, family, why, run):
    with pytest.raises(ConfigError, match=why) as refused:
        find_profile(name, family)
    assert "\n" not in str(refused.value)
    assert f"not {name} with {family}: " in run("deliver", "--list")[1]


def test_half_precision_and_a_split_decoder_are_served_where_they_can_be(half_bundle, tmp_path):
    (same, _) = deliver(half_bundle, ALL["osam"], tmp_path / "out")
    assert min(same.iou.values()) >= 0.99


def test_the_same_bundle_gives_the_same_bytes(tiny_bundle, delivered, tmp_path):
    deliver(tiny_bundle, ALL["usls"], tmp_path / "again")
    assert {p.name: sha256(p) for p in (tmp_path / "again").iterdir()} == {
        p.name: sha256(p) for p in delivered("usls")[0].iterdir()
    }


def test_points_and_boxes_are_fed_in_the_programs_order():
    framed = feed.Framed(np.zeros(1), np.array([2.0, 4.0]), (10, 20), (10, 20))
    prompt = Prompt.make([[1, 2]], [0], box=[3, 4, 5, 6])
    inputs = feed.decoder_inputs(ALL["osam"].host, prompt, framed, [np.zeros((1, 64, 4, 4))], 16)
    assert inputs["point_coords"].tolist() == [[[2, 8], [6, 16], [10, 24], [0, 0]]]
    assert inputs["point_labels"].tolist() == [[0, 2, 3, -1]]
    assert inputs["has_mask_input"].tolist() == [-1]
    whole, finer = replace(ALL["cvat"].host, whole=True), replace(framed, scale=np.array([1.9, 1.9]))
    cut = feed.decoder_inputs(whole, prompt, finer, [np.zeros(1)], 16)
    assert cut["point_coords"].tolist() == [[[1, 3], [5, 7], [9, 11]]]
    bare = feed.decoder_inputs(ALL["cvat"].host, prompt, framed, [np.zeros((1, 64, 4, 4))], 16)
    assert bare["point_labels"].tolist() == [[0, 2, 3]]


def test_the_command_writes_a_folder_and_replaces_only_its_own(run, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("deliver", tiny_bundle.folder, "--for", "usls", "--threads", 1)
    assert (code, err) == (0, "")
    target = tmp_path / f"{tiny_bundle.folder.name}-usls"
    assert f"wrote {target.name}/ for usls" in out
    assert "RANDOM weights" in out
    code, _, err = run("deliver", tiny_bundle.folder, "--for", "usls", "--threads", 1)
    assert code == 2
    assert "exists" in one_line_error(err)
    code, out, _ = run("deliver", tiny_bundle.folder, "--for", "usls", "--force", "--json", "--threads", 1)
    assert code == 0
    assert json.loads(out)["compared"][0]["iou"]["a box"] == 1.0
    (target / "mine.txt").write_text("mine")
    code, _, err = run("deliver", tiny_bundle.folder, "--for", "usls", "--force", "--threads", 1)
    assert code == 2
    assert "mine.txt" in one_line_error(err)
    assert (target / "mine.txt").exists()


def test_the_command_says_in_one_line_what_is_wrong(run, tiny_bundle, tmp_path):
    for arguments, words in (
        ((tiny_bundle.folder, "--for", "anylabeling", "--out", tmp_path / "x"), "1024 pixels in its code"),
        ((tiny_bundle.folder, "--for", "photoshop"), "there is no program 'photoshop'"),
        ((tiny_bundle.folder,), "--list"),
        ((tmp_path, "--for", "osam"), "not a bundle"),
    ):
        code, _, err = run("deliver", *arguments)
        assert code == 2
        assert words in one_line_error(err)
    assert not list(tmp_path.iterdir())


def test_the_list_says_what_each_takes_and_how_it_was_tried(run):
    code, out, _ = run("deliver", "--list", "--json")
    assert code == 0
    assert len(json.loads(out)) == len(ALL)
    rows = {row["name"]: row for row in json.loads(out) if row["family"] == "sam"}
    assert all(row["read"] and row["tried"] and row["format"] == "onnx" for row in rows.values())
    assert (rows["usls"]["size"], rows["osam"]["size"]) == (None, 1024)
    assert "AnyLabeling 0.4.43" in run("deliver", "--list")[1]
