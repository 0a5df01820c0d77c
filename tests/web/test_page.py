"""The page that `samexport web` writes: its arithmetic in Node, its types, and the whole of it in Chromium."""

import base64
import io
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from samexport.exporter.deliver.web import PAGE, write_site
from samexport.exporter.deliver.web_runtime import RUNTIMES
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.host.masks import intersection_over_union
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.tasks.everything import GridPoints, SegmentEverything
from samexport.runtimes.tasks.segment import Segmenter
from tests.web.toolchain import HERE, ISOLATED, PACKAGES, drive, module, require, served
from tests.web.vectors import make

HEIGHT, WIDTH = 90, 140
SIZE = {"width": WIDTH, "height": HEIGHT}


def test_the_arithmetic_is_that_of_python(tmp_path):
    require()
    vectors = tmp_path / "vectors.json"
    vectors.write_text(json.dumps(make()))
    environment = os.environ | {"VECTORS": str(vectors), "PAGE": str(PAGE)}
    run = subprocess.run(
        ["node", "--test", HERE / "host.test.mjs"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "pass 15" in run.stdout


def test_the_page_has_the_types_that_it_says(tmp_path):
    require("typescript")
    right, wrong = (shutil.copytree(PAGE, tmp_path / name) for name in ("right", "wrong"))
    session = wrong / "session.js"
    session.write_text(session.read_text().replace("this.decode([prompt])", "this.decode(prompt)", 1))
    options = {
        "allowJs": True, "checkJs": True, "noEmit": True, "strict": True, "target": "ES2022", "module": "ES2022",
        "moduleResolution": "bundler", "lib": ["ES2023", "DOM", "DOM.Iterable"], "types": [],
    }  # fmt: skip
    config = tmp_path / "tsconfig.json"
    config.write_text(json.dumps({"compilerOptions": options, "include": ["**/*.js"]}))
    compiler = module("typescript") / "bin/tsc"
    run = subprocess.run([compiler, "-p", config], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    complaints = [line for line in run.stdout.splitlines() if ": error " in line]
    assert complaints
    assert all(line.startswith(f"wrong/{session.name}") for line in complaints), run.stdout
    assert right.is_dir()


# random masks reach over the whole picture, so boxes tell none of them apart
GRID = GridOptions(
    points_per_side=3, points_per_batch=5, pred_iou_thresh=0, stability_score_thresh=0.4, box_nms_thresh=1
)


@pytest.fixture(scope="module")
def bundles(sampler_bundle, half_bundle, tflite_bundle, sam2_bundle):
    return {"sampler": sampler_bundle, "split": half_bundle, "tflite": tflite_bundle, "sam2": sam2_bundle}


@pytest.fixture(scope="module")
def sites(bundles, tmp_path_factory):
    """A folder to serve: each bundle's site by its name, and ``grid``, that of ``sampler`` without the detector."""
    packages = {name: runtime.package for name, runtime in RUNTIMES.items()}
    require(*packages.values(), "playwright-core", browser=True)
    folder = tmp_path_factory.mktemp("sites")
    for name, bundle in bundles.items():
        package = packages[bundle.manifest.artifacts[0].file_format]
        write_site(bundle, folder / name, runtime=module(package))
    shutil.copytree(folder / "sampler", folder / "grid")
    for name in ("grid", "split", "tflite", "sam2"):
        path = folder / name / "config.json"
        settings = json.loads(path.read_text())
        settings["grid"] |= {"pointsPerSide": 3, "batch": 5, "iou": 0, "stability": 0.4, "nmsIou": 1}
        path.write_text(json.dumps(settings | {"sampler": settings["sampler"] if name == "sampler" else None}))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([x * 1.5, y * 2, x * y % 256], -1).astype(np.uint8)
    pixels[20:60, 30:90] = (200, 40, 90)
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    Image.fromarray(pixels).save(path)
    return path


def content(saved):
    return base64.b64decode(saved["data"])


def records(run):
    """The records of every COCO file that a run saved, in turn."""
    answers = [answer for answer in run["results"] if isinstance(answer, dict)]
    return [json.loads(content(answer)) for answer in answers if answer["name"] == "scene-mask.json"]


def unpacked(record):
    return coco.decode(record["segmentation"]).view(np.bool_)


def check_quiet(run, url):
    assert run["said"] == []
    assert len(run["requests"]) > 10
    assert all(request.startswith((url, f"blob:{url}", "data:")) for request in run["requests"])


# of fp16 two runtimes differ by more: the bundle itself was verified with masks of 0.994
HALF = {"iou": 0.99, "score": 5e-3}


def check_answers(found, bundle, picture, iou=0.999, score=1e-4):
    """Each prompt is answered by the mask that Python's session takes."""
    with Segmenter(bundle, threads=1) as segmenter:
        segmenter.set_image(picture)
        for (record,) in found:
            prompt = Prompt.make(record["points"], record["labels"], record["box"])
            (answer,) = segmenter.predict([prompt])
            assert answer.masks[0].any()
            assert intersection_over_union(unpacked(record), answer.masks[0]) >= iou
            assert record["mask"] == answer.indices[0]
            assert record["score"] == pytest.approx(float(answer.scores[0]), abs=score)
            assert record["area"] == unpacked(record).sum()
            assert record["bbox"] == coco.toBbox(record["segmentation"]).tolist()


def check_grid(found, bundle, picture):
    """Everything is what Python finds with the same grid of clicks."""
    with SegmentEverything(bundle, GridPoints(GRID), threads=1) as everything:
        wanted = list(everything.masks(picture))
    assert len(found) == len(wanted) > 2
    for record, mask in zip(found, wanted, strict=True):
        assert record["points"] == [list(mask.prompt)]
        assert intersection_over_union(unpacked(record), coco.decode(mask.segmentation).view(np.bool_)) >= 0.999
        assert record["bbox"] == list(mask.bbox)


STEPS = [
    {"click": [60, 40]},
    {"save": "rle"},
    {"click": [100, 62], "outside": True},
    {"save": "rle"},
    {"drag": [95, 70, 25, 15]},
    {"save": "rle"},
    {"save": "png"},
    {"save": "svg"},
    {"keys": ["u"]},
    {"save": "rle"},
    {"keys": ["c"]},
    {"keys": ["ArrowRight", "ArrowUp", "Shift+ArrowDown", "Enter"]},
    {"save": "rle"},
    {"press": "#everything"},
    {"save": "rle"},
]


FEWER = [
    {"click": [60, 40]},
    {"save": "rle"},
    {"click": [100, 62], "outside": True},
    {"save": "rle"},
    {"drag": [95, 70, 25, 15]},
    {"save": "rle"},
    {"press": "#everything"},
    {"save": "rle"},
]
# more than a file with room for five points takes
MANY = [*({"click": [20 + 10 * i, 30]} for i in range(5)), {"read": "document.querySelector('#said').textContent"}]


@pytest.fixture(scope="module")
def plain(sites, picture, tmp_path_factory):
    """One Chromium, a server as any: {site: what a visitor saved}."""
    steps = {"sampler": STEPS, "split": FEWER, "tflite": [*FEWER, {"keys": ["c"]}, *MANY, {"save": "rle"}]}
    with served(sites) as url:
        shared = {"picture": str(picture), "size": SIZE, "offline": True}
        jobs = [{**shared, "url": f"{url}{name}/", "steps": own} for name, own in steps.items()]
        runs = drive(tmp_path_factory.mktemp("run"), jobs)
    for run in runs:
        check_quiet(run, url)
        assert not run["isolated"]
        assert "WebAssembly, 1 thread" in run["timings"]
        assert {"load", "encode", "decode", "mask", "everything"} <= set(run["timings"].split())
    return dict(zip(steps, runs, strict=True))


@pytest.fixture(scope="module")
def answers(plain):
    return plain["sampler"]["results"]


@pytest.fixture(scope="module")
def saved(plain):
    return records(plain["sampler"])


def test_clicks_and_boxes_get_pythons_masks(saved, sampler_bundle, picture):
    given = [[1], [1, 0], [1, 0], [1, 0], [1]]
    assert [records[0]["labels"] for records in saved[:5]] == given
    assert np.allclose(saved[1][0]["points"], [[60, 40], [100, 62]], atol=0.2)
    assert np.allclose(saved[2][0]["box"], [25, 15, 95, 70], atol=0.2)
    check_answers(saved[:5], sampler_bundle, picture)


def test_tflite_gets_pythons_masks(plain, tflite_bundle, picture):
    found = records(plain["tflite"])
    check_answers(found[:3], tflite_bundle, picture)
    check_grid(found[3], tflite_bundle, picture)


def test_a_decoder_in_halves_gets_pythons_masks(plain, half_bundle, picture):
    requested = [request.rsplit("/", 1)[-1] for request in plain["split"]["requests"]]
    assert {"decoder_prologue.onnx", "decoder_step.onnx"} <= set(requested)
    found = records(plain["split"])
    check_answers(found[:3], half_bundle, picture, **HALF)
    assert len(found[3]) > 2


def test_a_click_that_a_file_has_no_room_for_is_taken_back(plain):
    assert plain["tflite"]["results"][-2] == "This model takes no more clicks"
    (record,) = records(plain["tflite"])[-1]
    assert len(record["points"]) == 4


def test_undo_takes_the_last_prompt_back_and_keys_do_what_the_mouse_does(saved):
    assert saved[3][0]["box"] is None
    assert saved[3][0]["segmentation"] == saved[1][0]["segmentation"]
    step = WIDTH / 40
    assert saved[4][0]["points"] == [[WIDTH / 2 + step, HEIGHT / 2 - step + 1]]


def named(answers, name):
    return next(answer for answer in answers if answer and answer["name"] == name)


def test_a_png_shows_the_mask(saved, answers):
    pixels = np.asarray(Image.open(io.BytesIO(content(named(answers, "scene-mask.png")))).convert("RGBA"))
    assert np.array_equal(pixels[..., 0] == 255, unpacked(saved[2][0]))
    assert set(np.unique(pixels[..., :3])) == {0, 255}


def test_everything_is_what_python_finds_with_the_detector(saved, sampler_bundle, picture):
    with SegmentEverything(sampler_bundle, threads=1) as everything:
        wanted = list(everything.masks(picture))
    assert len(wanted) == len(saved[5]) > 1
    for record, mask in zip(saved[5], wanted, strict=True):
        assert np.allclose(record["box"], mask.prompt, atol=1e-3)
        found, known = unpacked(record), coco.decode(mask.segmentation).view(np.bool_)
        assert intersection_over_union(found, known) >= 0.999
        assert record["score"] == pytest.approx(mask.score, abs=1e-4)


DRAWN = """(async () => {
    const picture = new Image();
    picture.src = "mask.svg";
    await picture.decode();
    const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 3));
})()"""


@pytest.fixture(scope="module")
def isolated(sites, picture, answers, tmp_path_factory):
    """Another Chromium and headers that allow threads; a finger, and the SVG of the first run beside the page."""
    (sites / "grid/mask.svg").write_bytes(content(named(answers, "scene-mask.svg")))
    grid = [{"click": [60, 40]}, {"save": "rle"}, {"press": "#everything"}, {"save": "rle"}, {"read": DRAWN}]
    steps = {"grid": grid, "tflite": FEWER[:2], "sam2": FEWER}
    with served(sites, ISOLATED) as url:
        shared = {"picture": str(picture), "size": SIZE}
        jobs = [
            {**shared, "url": f"{url}{name}/", "steps": own, "touch": name == "grid"} for name, own in steps.items()
        ]
        runs = drive(tmp_path_factory.mktemp("run"), jobs)
    for run in runs:
        check_quiet(run, url)
        assert run["isolated"]
        assert "threads" in run["timings"] or len(os.sched_getaffinity(0)) == 1
    return dict(zip(steps, runs, strict=True))


def test_a_finger_clicks_and_without_a_detector_everything_is_sams_grid(isolated, saved, sampler_bundle, picture):
    click, everything = records(isolated["grid"])
    assert click[0]["labels"] == [1]
    assert intersection_over_union(unpacked(click[0]), unpacked(saved[0][0])) >= 0.999
    check_grid(everything, sampler_bundle, picture)


def test_litert_with_threads_computes_the_same(isolated, plain):
    one, several = (records(run["tflite"])[0] for run in (plain, isolated))
    assert intersection_over_union(unpacked(one[0]), unpacked(several[0])) >= 0.999


def test_sam2_gets_pythons_masks(isolated, sam2_bundle, picture):
    found = records(isolated["sam2"])
    check_answers(found[:3], sam2_bundle, picture)
    check_grid(found[3], sam2_bundle, picture)


def test_chromium_draws_the_mask_from_the_svg(isolated, saved):
    mask = unpacked(saved[2][0])
    assert np.array_equal(np.array(isolated["grid"]["results"][4]).reshape(mask.shape) > 127, mask)


def test_the_gate_installs_what_these_tests_need():
    gate = (HERE.parent.parent / ".ci/run").read_text()
    assert all(package in gate for package in PACKAGES)
