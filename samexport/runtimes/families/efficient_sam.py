"""EfficientSAM on the host: as SAM, with six points a prompt, and what is compared of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samexport.errors import PromptError
from samexport.models.families.efficient_sam import ABSENT, SLOTS
from samexport.runtimes.base import Tensors
from samexport.runtimes.families.sam import SamSession
from samexport.runtimes.host.frames import FrameMap
from samexport.runtimes.host.prompts import Prompt, check_inside
from samexport.runtimes.host.sam_prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from samexport.runtimes.parity.golden import Case, Made, Reference
from samexport.runtimes.session import Decoded, Encoded, check_numbers

PROMPT_COUNTS = (1, 3, 7, 64)


class EfficientSamSession(SamSession):
    """The encoder and the decoder. The best of masks 1..3 answers every prompt; official code never uses mask 0."""

    background = False

    def pack(self, prompts: Sequence[Prompt], place: FrameMap) -> Tensors:
        """``point_coords`` [N, 6, 2] and ``point_labels`` [N, 6]: the corners of the box, then the points.

        Raises:
            PromptError: no prompt, a coordinate outside the image, more than six points, or what the model was not
                trained with: background points and earlier masks.
        """
        if not prompts:
            raise PromptError("there is no prompt; give a point or a box")
        check_inside(prompts, place.image_hw)
        coords, labels = _nothing(len(prompts))
        for number, prompt in enumerate(prompts):
            if prompt.mask_input is not None:
                raise PromptError(f"prompt {number} has a mask; {self.manifest.model} takes points and boxes alone")
            if 0 in prompt.labels:
                raise PromptError(f"prompt {number} has a background point, which EfficientSAM was not trained with")
            box = np.zeros((0, 2)) if prompt.box is None else prompt.box.reshape(2, 2)
            points = np.concatenate([box, prompt.points])
            if len(points) > SLOTS:
                most = f"{SLOTS - len(box)} points{' beside a box' if len(box) else ''}"
                raise PromptError(
                    f"prompt {number} has {len(prompt.points)} points; {self.manifest.model} takes {most}"
                )
            coords[number, : len(points)] = place.to_frame(points)
            labels[number, : len(points)] = [*(BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)[: len(box)], *prompt.labels]
        return {"point_coords": coords, "point_labels": labels}

    def click(self, points: NDArray[np.float64]) -> Tensors:
        """One point each."""
        coords, labels = _nothing(len(points))
        coords[:, 0], labels[:, 0] = points, 1
        return {"point_coords": coords, "point_labels": labels}

    def check(self, prompts: Sequence[Prompt], packed: Tensors) -> None:
        """Every file takes six points."""

    def decode(self, encoded: Encoded, packed: Tensors) -> Decoded:
        """Four masks a prompt."""
        found = self.graphs.run("decoder", {**encoded.tensors, **packed}, ("low_res_masks", "iou_predictions"))
        logits, scores = found["low_res_masks"], found["iou_predictions"]
        check_numbers("decoder", logits, scores)
        return Decoded(logits, scores)

    def choose(self, packed: Tensors, decoded: Decoded) -> list[int]:
        """The one with the best predicted IoU."""
        return [max(self.manifest.mask_outputs, key=lambda index: float(found[index])) for found in decoded.scores]


def _nothing(count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates and labels of absent points alone."""
    return np.full((count, SLOTS, 2), -1, np.float32), np.full((count, SLOTS), ABSENT, np.float32)


def make_cases(reference: Reference) -> list[Case]:
    """The encoder on the picture, and seeded clicks, boxes and both for what it makes of the picture."""
    rng, frame = reference.rng, reference.spec.frame
    cases = [reference.case("picture", ("encoder",), {"image": Made("picture")})]
    embeddings = {"image_embeddings": cases[0].expected["image_embeddings"]}
    for count in PROMPT_COUNTS:
        coords, labels = _nothing(count)
        for number in range(count):
            given = ((1,), (2, 3), (2, 3, 1), (1,) * SLOTS)[number % 4]
            coords[number, : len(given)] = rng.uniform(0, frame.size - 1, (len(given), 2)).round(2)
            labels[number, : len(given)] = given
        inputs = {**embeddings, "point_coords": coords, "point_labels": labels}
        cases.append(reference.case(f"{count}x{SLOTS}", ("decoder",), inputs))
    return cases
