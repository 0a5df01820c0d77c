"""What ``import samexport`` offers as functions; each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samexport.errors import ConfigError
from samexport.files import as_path, in_words

if TYPE_CHECKING:
    from torch import nn

    from samexport.benchmarks.results.rows import Results
    from samexport.models.spec import ModelSpec
    from samexport.runtimes.bundle import Bundle
    from samexport.runtimes.families.sam2_tracker import Tracker
    from samexport.runtimes.verdicts import ParityReport

Format = Literal["onnx", "tflite", "coreml"]
AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class ExportResult:
    """A bundle that was exported, and the checks that it passed."""

    bundle: Bundle
    report: ParityReport


def export(
    model: str,
    format: Format = "onnx",
    *,
    weights: AnyPath | Sequence[AnyPath] = "official",
    seed: int = 0,
    recipe: str | None = None,
    out: AnyPath | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> ExportResult:
    """Export a model as a bundle; it appears complete and verified, or not at all.

    Example:
        ``export("mobilesam", "tflite", weights="mobile_sam.pt", out="bundle")``

    Args:
        model: a name of :func:`list_models`.
        format: of the files.
        weights: "official" (cache or download), "demo" (in the package, trained on drawn scenes), "random" (seeded,
            masks mean nothing), or files of a checkpoint.
        seed: of random weights.
        recipe: in which numbers: "int8", or one of ``samexport list --recipes``. The default is the format's own
            (fp16 for CoreML, else fp32). Recipes of integers take ``calibration``, a folder of pictures, and
            ``max_drop``.
        out: the bundle's folder; the default is named after the model.
        force: replace a bundle that is there.
        threads: of the runtimes that check the files.
        progress: is told what is going on.
        options: of the format (``opset``, ``target``, ``deployment_target``, ...) and of
            :class:`samexport.exporter.pipeline.ExportOptions` (``split_decoder``, ``sampler``, ...).

    Raises:
        ConfigError: an option, the checkpoint or the folder cannot be used.
        MissingDependency: the extra of the format ([export], [tflite], [coreml]) is not installed.
        ExportFailed: a converter failed.
        ParityFailed: a file does not compute what PyTorch computes.
    """
    from samexport.exporter.pipeline import ExportOptions, export_bundle

    known = {field.name for field in fields(ExportOptions)}
    general = {name: options.pop(name) for name in tuple(options) if name in known}
    if general.get("calibration") is not None:
        general["calibration"] = as_path(general["calibration"], "calibration is the path of a folder of pictures")
    bundle, report = export_bundle(
        ExportOptions(
            encoder=model,
            out=None if out is None else as_path(out, "out is the path of the bundle's folder"),
            checkpoints=_files(model, weights),
            random_seed=seed if weights == "random" else None,
            target=_target(format, recipe, options),
            force=force,
            threads=threads,
            **general,
        ),
        progress,
    )
    return ExportResult(bundle, report)


def _target(file_format: str, recipe: str | None, options: dict[str, Any]) -> Any:
    from samexport.exporter.formats import FORMATS
    from samexport.exporter.recipes import recipe_name

    if not isinstance(file_format, str) or file_format not in FORMATS:
        raise ConfigError(f"format is one of {', '.join(FORMATS)}, not {file_format!r}")
    kind = FORMATS[file_format].options
    if unknown := set(options) - {field.name for field in fields(kind)}:
        raise ConfigError(f"{file_format} has no option {', '.join(sorted(unknown))}")
    return kind(**options) if recipe is None else kind(recipe=recipe_name(recipe, file_format), **options)


def open(folder: Bundle | AnyPath) -> Bundle:
    """Open a bundle folder; BundleError if it is none. Example: ``open("mobilesam-tinyvit-onnx-fp32")``.

    A bundle that is open already is returned as it is; ConfigError for anything else.
    """
    from samexport.runtimes.bundle import as_bundle

    return as_bundle(folder)


@contextmanager
def open_tracker(
    bundle: Bundle | AnyPath,
    *,
    frames: int | None = None,
    sparse: Mapping[str, Any] | None = None,
    resume: AnyPath | None = None,
    runtime: str | None = None,
    threads: int | None = None,
) -> Iterator[Tracker]:
    """What follows objects through a video, frame by frame; its graphs are closed at the end of the ``with`` block.

    Example::

        with open_tracker("bundle") as tracker:
            tracker.add(0, 1, Prompt.make([420, 300]))
            for picture in camera:  # uint8 RGB [H, W, 3]
                masks = tracker.step(picture).masks()  # bool [objects, H, W]

    Args:
        bundle: one with video graphs, or its folder.
        frames: length of the clip where it is known; None for a stream.
        sparse: what is left out, by the family's own names; None leaves out nothing.
        resume: a file that a tracker was saved in; it goes on from there, with its own ``frames`` and ``sparse``.
        runtime: one that reads the files; the default is the format's own.
        threads: of the runtime.

    Raises:
        ConfigError: an argument cannot be used, the family follows nothing through a video, or ``resume`` comes with
            what it says itself.
        BundleError: the folder is no bundle, or was made for pictures alone.
        FileError: ``resume`` cannot be read.
    """
    from samexport.runtimes.session import OpenGraphs, open_session

    saved = None if resume is None else as_path(resume, "resume is the path of a saved tracker")
    if saved is not None and (frames is not None or sparse is not None):
        raise ConfigError("a saved tracker knows its frames and what it leaves out; give resume alone")
    with closing(OpenGraphs(open(bundle), runtime=runtime, threads=threads)) as graphs:
        session = open_session(graphs)
        yield session.tracker(frames=frames, sparse=sparse) if saved is None else session.resume(saved)


def verify(
    bundle: Bundle | AnyPath,
    reference: Bundle | AnyPath | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Run a bundle's golden cases again; needs no torch.

    Example:
        ``assert verify("bundle").proves``

    Args:
        bundle: a bundle or its folder.
        reference: another bundle of the same model and weights, to compare with as well.
        runtime: one that reads the files; the default is all that check the format here.
        threads: of the runtimes.
        progress: is told what is going on.

    Returns:
        Rows and a verdict; a file that cannot be opened is a failed row.

    Raises:
        ConfigError: the runtime reads no file of the bundle, ``threads`` is out of bounds, or the bundles have nothing
            in common.
        BundleError: a folder is not a bundle.
    """
    from samexport.runtimes.parity.against import verify_against
    from samexport.runtimes.parity.verify import verify_bundle
    from samexport.runtimes.verdicts import ParityReport

    opened, other = open(bundle), None if reference is None else open(reference)
    report = verify_bundle(opened, runtime=runtime, threads=threads, progress=progress)
    if other is None:
        return report
    return ParityReport((*report.rows, *verify_against(opened, other, threads=threads, progress=progress)))


def bench(
    bundles: Bundle | AnyPath | Sequence[Bundle | AnyPath],
    out: AnyPath,
    *,
    show: Callable[[Results], None] = lambda _: None,
    **options: Any,
) -> Results:
    """Time every graph of bundles on the runtimes that run here; writes results.json, .csv, .md, .html and plots.

    Example:
        ``rows = bench("mobilesam-tinyvit-onnx-fp32", "results", prompts=(1, 16)).rows``

    Args:
        bundles: a bundle or its folder, or several.
        out: a folder for the results.
        show: gets the results whenever a row was measured.
        options: of :class:`samexport.benchmarks.command.BenchRequest` (``runtimes``, ``graphs``, ``threads``, ...).

    Raises:
        ConfigError: an option cannot be used, or there are results already.
        MissingDependency: the extra [bench] is not installed.
        BundleError: a folder is not a bundle.
    """
    from samexport.benchmarks.command import BenchRequest, run_bench
    from samexport.benchmarks.contenders.baselines import write_baselines
    from samexport.exporter.to_onnx import torchscript
    from samexport.exporter.to_onnx.convert import convert_plainly

    if unknown := set(options) - {field.name for field in fields(BenchRequest)}:
        raise ConfigError(f"bench has no option {', '.join(sorted(unknown))}")
    folders = tuple(open(each).folder for each in _several(bundles))
    if not folders:
        raise ConfigError("there is no bundle to measure; give one or several")
    request = BenchRequest(folders, as_path(out, "out is the path of a folder for the results"), **options)

    def plain(bundle: Bundle, folder: Path) -> Bundle:
        return write_baselines(bundle, folder, convert_plainly, request.checkpoints, trace=torchscript.convert)

    return run_bench(request, plain, show)


def list_models() -> list[ModelSpec]:
    """The models that can be exported, as data: name, parameters, licence, where the weights are.

    Example:
        ``[model.name for model in list_models() if model.parameters < 20_000_000]``
    """
    from samexport.models.catalog import MODELS

    return [model for model in MODELS.values() if not model.hidden]


def load_model(model: str, *, weights: AnyPath | Sequence[AnyPath] = "official", seed: int = 0) -> nn.Module:
    """A model in torch with its weights, in evaluation mode; ``model``, ``weights`` and ``seed`` as for :func:`export`.

    Example:
        ``state = load_model("mobilesam", weights="mobile_sam.pt").state_dict()``

    Raises:
        ConfigError: there is no such model.
        CheckpointError: the weights cannot be used.
        MissingDependency: the extra [export] is not installed.
    """
    from samexport.models.catalog import find_model
    from samexport.models.loading import load_model as load

    return load(find_model(model), _files(model, weights), seed if weights == "random" else None)[0]


def _files(model: str, weights: AnyPath | Sequence[AnyPath]) -> tuple[Path, ...]:
    if isinstance(weights, str):
        if weights in ("official", "random"):
            return ()
        if weights == "demo":
            from samexport.models.catalog import find_model
            from samexport.models.weights.demo import demo_checkpoint

            return demo_checkpoint(find_model(model))
    wanted = "weights are 'official', 'demo', 'random' or the path of a file, or of several"
    files = tuple(as_path(file, wanted) for file in _several(weights))
    if not files:
        raise ConfigError(f"{wanted}, not {in_words(weights)}")
    return files


def _several(given: Any) -> Iterable[Any]:
    """One thing or several, as several."""
    return given if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]
