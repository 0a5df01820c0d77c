"""What a phone's GPU was seen to compute wrongly, or to refuse, where the accelerator that runs here is right.

Nothing here can be tried without the phone, so each rule says who saw it where. Files made for a GPU keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samexport.runtimes.formats.tflite import constant_bytes, shape_of

_FLOAT16 = 1
_WITH_WEIGHTS = frozenset({"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"})
_SUMS = frozenset({"ADD", "SUB"})


class Wires:
    """One entry point: its operations with their kinds, who computes each tensor and who reads it.

    Args:
        model: ``ModelT``.
        subgraph: one of its subgraphs.
        kinds: of its operations, in their order.
    """

    def __init__(self, model: Any, subgraph: Any, kinds: Sequence[str]) -> None:
        self.kinds, self.tensors, self._model = kinds, subgraph.tensors, model
        self.read = [[int(t) for t in each.inputs if t >= 0] for each in subgraph.operators]
        self.made = [[int(t) for t in each.outputs] for each in subgraph.operators]
        self.inputs, self.outputs = ([int(t) for t in side] for side in (subgraph.inputs, subgraph.outputs))
        self.maker = {tensor: place for place, tensors in enumerate(self.made) for tensor in tensors}
        self.readers: dict[int, list[int]] = {}
        for place, tensors in enumerate(self.read):
            for tensor in dict.fromkeys(tensors):
                self.readers.setdefault(tensor, []).append(place)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Sizes of a tensor."""
        return shape_of(self.tensors[tensor])

    def constant(self, tensor: int) -> bool:
        """Whether its data is in the file."""
        return constant_bytes(self._model, self.tensors[tensor]) is not None

    def unshaped(self, tensor: int) -> int:
        """What a tensor was before it was given other shapes."""
        while (place := self.maker.get(tensor)) is not None and self.kinds[place] == "RESHAPE":
            tensor = self.read[place][0]
        return tensor


Found = Iterator[tuple[int, int, str]]
"""An operation, a tensor of it, and what is wrong."""


@dataclass(frozen=True)
class Trap:
    """One rule.

    Attributes:
        seen: where.
        refused: whether a file that is made for a GPU must not have it; else it is told.
        find: where it is.
    """

    seen: str
    refused: bool
    find: Callable[[Wires], Found]


def _shared_of_rank_3(wires: Wires) -> Found:
    """Computed tensors of three dimensions that several operations read."""
    for tensor, readers in wires.readers.items():
        if len(wires.shape(tensor)) == 3 and len(readers) > 1 and not wires.constant(tensor):
            place = wires.maker.get(tensor, readers[0])
            yield place, tensor, f"{list(wires.shape(tensor))} of three dimensions is read by {len(readers)} operations"


def _softmax_of_constant(wires: Wires) -> Found:
    for place, kind in enumerate(wires.kinds):
        maker = wires.maker.get(wires.unshaped(wires.read[place][0])) if kind == "SOFTMAX" else None
        if maker is None or wires.kinds[maker] not in _SUMS:
            continue
        shape = wires.shape(wires.made[maker][0])
        if any(wires.constant(t) and wires.shape(t) != shape for t in wires.read[maker]):
            yield place, wires.made[place][0], "a softmax right after a constant that is broadcast was added"


def _output_read_again(wires: Wires) -> Found:
    for tensor in wires.outputs:
        if tensor in wires.readers and tensor not in wires.inputs:
            yield wires.maker[tensor], tensor, f"an output is read by {wires.kinds[wires.readers[tensor][0]]} as well"


def _input_passed_on(wires: Wires) -> Found:
    for tensor in wires.outputs:
        if wires.unshaped(tensor) in wires.inputs:
            yield wires.maker.get(tensor, 0), tensor, "an input is passed on as an output"


def _half_elsewhere(wires: Wires) -> Found:
    for place, kind in enumerate(wires.kinds):
        source, made = wires.read[place][:1], wires.made[place][0]
        if kind != "DEQUANTIZE" or wires.tensors[source[0]].type != _FLOAT16:
            continue
        for reader in wires.readers.get(made, []):
            if wires.kinds[reader] not in _WITH_WEIGHTS or made == wires.read[reader][0]:
                yield place, made, f"float16 is cast for {wires.kinds[reader]}, not for weights of a layer"


TRAPS: Mapping[str, Trap] = {
    "shared rank 3": Trap("LiteRT issue 8619, a decoder on Mali: mask correlation 0.27", False, _shared_of_rank_3),
    "softmax of a constant": Trap("LiteRT samples, SAM 3 on Metal", False, _softmax_of_constant),
    "output read again": Trap("MoViNet on Mali: a convolution scaled by 2.5", True, _output_read_again),
    "input passed on": Trap("MoViNet on Mali: it reads zero", True, _input_passed_on),
    "float16 elsewhere": Trap("LiteRT samples, SAM 3: Metal refuses it", True, _half_elsewhere),
}
"""By name; the sources are repositories of google-ai-edge and john-rocky, read in November 2026."""
