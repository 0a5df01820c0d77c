"""A whole SAM: image encoder, prompt encoder, mask decoder, with the official state-dict names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from samexport.models.architectures.mask_decoder import MaskDecoder
from samexport.models.architectures.prompt_encoder import PromptEncoder
from samexport.models.spec import ModelSpec


class Sam(nn.Module):
    """The three parts under their official names; graphs are built from them, it has no forward itself."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.image_encoder: nn.Module = resolve_name(spec.image_encoder)()
        self.prompt_encoder = PromptEncoder(spec.embed_dim, spec.frame.size)
        self.mask_decoder = MaskDecoder(spec.embed_dim, spec.decoder_mlp_dim)


class _NoInit(TorchFunctionMode):
    """Skips ``torch.nn.init``; drawing on the meta device makes torch import its compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        drawn = getattr(func, "__module__", "") == "torch.nn.init"
        return given.get("tensor") if drawn else func(*args, **given)


def empty_sam(spec: ModelSpec) -> Sam:
    """A SAM whose tensors have shapes and no values; ``load_state_dict(..., assign=True)`` gives it values."""
    with torch.device("meta"), _NoInit():
        return Sam(spec)
