"""Programs that were looked at and take no files that samexport can make, and why."""

from __future__ import annotations

from collections.abc import Mapping

_STUDIO = "sam2-studio (huggingface/sam2-studio, 0dd708d)"

REFUSED: Mapping[tuple[str, str], str] = {
    ("sam2-studio", "sam"): f"{_STUDIO} runs SAM 2 only, as CoreML models that are built into it",
    ("sam2-studio", "sam2"): f"{_STUDIO} has CoreML models built into it that encode prompts and decode masks in two"
    " files; samexport's SAM 2 does both in one",
    ("ai-hub", "sam2"): "Qualcomm AI Hub's SAM 2 (qai_hub_models 0.65.0) encodes prompts in the file that encodes the"
    " picture; samexport's SAM 2 does it in the decoder",
    ("model-api", "sam2"): "model_api (openvino-model-api 0.4.7) has classes for SAM 1 only",
}
"""By the name that ``--for`` takes and the family of the model; the version is the one that was read."""
