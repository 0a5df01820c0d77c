"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Encoder = Annotated[str, typer.Option(help="Which model; `samexport list` shows all.")]
Out = Annotated[Path | None, typer.Option(help="Bundle folder; the default is named after the model.")]
Checkpoints = Annotated[
    list[Path] | None, typer.Option("--checkpoint", help="Weights: .pt, .pth or .safetensors; may be repeated.")
]
Weights = Annotated[str, typer.Option(help="official: cache or download. random: seeded, means nothing.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random weights.")]
Split = Annotated[bool, typer.Option("--split-decoder", help="decoder_prologue + decoder_step instead of decoder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtimes.")]
RuntimeName = Annotated[str | None, typer.Option(help="Runtime; `samexport doctor` lists them.")]
Sampler = Annotated[
    str | None, typer.Option("--sampler", help="Add a detector that proposes boxes: object-aware (MobileSAMv2).")
]
SamplerCheckpoint = Annotated[
    Path | None, typer.Option("--sampler-checkpoint", help="Its weights: ObjectAwareModel.pt or .safetensors.")
]
SamplerSize = Annotated[
    int | None, typer.Option("--sampler-size", help="Side of its input, a multiple of 32; default 1024.")
]
DecoderCheckpoint = Annotated[
    Path | None,
    typer.Option("--decoder-checkpoint", help="Prompt encoder and decoder from here: Prompt_guided_Mask_Decoder.pt."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
