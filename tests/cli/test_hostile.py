"""Bad input on the command line: one line, the right exit code, nothing written, and no model runs for it.

Each row is a command. ``{bundle}`` is an ONNX bundle, ``{work}`` a folder with a few files, where the command runs.
"""

import hashlib
import os
import shlex

import pytest
from PIL import Image

from tests.command_line import one_line_error

RANDOM = "--encoder test.tinyvit64 --weights random"
EXPORTS = ("onnx", "tflite", "coreml")
LONG = "n" * 300

PATHS = [
    (f"onnx {RANDOM} --out {LONG}", "choose another --out"),
    (f"onnx {RANDOM} --out {LONG}/bundle", "choose another --out"),
    (f"onnx {RANDOM} --out bad\udcff", "choose another --out"),
    (f"onnx {RANDOM} --out bad\udcff/bundle", "choose another --out"),
    (f"onnx {RANDOM} --out mine.txt", "--force"),
    (f"onnx {RANDOM} --out mine.txt --force", "is not replaced"),
    (f"onnx {RANDOM} --out mine.txt/bundle", "choose another --out"),
    (f"onnx {RANDOM} --out mine.txt/a/b/bundle", "choose another --out"),
    (f"onnx {RANDOM} --out folder", "--force"),
    (f"onnx {RANDOM} --out folder --force", "is not replaced"),
    (f"onnx {RANDOM} --out link --force", "it is a link"),
    (f"onnx {RANDOM} --out loop/bundle", "choose another --out"),
    (f"onnx {RANDOM} --out ''", "--force"),
    (f"onnx {RANDOM} --out . --force", "is not replaced"),
    (f"onnx {RANDOM} --out .. --force", "is not replaced"),
    ("android {bundle} --out demo", "is onnx"),
    ("verify absent", "is not a bundle"),
    ("verify mine.txt", "is not a bundle"),
    (f"verify {LONG}", ""),
    ("verify loop", ""),
    ("verify ''", "is not a bundle"),
    ("verify {bundle} --against absent", "is not a bundle"),
    ("verify {bundle} --report folder", "must end in"),
    ("verify {bundle} --report folder.json", "is not a file"),
    ("verify {bundle} --report /dev/null", "must end in"),
    ("verify {bundle} --report mine.json", "--force"),
    ("verify {bundle} --report absent/report.json", "does not exist"),
    ("verify {bundle} --report mine.txt/report.json", "cannot be written"),
    (f"verify {{bundle}} --report {LONG}.json", "cannot be written"),
    ("verify {bundle} --report {bundle}/report.md", "inside the bundle"),
    ("verify {bundle} --report {bundle}/golden/report.md", "inside the bundle"),
    *(
        (f"{command} {{bundle}} photo.png --out {{bundle}}/{name} --force", "inside the bundle")
        for command in ("segment --point 1,1", "everything")
        for name in ("mine.png", "golden/picture.png")
    ),
    ("segment {bundle} photo.png --point 1,1 --masks {bundle}/golden/m.json", "inside the bundle"),
    ("segment {bundle} photo.png --point 1,1 --masks {bundle}/masks", "inside the bundle"),
    (f"onnx {RANDOM} --out {{bundle}}/golden/other", "inside the bundle"),
]

NUMBERS = [
    *((f"{c} {RANDOM} --threads {n}", "--threads") for c in EXPORTS for n in ("0", "-1", "100000", "9" * 11, "x")),
    *((f"verify {{bundle}} --threads {n}", "--threads") for n in ("0", "100000", "nan")),
    *((f"{c} {RANDOM} --sampler test --sampler-size {n}", "--sampler-size") for c in EXPORTS for n in ("0", "320000")),
    (f"onnx {RANDOM} --sampler test --sampler-size 33", "multiple of 32"),
    *((f"onnx {RANDOM} --seed {n}", "--seed") for n in ("-1", "x", "1" * 30)),
    *((f"onnx {RANDOM} --opset {n}", "--opset") for n in ("17", "24", "-5", "")),
    *((f"tflite {RANDOM} --prompts {n}", "--prompts") for n in ("0", "x", "-1", "1,1", "100000", "9" * 5000, ",")),
    *((f"tflite {RANDOM} --points {n}", "--points") for n in ("1,2", "100000", "x")),
    *((f"tflite {RANDOM} --points {n}", "from 1 up") for n in ("0", "-1")),
    *((f"coreml {RANDOM} --prompts {n}", "--prompts") for n in ("0", "1,1", "100000", ",")),
]  # fmt: skip

CHOICES = [
    *((f"{c} --encoder test.tinyvit64 --weights some", "'official', 'demo', 'random'") for c in EXPORTS),
    *((f"{c} --encoder nobody", "no encoder") for c in EXPORTS),
    *((f"{c} --encoder ''", "no encoder") for c in EXPORTS),
    (f"onnx {RANDOM} --precision fp8", "'fp32', 'fp16'"),
    (f"onnx {RANDOM} --nms never", "'host', 'in-graph'"),
    (f"onnx {RANDOM} --sampler nobody", "object-aware"),
    (f"tflite {RANDOM} --target npu", "'cpu', 'gpu'"),
    (f"tflite {RANDOM} --converter mine", "'litert-torch', 'onnx2tf'"),
    (f"coreml {RANDOM} --precision fp8", "'fp32', 'fp16'"),
    (f"coreml {RANDOM} --deployment-target iOS9", "'iOS16'"),
    (f"coreml {RANDOM} --input video", "'tensor', 'image'"),
    ("verify {bundle} --runtime tflow", "no runtime 'tflow'"),
    ("verify {bundle} --runtime litert", "litert reads tflite"),
    ("verify {bundle} --report report.txt", ".json, .xml, .md"),
    ("verify {bundle} --report report", ".json, .xml, .md"),
    ("verify {bundle} --gpu", "--gpu checks TFLite"),
    ("verify {bundle} extra", "extra"),
    ("nothing", "No such command"),
    ("verify", "BUNDLE"),
    ("onnx", "--encoder"),
    ("onnx --encoder", "requires an argument"),
    ("onnx --nothing", "--nothing"),
]

WITHOUT_EFFECT = [
    *((f"{c} --encoder test.tinyvit64 --seed 3", "--weights random") for c in EXPORTS),
    *((f"{c} --encoder test.tinyvit64 --weights official --checkpoint mine.txt", "give one of them") for c in EXPORTS),
    *((f"{c} {RANDOM} --checkpoint mine.txt", "exclude each other") for c in EXPORTS),
    *((f"{c} {RANDOM} --decoder-checkpoint mine.txt", "exclude each other") for c in EXPORTS),
    *((f"{c} {RANDOM} --sampler-checkpoint mine.txt", "need --sampler") for c in EXPORTS),
    *((f"{c} {RANDOM} --sampler-size 64", "need --sampler") for c in EXPORTS),
    (f"onnx {RANDOM} --nms host", "need --sampler"),
    (f"onnx {RANDOM} --nms in-graph", "need --sampler"),
    (f"onnx {RANDOM} --sampler test --nms in-graph --precision fp16", "fp32"),
    (f"tflite {RANDOM} --python python3", "--converter onnx2tf"),
    (f"coreml {RANDOM} --points 4", "--points needs --prompts"),
    (f"coreml {RANDOM} --prompts flexible --points 4", "--points needs --prompts"),
    ("verify {bundle} --force", "--report"),
    ("verify {bundle} --decoder-checkpoint mine.txt", "--checkpoint"),
    ("verify {bundle} --sampler-checkpoint mine.txt", "--checkpoint"),
    ("verify {bundle} --checkpoint mine.txt --sampler-checkpoint mine.txt", "has no detector"),
]


def state(*folders):
    """Every path below the folders, and what the files hold."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            plain = path.is_file() and not path.is_symlink()
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else os.path.islink(path)
    return found


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / "mine.json").write_text("mine")
    Image.new("RGB", (8, 6)).save(folder / "photo.png")
    (folder / "folder").mkdir()
    (folder / "folder" / "mine.txt").write_text("mine")
    (folder / "folder.json").mkdir()
    (folder / "link").symlink_to(folder / "folder")
    (folder / "loop").symlink_to(folder / "loop")
    monkeypatch.chdir(folder)
    # no test may download, and what is not in the cache is one line
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fail where a model would be loaded or run."""
    from samexport.exporter import pipeline
    from samexport.runtimes import bundle, registry

    def fail(*_, **__):
        pytest.fail("a model ran")

    monkeypatch.setattr(pipeline, "load_model", fail)
    monkeypatch.setattr(bundle, "open_runtime", fail)
    monkeypatch.setattr(registry, "open_runtime", fail)


@pytest.mark.parametrize(("command", "words"), [*PATHS, *NUMBERS, *CHOICES, *WITHOUT_EFFECT])
def test_bad_input_is_one_line_before_anything_runs(run, tiny_bundle, work, nothing_runs, command, words):
    before = state(work, tiny_bundle.folder)
    arguments = [a.replace("{bundle}", str(tiny_bundle.folder)) for a in shlex.split(command)]
    code, out, err = run(*arguments)
    line = one_line_error(err)
    assert (code, out, words in line) == (2, "", True), err
    assert [each for each in err.splitlines() if not each.startswith("note: ")] == [line]
    assert len(line) < 700
    assert state(work, tiny_bundle.folder) == before


def test_a_folder_without_write_permission_is_refused_before_anything_runs(run, work, nothing_runs, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    code, _, err = run("onnx", *RANDOM.split(), "--out", "bundle")
    assert (code, "may not be written to" in one_line_error(err)) == (2, True)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a file system that takes no folders")
def test_a_file_system_that_takes_nothing_is_refused_before_anything_runs(run, work, nothing_runs):
    code, _, err = run("onnx", *RANDOM.split(), "--out", "/proc/bundle")
    assert (code, "choose another --out" in one_line_error(err)) == (2, True)


@pytest.mark.parametrize("value", ["~nosuchuser", "mine.txt", "mine.txt/cache"])
def test_a_cache_that_cannot_be_used_is_one_line(run, work, monkeypatch, value):
    monkeypatch.setenv("SAMEXPORT_CACHE", value)
    code, _, err = run("onnx", "--encoder", "tinyvit", "--out", "bundle")
    assert (code, "SAMEXPORT_CACHE" in one_line_error(err)) == (2, True)
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert "cache" in out


@pytest.mark.parametrize("name", ["bundle.json", "encoder.onnx", "golden/cases.json", "golden/tensors.npz"])
@pytest.mark.parametrize("make", ["folder", "pipe", "loop", "device"])
def test_a_file_of_a_bundle_that_is_no_file_fails_or_is_refused(run, own_bundle, name, make):
    path = own_bundle.folder / name
    path.unlink()
    if make == "folder":
        path.mkdir()
    elif make == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if make == "loop" else "/dev/zero")
    code, _, err = run("verify", own_bundle.folder)
    one_line_error(err)
    # a link that leaves the bundle is refused like a name that does
    assert code == (2 if name == "bundle.json" or make in ("loop", "device") else 1), err
