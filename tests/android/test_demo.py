"""The Android demo as far as it goes without an SDK: core compiled and run, glue type-checked, resources packed."""

import json
import re
import shutil
import subprocess
import tomllib
import zipfile

import pytest
from ai_edge_litert.interpreter import Interpreter

from samexport.exporter.deliver.android import fill_demo
from tests.android.toolchain import (
    APP,
    DEMO,
    JUNIT,
    STUBS,
    compile_kotlin,
    gradle,
    require,
    run_aapt,
    run_bridge,
    run_junit,
)
from tests.android.vectors import FILE, close, make

CORE, TESTS = DEMO / "core/src/main/kotlin", DEMO / "core/src/test/kotlin"
GLUE = APP / "kotlin"
BRIDGE = STUBS.parent / "Bridge.kt"


def test_the_committed_vectors_are_what_python_computes_today():
    committed = json.loads(FILE.read_text())
    assert FILE.stat().st_size < 40_000
    made = make()
    assert made.keys() == committed.keys()
    for name in made:
        assert close(json.loads(json.dumps(made[name])), committed[name]), f"{name}: python -m tests.android.vectors"


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    require(aapt=True)
    folder = tmp_path_factory.mktemp("resources")
    run = run_aapt(folder, "-m", "-J", folder)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, resources):
    require(kotlin=True)
    folder = tmp_path_factory.mktemp("kotlin")
    wrong = shutil.copytree(GLUE, folder / "wrong_glue")
    runner = next(wrong.rglob("LiteRtRunner.kt"))
    runner.write_text(runner.read_text().replace("createInputBuffer(", "createInputBuffers("))
    jobs = {
        "core": ([CORE], []),
        "tests": ([TESTS], ["core", *JUNIT]),
        "bridge": ([BRIDGE], ["core"]),
        "glue": ([GLUE, STUBS, resources], ["core"]),
        "wrong": ([wrong, STUBS, resources], ["core"]),
    }
    return compile_kotlin(folder, jobs)


def test_the_core_compiles_without_android_and_warnings(compiled):
    assert (compiled["core"].code, compiled["core"].said) == (0, "")
    assert (compiled["tests"].code, compiled["tests"].said) == (0, "")


def test_the_core_computes_what_python_computed(compiled):
    code, said = run_junit(compiled["tests"].classes, compiled["core"].classes)
    assert code == 0, said
    count = sum(source.read_text().count("@Test") for source in TESTS.rglob("*.kt"))
    assert count > 20
    assert f"OK ({count} tests)" in said
    assert f"{count} JUnit tests" in (DEMO / "README.md").read_text()


def test_the_core_finds_pytorchs_masks_with_the_real_models(compiled, tflite_bundle, tmp_path):
    filled = fill_demo(tflite_bundle, tmp_path / "demo").folder
    assert compiled["bridge"].said == ""
    interpreters = [Interpreter(str(path)) for path in sorted(filled.glob("*.tflite"))]
    files = [path.name for path in sorted(filled.glob("*.tflite"))]
    runners = {
        file: {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        for file, interpreter in zip(files, interpreters, strict=True)
    }
    said = run_bridge(filled, runners, compiled["bridge"].classes, compiled["core"].classes)
    assert said.startswith("passed true, resized alike true, IoU [")
    ious = [float(number) for number in said.split("[")[1].rstrip("]").split(", ")]
    assert len(ious) == 2
    assert min(ious) >= 0.999


def test_the_glue_fits_the_apis_and_the_resources(compiled):
    assert (compiled["glue"].code, compiled["glue"].said) == (0, "")


def test_a_call_that_the_api_does_not_have_is_refused(compiled):
    assert compiled["wrong"].code != 0
    assert "LiteRtRunner.kt" in compiled["wrong"].said


def test_a_resource_that_is_not_there_is_refused(tmp_path):
    require(aapt=True)
    broken = shutil.copytree(APP / "res", tmp_path / "res")
    layout = broken / "layout/main.xml"
    layout.write_text(layout.read_text().replace("@string/check", "@string/gone"))
    run = run_aapt(tmp_path, res=broken)
    assert run.returncode != 0
    assert "@string/gone" in run.stderr


def test_models_are_stored_uncompressed_in_the_app(tmp_path):
    require(aapt=True)
    model = tmp_path / "assets/models/one/encoder.tflite"
    model.parent.mkdir(parents=True)
    model.write_bytes(bytes(100_000))
    (model.parent / "samexport.json").write_text(" " * 1000)
    ending = gradle(r'noCompress \+= "(\w+)"')
    for stored, options in ((True, ("-0", ending)), (False, ())):
        apk = tmp_path / "demo.apk"
        run = run_aapt(tmp_path, "-A", tmp_path / "assets", "-F", apk, *options)
        assert run.returncode == 0, run.stderr
        with zipfile.ZipFile(apk) as archive:
            kinds = {i.filename.rsplit("/", 1)[-1]: i.compress_type for i in archive.infolist() if "one" in i.filename}
        assert kinds["encoder.tflite"] == (zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
        assert kinds["samexport.json"] == zipfile.ZIP_DEFLATED
    badging = subprocess.run(["aapt", "dump", "badging", apk], capture_output=True, text=True, check=True).stdout
    assert "launchable-activity: name='dev.samexport.demo.MainActivity'" in badging
    assert "sdkVersion:'24'" in badging


def test_gradle_files_name_only_what_the_catalogue_has():
    catalogue = tomllib.loads((DEMO / "gradle/libs.versions.toml").read_text())
    scripts = "\n".join(path.read_text() for path in DEMO.rglob("*.gradle.kts"))
    used = {name.replace(".", "-") for name in re.findall(r"libs\.plugins\.([\w.]+)", scripts)}
    assert used == set(catalogue["plugins"])
    used = {name.replace(".", "-") for name in re.findall(r"\(libs\.(?!plugins)([\w.]+)\)", scripts)}
    assert used == set(catalogue["libraries"])
    for entry in (*catalogue["plugins"].values(), *catalogue["libraries"].values()):
        assert entry["version"]["ref"] in catalogue["versions"]
    for script in DEMO.rglob("*.gradle.kts"):
        text = re.sub(r"//.*", "", script.read_text())
        assert all(text.count(a) == text.count(b) for a, b in ("{}", "()"))
    modules = re.search(r"include\((.*)\)", scripts)[1].replace('":', "").replace('"', "").split(", ")
    assert sorted(modules) == sorted(path.parent.name for path in DEMO.glob("*/build.gradle.kts"))
