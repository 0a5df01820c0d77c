"""From a model of the catalogue and weight files to torch: the one way for export, verify, eval and bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from samexport.errors import CheckpointError, ConfigError, MissingDependency
from samexport.installation import install_hint
from samexport.interrupts import load
from samexport.models.catalog import find_family
from samexport.models.spec import ModelSpec, WeightsInfo
from samexport.models.weights.demo import demo_checkpoint

if TYPE_CHECKING:
    from torch import nn


def import_torch(what: str = "exporting") -> None:
    """Whatever reads weights and exports comes with torch; MissingDependency says that ``what`` needs it."""
    try:
        load("torch")
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{what} needs {error.name}: {install_hint('export')}") from error


def empty_network(spec: ModelSpec, checkpoints: Sequence[Path] = ()) -> nn.Module:
    """The model's network without values, of the widths that the checkpoints have where they decide them.

    Raises:
        MissingDependency: torch is not installed.
        CheckpointError: a file is absent, damaged or unsafe, or has no such widths.
    """
    import_torch("a model in PyTorch")
    from samexport.models.weights.checkpoints import shapes_in

    network: nn.Module = resolve_name(find_family(spec.family).network)(spec)
    pruned = getattr(spec.size, "from_shapes", "")
    if pruned and checkpoints:
        network = resolve_name(pruned)(spec, shapes_in(spec, network.state_dict(), checkpoints))
    return network


def load_model(
    spec: ModelSpec,
    checkpoints: Sequence[Path] = (),
    random_seed: int | None = None,
    decoder: Path | None = None,
) -> tuple[nn.Module, WeightsInfo]:
    """The torch model with its weights, in evaluation mode; arguments and errors as ``checkpoints.load_weights``.

    Without checkpoints and seed the official file is used.
    """
    from samexport.models.weights.checkpoints import load_weights

    network = empty_network(spec, checkpoints)
    found = load_weights(spec, network.state_dict(), checkpoints=checkpoints, decoder=decoder, random_seed=random_seed)
    network.load_state_dict(found.state, strict=True, assign=True)
    network.eval().requires_grad_(False)
    return network, WeightsInfo(found.kind, found.source, found.sha256, found.seed, found.untrained)


def reload_model(
    spec: ModelSpec, wanted: WeightsInfo, checkpoints: Sequence[Path] = (), decoder: Path | None = None
) -> nn.Module:
    """The torch model with the weights of a bundle.

    Random weights are made again from their seed, demo weights come with the package; others come from
    ``checkpoints``, or else from the official file in the cache. A decoder's own file may be given as ``decoder``,
    or as the last of the checkpoints.

    Raises:
        ConfigError: the weights are not those of the bundle.
        CheckpointError: they cannot be had or read.
    """
    if wanted.kind == "random":
        return _with_random_weights(spec, wanted, checkpoints, decoder)
    if wanted.kind == "demo" and not checkpoints:
        checkpoints = demo_checkpoint(spec)
    if not checkpoints and (spec.source is None or (spec.source.sha256 or "") not in _hashes(wanted)):
        # the official file is not among them, so it is not downloaded to find that out
        raise ConfigError(f"the bundle was made from {wanted.source}; give the files with --checkpoint")
    try:
        network, found = load_model(spec, checkpoints, decoder=decoder)
    except CheckpointError:
        if decoder or len(checkpoints) < 2:
            raise
        network, found = load_model(spec, checkpoints[:-1], decoder=checkpoints[-1])
    require_same(wanted, found)
    return network


def require_same(wanted: WeightsInfo, found: WeightsInfo, option: str = "--checkpoint") -> None:
    """Refuse other weights than a bundle's, as told by their hashes or seed: ConfigError names both and ``option``."""
    # demo weights that a user gives as files are a checkpoint by kind
    if (wanted.seed, _hashes(wanted)) != (found.seed, _hashes(found)):
        hashes = " + ".join(h[:8] for h in _hashes(wanted)), " + ".join(h[:8] for h in _hashes(found))
        raise ConfigError(
            f"the bundle was made from {wanted.source}, not {found.source} (sha256 {hashes[0]}, not {hashes[1]});"
            f" give the files that it was made from with {option}"
        )


def _hashes(info: WeightsInfo) -> list[str]:
    """Of each file, in any order; random weights have none."""
    return sorted((info.sha256 or "none").split(" + "))


def _with_random_weights(
    spec: ModelSpec, wanted: WeightsInfo, checkpoints: Sequence[Path], decoder: Path | None
) -> nn.Module:
    """From the seed; files may be given if they hold the same numbers."""
    network, found = load_model(spec, random_seed=wanted.seed)
    require_same(wanted, found)
    if checkpoints or decoder:
        other, found = load_model(spec, checkpoints, decoder=decoder)
        own = network.state_dict()
        if not all(tensor.equal(own[key]) for key, tensor in other.state_dict().items()):
            require_same(wanted, found)
    return network
