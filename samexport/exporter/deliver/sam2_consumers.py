"""Programs that take models of the SAM 2 family for pictures, as data. Facts were read in the programs' own code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samexport.exporter.deliver import sam2_adapters as adapters
from samexport.exporter.deliver import sam_hosts as hosts
from samexport.exporter.deliver import sam_texts as texts
from samexport.exporter.deliver.profile import Framed, Host, Outputs, Profile, Role
from samexport.runtimes.host.detector import resize_as_opencv

_PROMPT: dict[str, Role] = {
    "point_coords": "points",
    "point_labels": "labels",
    "mask_input": "mask",
    "has_mask_input": "has mask",
}


def stretched(image: NDArray[np.uint8], size: int) -> Framed:
    """To the square between neighbours, whatever the proportions, by ``cv2.resize``; normalised."""
    pixels = resize_as_opencv(image, size, size)
    scale = np.array([size / image.shape[1], size / image.shape[0]])
    hw = image.shape[0], image.shape[1]
    return Framed(hosts.normalised(pixels, size, hosts.MEAN, hosts.STD), scale, hw, hw)


def stretched_floats(image: NDArray[np.uint8], size: int) -> Framed:
    """To the square by Pillow's bilinear filter on floats, which widens when it shrinks, as SAM 2's own code does."""
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    pixels = np.stack([np.asarray(c.resize((size, size), Image.Resampling.BILINEAR)) for c in channels], axis=-1)
    framed = stretched(image, size)
    return replace(framed, tensor=hosts.normalised(pixels, size, hosts.MEAN, hosts.STD))


def unstretched(outputs: Outputs, framed: Framed) -> NDArray[np.bool_]:
    """The mask, scaled to the picture by ``cv2.resize``."""
    whole: NDArray[np.bool_] = hosts.neighbours(outputs["masks"][0, 0][..., None], framed.image_hw)[..., 0] > 0
    return whole


def _square(size: int) -> tuple[int, int]:
    return size, size


def _named(text: str, given: str, embed: str, fine: str, middle: str) -> str:
    for name, value in {"$input": given, "$embed": embed, "$fine": fine, "$middle": middle}.items():
        text = text.replace(name, value)
    return text


_NAMES = ("image", "image_embed", "high_res_feats_0", "high_res_feats_1")
_OSAM_NAMES = ("input", "image_embeddings", "high_res_features1", "high_res_features2")
_STRETCHED = "Pictures are stretched to a square with a filter that does not widen, unlike that of SAM 2's own code."

_sam2 = partial(
    Profile, values=adapters.values, same_hw=_square, graphs=("image_encoder", "mask_decoder_with_mask"), size=None
)
_LABELLING = Host(
    stretched,
    "image",
    {"image_embed": "third", "high_res_feats_0": "first", "high_res_feats_1": "second", **_PROMPT},
    unstretched,
    padding="never",
    whole=True,
)
_labelling = partial(
    _sam2,
    files={
        "$NAME.encoder.onnx": _named(adapters.encoder("fine middle embed"), *_NAMES),
        "$NAME.decoder.onnx": _named(adapters.LOW_RES_DECODER, *_NAMES),
    },
)

PROFILES = (
    _labelling(
        name="anylabeling",
        title="AnyLabeling",
        read="AnyLabeling 0.4.43 (services/auto_labeling/sam2_onnx.py, segment_anything.py)",
        tried="its own model class and a 64-pixel model of random weights: masks were those of the rules, IoU 1.0000",
        texts={"config.yaml": texts.ANYLABELING},
        host=_LABELLING,
        load=(
            "In AnyLabeling choose Auto Labeling, Load Custom Model, and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object.",
            _STRETCHED,
            "Points are cut off to whole pixels of the square.",
        ),
    ),
    _labelling(
        name="x-anylabeling",
        title="X-AnyLabeling",
        read="X-AnyLabeling 4.2.1 (services/auto_labeling/__base__/sam2.py)",
        texts={"config.yaml": texts.ANYLABELING.replace("segment_anything", "segment_anything_2")},
        host=replace(_LABELLING, frame=stretched_floats),
        load=(
            "In X-AnyLabeling's list of models choose Load Custom Model and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object. Video needs PyTorch there.",
            "Pictures are scaled as SAM 2's own code does it; points are cut off to whole pixels of the square.",
        ),
    ),
    _sam2(
        name="osam",
        title="osam, the model runner of labelme",
        read="osam 0.8.1 (osam/_models/sam2/_models.py)",
        files={
            "encoder.onnx": _named(adapters.encoder("embed fine middle"), *_OSAM_NAMES),
            "decoder.onnx": _named(adapters.PICTURE_DECODER, *_OSAM_NAMES),
        },
        texts={"osam_model.py": texts.OSAM.replace("_models.sam.", "_models.sam2.").replace("Sam\n", "Sam2 as Sam\n")},
        host=Host(
            stretched,
            "input",
            {
                "image_embeddings": "first",
                "high_res_features1": "second",
                "high_res_features2": "third",
                **_PROMPT,
                "orig_im_size": "size",
            },
            hosts.first_mask,
            padding="never",
            types={"size": "int64"},
        ),
        size=1024,
        load=(
            "osam has its models in its code. With this folder on Python's path, `import osam_model` adds this one;",
            "then `osam.apis.generate` with a `GenerateRequest` of the model `$NAME:latest` runs it.",
            "The import copies the files to osam's cache. labelme's menu lists osam's own models only.",
            _STRETCHED,
        ),
    ),
    _sam2(
        name="darktable",
        title="darktable",
        read="darktable 5.6, 085d5df (src/common/ai/segmentation.c)",
        files={
            "$NAME/encoder.onnx": _named(adapters.encoder("embed fine middle"), *_NAMES),
            "$NAME/decoder.onnx": _named(adapters.FRAME_DECODER, *_NAMES),
        },
        texts={"$NAME/config.json": texts.DARKTABLE},
        host=Host(
            hosts.in_square_darktable,
            "image",
            {"image_embed": "first", "high_res_feats_0": "second", "high_res_feats_1": "third", **_PROMPT},
            hosts.out_of_square_darktable,
        ),
        size=1024,
        load=(
            "Zip the folder `$NAME` as `$NAME.dtmodel` and install it in darktable's preferences, AI.",
            "darktable keeps a picture's proportions and pads with zeros, where SAM 2 stretches; it scales between",
            "four neighbours without widening and lays the mask's corners on the picture's. Masks differ by as much.",
            "Then it moves edges to those of the picture, which is not in the table below.",
        ),
    ),
)
