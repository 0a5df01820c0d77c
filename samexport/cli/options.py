"""Options that several commands share, each written once."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from samexport.errors import ConfigError

# of rich_help_panel: the groups of --help
WEIGHTS, GRAPHS, BOXES, CHECKS, OUTPUT = "Weights", "Graphs", "Box detector", "Checks", "Output"
MAX_THREADS = max(256, os.cpu_count() or 1)
MAX_SAMPLER_SIZE = 4096
DEFAULT_SEED = 7
MAX_OBJECT = 999_999

WeightsKind = Literal["official", "demo", "random"]


BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which model; `samexport list` shows all.",
        show_default="what --checkpoint holds",
        rich_help_panel=WEIGHTS,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Bundle folder.", show_default="named after the model", rich_help_panel=OUTPUT),
]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Weights, any file of PyTorch or safetensors; repeats: a later file of a whole part replaces that part.",
        rich_help_panel=WEIGHTS,
    ),
]
Weights = Annotated[
    WeightsKind,
    typer.Option(
        help="official: cache or download. demo: in the package, trained on drawn scenes. random: seeded.",
        rich_help_panel=WEIGHTS,
    ),
]
DecoderCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--decoder-checkpoint",
        metavar="FILE",
        help="Prompt encoder and mask decoder from here, as far as the file has them.",
        rich_help_panel=WEIGHTS,
    ),
]
SamplerCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--sampler-checkpoint",
        metavar="FILE",
        help="The detector's weights: ObjectAwareModel.pt, or a state dict in any file.",
        rich_help_panel=BOXES,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_THREADS, metavar="NUMBER", help="Threads of the runtimes.", rich_help_panel=CHECKS),
]
RuntimeName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Runtime; `samexport doctor` lists them.", rich_help_panel=CHECKS)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=OUTPUT)]


CalibrationFolder = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FOLDER",
        help="Your pictures, for the scales of integers and for the gate.",
        show_default="photographs of installed packages",
        rich_help_panel=GRAPHS,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.2,
        metavar="NUMBER",
        help="By how much quantized files' masks may fall below a mean IoU of 1; p5 five times as far.",
        show_default="0.01",
        rich_help_panel=CHECKS,
    ),
]


_NO_ADAPTER = "identity"


def format_names(text: str) -> tuple[str, ...]:
    """What ``--format onnx,tflite`` names, each once; ConfigError for others."""
    from samexport.exporter.formats import FORMATS

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or not set(names) <= set(FORMATS):
        raise ConfigError(f"--format is one or more of {','.join(FORMATS)}, not {text!r}")
    return names


def sparse_switches(sparse: str) -> dict[str, bool] | None:
    """What ``--sparse off|swr|smr|both`` leaves out of a video; None for nothing."""
    if sparse == "off":
        return None
    return {"windows": sparse in ("swr", "both"), "memory": sparse in ("smr", "both")}


@dataclass(frozen=True)
class ExportArguments:
    """What every export command takes. None is what was not given, so that an option without effect is refused."""

    encoder: Encoder = None
    out: Out = None
    checkpoint: Checkpoints = None
    weights: Annotated[
        WeightsKind | None,
        typer.Option(
            help="official: cache or download. demo: in the package, trained on drawn scenes. random: seeded.",
            show_default="official",
            rich_help_panel=WEIGHTS,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="NUMBER",
            help="Seed of random weights.",
            show_default=str(DEFAULT_SEED),
            rich_help_panel=WEIGHTS,
        ),
    ] = None
    decoder_checkpoint: DecoderCheckpoint = None
    split_decoder: Annotated[
        bool,
        typer.Option(
            "--split-decoder",
            help="The decoder in two halves, once an image and once a prompt.",
            rich_help_panel=GRAPHS,
        ),
    ] = False
    small: Annotated[
        bool,
        typer.Option(
            "--small",
            help="ONNX decoders of 17 instead of 27 MB, which compute their position terms when they are opened.",
            rich_help_panel=GRAPHS,
        ),
    ] = False
    image_size: Annotated[
        int | None,
        typer.Option(
            min=64,
            max=2048,
            metavar="PIXELS",
            help="Side of the model's frame, a multiple of 32 (EfficientViT: 256): smaller is faster; not for ViT.",
            show_default="the model's own",
            rich_help_panel=GRAPHS,
        ),
    ] = None
    video: Annotated[
        bool,
        typer.Option(
            "--video",
            help="Also what follows objects through a video (SAM 2).",
            rich_help_panel=GRAPHS,
        ),
    ] = False
    sparse: Annotated[
        bool,
        typer.Option(
            "--sparse",
            help="As --video, and what reads parts of memories; of pictures, too, for hiera_b+, hiera_l.",
            rich_help_panel=GRAPHS,
        ),
    ] = False
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|identity",
            help="For --sparse: the bypass of windows; identity is none at all, not trained.",
            show_default="cache or download",
            rich_help_panel=WEIGHTS,
        ),
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add a detector that proposes boxes: object-aware (MobileSAMv2).",
            rich_help_panel=BOXES,
        ),
    ] = None
    sampler_checkpoint: SamplerCheckpoint = None
    sampler_size: Annotated[
        int | None,
        typer.Option(
            min=32,
            max=MAX_SAMPLER_SIZE,
            metavar="PIXELS",
            help="Side of its input, a multiple of 32.",
            show_default="1024",
            rich_help_panel=BOXES,
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In which numbers, instead of --precision: int8, or one of `samexport list --recipes`.",
            rich_help_panel=GRAPHS,
        ),
    ] = None
    calibration: CalibrationFolder = None
    max_drop: MaxDrop = None
    force: Force = False
    threads: Threads = None
    as_json: Json = False

    def recipe_or(self, precision: str | None, default: str, file_format: str) -> str:
        """The name of the recipe; ConfigError for two of them, or for options that only quantizing has."""
        from samexport.exporter.recipes import find_recipe, recipe_name

        if self.recipe is not None and precision is not None:
            raise ConfigError("--recipe and --precision name two recipes; give one of them")
        name = recipe_name(self.recipe or precision or default, file_format)
        quantizing = self.calibration is not None or self.max_drop is not None
        if quantizing and not find_recipe(name, file_format).parent:
            raise ConfigError(f"--calibration and --max-drop are for recipes that quantize, not {name}")
        return name

    @property
    def random_seed(self) -> int | None:
        """The seed of random weights; None where the weights come from files.

        Raises:
            ConfigError: an option would have no effect.
        """
        if self.weights == "random":
            return DEFAULT_SEED if self.seed is None else self.seed
        if self.seed is not None:
            raise ConfigError("--seed is of random weights; it needs --weights random")
        if self.weights is not None and self.checkpoint:
            raise ConfigError(
                f"--weights {self.weights} and --checkpoint name two sources of weights; give one of them"
            )
        return None

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of weights, those of the package with ``--weights demo``; none for official or random ones.

        An adapter's own file comes last, after the official one where no other is named.
        """
        files = weight_files(self.weights, self.checkpoint, self.model)
        if self.adapter in (None, _NO_ADAPTER) or self.weights == "random":
            return files
        from samexport.models.catalog import find_model
        from samexport.models.weights.checkpoints import check_adapter
        from samexport.models.weights.downloads import official_checkpoint

        adapter = Path(str(self.adapter))
        check_adapter(adapter)
        if not files:
            files = (official_checkpoint(find_model(self.model)),)
        return (*files, adapter)

    @property
    def features(self) -> tuple[str, ...]:
        """What else of the model's family is exported; ConfigError for an adapter of nothing, or beside a drawn one."""
        if self.adapter is not None and not self.sparse:
            raise ConfigError("--adapter is of --sparse; give it")
        if self.weights == "random" and self.adapter not in (None, _NO_ADAPTER):
            raise ConfigError("--weights random draws the bypass, too; leave out --adapter")
        if self.sparse:
            kind = {None: "sparse", _NO_ADAPTER: "sparse-shortcut"}.get(self.adapter, "sparse-adapter")
            return (kind,)
        return ("video",) if self.video else ()

    @functools.cached_property
    def model(self) -> str:
        """The name that was given, or of the model whose weights the first file holds.

        Raises:
            ConfigError: neither is given.
            CheckpointError: the file cannot be read, or is no model's that is known.
        """
        if self.encoder is not None:
            return self.encoder
        if not self.checkpoint:
            raise ConfigError("which model? give --encoder NAME (`samexport list` shows them), or --checkpoint FILE")
        from samexport.models.weights.identify import encoder_of

        return encoder_of(self.checkpoint[0])


def weight_files(weights: WeightsKind | None, checkpoints: list[Path] | None, encoder: str) -> tuple[Path, ...]:
    """The files that ``--weights`` and ``--checkpoint`` mean together; ConfigError for a model without demo weights."""
    if weights != "demo":
        return tuple(checkpoints or ())
    from samexport.models.catalog import find_model
    from samexport.models.weights.demo import demo_checkpoint

    if checkpoints:
        raise ConfigError("--weights demo and --checkpoint name two sources of weights; give one of them")
    return demo_checkpoint(find_model(encoder))


@dataclass(frozen=True)
class ModelArguments(ExportArguments):
    """The same with the model as the first argument."""

    encoder: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Which model; `samexport list` shows all.",
            show_default="what --checkpoint holds",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the bundles.",
            show_default="here, each named after model and format",
            rich_help_panel=OUTPUT,
        ),
    ] = None


Arguments = TypeVar("Arguments")
Command = Callable[..., None]


def takes(shared: type[Arguments]) -> Callable[[Command], Command]:
    """Let a command take the fields of a dataclass as options of its own; it gets them as its first argument."""
    hints = get_type_hints(shared, include_extras=True)
    names = [field.name for field in fields(shared)]  # type: ignore[arg-type]

    def decorate(command: Command) -> Command:
        def call(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(shared(**given), **values)

        common = [p.replace(annotation=hints[p.name]) for p in inspect.signature(shared).parameters.values()]
        own = [*inspect.signature(command, eval_str=True).parameters.values()][1:]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*common, *own)]
        functools.update_wrapper(call, command)
        del call.__wrapped__  # type: ignore[attr-defined]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate
