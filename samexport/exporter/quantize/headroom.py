"""How far a bundle's tensors are from the end of half precision, over pictures. Needs no torch for ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from samexport.errors import ConfigError
from samexport.exporter.quantize.calibration import fed
from samexport.exporter.quantize.job import Progress, Request
from samexport.runtimes.accuracy.agreement import Asked, ask
from samexport.runtimes.adapters.onnx_ranges import HALF_MAX, Peak, file_peaks
from samexport.runtimes.bundle import Bundle


def headroom(bundle: Bundle, request: Request, progress: Progress) -> dict[str, list[Peak]]:
    """By graph, the largest absolute value of every tensor and of every sum inside a LayerNorm, the largest first.

    Files in fp32 are told for as well: what they hold is what half precision would have to.

    Raises:
        ConfigError: a graph that was named is fed by no picture or prompt.
    """
    progress("asking the bundle")
    longest = bundle.manifest.frame.size
    asked = list(ask(bundle, request.pictures.read(longest), threads=request.threads))
    found = {}
    for name in request.graphs or bundle.graph_names:
        progress(f"looking at the range of {name}")
        try:
            peaks = _peaks(bundle, name, request, asked)
        except ConfigError:
            if request.graphs:
                raise
            continue
        found[name] = sorted(peaks, key=lambda peak: -peak.largest)
    return found


def times(peak: Peak) -> float:
    """How many times larger activations may get before half precision ends; a square grows with their square."""
    ratio = HALF_MAX / peak.largest if peak.largest else float("inf")
    return sqrt(ratio) if peak.source.startswith("squares") else ratio


def _peaks(bundle: Bundle, name: str, request: Request, asked: Sequence[Asked]) -> list[Peak]:
    artifact, inputs = bundle.artifact(name), fed(bundle, name, asked, request.threads)
    path = bundle.folder / artifact.path
    if artifact.file_format == "onnx":
        return file_peaks(path, inputs, threads=request.threads)
    from samexport.runtimes.adapters.mil import MilRuntime

    largest: dict[tuple[str, str], Peak] = {}
    with MilRuntime(path, bundle.graph(name), threads=request.threads, precision="fp32") as runtime:
        for each in inputs:
            for seen in runtime.ranges(each).every:
                value = max(-seen.low, seen.high) if seen.finite else float("inf")
                peak = largest.setdefault((seen.kind, seen.name), Peak(f"{seen.kind} {seen.name}", seen.name, value))
                largest[seen.kind, seen.name] = replace(peak, largest=max(value, peak.largest))
    return list(largest.values())
