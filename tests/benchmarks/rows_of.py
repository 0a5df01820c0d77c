"""Rows and results made by hand, for tests of what is done with them."""

from dataclasses import replace

from samexport.benchmarks.results.rows import (
    BenchRow,
    Environment,
    Job,
    Measurement,
    Pair,
    Parity,
    Results,
    Source,
    Status,
)
from samexport.runtimes.verdicts import Verdict

PASS = Parity(Verdict.PASS, "", 1e-6, 118.0, 1.0)
ENVIRONMENT = Environment(
    cpu="Test CPU", cpu_flags=("avx2",), cores=2, logical_cores=2, governor="performance",
    memory_gb=8.0, load_average=(0.1, 0.2, 0.3), system="Linux", python="3.11", gpu="",
    libraries={"onnxruntime": "1.31.1"}, git_commit="abc123",
)  # fmt: skip
SOURCE = Source("b", "test.tinyvit64", "seed 7")


def job(graph="decoder", **changes):
    made = Job("/b", graph, f"{graph}.onnx", "export", "fp32", "onnxruntime", 2, 16, source=SOURCE)
    source = {name: changes.pop(name) for name in ("label", "model", "weights") if name in changes}
    return replace(made, source=replace(SOURCE, **source), **changes)


def row(p50=100.0, *, fastest=None, memory=200.0, parity=PASS, status=Status.DONE, reason="", loaded=False, **changes):
    measured = Measurement(
        parity, "CPU", 12.0, 150.0, p50, p50 and p50 * 1.2, fastest or (p50 and p50 * 0.9), 25, memory, 60.0,
        0.5 if loaded else 0.01,
    )  # fmt: skip
    return BenchRow(
        job(**changes), "cpu", status, measured, reason,
        size_mb=20.0, gmac=10.0, gmac_per_s=100.0, peak_share=0.5, loaded=loaded,
    )  # fmt: skip


def pair(ratio=0.5, **changes):
    made = Pair(
        job(), job(form="plain", file="decoder.plain.onnx"), Status.DONE, "", ratio, ratio * 0.97, ratio * 1.03,
        ratio, ratio, 100.0 * ratio, 100.0, 20, 0.02, PASS, PASS,
    )  # fmt: skip
    return replace(made, **changes)


def results(*rows, pairs=(), **environment):
    return Results(
        "2026-01-02 03:04 UTC", "samexport bench b", replace(ENVIRONMENT, **environment),
        {"fp32": 100.0, "bf16": 200.0, "copy_gb_per_s": 20.0}, tuple(rows), tuple(pairs),
    )  # fmt: skip
