"""Files as another program feeds them, beside our own segmenter: do both find the same masks?

The rules are facts about the programs, written down as data (:class:`samexport.exporter.deliver.profile.Host`); what
follows them is ours, ONNX Runtime and numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from samexport.errors import ExportFailed
from samexport.exporter.deliver.profile import Framed, Host, Outputs, Profile, Role
from samexport.files import reason
from samexport.runtimes.adapters.ort import session_options
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.prompts import Prompt
from samexport.runtimes.parity.golden import picture_prompts
from samexport.runtimes.tasks.segment import Segmentation, Segmenter

_BOX, _PADDING = (2.0, 3.0), -1.0
_NAMES = ("one click", "a click and one outside", "a box and a click", "a box")


@dataclass(frozen=True)
class Compared:
    """How far a program's masks of one picture are ours.

    Attributes:
        picture: which one.
        size: its width and height.
        iou: of the masks of each prompt, by its name.
    """

    picture: str
    size: tuple[int, int]
    iou: dict[str, float]

    @property
    def worst(self) -> float:
        """The lowest IoU."""
        return min(self.iou.values())


def compare(
    profile: Profile, files: Sequence[Path], bundle: Bundle, picture: NDArray[np.uint8], threads: int | None = None
) -> tuple[Compared, ...]:
    """Masks of the golden picture, scaled so that the program has nothing to scale, and as it is.

    Raises:
        ExportFailed: a file does not load or run, or its inputs are not those that the program feeds.
    """
    encoder, decoder = (_open(path, threads) for path in files[:2])
    _check_inputs(encoder, (profile.host.encoder,))
    _check_inputs(decoder, tuple(profile.host.decoder))
    height, width = profile.same_hw(bundle.manifest.frame.size)
    scaled = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    with Segmenter(bundle, threads=threads) as segmenter:
        return tuple(
            _compare(name, image, profile.host, (encoder, decoder), segmenter)
            for name, image in (("nothing to scale", scaled), ("the golden picture", picture))
        )


def _compare(
    name: str, picture: NDArray[np.uint8], host: Host, sessions: tuple[Any, Any], segmenter: Segmenter
) -> Compared:
    encoder, decoder = sessions
    size, low_res = (getattr(segmenter.bundle.manifest.frame, name) for name in ("size", "low_res"))
    framed = host.frame(picture, size)
    features = list(_run(encoder, {host.encoder: framed.tensor}).values())
    segmenter.set_image(picture)
    found = {}
    for what, prompt in _prompts(picture, host):
        outputs = _run(decoder, decoder_inputs(host, prompt, framed, features, low_res))
        found[what] = _iou(host.mask(outputs, framed), _ours(segmenter.predict(prompt, multimask=True), host))
    return Compared(name, (picture.shape[1], picture.shape[0]), found)


def _prompts(picture: NDArray[np.uint8], host: Host) -> list[tuple[str, Prompt]]:
    """Those that the program has: the golden picture's clear ones, a single click, a box alone."""
    clicks, both = picture_prompts(picture)
    one = Prompt(clicks.points[:1], clicks.labels[:1])
    prompts = [one, clicks, both, replace(both, points=both.points[:0], labels=both.labels[:0])]
    kinds = {"any": prompts, "points": prompts[:2], "point or box": [one, prompts[3]]}[host.prompts]
    return [(name, prompt) for name, prompt in zip(_NAMES, prompts, strict=True) if any(prompt is k for k in kinds)]


def _ours(answer: Segmentation, host: Host) -> NDArray[np.bool_]:
    """The mask that answers the prompt, or the best one of an ambiguous prompt's where the program takes that."""
    if host.best_of_three:
        vague = [place for place, index in enumerate(answer.indices) if index]
        place = max(vague, key=lambda place: float(answer.scores[place]))
    else:
        place = answer.indices.index(answer.chosen)
    mask: NDArray[np.bool_] = answer.masks[place]
    return mask


def decoder_inputs(
    host: Host, prompt: Prompt, framed: Framed, features: Sequence[NDArray[Any]], side: int
) -> dict[str, NDArray[Any]]:
    """A prompt as the program feeds it, by the names of the decoder's inputs: points and then the corners of a box.

    Args:
        host: the program's rules.
        prompt: in pixels of the picture.
        framed: the picture.
        features: the encoder's outputs.
        side: of masks at low resolution.
    """
    coords = [tuple(point) for point in prompt.points * framed.scale]
    labels = [float(label) for label in prompt.labels]
    corners = [] if prompt.box is None else [tuple(corner) for corner in prompt.box.reshape(2, 2) * framed.scale]
    if corners and "boxes" not in host.decoder.values():
        coords += corners
        labels += _BOX
    if host.padding == "always" or (host.padding == "without box" and prompt.box is None):
        coords, labels = [*coords, (0.0, 0.0)], [*labels, _PADDING]
    points = np.reshape(coords, (1, -1, 2))
    outputs: tuple[Role, ...] = ("first", "second", "third")
    given: dict[Role, NDArray[Any]] = {
        **dict(zip(outputs, features, strict=False)),
        "points": np.trunc(points) if host.whole else points,
        "labels": np.array([labels]),
        "boxes": np.reshape(corners, (1, -1, 4)),
        "mask": np.zeros((1, 1, side, side)),
        "has mask": np.array([host.absent]),
        "size": np.array(framed.told),
    }
    return {
        name: given[role].reshape(host.shapes.get(role, given[role].shape)).astype(host.types.get(role, "float32"))
        for name, role in host.decoder.items()
    }


def _open(path: Path, threads: int | None) -> Any:
    try:
        return onnxruntime.InferenceSession(
            path, sess_options=session_options(threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        # ONNX Runtime's exceptions have no common base
        raise ExportFailed(f"{path.name} cannot be opened by ONNX Runtime: {reason(error)}") from error


def _check_inputs(session: Any, names: Sequence[str]) -> None:
    found = tuple(given.name for given in session.get_inputs())
    if found != tuple(names):
        raise ExportFailed(f"a file has the inputs {', '.join(found)}; the program feeds {', '.join(names)}")


def _run(session: Any, inputs: dict[str, NDArray[Any]]) -> Outputs:
    try:
        outputs = session.run(None, inputs)
    except Exception as error:
        raise ExportFailed(f"a file does not run as the program feeds it: {reason(error)}") from error
    return dict(zip((o.name for o in session.get_outputs()), outputs, strict=True))


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    if one.shape != other.shape:
        raise ExportFailed(f"the program would get a mask {list(one.shape)}, the picture is {list(other.shape)}")
    union = np.count_nonzero(one | other)
    return 1.0 if union == 0 else float(np.count_nonzero(one & other) / union)
