"""What ``samexport eval`` does: models and pictures to scores; a table, a report, a verdict."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samexport.benchmarks.progress import Steps
from samexport.cli.terminal import print_table, print_written
from samexport.errors import ConfigError, FileError, ImageError, ParityFailed
from samexport.exporter.sampler_export import SamplerExport, load_sampler
from samexport.files import check_output, reason, to_json, write_text
from samexport.models.catalog import find_model
from samexport.models.families.detector import SAMPLER
from samexport.models.loading import load_model, reload_model
from samexport.models.spec import GraphSpec, ModelSpec
from samexport.runtimes.accuracy.annotations import AnnotatedImage, Annotations, read_annotations
from samexport.runtimes.accuracy.evaluate import (
    MakePrompt,
    PictureScores,
    Propose,
    Scores,
    Values,
    box_prompt,
    box_proposals,
    combine,
    grid_proposals,
    interior_click,
    objects_by_size,
    random_click,
    score_picture,
)  # fmt: skip
from samexport.runtimes.accuracy.report import Cells, difference, judge, table, to_markdown
from samexport.runtimes.bundle import MANIFEST, Bundle, SamplerInfo, open_bundle
from samexport.runtimes.host.grid import GridOptions
from samexport.runtimes.tasks.everything import DetectorBoxes, GivenBoxes, SegmentEverything
from samexport.runtimes.tasks.segment import Segmenter
from samexport.runtimes.torch_bundle import TorchBundle, plain_bundle

PYTORCH = "PyTorch"
PROMPTS = ("click", "box", "everything")
DETECTOR, GRID, BOXES = "detector", "grid", "boxes"
DEFAULT_SEED = 7


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate, on what, with which prompts.

    ``bundle`` None evaluates PyTorch alone, then ``encoder`` names the model. Without ``seed`` the first
    ``max_images`` pictures are taken, and what is random has the seed :data:`DEFAULT_SEED`.
    ``sampler`` makes the proposals: "detector", the bundle's own, "grid", or "boxes", the
    annotated ones as a detector's stand-in. The checkpoints are those that the
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
        if self.sampler not in (DETECTOR, GRID, BOXES) or (self.sampler == DETECTOR and self.bundle is None):
            raise ConfigError("--sampler is grid, boxes, or detector with a bundle that has one")
        if self.bundle is None and not (self.pytorch and self.encoder):
            raise ConfigError("nothing to evaluate; give a bundle, or --pytorch and --encoder")
        if self.bundle is not None and (self.encoder or self.random_weights):
            raise ConfigError("the bundle says what PyTorch runs; leave --encoder and --weights out")
        if self.max_drop is not None and not (self.bundle is not None and self.pytorch):
            raise ConfigError("--max-drop compares a bundle with PyTorch; give the bundle and --pytorch")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise ConfigError(f"--max-drop is from 0 to 1, as scores are, not {self.max_drop}")

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
    """Evaluate, print the table, write the report: at every hundredth of the way, and whatever ends it.

    A picture that cannot be read, or that a model fails on, does not end it: the scores are of the others.

    Raises:
        SamExportError: annotations, models or ``out`` cannot be used.
        ParityFailed: the bundle falls more than ``max_drop`` below PyTorch, or a model failed on a picture.
        ImageError: a picture could not be used.
    """
    if out is not None:
        _check_out(out, force, request)
    data = read_annotations(request.annotations, request.images, max_images=request.max_images, seed=request.seed)
    models = _models(request)
    state = _State(request, data, {name: {} for name in models}, out)
    for note in data.notes:
        print(note)
    options: dict[str, Any] = {"threads": threads}
    try:
        with Steps(len(models) * len(data.images), lines=20) as steps:
            for name, bundle in models.items():
                options["runtime"] = None if name == PYTORCH else runtime
                with Segmenter(bundle, **options) as segmenter, _proposer(request, segmenter, options) as propose:
                    state.begin(name, bundle, segmenter)
                    for number, image in enumerate(data.images):
                        steps.begin(f"{name}: {image.path.name}")
                        state.score(name, image, segmenter, propose)
                        steps.end()
                        if number % max(1, len(data.images) // 100) == 0:
                            state.write()
        state.complete = True
    finally:
        state.show()
        state.write()
    if out is not None and out.exists():
        print_written([out])
    state.conclude()


@dataclass
class _State:
    """What has been scored so far: by model, then by the id of the picture."""

    request: EvalRequest
    data: Annotations
    scores: dict[str, dict[int, PictureScores]]
    out: Path | None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    model_failed: bool = False
    complete: bool = False

    def begin(self, name: str, bundle: Bundle, segmenter: Segmenter) -> None:
        """A model's turn."""
        weights = bundle.manifest.weights
        if weights.warning:
            print(f"{name} has {weights.warning}")
        placement = segmenter.placement
        self.facts[name] = {"model": bundle.manifest.model, "weights": asdict(weights), "placement": placement}

    def score(self, name: str, image: AnnotatedImage, segmenter: Segmenter, propose: Propose | None) -> None:
        """Score a model on a picture, unless another model failed on it: all models see the same objects."""
        if image.id in self.problems:
            return
        try:
            found = score_picture(image, image.read(), segmenter, self.request.prompt_makers(), propose)
        except (ImageError, ParityFailed) as error:
            self.problems[image.id] = str(error) if isinstance(error, ImageError) else f"{name}, {image.path}: {error}"
            self.model_failed |= isinstance(error, ParityFailed)
        else:
            self.scores[name][image.id] = found

    def totals(self) -> dict[str, Scores]:
        """The scores of each model that has some."""
        return {name: combine(pictures) for name, pictures in self._kept.items() if pictures}

    def difference(self, totals: Mapping[str, Scores]) -> dict[str, Values]:
        """Bundle minus PyTorch, once both have seen every picture."""
        seen = [pictures.keys() - self.problems.keys() for pictures in self.scores.values()]
        return difference(*totals.values()) if len(totals) == 2 and seen[0] == seen[1] else {}

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know."""
        turned = [i.path.name for i in self.data.images if i.id in self._seen and i.ambiguous]
        if not turned:
            return self.data.notes
        what = "is turned by its" if len(turned) == 1 else "are turned by their"
        note = (
            f"{len(turned)} of the pictures ({', '.join(turned[:3])}{', ...' if len(turned) > 3 else ''}) {what} EXIF"
            " orientation, and no size tells whether the annotations are for the stored or the upright picture: the"
            " upright one is scored"
        )
        return [*self.data.notes, note]

    @property
    def _kept(self) -> dict[str, list[PictureScores]]:
        """The scores on the pictures that no model failed on."""
        return {
            name: [found for id_, found in pictures.items() if id_ not in self.problems]
            for name, pictures in self.scores.items()
        }

    @property
    def _seen(self) -> set[int]:
        return {id_ for pictures in self.scores.values() for id_ in pictures}

    def report(self) -> tuple[dict[str, Any], tuple[Cells, list[Cells]] | None]:
        """What the .json holds, and the table where there are scores."""
        totals = self.totals()
        change = self.difference(totals)
        images = [i for i in self.data.images if i.id not in self.problems]
        request = self.request
        report = {
            "annotations": request.annotations.name,
            "complete": self.complete,
            "images": len(images),
            "objects": objects_by_size(images),
            **{key: getattr(request, key) for key in ("prompts", "click", "sampler", "points_per_side", "seed")},
            "models": {
                name: self.facts[name] | {"images": len(self._kept[name]), **asdict(found)}
                for name, found in totals.items()
            },
            "difference": change,
            "notes": self.notes if self.complete else self.data.notes,
            "problems": list(self.problems.values()),
        }
        return report, table(report["objects"], totals, change) if totals else None

    def write(self) -> None:
        """The report as it is now."""
        report, cells = self.report()
        if self.out is None or cells is None:
            return
        text = to_json(report) if self.out.suffix.lower() == ".json" else to_markdown(report, *cells)
        write_text(self.out, text, force=True)

    def show(self) -> None:
        """Print the table of what there is, and what was not measured."""
        _, cells = self.report()
        if cells is not None:
            print_table(*cells)
        for note in self.notes[len(self.data.notes) :]:
            print(note)
        for problem in self.problems.values():
            print(f"not measured: {problem}", file=sys.stderr)

    def conclude(self) -> None:
        """The verdict.

        Raises:
            ParityFailed: the gate fails, or a model failed on a picture.
            ImageError: a picture could not be used.
        """
        total, failed = len(self.data.images), len(self.problems)
        if self.request.max_drop is not None:
            judge(self.difference(self.totals()), self.request.max_drop)
            print(f"no metric fell by more than {self.request.max_drop:g}")
        if failed:
            kind = ParityFailed if self.model_failed else ImageError
            scored = f"the scores are of the other {total - failed}" if failed < total else "there are no scores"
            nothing = ": no picture could be used" if failed == total and not self.model_failed else ""
            raise kind(f"{failed} of {total} pictures were not measured{nothing}; {scored}")


@contextlib.contextmanager
def _proposer(request: EvalRequest, segmenter: Segmenter, options: Mapping[str, Any]) -> Iterator[Propose | None]:
    """What makes the proposals; None where they are not asked for."""
    if "everything" not in request.prompts:
        yield None
    elif request.sampler == DETECTOR:
        with SegmentEverything(segmenter.bundle, DetectorBoxes(), **options) as everything:
            yield lambda _, picture: everything.masks(picture)
    elif request.sampler == BOXES:
        none = GivenBoxes(np.zeros((0, 4)), np.zeros(0))
        with SegmentEverything(segmenter.bundle, none, **options) as everything:
            yield box_proposals(everything)
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
    spec = replace(
        find_model(bundle.manifest.model, bundle.manifest.frame.size), mask_outputs=bundle.manifest.mask_outputs
    )
    network = reload_model(spec, wanted, request.checkpoints, request.decoder_checkpoint)
    model = plain_bundle(spec, network, wanted, Path(PYTORCH))
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
    network, weights = load_model(spec, checkpoints, random_seed, decoder)
    return plain_bundle(spec, network, weights, Path(PYTORCH))


def _check_out(out: Path, force: bool, request: EvalRequest) -> None:
    """Refuse a report that cannot be written, or that is something else that this command reads."""
    inputs = [request.annotations, *request.checkpoints]
    inputs += [path for path in (request.decoder_checkpoint, request.sampler_checkpoint) if path is not None]
    if request.bundle is not None:
        inputs += [request.bundle / MANIFEST, *request.bundle.rglob("*")]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"{str(out)[:200]} cannot be written: {reason(error)}; choose another --out") from error
    check_output(out, force=force, endings=_ENDINGS, inputs=inputs)


_ENDINGS = (".json", ".md")
