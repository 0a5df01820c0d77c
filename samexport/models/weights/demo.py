"""The weights that come with the package: small, free, and trained on drawn scenes alone."""

from __future__ import annotations

from pathlib import Path

from samexport.errors import ConfigError
from samexport.models.spec import ModelSpec


def demo_checkpoint(spec: ModelSpec) -> tuple[Path, ...]:
    """The files, to be used like a checkpoint; ConfigError if the model has none."""
    if not spec.demo:
        raise ConfigError(f"there are no demo weights of {spec.name}; --encoder tinyvit has some")
    return tuple(Path(__file__).parent / name for name in spec.demo)
