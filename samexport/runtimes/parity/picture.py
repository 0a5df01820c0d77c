"""The golden picture's prompts and their masks: the whole way that a user's picture goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samexport.models.spec import Preprocess
from samexport.runtimes.bundle import Bundle
from samexport.runtimes.host.frames import FrameMap, upscale_mask
from samexport.runtimes.parity.compare import Tier
from samexport.runtimes.parity.golden import picture_prompts
from samexport.runtimes.tasks.segment import Segmenter


@dataclass(frozen=True)
class PictureMasks:
    """Masks bool [prompts, H, W], their logits [prompts, L, L], the runtime and where its operations ran."""

    masks: NDArray[np.bool_]
    low_res_masks: NDArray[np.float32]
    runtime: str
    placement: str


def picture_masks(
    bundle: Bundle, picture: NDArray[np.uint8], runtime: str | None = None, threads: int | None = None
) -> PictureMasks:
    """What the golden picture's prompts are answered with, by the code that ``samexport segment`` runs."""
    with Segmenter(bundle, runtime=runtime, threads=threads) as segmenter:
        segmenter.set_image(picture)
        prompts = picture_prompts(picture, background=segmenter.session.background)
        results = segmenter.predict(prompts, multimask=False)
        name, _, where = segmenter.runtime.partition(": ")
    logits = np.concatenate([r.low_res_masks for r in results])
    return PictureMasks(np.concatenate([r.masks for r in results]), logits, name, where)


def unsure_pixels(
    low_res_masks: NDArray[np.float32] | None, picture: NDArray[np.uint8], frame: Preprocess, limits: Tier
) -> NDArray[np.bool_] | None:
    """Where in the picture logits are within the tier's band of the threshold, bool [prompts, H, W]."""
    if low_res_masks is None:
        return None
    place, reach = FrameMap(picture.shape[:2], frame), limits.band * float(np.ptp(low_res_masks))
    if not np.isfinite(reach):
        return None
    return upscale_mask(low_res_masks, place, -reach) & ~upscale_mask(low_res_masks, place, reach)
