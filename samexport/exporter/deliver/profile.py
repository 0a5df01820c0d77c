"""What another program takes of a model, as data: its files, its rules of feeding them, and how to load them there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samexport.runtimes.bundle import Manifest

RULES = "its rules only, the program itself was not run"
Values = dict[str, str]
"""What stands for ``$name`` in texts: sizes, rows of numbers, names."""


@dataclass(frozen=True, eq=False)
class Framed:
    """A picture as a program feeds it.

    Attributes:
        tensor: the encoder's input.
        scale: what x and y of a point are multiplied by, [2].
        image_hw: height and width of the picture.
        told: the height and width that the decoder is told; ``orig_im_size`` and its like.
    """

    tensor: NDArray[Any]
    scale: NDArray[np.float64]
    image_hw: tuple[int, int]
    told: tuple[int, int]


Outputs = Mapping[str, NDArray[Any]]
"""A decoder's, by name and in its order."""

Role = Literal["first", "second", "third", "points", "labels", "boxes", "mask", "has mask", "size"]
"""What a program feeds: the encoder's outputs, points, their labels, boxes if not as points, an absent mask, its flag,
the size it tells."""


@dataclass(frozen=True)
class Host:
    """How a program feeds its files, as far as masks depend on it.

    Attributes:
        frame: (picture uint8 [H, W, 3], side of the model's frame) to the encoder's input.
        encoder: name of the encoder's input.
        decoder: names of the decoder's inputs, in the program's order, and what it feeds there.
        mask: the decoder's outputs to a mask bool [H, W] of the picture.
        padding: when the program adds SAM's padding point to a prompt.
        prompts: which ones it has; "point or box" is one of either.
        best_of_three: it shows the best of the masks of an ambiguous prompt, whatever the prompt.
        absent: the flag of an absent mask.
        whole: points are cut off to whole pixels of the frame.
        types: of what is not fed as float32.
        shapes: of what is shaped otherwise than SAM's official decoder takes it.
    """

    frame: Callable[[NDArray[np.uint8], int], Framed]
    encoder: str
    decoder: Mapping[str, Role]
    mask: Callable[[Outputs, Framed], NDArray[np.bool_]]
    padding: Literal["always", "without box", "never"] = "always"
    prompts: Literal["any", "points", "point or box"] = "any"
    best_of_three: bool = False
    absent: float = 0.0
    whole: bool = False
    types: Mapping[Role, str] = field(default_factory=dict)
    shapes: Mapping[Role, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A program, and what it takes.

    Attributes:
        name: as ``--for`` takes it.
        title: the program, or what the files are.
        read: the versions and files that the facts were read from.
        tried: with what it was tried.
        files: path in the folder to ONNX text (:mod:`samexport.exporter.deliver.adapt`); first what encodes the
            picture, then what decodes prompts.
        host: its rules.
        load: up to five lines on how to load the files there, and what is different there.
        same_hw: (side of the frame) to the height and width of a picture that the program feeds as we do: pixel by
            pixel, without padding of its own.
        texts: path in the folder to a configuration file.
        metadata: path of an ONNX file to its ``metadata_props``.
        graphs: what the bundle must have.
        size: side of the frame that the program is written for; None takes any.
        values: what texts name, besides ``$NAME``, ``$MODEL``, ``$SUMMARY`` and ``$LICENCE`` (quoted) and ``$VERSION``.
        front_matter: YAML at the head of the card, where a hub reads it.
    """

    name: str
    title: str
    read: str
    files: Mapping[str, str]
    host: Host
    load: tuple[str, ...]
    same_hw: Callable[[int], tuple[int, int]]
    tried: str = RULES
    texts: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    graphs: tuple[str, ...] = ("encoder", "decoder_with_mask")
    size: int | None = 1024
    values: Callable[[Manifest], Values] = lambda _: {}
    front_matter: str = ""
