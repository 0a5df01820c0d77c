import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from samexport.benchmarks.measuring.adb import (
    Phone,
    PhoneRun,
    arguments,
    find_phone,
    jobs_on_phone,
    parse,
    run_on_phone,
    signatures,
)
from samexport.benchmarks.plan import Plan
from samexport.benchmarks.results.rows import Status
from samexport.errors import ConfigError, MissingDependency
from samexport.runtimes.bundle import Artifact, Bundle
from samexport.runtimes.verdicts import Verdict

# what TensorFlow Lite's benchmark_model prints, recorded from runs
WITH_PERCENTILES = """\
I tflite  : Loaded model /data/local/tmp/model.tflite
VERBOSE: Replacing 271 out of 283 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 7 partitions.
I tflite  : count=4 first=187533 curr=192050 min=187533 max=240880 avg=211669 std=21000
I tflite  : count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 \
median=141253 p95=187533
I tflite  : Inference timings in us: Init: 92318, First inference: 187533, Warmup (avg): 211669, Inference (avg): 145528
I tflite  : Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""
OLDER = """\
count=1 curr=3512391

count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
Peak memory footprint (MB): init=4.92969 overall=138.809
"""
# the lines that LiteRT 2's benchmark_model prints, in two of its versions
BLOCK = """\
INFO: [benchmark_litert_model.h:77]
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:78] Model initialization: 45.32 ms
INFO: [benchmark_litert_model.h:79] Warmup (first):       120.45 ms
INFO: [benchmark_litert_model.h:81] Warmup (avg):         98.76 ms (3 runs)
INFO: [benchmark_litert_model.h:83] Inference (avg):      85.23 ms (50 runs)
INFO: [benchmark_litert_model.h:87] Inference (min):      82.10 ms
INFO: [benchmark_litert_model.h:89] Inference (max):      92.45 ms
INFO: [benchmark_litert_model.h:91] Inference (std):      3.21
INFO: [benchmark_litert_model.h:98] Throughput:           12.45 MB/s
Memory Usage:
INFO: Init footprint:       25.60 MB
INFO: Overall footprint:    32.40 MB
INFO: Peak memory:          35.20 MB
======================================
"""
FIRST_INFERENCE = BLOCK.replace("Warmup (first):       120.45", "First inference:      119.00").replace(
    "INFO: Peak memory:          35.20 MB\n", "INFO: Peak memory usage not available. (peak_mem_mb <= 0)\n"
)


def test_the_line_in_microseconds_is_read():
    found = parse(WITH_PERCENTILES)
    assert (found.load_ms, found.first_ms, found.average_ms) == (92.318, 187.533, 145.528)
    assert (found.median_ms, found.p95_ms, found.min_ms, found.runs) == (141.253, 187.533, 140.071, 25)
    assert found.peak_mb == 73.4102
    assert found.delegated == "TfLiteXNNPackDelegate, 271 of 283 nodes"


def test_an_older_line_with_exponents_and_no_median_is_read():
    found = parse(OLDER)
    assert (found.average_ms, found.median_ms, found.min_ms, found.runs) == (2950.34, None, 2727.568, 50)
    assert (found.first_ms, found.peak_mb, found.delegated) == (3512.391, 138.809, "")


def test_the_block_in_milliseconds_is_read():
    found = parse(BLOCK)
    assert (found.load_ms, found.first_ms, found.average_ms, found.min_ms) == (45.32, 120.45, 85.23, 82.10)
    assert (found.runs, found.peak_mb, found.median_ms) == (50, 35.20, None)


def test_the_block_of_another_version_is_read():
    found = parse(FIRST_INFERENCE)
    assert (found.first_ms, found.peak_mb) == (119.00, 32.40)


@pytest.mark.parametrize("text", ["", "Segmentation fault", BLOCK.split("INFO: [benchmark_litert_model.h:83]")[0]])
def test_output_without_a_result_is_refused(text):
    with pytest.raises(ValueError, match="benchmark_model"):
        parse(text)


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A stand-in adb that notes its calls, and a phone that answers with what ``output`` holds."""
    adb = tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$*" >> {tmp_path}/calls
case "$*" in
  devices) cat {tmp_path}/devices;;
  *ro.product.model) echo 'Pixel 9';;
  *ro.build.version.release) echo 16;;
  *num_runs*) cat {tmp_path}/output; exit $(cat {tmp_path}/code);;
esac
"""
    )
    adb.chmod(adb.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(adb.parent), prepend=":")
    (tmp_path / "devices").write_text("List of devices attached\nSERIAL1\tdevice\n\n")
    (tmp_path / "output").write_text(WITH_PERCENTILES)
    (tmp_path / "code").write_text("0")
    (tmp_path / "benchmark_model").write_text("program")
    return tmp_path


@pytest.fixture
def tflite_bundle(tiny_bundle, tmp_path):
    from tests.tflite_models import built

    graph = built("test.tinyvit64", "decoder")
    options = {"target": "gpu"}
    artifact = Artifact("decoder", graph.path.name, "tflite", "fp32", "", graph.path.stat().st_size, options=options)
    return Bundle(graph.path.parent, replace(tiny_bundle.manifest, artifacts=(artifact,)))


def rows_of(bundle, run):
    return list(run_on_phone(jobs_on_phone([bundle], run, Plan()), run))


def test_the_phone_is_named_by_model_and_version(phone):
    found = find_phone()
    assert (found.serial, found.name) == ("SERIAL1", "Pixel 9, Android 16")


@pytest.mark.parametrize(
    ("devices", "serial", "message"),
    [
        ("", "", "it sees none"),
        ("A\tdevice\nB\tdevice\n", "", "it sees A, B"),
        ("A\tdevice\n", "B", "it sees A"),
        ("A\tunauthorized\n", "", "the phone A is unauthorized; unlock it"),
    ],
)
def test_no_phone_or_several_are_refused(phone, devices, serial, message):
    (phone / "devices").write_text(f"List of devices attached\n{devices}\n")
    with pytest.raises(ConfigError, match=message):
        find_phone(serial)


def test_one_of_several_phones_can_be_named(phone):
    (phone / "devices").write_text("List of devices attached\nA\tdevice\nB\tdevice\n")
    assert find_phone("B").serial == "B"


def test_without_adb_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="adb"):
        find_phone()


def test_every_signature_is_pushed_and_timed(phone, tflite_bundle):
    run = PhoneRun(find_phone(), phone / "benchmark_model", ("cpu", "gpu"))
    rows = rows_of(tflite_bundle, run)
    artifact = tflite_bundle.manifest.artifacts[0]
    names = signatures(tflite_bundle.folder / artifact.path, tflite_bundle.graph(artifact.graph))
    assert [n for _, n in names] == [1, 4]
    assert [(r.job.prompts, r.job.runtime) for r in rows] == [
        (n, f"litert-{a}") for _, n in names for a in ("cpu", "gpu")
    ]
    first = rows[0]
    assert (first.status, first.device) == (Status.DONE, "Pixel 9, Android 16")
    assert (first.measured.p50_ms, first.measured.load_ms, first.measured.runs) == (141.253, 92.318, 25)
    assert first.measured.parity.verdict is Verdict.SKIPPED
    calls = (phone / "calls").read_text()
    assert f"push {run.program} /data/local/tmp/samexport/benchmark_model" in calls
    assert f"--signature_to_run_for={names[1][0]}" in calls
    assert "--use_gpu=true" in calls
    assert calls.count("-s SERIAL1") >= 8
    assert {(r.job.source.model, r.job.options) for r in rows} == {("test.tinyvit64", "target=gpu")}
    # nothing stays there
    pushed = {line.split()[-1] for line in calls.splitlines() if " push " in line}
    removed = {line.split()[-1] for line in calls.splitlines() if " rm " in line}
    assert len(pushed) == 2
    assert removed == pushed


def test_what_goes_through_the_phones_shell_is_quoted(phone, tflite_bundle, tmp_path):
    """adb joins the words with blanks for the phone's sh."""
    evil = "x; touch PWNED $(touch PWNED) 'y'.tflite"
    (artifact,) = tflite_bundle.manifest.artifacts
    folder = tmp_path / "evil"
    folder.mkdir()
    shutil.copy(tflite_bundle.folder / artifact.path, folder / evil)
    bundle = Bundle(folder, replace(tflite_bundle.manifest, artifacts=(replace(artifact, path=evil),)))
    rows = rows_of(bundle, PhoneRun(find_phone(), phone / "benchmark_model"))
    assert {r.status for r in rows} == {Status.DONE}
    shell = [line.split(" shell ", 1)[1] for line in (phone / "calls").read_text().splitlines() if " shell " in line]
    assert any(line.startswith("rm ") and "PWNED" in line for line in shell)
    for line in shell:
        # the words that the phone's shell makes of it
        words = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {line}"], cwd=folder, capture_output=True, text=True
        ).stdout
        assert [word for word in words.splitlines() if "PWNED" in word] in (
            [],
            [f"/data/local/tmp/samexport/{evil}"],
            [f"--graph=/data/local/tmp/samexport/{evil}"],
        )
    assert sorted(p.name for p in folder.iterdir()) == [evil]


def test_rows_come_one_by_one_and_a_phone_that_goes_away_costs_only_the_rest(phone, tflite_bundle):
    run = PhoneRun(find_phone(), phone / "benchmark_model")
    rows = run_on_phone(jobs_on_phone([tflite_bundle], run, Plan()), run)
    assert next(rows).status is Status.DONE
    (phone / "code").write_text("1")
    assert [r.status for r in rows] == [Status.FAILED]


def test_a_phone_without_a_tflite_file_is_refused(phone, tiny_bundle):
    with pytest.raises(ConfigError, match="TFLite"):
        jobs_on_phone([tiny_bundle], PhoneRun(find_phone(), phone / "benchmark_model"), Plan())


@pytest.mark.parametrize(("output", "code"), [("Aborted", "134"), ("no result here", "0")])
def test_a_run_that_fails_on_the_phone_is_a_failed_row(phone, tflite_bundle, output, code):
    (phone / "output").write_text(output)
    (phone / "code").write_text(code)
    rows = rows_of(tflite_bundle, PhoneRun(find_phone(), phone / "benchmark_model"))
    assert [r.status for r in rows] == [Status.FAILED] * 2
    assert output in rows[0].reason or "benchmark_model" in rows[0].reason


def test_an_encoder_has_no_prompts():
    from tests.tflite_models import built

    encoder = built("test.tinyvit64", "encoder")
    assert signatures(encoder.path, encoder.graph)[0][1] == 0
    run = PhoneRun(Phone("S", "P"), Path(__file__))
    program, graph, *flags = arguments(run, "encoder.tflite", "encode", "cpu")
    assert program == "/data/local/tmp/samexport/benchmark_model"
    assert graph == "--graph=/data/local/tmp/samexport/encoder.tflite"
    assert "--use_xnnpack=true" in flags


def test_a_program_that_is_not_there_is_refused(phone):
    with pytest.raises(ConfigError, match="--benchmark-model"):
        PhoneRun(find_phone(), phone / "nothing")
    with pytest.raises(ConfigError, match="no accelerator is called 'dsp'"):
        PhoneRun(find_phone(), phone / "benchmark_model", ("dsp",))
