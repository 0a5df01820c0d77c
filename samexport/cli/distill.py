"""``samexport distill``: options to a call of :mod:`samexport.training.distill`, whose imports take a second."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from samexport.cli.options import OUTPUT
from samexport.cli.pictures import find_pictures
from samexport.cli.terminal import ProgressBar
from samexport.cli.train import TRAINING, Device, require, torch_device
from samexport.errors import ConfigError, FileError
from samexport.files import check_outside_bundles

if TYPE_CHECKING:
    from samexport.models.architectures.sam import Sam
    from samexport.models.spec import ModelSpec, WeightsInfo
    from samexport.training.storage import StoredPicture

TEACHER = "Teacher"


def distill(
    teacher: Annotated[
        Path,
        typer.Option(metavar="PATH", help="A bundle, or a file of weights.", rich_help_panel=TEACHER),
    ],
    images: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Pictures; no labels. Or s3://bucket/folder.", rich_help_panel=TRAINING),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Checkpoint, report, cache.", rich_help_panel=OUTPUT)],
    student: Annotated[
        str, typer.Option(metavar="NAME", help="What is trained.", rich_help_panel=TRAINING)
    ] = "tinyvit",
    teacher_encoder: Annotated[
        str, typer.Option(metavar="NAME", help="Whose weights the file has.", rich_help_panel=TEACHER)
    ] = "vit_h",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="The weights that the bundle was made from; repeats.", rich_help_panel=TEACHER
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="How many.", rich_help_panel=TRAINING)] = 10_000,
    batch: Annotated[
        int, typer.Option(min=1, max=1024, metavar="NUMBER", help="Pictures a step.", rich_help_panel=TRAINING)
    ] = 8,
    held_out: Annotated[
        int,
        typer.Option(
            min=1, metavar="NUMBER", help="Pictures to measure on, the last by name.", rich_help_panel=TRAINING
        ),
    ] = 8,
    through_decoder: Annotated[
        bool,
        typer.Option("--through-decoder", help="Compare masks too, not embeddings alone.", rich_help_panel=TRAINING),
    ] = False,
    coupled: Annotated[
        bool,
        typer.Option(
            "--coupled", help="Teach the teacher's masks alone, decoder and all, to compare.", rich_help_panel=TRAINING
        ),
    ] = False,
    learning_rate: Annotated[
        float, typer.Option(min=1e-8, max=1, metavar="NUMBER", help="Its peak.", rich_help_panel=TRAINING)
    ] = 1e-3,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31, metavar="NUMBER", help="Of weights and order.", rich_help_panel=TRAINING)
    ] = 0,
    device: Device = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="The teacher sees the pictures on a Ray cluster.", rich_help_panel=TRAINING),
    ] = False,
) -> None:
    """Train a small encoder to give a large one's embeddings; the decoder stays the large one's (MobileSAM's recipe).

    The teacher sees each picture once: its embeddings stay in the folder's cache, so that a run that was stopped does
    not compute them again. The folder gets student.safetensors, for --checkpoint of every export. Runs on several
    processes under torchrun; --ray fills the cache on the cluster of RAY_ADDRESS, or on this machine's processes
    (extra [ray], which also reads pictures by addresses that Arrow knows: s3, gs, hdfs, file).
    """
    if coupled and through_decoder:
        raise ConfigError("--coupled teaches masks alone; leave --through-decoder out")
    paths = _pictures(images)
    if len(paths) <= held_out:
        raise ConfigError(
            f"{images} has {len(paths)} pictures, of which --held-out keeps {held_out}; none is left, keep fewer"
        )
    if out.resolve() == Path(images).resolve():
        raise FileError(f"{out} has the pictures; --out names another folder")
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; --out names a folder")
    check_outside_bundles(out)
    if (out / "student.safetensors").exists():
        raise FileError(f"{out} has a student already; name another folder")
    require("torch", "safetensors")
    from samexport.models.catalog import find_model
    from samexport.training.cache import EmbeddingCache
    from samexport.training.distill import DistillSettings, check_pair, distil, encoding
    from samexport.training.storage import need_ray

    if ray:
        need_ray()
    chosen = torch_device(device)
    network, spec, weights = _teacher(teacher, teacher_encoder, tuple(checkpoint or ()))
    small = find_model(student, spec.frame.size)
    check_pair(spec, small)
    if weights.warning:
        print(f"note: the teacher has {weights.warning}", file=sys.stderr)

    identity = {"model": spec.name, "weights": weights.source, "sha256": weights.sha256}
    cache = EmbeddingCache(out / "cache", paths, identity, spec.frame, encoding(network, spec.frame, chosen))
    settings = DistillSettings(
        steps, batch, learning_rate, float(through_decoder), coupled, held_out, seed=seed, device=chosen
    )
    out.mkdir(parents=True, exist_ok=True)
    with ProgressBar() as bar:
        found = distil(network, small, cache, settings, out, bar.update, by_ray=ray)
    if found is not None:
        print(
            f"beside the teacher: mean square error {found.error:.5f}, IoU {found.click:.3f} of one click,"
            f" {found.box:.3f} of a box"
        )
        print(f"wrote {out}; export it with --encoder {student} --checkpoint {out / 'student.safetensors'}")


def _pictures(images: str) -> tuple[Path | StoredPicture, ...]:
    from samexport.training.storage import is_stored, stored_pictures

    if is_stored(images):
        return stored_pictures(images)
    if not Path(images).is_dir():
        raise ConfigError(f"{images} is no folder; --images names one with pictures")
    return tuple(Path(str(source.path)) for source in find_pictures([images]))


def _teacher(path: Path, encoder: str, files: tuple[Path, ...]) -> tuple[Sam, ModelSpec, WeightsInfo]:
    """The teacher in torch, what it is, and its weights: those of a bundle, or a file's."""
    from samexport.models.catalog import find_model
    from samexport.models.loading import load_model, reload_model
    from samexport.runtimes.bundle import open_bundle

    if path.is_dir():
        manifest = open_bundle(path).manifest
        spec = find_model(manifest.model, manifest.frame.size)
        return cast("Sam", reload_model(spec, manifest.weights, files)), spec, manifest.weights
    if files:
        raise ConfigError("--checkpoint goes with a bundle as --teacher; a file of weights is the teacher itself")
    spec = find_model(encoder)
    network, info = load_model(spec, [path])
    return cast("Sam", network), spec, info
