"""What ``samexport eval`` does: models and pictures to scores; a table, a report, a verdict."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samexport.cli.terminal import print_table, track
from samexport.errors import ConfigError, ParityFailed
from samexport.exporter.sampler_export import SamplerExport, load_sampler
from samexport.models.catalog import find_model
from samexport.models.contracts import SAMPLER
from samexport.models.loading import load_model, reload_model
from samexport.models.spec import GraphSpec, ModelSpec
from samexport.runtimes.accuracy.annotations import read_annotations
from samexport.runtimes.accuracy.evaluate import (
    MakePrompt,
    Propose,
    Scores,
    Values,
    box_prompt,
    grid_proposals,
    interior_click,
    measure,
    objects_by_size,
    random_click,
)  # fmt: skip
from samexport.runtimes.adapters.pytorch import TorchBundle
from samexport.runtimes.bundle import Bundle, Manifest, SamplerInfo, WeightsInfo, open_bundle
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.tasks.everything import DetectorBoxes, SegmentEverything
from samexport.runtimes.tasks.segment import Segmenter

if TYPE_CHECKING:
    from samexport.models.architectures.sam import Sam

PYTORCH = "PyTorch"
PROMPTS = ("click", "box", "everything")
DETECTOR, GRID = "detector", "grid"
DEFAULT_SEED = 7


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate, on what, with which prompts.

    ``bundle`` None evaluates PyTorch alone, then ``encoder`` names the model. Without ``seed`` the first
    ``max_images`` pictures are taken, and what is random has the seed :data:`DEFAULT_SEED`.
    ``sampler`` makes the proposals: "detector", the bundle's own, or "grid". The checkpoints are those that the
    bundle was exported with. ``max_drop`` is how far the bundle may fall below PyTorch.

    Raises:
        ConfigError: options that do not go together.
    """

    annotations: Path
    images: Path
    bundle: Path | None = None
    pytorch: bool = False
    encoder: str = ""
    checkpoints: tuple[Path, ...] = ()
    random_weights: bool = False
    prompts: tuple[str, ...] = PROMPTS
    click: str = "interior"
    sampler: str = GRID
    points_per_side: int = 32
    decoder_checkpoint: Path | None = None
    sampler_checkpoint: Path | None = None
    max_images: int | None = None
    seed: int | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if not self.prompts or not set(self.prompts) <= set(PROMPTS):
            raise ConfigError(f"--prompts is one or more of {','.join(PROMPTS)}, not {','.join(self.prompts)!r}")
        if self.click not in ("interior", "random"):
            raise ConfigError(f"--click is interior or random, not {self.click!r}")
        if self.sampler not in (DETECTOR, GRID) or (self.sampler == DETECTOR and self.bundle is None):
            raise ConfigError("--sampler is grid, or detector with a bundle that has one")
        if self.bundle is None and not (self.pytorch and self.encoder):
            raise ConfigError("nothing to evaluate; give a bundle, or --pytorch and --encoder")
        if self.bundle is not None and (self.encoder or self.random_weights):
            raise ConfigError("the bundle says what PyTorch runs; leave --encoder and --weights out")
        if self.max_drop is not None and not (self.bundle is not None and self.pytorch):
            raise ConfigError("--max-drop compares a bundle with PyTorch; give the bundle and --pytorch")

    @property
    def random_seed(self) -> int:
        """The seed of clicks and weights."""
        return DEFAULT_SEED if self.seed is None else self.seed

    def prompt_makers(self) -> dict[str, MakePrompt]:
        """How to make the prompts of one object."""
        click = interior_click if self.click == "interior" else partial(random_click, seed=self.random_seed)
        makers: dict[str, MakePrompt] = {"click": click, "box": box_prompt}
        return {name: make for name, make in makers.items() if name in self.prompts}


def run_eval(request: EvalRequest, *, out: Path | None, runtime: str | None, threads: int | None, force: bool) -> None:
    """Evaluate, print the table, write the report.

    Raises:
        SamExportError: annotations, pictures, models or ``out`` cannot be used.
        ParityFailed: the bundle falls more than ``max_drop`` below PyTorch.
    """
    if out is not None:
        _check_out(out, force)
    images = read_annotations(request.annotations, request.images, max_images=request.max_images, seed=request.seed)
    report: dict[str, Any] = {
        "annotations": request.annotations.name,
        "images": len(images),
        "objects": objects_by_size(images),
        **{key: getattr(request, key) for key in ("prompts", "click", "sampler", "points_per_side", "seed")},
        "models": {},
    }
    scores = {}
    for name, bundle in _models(request).items():
        options: dict[str, Any] = {"runtime": None if name == PYTORCH else runtime, "threads": threads}
        with Segmenter(bundle, **options) as segmenter, _proposer(request, segmenter, options) as propose:
            scores[name] = measure(track(images, name), segmenter, request.prompt_makers(), propose)
            facts = {"model": bundle.manifest.model, "weights": asdict(bundle.manifest.weights)}
            report["models"][name] = facts | {"placement": segmenter.placement, **asdict(scores[name])}
        if bundle.manifest.weights.kind == "random":
            print(f"{name} has RANDOM weights: its masks mean nothing")
    difference = _difference(*scores.values()) if len(scores) == 2 else {}
    report["difference"] = difference
    columns, rows = _table(report["objects"], scores, difference)
    print_table(columns, rows)
    if out is not None:
        _write(out, report, columns, rows)
    _judge(difference, request.max_drop)


@contextlib.contextmanager
def _proposer(request: EvalRequest, segmenter: Segmenter, options: Mapping[str, Any]) -> Iterator[Propose | None]:
    """What makes the proposals; None where they are not asked for."""
    if "everything" not in request.prompts:
        yield None
    elif request.sampler == DETECTOR:
        with SegmentEverything(segmenter.bundle, DetectorBoxes(), **options) as everything:
            yield everything.masks
    else:
        # SAM's paper for proposals: no filters, and near duplicates stay
        grid = GridOptions(request.points_per_side, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=0.9)
        yield grid_proposals(segmenter, grid)


def _models(request: EvalRequest) -> dict[str, Bundle]:
    """The bundle under its folder's name, and PyTorch with the same weights."""
    models: dict[str, Bundle] = {}
    if request.bundle is not None:
        bundle = open_bundle(request.bundle)
        models[bundle.folder.resolve().name] = bundle
        if request.pytorch:
            models[PYTORCH] = _reference(bundle, request)
    else:
        seed = request.random_seed if request.random_weights else None
        models[PYTORCH] = torch_bundle(find_model(request.encoder), request.checkpoints, seed)
    return models


def _reference(bundle: Bundle, request: EvalRequest) -> TorchBundle:
    """PyTorch with the bundle's weights; ConfigError if the checkpoints are others."""
    wanted, info = bundle.manifest.weights, bundle.manifest.sampler
    spec = replace(find_model(bundle.manifest.model), mask_outputs=bundle.manifest.mask_outputs)
    sam = reload_model(spec, wanted, request.checkpoints, request.decoder_checkpoint)
    model = _plain_bundle(spec, sam, wanted)
    if request.sampler == DETECTOR and info is not None:
        return _with_detector(model, info, bundle.graph(SAMPLER), request.sampler_checkpoint)
    return model


def _with_detector(model: TorchBundle, info: SamplerInfo, graph: GraphSpec, checkpoint: Path | None) -> TorchBundle:
    ranked = any(tensor.role == "ranked_boxes" for tensor in graph.outputs)
    export = SamplerExport(info.name, checkpoint, info.image_size)  # the host's NMS gives what one in the graph gives
    detector = load_sampler(export, ranked=ranked, random_seed=info.weights.seed or 0)
    if detector.weights.sha256 != info.weights.sha256:
        raise ConfigError(f"the bundle's detector is {info.weights.source}; give it with --sampler-checkpoint")
    plain, module = detector.build(plain=True)
    graphs = (*model.manifest.graphs, plain)
    manifest = replace(model.manifest, graphs=graphs, sampler=detector.info)
    return replace(model, manifest=manifest, modules={**model.modules, SAMPLER: module})


def torch_bundle(
    spec: ModelSpec,
    checkpoints: Sequence[Path] = (),
    random_seed: int | None = None,
    decoder: Path | None = None,
) -> TorchBundle:
    """The architecture without any rewrite in PyTorch, to be used like a bundle; errors as ``load_model``."""
    return _plain_bundle(spec, *load_model(spec, checkpoints, random_seed, decoder))


def _plain_bundle(spec: ModelSpec, sam: Sam, weights: WeightsInfo) -> TorchBundle:
    from samexport.models.build import build_graph

    built = {name: build_graph(sam, spec, name, plain=True) for name in ("encoder", "decoder", "decoder_with_mask")}
    manifest = _manifest(spec, weights)
    return TorchBundle(Path(PYTORCH), manifest, {name: module for name, (_, module) in built.items()})


def _manifest(spec: ModelSpec, weights: WeightsInfo) -> Manifest:
    return Manifest(
        spec.name, spec.summary, spec.licence, spec.frame, spec.mask_outputs, weights, spec.graphs, (), {}, {}, ()
    )


def _difference(bundle: Scores, reference: Scores) -> dict[str, Values]:
    """Bundle minus PyTorch; both saw the same objects, so that a value is missing in both or in none."""
    return {
        metric: {
            label: None if (here := bundle.values[metric][label]) is None or there is None else here - there
            for label, there in values.items()
        }
        for metric, values in reference.values.items()
    }


def _table(
    objects: Mapping[str, int], scores: Mapping[str, Scores], difference: Mapping[str, Values]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of text: objects a size class, then every metric for every model, then the difference."""
    rows = [("objects", "", *map(str, objects.values()))]
    for metric in next(iter(scores.values())).values:
        rows += [(metric, name, *_cells(found.values[metric], "{:.4f}")) for name, found in scores.items()]
        if difference:
            rows.append((metric, "difference", *_cells(difference[metric], "{:+.4f}")))
    return ("metric", "model", *objects), rows


def _cells(values: Values, form: str) -> list[str]:
    return ["-" if value is None else form.format(value) for value in values.values()]


def _judge(difference: Mapping[str, Values], max_drop: float | None) -> None:
    """Over objects of all sizes; size classes may hold a handful."""
    if max_drop is None:
        return
    drops = {metric: -(values["all"] or 0.0) for metric, values in difference.items()}
    failed = tuple(f"{metric} is {drop:.4f} below PyTorch" for metric, drop in drops.items() if drop > max_drop)
    if failed:
        raise ParityFailed(f"{len(failed)} of {len(drops)} metrics fell by more than --max-drop {max_drop:g}", failed)
    print(f"no metric fell by more than {max_drop:g}")


def _check_out(out: Path, force: bool) -> None:
    if out.suffix not in _WRITERS:
        raise ConfigError(f"--out {out.name}: a report ends in {' or '.join(_WRITERS)}")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another name, or --force to overwrite it")


def _write(out: Path, report: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(_WRITERS[out.suffix](report, columns, rows), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}; choose another --out") from error


def _to_json(report: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return json.dumps(report, indent=1) + "\n"


def _to_markdown(report: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"## Accuracy on {report['images']} images of {report['annotations']}", ""]
    lines += [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    for name, model in report["models"].items():
        proposals = "" if model["proposals"] is None else f", {model['proposals']:.1f} proposals an image"
        lines.append(f"- {name}: {model['model']}, {model['weights']['source']}, {model['placement']}{proposals}")
    return "\n".join(lines) + "\n"


_WRITERS: dict[str, Callable[[Mapping[str, Any], Sequence[str], Sequence[Sequence[str]]], str]] = {
    ".json": _to_json,
    ".md": _to_markdown,
}
