"""What ``samexport eval --video`` does: annotated clips to J and F; a table and a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samexport.cli.terminal import ProgressBar, print_table, print_written
from samexport.errors import ConfigError, SamExportError
from samexport.files import check_output, to_json, write_text

if TYPE_CHECKING:
    from samexport.runtimes.accuracy.video import ObjectScores


@dataclass(frozen=True)
class VideoRequest:
    """What to follow where: a bundle with video graphs, a data set in DAVIS' layout, some of its sequences.

    ``sparse`` is what is left out, as :meth:`samexport.runtimes.session.Session.tracker` takes it.
    """

    bundle: Path
    root: Path
    sequences: tuple[str, ...] = ()
    sparse: dict[str, Any] | None = None


def run_eval_video(
    request: VideoRequest, *, out: Path | None, runtime: str | None, threads: int | None, force: bool
) -> None:
    """Follow every object from its first annotation on, print the table, write the report.

    A clip that cannot be used does not end it: it is told, and is what the command ends with.

    Raises:
        SamExportError: the bundle, the data set, ``out`` or a clip cannot be used.
    """
    from samexport.runtimes.accuracy.video import score_sequence, sequences
    from samexport.runtimes.bundle import MANIFEST, open_bundle
    from samexport.runtimes.session import OpenGraphs, open_session

    if out is not None:
        check_output(out, force=force, endings=(".json",), inputs=[request.bundle / MANIFEST])
    found = sequences(request.root)
    if unknown := sorted(set(request.sequences) - {each.name for each in found}):
        raise ConfigError(f"{request.root} has no sequence {unknown[0]!r}")
    wanted = [each for each in found if not request.sequences or each.name in request.sequences]
    bundle = open_bundle(request.bundle)
    scores: list[ObjectScores] = []
    failed: SamExportError | None = None
    with closing(OpenGraphs(bundle, runtime=runtime, threads=threads)) as graphs:
        open_tracker = partial(open_session(graphs).tracker, sparse=request.sparse)
        open_tracker()  # refuses a bundle without it before the clips are read
        if warning := bundle.manifest.weights.warning:
            print(f"this bundle has {warning}")
        with ProgressBar() as bar:
            for number, sequence in enumerate(wanted, 1):
                told = f"{sequence.name}, {number} of {len(wanted)}"
                try:
                    scores += score_sequence(sequence, open_tracker, partial(bar.update, told))
                except SamExportError as error:
                    failed = error
                    print(f"{sequence.name} is left out: {error}", file=sys.stderr)
    if scores:
        _print(scores)
    if scores and out is not None:
        write_text(out, to_json(_report(request, bundle.manifest.model, scores)), force=force)
        print_written([out])
    if failed is not None:
        raise failed
    if not scores:
        raise ConfigError(f"{request.root} has no object that is annotated on three frames, so nothing was measured")


def _means(scores: Sequence[ObjectScores]) -> tuple[float, float, float]:
    """J&F, J and F of all objects."""
    rows = np.array([(each.both, each.region, each.boundary) for each in scores])
    both, region, boundary = rows.mean(axis=0).tolist()
    return both, region, boundary


def _print(scores: Sequence[ObjectScores]) -> None:
    rows = [(f"{each.sequence}, object {each.object}", (each.both, each.region, each.boundary)) for each in scores]
    rows.append((f"mean of {len(scores)}", _means(scores)))
    print_table(("", "J&F", "J", "F"), [(name, *(f"{100 * value:.1f}" for value in values)) for name, values in rows])


def _report(request: VideoRequest, model: str, scores: Sequence[ObjectScores]) -> dict[str, Any]:
    both, region, boundary = _means(scores)
    return {
        "bundle": str(request.bundle),
        "model": model,
        "data": str(request.root),
        "sparse": request.sparse,
        "j_and_f": both,
        "j": region,
        "f": boundary,
        "objects": [asdict(each) | {"j_and_f": each.both} for each in scores],
    }
