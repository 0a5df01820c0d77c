"""What it costs to quantize each layer alone: numbers for a table, and a plot."""

from __future__ import annotations

from pathlib import Path

from samexport.exporter.quantize.bundle import copy_files
from samexport.exporter.quantize.job import Cost, Job, Progress, Request, check_request
from samexport.files import new_file
from samexport.installation import need_matplotlib
from samexport.runtimes.bundle import Bundle

PLOTS = (".png", ".svg", ".pdf")
_SHOWN = 40


def layer_costs(bundle: Bundle, request: Request, folder: Path, progress: Progress) -> dict[str, list[Cost]]:
    """By graph, the costliest layer first; ``folder`` does not exist yet and is left with the last trial in it.

    Errors as :func:`samexport.exporter.quantize.bundle.quantize_bundle`, without the gate's.
    """
    check_request(bundle, request)
    copy_files(bundle, folder)
    job = Job(Bundle(folder, bundle.manifest), request, progress)
    return {name: job.costs(name, masks=True) for name in job.graphs}


def plot(costs: dict[str, list[Cost]], path: Path, *, force: bool) -> None:
    """Bars of the costliest layers: SNR, and the mask IoU that each loses; MissingDependency without matplotlib."""
    need_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(name, cost) for name, found in costs.items() for cost in found[:_SHOWN]]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.2 + 0.22 * len(shown)), sharey=True, layout="constrained")
    labels = [cost.layer.label if len(costs) == 1 else f"{name}: {cost.layer.label}" for name, cost in shown]
    places = range(len(shown))
    axes[0].barh(places, [cost.snr_db for _, cost in shown], color="tab:blue")
    axes[0].set_xlabel("SNR of the outputs, dB (lower costs more)")
    axes[1].barh(places, [1 - (cost.mask_iou or 0) for _, cost in shown], color="tab:red")
    axes[1].set_xlabel("lost mask IoU")
    axes[0].set_yticks(list(places), labels, fontsize=7)
    axes[0].invert_yaxis()
    figure.suptitle("each layer quantized alone, the costliest first", fontsize=10)
    with new_file(path, force=force) as private:
        figure.savefig(private, dpi=110)
    pyplot.close(figure)
